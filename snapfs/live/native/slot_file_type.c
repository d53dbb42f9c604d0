/* SlotFile for Python. Its steps are in preserve.c. */
#include "preserve.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static PyObject *SlotFile_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "disk", NULL};
    const char *path;
    PyObject *disk;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO", names, &path, &disk))
        return NULL;
    SlotFile *self = (SlotFile *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->fd = -1;
    self->file = strdup(path);
    pthread_rwlock_init(&self->lock, NULL);
    disk_init(&self->disk, disk);
    return self->file ? (PyObject *)self : PyErr_NoMemory();
}

static PyObject *SlotFile_close(SlotFile *self, PyObject *unused)
{
    int fd;
    Py_BEGIN_ALLOW_THREADS
    pthread_rwlock_wrlock(&self->lock);
    atomic_store(&self->closed, true);
    fd = self->fd;
    self->fd = -1;
    pthread_rwlock_unlock(&self->lock);
    if (fd >= 0)
        close(fd);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(fd >= 0);
}

static void SlotFile_dealloc(SlotFile *self)
{
    if (self->fd >= 0)
        close(self->fd);
    pthread_rwlock_destroy(&self->lock);
    disk_free(&self->disk);
    free(self->file);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *SlotFile_count(SlotFile *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_load(&self->slots));
}

static PyGetSetDef SlotFile_fields[] = {{"count", (getter)SlotFile_count, NULL, "Slots given out.", NULL}, {NULL}};

static PyMethodDef SlotFile_methods[] = {
    {"close", (PyCFunction)SlotFile_close, METH_NOARGS,
     "Preserve nothing any more; whether there is a file to remove."},
    {NULL},
};

PyTypeObject SlotFileType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.SlotFile",
    .tp_basicsize = sizeof(SlotFile),
    .tp_new = SlotFile_new,
    .tp_dealloc = (destructor)SlotFile_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = SlotFile_fields,
    .tp_methods = SlotFile_methods,
};
