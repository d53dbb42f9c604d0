/* The names of the live tree for Python: which database they are in, and looks at them for tests and tools. */
#include "content.h"

static PyObject *Core_open_names(sc_core *self, PyObject *args)
{
    const char *path, *live_dir, *sqlite_module;
    int open;
    if (!PyArg_ParseTuple(args, "sss", &path, &live_dir, &sqlite_module))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    open = names_readers_open(&self->readers, path, live_dir, sqlite_module);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(open);
}

static PyObject *Core_set_lazy(sc_core *self, PyObject *argument)
{
    int lazy = PyObject_IsTrue(argument);
    if (lazy < 0)
        return NULL;
    atomic_store(&self->readers.lazy, lazy);
    Py_RETURN_NONE;
}

static PyObject *Core_close_names(sc_core *self, PyObject *unused)
{
    Py_BEGIN_ALLOW_THREADS
    names_readers_close(&self->readers);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyMethodDef core_names_methods[] = {
    {"open_names", (PyCFunction)Core_open_names, METH_VARARGS,
     "open_names(database, live folder, module of sqlite3): whether names can be read without Python from now on."},
    {"close_names", (PyCFunction)Core_close_names, METH_NOARGS, "Names are not looked at here any more."},
    {"set_lazy", (PyCFunction)Core_set_lazy, METH_O,
     "set_lazy(lazy): whether there may be directories whose names are only in the store."},
    {NULL},
};
