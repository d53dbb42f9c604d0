/* Descriptors for Python, as snapfs/live/backing/descriptors.py has it. The cache itself is in descriptors.c. */
#include "content.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    Descriptors *cache;
    uint64_t key;
    struct open_file *opened;
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
    struct open_file *mine = self->owner_file;
    self->owner_file = NULL;
    if (mine)
        descriptors_release(self, mine);
    descriptors_shrink(self, 0);
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
static PyObject *get_for_owner(Descriptors *self, uint64_t key, int flags)
{
    struct open_file *found = NULL, *before = self->owner_file;
    int result;
    self->owner_file = NULL;
    Py_BEGIN_ALLOW_THREADS
    if (before)
        descriptors_release(self, before);
    result = descriptors_open(self, key, flags, &found);
    Py_END_ALLOW_THREADS
    if (result)
        return content_raise(result);
    self->owner_file = found;
    return PyLong_FromLong(found->fd);
}

static PyObject *Descriptors_get(Descriptors *self, PyObject *key)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(key);
    return PyErr_Occurred() ? NULL : get_for_owner(self, number, 0);
}

static PyObject *Descriptors_create(Descriptors *self, PyObject *key)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(key);
    return PyErr_Occurred() ? NULL : get_for_owner(self, number, O_CREAT | O_TRUNC);
}

static PyObject *Descriptors_unpin(Descriptors *self, PyObject *unused)
{
    struct open_file *before = self->owner_file;
    self->owner_file = NULL;
    Py_BEGIN_ALLOW_THREADS
    if (before)
        descriptors_release(self, before);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *Descriptors_drop(Descriptors *self, PyObject *key)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(key);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    descriptors_drop(self, number);
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
    return result ? content_raise(result) : PyLong_FromLong(self->opened->fd);
}

static PyObject *Borrowed_exit(Borrowed *self, PyObject *unused)
{
    struct open_file *it = self->opened;
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
    .tp_name = "snapfs.live.content._content.Borrowed",
    .tp_basicsize = sizeof(Borrowed),
    .tp_dealloc = (destructor)Borrowed_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_methods = Borrowed_methods,
};

static PyMethodDef Descriptors_methods[] = {
    {"get", (PyCFunction)Descriptors_get, METH_O, "A descriptor for the owner thread, until it gets the next."},
    {"create", (PyCFunction)Descriptors_create, METH_O, "As get, of a file that is made, or emptied."},
    {"borrow", (PyCFunction)Descriptors_borrow, METH_O, "A descriptor while in the with."},
    {"unpin", (PyCFunction)Descriptors_unpin, METH_NOARGS, "Unpin what `get` gave last. For the owner thread."},
    {"drop", (PyCFunction)Descriptors_drop, METH_O,
     "Close what is open of a file whose path means another from now on."},
    {"close", (PyCFunction)Descriptors_close, METH_NOARGS, NULL},
    {NULL},
};

static PySequenceMethods Descriptors_sequence = {.sq_length = (lenfunc)Descriptors_length};

PyTypeObject DescriptorsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.Descriptors",
    .tp_basicsize = sizeof(Descriptors),
    .tp_new = Descriptors_new,
    .tp_dealloc = (destructor)Descriptors_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_as_sequence = &Descriptors_sequence,
    .tp_methods = Descriptors_methods,
};
