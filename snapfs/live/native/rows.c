/* What the namespace says of inodes, known here as well: their rows, and which have no extended attribute at all.
 *
 * The namespace owns both (writer.py, xattrs.py). It tells of each row that it reads, and of each that a transaction
 * changed, after the commit and before the change is answered; so what is known here is what it would say itself. A row
 * of which nothing is known costs a question to Python, never a wrong answer.
 *
 * Invariants:
 * 1. A slot holds one inode, the one that was told of last; so memory is bounded.
 * 2. A known row is the row as of the last commit that changed it. An inode in `bare` has no extended attribute.
 *
 * `rows_lock` is a leaf, as in core.c.
 */
#include "content.h"

#include <stdlib.h>

int rows_open(struct rows *rows)
{
    pthread_mutex_init(&rows->lock, NULL);
    rows->known = calloc(ROWS, sizeof *rows->known);
    rows->bare = calloc(ROWS, sizeof *rows->bare);
    return rows->known && rows->bare ? 0 : -ENOMEM;
}

void rows_close(struct rows *rows)
{
    free(rows->known);
    free(rows->bare);
    rows->known = NULL;
    rows->bare = NULL;
}

static size_t slot_of(uint64_t ino) { return (size_t)(ino * 0x9e3779b97f4a7c15ull >> 32) & (ROWS - 1); }

bool rows_find(struct rows *rows, uint64_t ino, struct sc_row *row)
{
    pthread_mutex_lock(&rows->lock);
    *row = rows->known[slot_of(ino)];
    pthread_mutex_unlock(&rows->lock);
    return row->ino == ino;
}

static void set_row(struct rows *rows, uint64_t ino, const struct sc_row *row)
{
    struct sc_row *at = &rows->known[slot_of(ino)];
    pthread_mutex_lock(&rows->lock);
    if (row)
        *at = *row;
    else if (at->ino == ino)
        at->ino = 0;
    pthread_mutex_unlock(&rows->lock);
}

bool rows_is_bare(struct rows *rows, uint64_t ino)
{
    pthread_mutex_lock(&rows->lock);
    bool bare = rows->bare[slot_of(ino)] == ino;
    pthread_mutex_unlock(&rows->lock);
    return bare;
}

/* -- for Python */

/* The fields of records.Inode. */
static PyObject *Core_row_is(sc_core *self, PyObject *inode)
{
    unsigned long long ino, mode, uid, gid, rdev, nlink;
    long long atime_ns, mtime_ns, ctime_ns;
    PyObject *target, *parent;
    if (!PyTuple_Check(inode) || !PyArg_ParseTuple(inode, "KKKKKKLLLSO", &ino, &mode, &uid, &gid, &rdev, &nlink, &atime_ns,
                                                   &mtime_ns, &ctime_ns, &target, &parent)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "an Inode is needed");
        return NULL;
    }
    struct sc_row row = {
        .ino = ino, .size = (uint64_t)PyBytes_GET_SIZE(target), .atime_ns = atime_ns, .mtime_ns = mtime_ns,
        .ctime_ns = ctime_ns, .mode = (uint32_t)mode, .nlink = (uint32_t)nlink, .uid = (uint32_t)uid,
        .gid = (uint32_t)gid, .rdev = (uint32_t)rdev,
    };
    set_row(&self->rows, ino, &row);
    Py_RETURN_NONE;
}

static PyObject *Core_row_is_gone(sc_core *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    set_row(&self->rows, ino, NULL);
    Py_RETURN_NONE;
}

static PyObject *Core_rows_are_unknown(sc_core *self, PyObject *unused)
{
    pthread_mutex_lock(&self->rows.lock);
    for (size_t i = 0; i < ROWS; i++)
        self->rows.known[i].ino = self->rows.bare[i] = 0;
    pthread_mutex_unlock(&self->rows.lock);
    Py_RETURN_NONE;
}

static PyObject *Core_is_bare(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int bare;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &bare))
        return NULL;
    uint64_t *at = &self->rows.bare[slot_of(ino)];
    pthread_mutex_lock(&self->rows.lock);
    if (bare)
        *at = ino;
    else if (*at == ino)
        *at = 0;
    pthread_mutex_unlock(&self->rows.lock);
    Py_RETURN_NONE;
}

PyMethodDef core_row_methods[] = {
    {"row_is", (PyCFunction)Core_row_is, METH_O, "row_is(inode): the row of an inode, as it is committed."},
    {"row_is_gone", (PyCFunction)Core_row_is_gone, METH_O, "row_is_gone(ino): it is not known, or there is none."},
    {"rows_are_unknown", (PyCFunction)Core_rows_are_unknown, METH_NOARGS, "Nor who is bare."},
    {"is_bare", (PyCFunction)Core_is_bare, METH_VARARGS, "is_bare(ino, bare): whether it surely has no extended attribute."},
    {NULL},
};
