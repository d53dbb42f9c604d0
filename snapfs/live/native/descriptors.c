/* A bounded cache of open backing files, for all threads: the twin of snapfs/live/descriptors.py.
 *
 * Invariants:
 * 1. At most `limit` descriptors are open here, and as many more as are pinned at the same time.
 * 2. A pinned descriptor is not closed; one that is dropped while pinned is closed when its last pin goes.
 * 3. What was opened before a `drop` is not cached after it: its path may have led to another file.
 * 4. The list runs from the newest use to the oldest, and holds just what the map holds.
 *
 * The lock is a leaf: no system call is made under it. What is to be closed is carried out of it.
 */
#include "content.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void unlink_opened(Descriptors *self, struct opened *it)
{
    *(it->newer ? &it->newer->older : &self->newest) = it->older;
    *(it->older ? &it->older->newer : &self->oldest) = it->newer;
    it->newer = it->older = NULL;
}

static void link_newest(Descriptors *self, struct opened *it)
{
    it->older = self->newest;
    *(self->newest ? &self->newest->newer : &self->oldest) = it;
    self->newest = it;
}

/* Take it out of the cache. If nobody uses it, put it in front of `doomed`, a list by `older`. With the lock held. */
static void drop_opened(Descriptors *self, struct opened *it, struct opened **doomed)
{
    unlink_opened(self, it);
    map_remove(&self->open, it->key);
    it->dropped = true;
    if (!it->pins) {
        it->older = *doomed;
        *doomed = it;
    }
}

static void close_doomed(struct opened *doomed)
{
    while (doomed) {
        struct opened *next = doomed->older;
        close(doomed->fd);
        free(doomed);
        doomed = next;
    }
}

static void shrink(Descriptors *self, size_t size, struct opened **doomed)
{
    while (self->open.count > size)
        drop_opened(self, self->oldest, doomed);
}

/* Close all but one in `divisor`; 0: all. */
static void shrink_now(Descriptors *self, size_t divisor)
{
    struct opened *doomed = NULL;
    pthread_mutex_lock(&self->lock);
    shrink(self, divisor ? self->open.count / divisor : 0, &doomed);
    pthread_mutex_unlock(&self->lock);
    close_doomed(doomed);
}

static int open_path(const char *path, int flags)
{
    int fd = open(path, flags | O_RDWR | O_CLOEXEC | O_NOATIME, 0600);
    if (fd < 0 && errno == EPERM) /* O_NOATIME is for the file's owner */
        fd = open(path, flags | O_RDWR | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

#define PATH_BYTES 4200

static void path_of(const Descriptors *self, uint64_t key, char path[PATH_BYTES])
{
    snprintf(path, PATH_BYTES, "%s/%02x/%llx", self->root, (unsigned)(key & 255), (unsigned long long)key);
}

bool descriptors_has_file(Descriptors *self, uint64_t key)
{
    char path[PATH_BYTES];
    path_of(self, key, path);
    return !access(path, F_OK);
}

static int open_key(Descriptors *self, uint64_t key, int flags)
{
    char path[PATH_BYTES];
    path_of(self, key, path);
    int fd = open_path(path, flags);
    if (fd == -EMFILE || fd == -ENFILE) {
        shrink_now(self, 2);
        fd = open_path(path, flags);
    }
    return fd;
}

static struct opened *find(Descriptors *self, uint64_t key)
{
    uint64_t *at = map_find(&self->open, key);
    if (!at)
        return NULL;
    struct opened *found = (struct opened *)(uintptr_t)*at;
    if (self->newest != found) {
        unlink_opened(self, found);
        link_newest(self, found);
    }
    found->pins++;
    return found;
}

/* Put `made` into the cache. With the lock held. */
static bool put(Descriptors *self, struct opened *made, struct opened **doomed)
{
    shrink(self, self->limit - 1, doomed);
    uint64_t *at = map_put(&self->open, made->key);
    if (at) {
        *at = (uint64_t)(uintptr_t)made;
        link_newest(self, made);
    }
    return at != NULL;
}

/* Cache `fd`, which was opened when there had been `drops` drops; pinned. -EAGAIN if it must be opened anew. */
static int insert(Descriptors *self, uint64_t key, int fd, uint64_t drops, struct opened **out)
{
    struct opened *doomed = NULL, *made = malloc(sizeof *made);
    int result = made ? 0 : -ENOMEM;
    if (made)
        *made = (struct opened){.key = key, .fd = fd, .pins = 1};
    pthread_mutex_lock(&self->lock);
    *out = find(self, key);
    if (!*out && made) {
        result = drops != self->drops ? -EAGAIN : put(self, made, &doomed) ? 0 : -ENOMEM;
        *out = result ? NULL : made;
    }
    pthread_mutex_unlock(&self->lock);
    close_doomed(doomed);
    if (!made || *out != made) {
        close(fd);
        free(made);
    }
    return *out ? 0 : result;
}

static int acquire(Descriptors *self, uint64_t key, int flags, struct opened **out)
{
    for (;;) {
        pthread_mutex_lock(&self->lock);
        *out = flags ? NULL : find(self, key);
        uint64_t drops = self->drops;
        pthread_mutex_unlock(&self->lock);
        if (*out)
            return 0;
        int fd = open_key(self, key, flags);
        if (fd < 0)
            return fd;
        int result = insert(self, key, fd, drops, out);
        if (result != -EAGAIN)
            return result;
    }
}

int descriptors_acquire(Descriptors *self, uint64_t key, struct opened **out)
{
    return acquire(self, key, 0, out);
}

void descriptors_release(Descriptors *self, struct opened *it)
{
    pthread_mutex_lock(&self->lock);
    bool last = !--it->pins && it->dropped;
    pthread_mutex_unlock(&self->lock);
    if (last) {
        it->older = NULL;
        close_doomed(it);
    }
}

/* -- for Python */

typedef struct {
    PyObject_HEAD
    Descriptors *cache;
    uint64_t key;
    struct opened *opened;
} Borrowed;

static PyObject *Descriptors_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"root", "limit", NULL};
    const char *root;
    Py_ssize_t limit;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sn", names, &root, &limit))
        return NULL;
    if (strlen(root) > 4096)
        return PyErr_Format(PyExc_ValueError, "the path is too long");
    Descriptors *self = (Descriptors *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->root = strdup(root);
    self->limit = limit > 1 ? (size_t)limit : 1;
    pthread_mutex_init(&self->lock, NULL);
    return self->root ? (PyObject *)self : PyErr_NoMemory();
}

static PyObject *Descriptors_close(Descriptors *self, PyObject *unused)
{
    struct opened *mine = self->owners;
    self->owners = NULL;
    if (mine)
        descriptors_release(self, mine);
    shrink_now(self, 0);
    Py_RETURN_NONE;
}

static void Descriptors_dealloc(Descriptors *self)
{
    Py_XDECREF(Descriptors_close(self, NULL));
    map_clear(&self->open);
    pthread_mutex_destroy(&self->lock);
    free(self->root);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* What the owner thread gets stays pinned until it gets the next. */
static PyObject *give_owner(Descriptors *self, uint64_t key, int flags)
{
    struct opened *found = NULL, *before = self->owners;
    int result;
    self->owners = NULL;
    Py_BEGIN_ALLOW_THREADS
    if (before)
        descriptors_release(self, before);
    result = acquire(self, key, flags, &found);
    Py_END_ALLOW_THREADS
    if (result)
        return raise_result(result);
    self->owners = found;
    return PyLong_FromLong(found->fd);
}

static PyObject *Descriptors_get(Descriptors *self, PyObject *key)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(key);
    return PyErr_Occurred() ? NULL : give_owner(self, number, 0);
}

static PyObject *Descriptors_create(Descriptors *self, PyObject *key)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(key);
    return PyErr_Occurred() ? NULL : give_owner(self, number, O_CREAT | O_TRUNC);
}

static PyObject *Descriptors_drop(Descriptors *self, PyObject *key)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(key);
    struct opened *doomed = NULL;
    if (PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&self->lock);
    uint64_t *at = map_find(&self->open, number);
    if (at)
        drop_opened(self, (struct opened *)(uintptr_t)*at, &doomed);
    self->drops++;
    pthread_mutex_unlock(&self->lock);
    Py_BEGIN_ALLOW_THREADS
    close_doomed(doomed);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyTypeObject BorrowedType;

static PyObject *Descriptors_borrow(Descriptors *self, PyObject *key)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(key);
    if (PyErr_Occurred() || (!BorrowedType.tp_dict && PyType_Ready(&BorrowedType)))
        return NULL;
    Borrowed *made = PyObject_New(Borrowed, &BorrowedType);
    if (made) {
        made->cache = (Descriptors *)Py_NewRef(self);
        made->key = number;
        made->opened = NULL;
    }
    return (PyObject *)made;
}

static Py_ssize_t Descriptors_length(Descriptors *self)
{
    pthread_mutex_lock(&self->lock);
    size_t count = self->open.count;
    pthread_mutex_unlock(&self->lock);
    return (Py_ssize_t)count;
}

static PyObject *Borrowed_enter(Borrowed *self, PyObject *unused)
{
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = descriptors_acquire(self->cache, self->key, &self->opened);
    Py_END_ALLOW_THREADS
    return result ? raise_result(result) : PyLong_FromLong(self->opened->fd);
}

static PyObject *Borrowed_exit(Borrowed *self, PyObject *unused)
{
    struct opened *it = self->opened;
    self->opened = NULL;
    Py_BEGIN_ALLOW_THREADS
    if (it)
        descriptors_release(self->cache, it);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void Borrowed_dealloc(Borrowed *self)
{
    if (self->opened)
        descriptors_release(self->cache, self->opened);
    Py_DECREF(self->cache);
    PyObject_Free(self);
}

static PyMethodDef Borrowed_methods[] = {
    {"__enter__", (PyCFunction)Borrowed_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)Borrowed_exit, METH_VARARGS, NULL},
    {NULL},
};

static PyTypeObject BorrowedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live._content.Borrowed",
    .tp_basicsize = sizeof(Borrowed),
    .tp_dealloc = (destructor)Borrowed_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_methods = Borrowed_methods,
};

static PyMethodDef Descriptors_methods[] = {
    {"get", (PyCFunction)Descriptors_get, METH_O, "A descriptor for the owner thread, until it gets the next."},
    {"create", (PyCFunction)Descriptors_create, METH_O, "As get, of a file that is made, or emptied."},
    {"borrow", (PyCFunction)Descriptors_borrow, METH_O, "A descriptor while in the with."},
    {"drop", (PyCFunction)Descriptors_drop, METH_O, "Close what is open of a file whose path means another from now on."},
    {"close", (PyCFunction)Descriptors_close, METH_NOARGS, NULL},
    {NULL},
};

static PySequenceMethods Descriptors_sequence = {.sq_length = (lenfunc)Descriptors_length};

PyTypeObject DescriptorsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live._content.Descriptors",
    .tp_basicsize = sizeof(Descriptors),
    .tp_new = Descriptors_new,
    .tp_dealloc = (destructor)Descriptors_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_as_sequence = &Descriptors_sequence,
    .tp_methods = Descriptors_methods,
};
