/* The limit of the live tree's size (the setting live.limit): what counts, what is refused, what df shows.
 *
 * What counts is the size of each regular file, holes included, from its creation until its bytes are removed. So a
 * page of the kernel's cache that lies within a file's size never changes the count: what a mapping or an overwrite
 * makes dirty is paid for, by the truncate, fallocate or write that gave the file its size.
 *
 * Invariants:
 * 1. `used` is the sum of these sizes while there is a limit: each change of a state's size is by `size_limit_resize`,
 *    with the file's lock held.
 * 2. A truncate, a fallocate, a copy and a write past the kernel's cache pass the limit only together with another at
 *    the same moment. A page that the kernel took from an application is stored whatever the limit says, for write(2)
 *    has returned: a file that grows so beyond the limit is marked, and its next write(2) is refused before the kernel
 *    takes it (`answer_refuses` in fuse/native/answer.c). Beyond the overdraft that of any file is.
 */
#include "content.h"

#include <sys/statvfs.h>

#define OVERDRAFT_BYTES (64ll << 20) /* as MOST_BYTES in cached_writes.py: about what the kernel holds of a mount */

static int64_t used_bytes(sc_core *core) { return atomic_load_explicit(&core->used, memory_order_relaxed); }

void size_limit_resize(sc_core *core, FileState *state, uint64_t size)
{
    int64_t limit = atomic_load_explicit(&core->size_limit, memory_order_relaxed);
    int64_t more = (int64_t)size - (int64_t)atomic_exchange(&state->size, size);
    if (!limit || !more)
        return;
    bool is_beyond = atomic_fetch_add(&core->used, more) + more > limit;
    if (more > 0 || !is_beyond)
        atomic_store(&state->beyond_limit, is_beyond);
}

bool size_limit_allows(sc_core *core, FileState *state, uint64_t end)
{
    int64_t limit = atomic_load_explicit(&core->size_limit, memory_order_relaxed);
    uint64_t size = atomic_load(&state->size);
    return !limit || end <= size ||
           (end - size <= (uint64_t)limit && used_bytes(core) <= limit - (int64_t)(end - size));
}

bool size_limit_is_reached(sc_core *core)
{
    int64_t limit = atomic_load_explicit(&core->size_limit, memory_order_relaxed);
    return limit && used_bytes(core) >= limit;
}

int64_t size_limit_refuses(sc_core *core, uint64_t ino)
{
    int64_t limit = atomic_load_explicit(&core->size_limit, memory_order_relaxed);
    if (!limit || used_bytes(core) <= limit)
        return 0;
    if (used_bytes(core) - limit > OVERDRAFT_BYTES)
        return 1;
    FileState *state = core_pin(core, ino);
    bool refused = state && atomic_load(&state->beyond_limit);
    if (state)
        core_unpin(state);
    return refused;
}

/* As `limited` in size_limit.py. */
void size_limit_show(sc_core *core, struct statvfs *host)
{
    int64_t limit = atomic_load_explicit(&core->size_limit, memory_order_relaxed);
    if (!limit || !host->f_frsize)
        return;
    int64_t used = used_bytes(core) > 0 ? used_bytes(core) : 0;
    uint64_t used_blocks = ((uint64_t)used + host->f_frsize - 1) / host->f_frsize;
    uint64_t blocks = (uint64_t)limit / host->f_frsize;
    uint64_t left = blocks > used_blocks ? blocks - used_blocks : 0;
    host->f_bavail = host->f_bfree = min_u64(left, host->f_bavail);
    host->f_blocks = used_blocks + host->f_bavail;
}

/* -- for Python */

static PyObject *Core_set_size_limit(sc_core *self, PyObject *args)
{
    long long limit, used;
    if (!PyArg_ParseTuple(args, "LL", &limit, &used))
        return NULL;
    atomic_store(&self->used, used);
    atomic_store(&self->size_limit, limit);
    Py_RETURN_NONE;
}

static PyObject *Core_count_size(sc_core *self, PyObject *bytes)
{
    long long more = PyLong_AsLongLong(bytes);
    if (PyErr_Occurred())
        return NULL;
    if (atomic_load(&self->size_limit))
        atomic_fetch_add(&self->used, more);
    Py_RETURN_NONE;
}

static PyObject *Core_resize(sc_core *self, PyObject *args)
{
    PyObject *state;
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "O!K", &FileStateType, &state, &size))
        return NULL;
    size_limit_resize(self, (FileState *)state, size);
    Py_RETURN_NONE;
}

static PyObject *Core_allows(sc_core *self, PyObject *args)
{
    PyObject *state;
    unsigned long long end;
    if (!PyArg_ParseTuple(args, "O!K", &FileStateType, &state, &end))
        return NULL;
    return PyBool_FromLong(size_limit_allows(self, (FileState *)state, end));
}

static PyObject *Core_refuses(sc_core *self, PyObject *number)
{
    uint64_t ino = PyLong_AsUnsignedLongLong(number);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(size_limit_refuses(self, ino) > 0);
}

static PyObject *Core_size_limit(sc_core *self, PyObject *unused)
{
    return Py_BuildValue("LL", (long long)atomic_load(&self->size_limit), (long long)atomic_load(&self->used));
}

PyMethodDef core_size_limit_methods[] = {
    {"set_size_limit", (PyCFunction)Core_set_size_limit, METH_VARARGS,
     "set_size_limit(limit, used), in bytes; 0: none. Between changes."},
    {"size_limit", (PyCFunction)Core_size_limit, METH_NOARGS, "(limit, used), in bytes."},
    {"count_size", (PyCFunction)Core_count_size, METH_O, "So many bytes count more."},
    {"resize", (PyCFunction)Core_resize, METH_VARARGS, "resize(state, size), with the file's lock held."},
    {"allows", (PyCFunction)Core_allows, METH_VARARGS, "allows(state, end): whether the file may grow so far."},
    {"refuses", (PyCFunction)Core_refuses, METH_O, "refuses(ino): whether a write(2) that begins now is refused."},
    {NULL},
};
