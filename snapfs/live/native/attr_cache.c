/* A cache of what the namespace has on inodes: their attributes, and which have no extended attribute at all.
 *
 * The namespace owns both (namespace_writer.py, xattrs.py). It passes each row that it reads, and each that a
 * transaction changed, after the commit and before the change is answered; so a cached row is the one that it would
 * return itself. What a reader of ours finds (names_lookup.c) is taken only if nothing was passed since before it looked:
 * what it saw may be older than that. An inode that is not cached costs a look at the database.
 *
 * Invariants:
 * 1. A slot holds one inode, the one that was passed last; so memory is bounded.
 * 2. A cached row is the row as of the last commit that changed it. An inode in `no_xattrs` has no extended attribute.
 *
 * `attr_cache.lock` is a leaf (lock_order.h).
 */
#include "content.h"

#include <stdlib.h>
#include <sys/stat.h>

int attr_cache_open(struct attr_cache *cache)
{
    pthread_mutex_init(&cache->lock, NULL);
    cache->inodes = calloc(ATTR_CACHE_SLOTS, sizeof *cache->inodes);
    cache->no_xattrs = calloc(ATTR_CACHE_SLOTS, sizeof *cache->no_xattrs);
    return cache->inodes && cache->no_xattrs ? 0 : -ENOMEM;
}

void attr_cache_close(struct attr_cache *cache)
{
    free(cache->inodes);
    free(cache->no_xattrs);
    cache->inodes = NULL;
    cache->no_xattrs = NULL;
}

static size_t slot_of(uint64_t ino) { return (size_t)(ino * 0x9e3779b97f4a7c15ull >> 32) & (ATTR_CACHE_SLOTS - 1); }

bool attr_cache_find(struct attr_cache *cache, uint64_t ino, struct sc_inode *row)
{
    pthread_mutex_lock(&cache->lock);
    *row = cache->inodes[slot_of(ino)];
    pthread_mutex_unlock(&cache->lock);
    return ino && row->ino == ino; /* 0: an empty slot */
}

uint64_t attr_cache_generation(struct attr_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    uint64_t generation = cache->generation;
    pthread_mutex_unlock(&cache->lock);
    return generation;
}

void attr_cache_offer(struct attr_cache *cache, const struct sc_inode *row, uint64_t generation)
{
    pthread_mutex_lock(&cache->lock);
    if (cache->generation == generation)
        cache->inodes[slot_of(row->ino)] = *row;
    pthread_mutex_unlock(&cache->lock);
}

void attr_cache_offer_no_xattrs(struct attr_cache *cache, uint64_t ino, uint64_t generation)
{
    pthread_mutex_lock(&cache->lock);
    if (cache->generation == generation)
        cache->no_xattrs[slot_of(ino)] = ino;
    pthread_mutex_unlock(&cache->lock);
}

static void set_inode(struct attr_cache *cache, uint64_t ino, const struct sc_inode *row)
{
    struct sc_inode *at = &cache->inodes[slot_of(ino)];
    pthread_mutex_lock(&cache->lock);
    cache->generation++;
    if (row)
        *at = *row;
    else if (at->ino == ino)
        at->ino = 0;
    pthread_mutex_unlock(&cache->lock);
}

void attr_cache_put(struct attr_cache *cache, const struct sc_inode *row) { set_inode(cache, row->ino, row); }
void attr_cache_drop(struct attr_cache *cache, uint64_t ino) { set_inode(cache, ino, NULL); }

void attr_cache_put_no_xattrs(struct attr_cache *cache, uint64_t ino)
{
    pthread_mutex_lock(&cache->lock);
    cache->generation++;
    cache->no_xattrs[slot_of(ino)] = ino;
    pthread_mutex_unlock(&cache->lock);
}

bool attr_cache_has_no_xattrs(struct attr_cache *cache, uint64_t ino)
{
    pthread_mutex_lock(&cache->lock);
    bool no_xattrs = cache->no_xattrs[slot_of(ino)] == ino;
    pthread_mutex_unlock(&cache->lock);
    return no_xattrs;
}

/* -- for Python */

/* The fields of records.Inode. */
static PyObject *Core_cache_inode(sc_core *self, PyObject *inode)
{
    unsigned long long ino, mode, uid, gid, rdev, nlink, parent;
    long long atime_ns, mtime_ns, ctime_ns;
    PyObject *target;
    if (!PyTuple_Check(inode) || !PyArg_ParseTuple(inode, "KKKKKKLLLSK", &ino, &mode, &uid, &gid, &rdev, &nlink,
                                                   &atime_ns, &mtime_ns, &ctime_ns, &target, &parent)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "an Inode is needed");
        return NULL;
    }
    struct sc_inode row = {
        .ino = ino,
        .size = (uint64_t)PyBytes_GET_SIZE(target),
        .atime_ns = atime_ns,
        .mtime_ns = mtime_ns,
        .ctime_ns = ctime_ns,
        .mode = (uint32_t)mode,
        .nlink = (uint32_t)nlink,
        .uid = (uint32_t)uid,
        .gid = (uint32_t)gid,
        .rdev = (uint32_t)rdev,
        .parent = parent,
    };
    set_inode(&self->attr_cache, ino, &row);
    Py_RETURN_NONE;
}

/* As cache_inode takes them; None if it is not cached, or a symlink, whose target is not. */
static PyObject *Core_cached_inode(sc_core *self, PyObject *number)
{
    struct sc_inode row;
    uint64_t ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    if (!attr_cache_find(&self->attr_cache, ino, &row) || S_ISLNK(row.mode))
        Py_RETURN_NONE;
    return Py_BuildValue("(KIIIIILLLy#K)", (unsigned long long)row.ino, row.mode, row.uid, row.gid, row.rdev, row.nlink,
                         (long long)row.atime_ns, (long long)row.mtime_ns, (long long)row.ctime_ns, "", (Py_ssize_t)0,
                         (unsigned long long)row.parent);
}

static PyObject *Core_drop_inode(sc_core *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    set_inode(&self->attr_cache, ino, NULL);
    Py_RETURN_NONE;
}

static PyObject *Core_drop_all_inodes(sc_core *self, PyObject *unused)
{
    pthread_mutex_lock(&self->attr_cache.lock);
    self->attr_cache.generation++;
    for (size_t i = 0; i < ATTR_CACHE_SLOTS; i++)
        self->attr_cache.inodes[i].ino = self->attr_cache.no_xattrs[i] = 0;
    pthread_mutex_unlock(&self->attr_cache.lock);
    Py_RETURN_NONE;
}

static PyObject *Core_set_no_xattrs(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int no_xattrs;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &no_xattrs))
        return NULL;
    uint64_t *at = &self->attr_cache.no_xattrs[slot_of(ino)];
    pthread_mutex_lock(&self->attr_cache.lock);
    self->attr_cache.generation++;
    if (no_xattrs)
        *at = ino;
    else if (*at == ino)
        *at = 0;
    pthread_mutex_unlock(&self->attr_cache.lock);
    Py_RETURN_NONE;
}

PyMethodDef core_attr_cache_methods[] = {
    {"cache_inode", (PyCFunction)Core_cache_inode, METH_O,
     "cache_inode(inode): the row of an inode, as it is committed."},
    {"cached_inode", (PyCFunction)Core_cached_inode, METH_O, "cached_inode(ino): that row, None if it is not there."},
    {"drop_inode", (PyCFunction)Core_drop_inode, METH_O, "drop_inode(ino): it is not known, or there is none."},
    {"drop_all_inodes", (PyCFunction)Core_drop_all_inodes, METH_NOARGS,
     "Drop all inodes, and which have no extended attributes."},
    {"set_no_xattrs", (PyCFunction)Core_set_no_xattrs, METH_VARARGS,
     "set_no_xattrs(ino, has_none): whether it surely has no extended attribute."},
    {NULL},
};
