/* What memory holds of one regular file: the twin of `FileState` in snapfs/live/content/file_states.py.
 *
 * Invariants:
 * 1. `epoch`, `dirty`, `inherited`, `frozen` and `absent` are set only by Python, with the file's lock held.
 *    `dirty`, `size`, the times and the flags are changed by any thread, with the file's lock held. Sizes, times and
 *    flags are atomic, and may be read without it, each by itself.
 * 2. The table of a Core holds its states, each once; a state in no table is seen by Python alone.
 *
 * 3. While a file is partly present, `present` has the bits of its record (residency.py, invariant 6). A bit is set after
 *    the bytes of its chunk are there and the record says so, and stays; a chunk with its bit is read and overwritten as
 *    any other, for what arrives leaves it alone. The buffer is kept for as long as the state lives: a thread that read `knows_present` may be using it.
 *
 * 240 bytes whatever the file's size, and 64 for a map that is clean; each dirty chunk takes 21 to 43 more.
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
    PyBuffer_Release(&self->present);
    pthread_mutex_destroy(&self->lock);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *FileState_lock(FileState *self, void *unused) { return guard_new((PyObject *)self, &self->lock); }
static PyObject *FileState_ino(FileState *self, void *unused) { return PyLong_FromUnsignedLongLong(self->ino); }

/* -- fields: `where` is the offset of the field */

static void *field(PyObject *self, void *where) { return (char *)self + (size_t)where; }

static PyObject *FileState_get_number(PyObject *self, void *where)
{
    return PyLong_FromUnsignedLongLong(atomic_load((atomic_ullong *)field(self, where)));
}

static int FileState_set_number(PyObject *self, PyObject *value, void *where)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred())
        return -1;
    atomic_store((atomic_ullong *)field(self, where), number);
    return 0;
}

static PyObject *FileState_get_time(PyObject *self, void *where)
{
    return PyLong_FromLongLong(atomic_load((atomic_llong *)field(self, where)));
}

static int FileState_set_time(PyObject *self, PyObject *value, void *where)
{
    long long number = PyLong_AsLongLong(value);
    if (PyErr_Occurred())
        return -1;
    atomic_store((atomic_llong *)field(self, where), number);
    return 0;
}

static PyObject *FileState_get_flag(PyObject *self, void *where)
{
    return PyBool_FromLong(atomic_load((atomic_bool *)field(self, where)));
}

static int FileState_set_flag(PyObject *self, PyObject *value, void *where)
{
    int truth = PyObject_IsTrue(value);
    if (truth < 0)
        return -1;
    atomic_store((atomic_bool *)field(self, where), truth);
    return 0;
}

static PyObject *FileState_get_object(PyObject *self, void *where)
{
    PyObject *held = *(PyObject **)field(self, where);
    return Py_NewRef(held ? held : Py_None);
}

bool state_has(FileState *self, uint64_t offset, uint64_t length)
{
    if (!atomic_load(&self->is_absent))
        return true;
    if (!atomic_load(&self->knows_present))
        return false;
    const unsigned char *bits = self->present.buf;
    uint64_t end = min_u64(chunks_of(offset + length), self->present_chunks);
    for (uint64_t chunk = offset >> CHUNK_SHIFT; chunk < end; chunk++)
        if (!(__atomic_load_n(bits + (chunk >> 3), __ATOMIC_ACQUIRE) >> (chunk & 7) & 1))
            return false;
    return true;
}

/* Take the bits of a record, the first that the state gets; those of another one are Python's to look at. */
static int learn_present(FileState *self, PyObject *absent)
{
    PyObject *bits = PyObject_GetAttrString(absent, "recorded");
    if (!bits) { /* all of the file is absent */
        PyErr_Clear();
        return 0;
    }
    PyObject *chunks = self->present.obj ? NULL : PyObject_GetAttrString(absent, "chunks");
    if (chunks && !PyObject_GetBuffer(bits, &self->present, PyBUF_SIMPLE)) {
        self->present_chunks = min_u64(PyLong_AsUnsignedLongLong(chunks), (uint64_t)self->present.len * 8);
        atomic_store(&self->knows_present, true);
    } else if (self->present.obj != bits) {
        atomic_store(&self->knows_present, false);
    }
    Py_XDECREF(chunks);
    Py_DECREF(bits);
    return PyErr_Occurred() ? -1 : 0;
}

static int FileState_set_object(PyObject *self, PyObject *value, void *where)
{
    PyObject **at = field(self, where), *before = *at;
    PyTypeObject *type = where == (void *)offsetof(FileState, frozen) ? &FrozenType : &DirtyMapType;
    bool is_absent = where == (void *)offsetof(FileState, absent);
    if (value != Py_None && !is_absent && !Py_IS_TYPE(value, type)) {
        PyErr_Format(PyExc_TypeError, "%s is needed, not %s", type->tp_name, Py_TYPE(value)->tp_name);
        return -1;
    }
    if (is_absent && value != Py_None && learn_present((FileState *)self, value))
        return -1;
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
    {"epoch", FileState_get_number, FileState_set_number, NULL, AT(epoch)},
    {"size", FileState_get_number, FileState_set_number, NULL, AT(size)},
    {"mtime_ns", FileState_get_time, FileState_set_time, NULL, AT(mtime_ns)},
    {"ctime_ns", FileState_get_time, FileState_set_time, NULL, AT(ctime_ns)},
    {"times_pending", FileState_get_flag, FileState_set_flag, NULL, AT(times_pending)},
    {"wrote", FileState_get_flag, FileState_set_flag, NULL, AT(wrote)},
    {"dirty", FileState_get_object, FileState_set_object, NULL, AT(dirty)},
    {"inherited", FileState_get_object, FileState_set_object, NULL, AT(inherited)},
    {"frozen", FileState_get_object, FileState_set_object, NULL, AT(frozen)},
    {"absent", FileState_get_object, FileState_set_object, NULL, AT(absent)},
    {NULL},
};

PyTypeObject FileStateType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.FileState",
    .tp_basicsize = sizeof(FileState),
    .tp_new = FileState_new,
    .tp_dealloc = (destructor)FileState_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = FileState_fields,
};
