/* What memory holds of one regular file: the twin of `FileState` in snapfs/live/states.py.
 *
 * Invariants:
 * 1. `epoch`, `dirty`, `inherited`, `frozen` and `absent` are set by Python alone, with the file's lock held.
 *    `dirty`, `size`, the times and the flags are changed by any thread, with the file's lock held. Sizes, times and
 *    flags may be looked at without it: each by itself, they are atomic.
 * 2. The table of a Core holds its states, each once; a state in no table is seen by Python alone.
 *
 * 136 bytes whatever the file's size, and 64 for a map that is clean; each dirty chunk takes 21 to 43 more.
 */
#include "content.h"

#include <stddef.h>

static PyObject *FileState_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    unsigned long long ino, size;
    long long mtime_ns, ctime_ns;
    if (!PyArg_ParseTuple(args, "KKLL", &ino, &size, &mtime_ns, &ctime_ns))
        return NULL;
    FileState *self = (FileState *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    pthread_mutex_init(&self->lock, NULL);
    self->ino = ino;
    atomic_init(&self->size, size);
    atomic_init(&self->mtime_ns, mtime_ns);
    atomic_init(&self->ctime_ns, ctime_ns);
    self->dirty = (DirtyMap *)PyObject_CallNoArgs((PyObject *)&DirtyMapType);
    if (!self->dirty)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void FileState_dealloc(FileState *self)
{
    Py_XDECREF(self->dirty);
    Py_XDECREF(self->inherited);
    Py_XDECREF(self->frozen);
    Py_XDECREF(self->absent);
    pthread_mutex_destroy(&self->lock);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *FileState_lock(FileState *self, void *unused) { return guard_of((PyObject *)self, &self->lock); }
static PyObject *FileState_ino(FileState *self, void *unused) { return PyLong_FromUnsignedLongLong(self->ino); }
static PyObject *FileState_users(FileState *self, void *unused) { return PyLong_FromUnsignedLong(atomic_load(&self->users)); }

/* -- fields: `where` is the offset of the field */

static void *field(PyObject *self, void *where) { return (char *)self + (size_t)where; }

static PyObject *get_number(PyObject *self, void *where)
{
    return PyLong_FromUnsignedLongLong(atomic_load((atomic_ullong *)field(self, where)));
}

static int set_number(PyObject *self, PyObject *value, void *where)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred())
        return -1;
    atomic_store((atomic_ullong *)field(self, where), number);
    return 0;
}

static PyObject *get_time(PyObject *self, void *where)
{
    return PyLong_FromLongLong(atomic_load((atomic_llong *)field(self, where)));
}

static int set_time(PyObject *self, PyObject *value, void *where)
{
    long long number = PyLong_AsLongLong(value);
    if (PyErr_Occurred())
        return -1;
    atomic_store((atomic_llong *)field(self, where), number);
    return 0;
}

static PyObject *get_flag(PyObject *self, void *where)
{
    return PyBool_FromLong(atomic_load((atomic_bool *)field(self, where)));
}

static int set_flag(PyObject *self, PyObject *value, void *where)
{
    int truth = PyObject_IsTrue(value);
    if (truth < 0)
        return -1;
    atomic_store((atomic_bool *)field(self, where), truth);
    return 0;
}

static PyObject *get_object(PyObject *self, void *where)
{
    PyObject *held = *(PyObject **)field(self, where);
    return Py_NewRef(held ? held : Py_None);
}

static int set_object(PyObject *self, PyObject *value, void *where)
{
    PyObject **at = field(self, where), *before = *at;
    PyTypeObject *type = where == (void *)offsetof(FileState, frozen) ? &FrozenType : &DirtyMapType;
    bool is_absent = where == (void *)offsetof(FileState, absent);
    if (value != Py_None && !is_absent && !Py_IS_TYPE(value, type)) {
        PyErr_Format(PyExc_TypeError, "%s is needed, not %s", type->tp_name, Py_TYPE(value)->tp_name);
        return -1;
    }
    *at = value == Py_None ? NULL : Py_NewRef(value);
    if (is_absent)
        atomic_store(&((FileState *)self)->is_absent, *at != NULL);
    Py_XDECREF(before);
    return 0;
}

#define AT(name) (void *)offsetof(FileState, name)

static PyGetSetDef FileState_fields[] = {
    {"lock", (getter)FileState_lock, NULL, NULL, NULL},
    {"ino", (getter)FileState_ino, NULL, NULL, NULL},
    {"users", (getter)FileState_users, NULL, "Threads that look at it at this moment, without the GIL.", NULL},
    {"epoch", get_number, set_number, NULL, AT(epoch)},
    {"size", get_number, set_number, NULL, AT(size)},
    {"mtime_ns", get_time, set_time, NULL, AT(mtime_ns)},
    {"ctime_ns", get_time, set_time, NULL, AT(ctime_ns)},
    {"times_pending", get_flag, set_flag, NULL, AT(times_pending)},
    {"wrote", get_flag, set_flag, NULL, AT(wrote)},
    {"dirty", get_object, set_object, NULL, AT(dirty)},
    {"inherited", get_object, set_object, NULL, AT(inherited)},
    {"frozen", get_object, set_object, NULL, AT(frozen)},
    {"absent", get_object, set_object, NULL, AT(absent)},
    {NULL},
};

PyTypeObject FileStateType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live._content.FileState",
    .tp_basicsize = sizeof(FileState),
    .tp_new = FileState_new,
    .tp_dealloc = (destructor)FileState_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = FileState_fields,
};
