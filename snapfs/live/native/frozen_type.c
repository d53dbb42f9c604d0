/* Frozen for Python: what the sealer and the rare steps call. The steps themselves are in preserve.c. */
#include "preserve.h"

#include <structmember.h>

static PyObject *Frozen_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    unsigned long long ino, size;
    long long mtime_ns, ctime_ns;
    PyObject *dirty, *inherited, *path, *scratch;
    if (!PyArg_ParseTuple(args, "KK(LL)O!OUO", &ino, &size, &mtime_ns, &ctime_ns, &DirtyMapType, &dirty, &inherited,
                          &path, &scratch))
        return NULL;
    if (inherited != Py_None && !Py_IS_TYPE(inherited, &DirtyMapType))
        return PyErr_Format(PyExc_TypeError, "inherited must be a DirtyMap or None");
    PyObject *slots = PyObject_GetAttrString(scratch, "file");
    if (!slots || !Py_IS_TYPE(slots, &SlotFileType)) {
        Py_XDECREF(slots);
        return PyErr_Format(PyExc_TypeError, "scratch.file must be a SlotFile");
    }
    Frozen *self = (Frozen *)type->tp_alloc(type, 0);
    if (!self) {
        Py_DECREF(slots);
        return NULL;
    }
    self->ino = ino;
    self->size = size;
    self->mtime_ns = mtime_ns;
    self->ctime_ns = ctime_ns;
    self->dirty = (DirtyMap *)Py_NewRef(dirty);
    self->inherited = inherited == Py_None ? NULL : (DirtyMap *)Py_NewRef(inherited);
    self->path = Py_NewRef(path);
    self->scratch = Py_NewRef(scratch);
    self->slots = (SlotFile *)slots;
    pthread_mutex_init(&self->latch, NULL);
    return (PyObject *)self;
}

static void Frozen_dealloc(Frozen *self)
{
    Py_XDECREF(self->dirty);
    Py_XDECREF(self->inherited);
    Py_XDECREF(self->path);
    Py_XDECREF(self->scratch);
    Py_XDECREF(self->slots);
    map_clear(&self->chunks);
    pthread_mutex_destroy(&self->latch);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *Frozen_covers(Frozen *self, PyObject *chunk)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(chunk);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(frozen_covers(self, number));
}

static PyObject *Frozen_preserve(Frozen *self, PyObject *args)
{
    int fd, result;
    long long offset, length;
    if (!PyArg_ParseTuple(args, "iLL", &fd, &offset, &length))
        return NULL;
    disk_check_hook(&self->slots->disk);
    Py_BEGIN_ALLOW_THREADS
    result = length > 0 ? frozen_preserve(self, fd, (uint64_t)offset, (uint64_t)length) : 0;
    Py_END_ALLOW_THREADS
    if (result)
        return content_raise(result);
    Py_RETURN_NONE;
}

static PyObject *Frozen_pending_from(Frozen *self, PyObject *args)
{
    unsigned long long offset, limit, count;
    if (!PyArg_ParseTuple(args, "KK", &offset, &limit))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    count = frozen_pending(self, offset, limit);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *lost_block(uint64_t ino, int number)
{
    PyObject *text =
        PyUnicode_FromFormat("a block of inode %llu could not be kept for the snapshot", (unsigned long long)ino);
    PyObject *failure = text ? PyObject_CallFunction(PyExc_OSError, "iO", number, text) : NULL;
    if (failure)
        PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
    Py_XDECREF(text);
    Py_XDECREF(failure);
    return NULL;
}

static PyObject *Frozen_consume(Frozen *self, PyObject *args)
{
    int fd, result;
    PyObject *path;
    unsigned long long chunk;
    if (!PyArg_ParseTuple(args, "iUK", &fd, &path, &chunk))
        return NULL;
    uint64_t start = chunk << CHUNK_SHIFT, length = start < self->size ? min_u64(CHUNK_SIZE, self->size - start) : 0;
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!data || !length)
        return data;
    uint64_t *state;
    int lost;
    Py_BEGIN_ALLOW_THREADS
    result = frozen_consume(self, fd, path, chunk, (unsigned char *)PyBytes_AS_STRING(data), length);
    pthread_mutex_lock(&self->latch);
    state = map_find(&self->chunks, chunk);
    lost = state && *state & LOST;
    pthread_mutex_unlock(&self->latch);
    Py_END_ALLOW_THREADS
    if (!result)
        return data;
    Py_DECREF(data);
    if (result == -ESTALE)
        Py_RETURN_NONE;
    return lost || atomic_load(&self->spoiled) ? lost_block(self->ino, -result) : content_raise(result);
}

static PyObject *Frozen_is_at(Frozen *self, PyObject *path)
{
    guard_lock(&self->latch);
    bool same = self->path == path;
    pthread_mutex_unlock(&self->latch);
    return PyBool_FromLong(same);
}

/* Those of `chunks` from `floor` on with any of the bits of `wanted`, in a list. */
static PyObject *chunks_with(Frozen *self, uint64_t floor, uint64_t wanted)
{
    PyObject *found = PyList_New(0);
    guard_lock(&self->latch);
    MAP_EACH(&self->chunks, i) {
        if (!found || MAP_KEY(&self->chunks, i) < floor || !(MAP_VALUE(&self->chunks, i) & wanted))
            continue;
        PyObject *number = PyLong_FromUnsignedLongLong(MAP_KEY(&self->chunks, i));
        if (!number || PyList_Append(found, number))
            Py_CLEAR(found);
        Py_XDECREF(number);
    }
    pthread_mutex_unlock(&self->latch);
    if (found && PyList_Sort(found))
        Py_CLEAR(found);
    return found;
}

static PyObject *Frozen_kept_chunks(Frozen *self, PyObject *floor)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(floor);
    return PyErr_Occurred() ? NULL : chunks_with(self, number, 0xffff | LOST);
}

static PyObject *Frozen_check_invariants(Frozen *self, PyObject *unused)
{
    struct map slots = {0};
    bool sound = true;
    guard_lock(&self->latch);
    MAP_EACH(&self->chunks, i) {
        uint64_t state = MAP_VALUE(&self->chunks, i), *seen;
        sound = sound && state && frozen_covers(self, MAP_KEY(&self->chunks, i));
        if (!KEPT(state))
            continue;
        sound = sound && SLOT(state) < atomic_load(&self->slots->slots) && (seen = map_put(&slots, SLOT(state))) &&
                !(*seen)++;
    }
    pthread_mutex_unlock(&self->latch);
    map_clear(&slots);
    if (!sound)
        return PyErr_Format(PyExc_AssertionError, "what is kept of inode %llu", (unsigned long long)self->ino);
    Py_RETURN_NONE;
}

static PyObject *Frozen_latch(Frozen *self, void *unused) { return guard_new((PyObject *)self, &self->latch); }
static PyObject *Frozen_get_path(Frozen *self, void *unused) { return Py_NewRef(self->path); }
static PyObject *Frozen_get_detached(Frozen *self, void *unused)
{
    return PyBool_FromLong(atomic_load(&self->detached));
}

/* Set with the latch held. */
static int Frozen_set_path(Frozen *self, PyObject *path, void *unused)
{
    Py_SETREF(self->path, Py_NewRef(path));
    return 0;
}

static int Frozen_set_detached(Frozen *self, PyObject *detached, void *unused)
{
    atomic_store(&self->detached, PyObject_IsTrue(detached) == 1);
    return 0;
}

static PyGetSetDef Frozen_fields[] = {
    {"latch", (getter)Frozen_latch, NULL, NULL, NULL},
    {"path", (getter)Frozen_get_path, (setter)Frozen_set_path, NULL, NULL},
    {"detached", (getter)Frozen_get_detached, (setter)Frozen_set_detached, NULL, NULL},
    {NULL},
};

static PyMemberDef Frozen_members[] = {
    {"ino", T_ULONGLONG, offsetof(Frozen, ino), READONLY, NULL},
    {"size", T_ULONGLONG, offsetof(Frozen, size), READONLY, NULL},
    {"mtime_ns", T_LONGLONG, offsetof(Frozen, mtime_ns), READONLY, NULL},
    {"ctime_ns", T_LONGLONG, offsetof(Frozen, ctime_ns), READONLY, NULL},
    {"dirty", T_OBJECT, offsetof(Frozen, dirty), READONLY, NULL},
    {"inherited", T_OBJECT, offsetof(Frozen, inherited), READONLY, NULL},
    {"scratch", T_OBJECT, offsetof(Frozen, scratch), READONLY, NULL},
    {"readers", T_PYSSIZET, offsetof(Frozen, readers), 0, NULL},
    {NULL},
};

static PyMethodDef Frozen_methods[] = {
    {"covers", (PyCFunction)Frozen_covers, METH_O, NULL},
    {"preserve", (PyCFunction)Frozen_preserve, METH_VARARGS, NULL},
    {"pending_from", (PyCFunction)Frozen_pending_from, METH_VARARGS, NULL},
    {"consume", (PyCFunction)Frozen_consume, METH_VARARGS, NULL},
    {"is_at", (PyCFunction)Frozen_is_at, METH_O, NULL},
    {"kept_chunks", (PyCFunction)Frozen_kept_chunks, METH_O, NULL},
    {"check_invariants", (PyCFunction)Frozen_check_invariants, METH_NOARGS, NULL},
    {NULL},
};

PyTypeObject FrozenType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.Frozen",
    .tp_basicsize = sizeof(Frozen),
    .tp_new = Frozen_new,
    .tp_dealloc = (destructor)Frozen_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = Frozen_fields,
    .tp_members = Frozen_members,
    .tp_methods = Frozen_methods,
};
