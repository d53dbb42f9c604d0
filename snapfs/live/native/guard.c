/* Locks as Python sees them: `with state.lock:`. A thread that must wait for one releases the GIL meanwhile
 * (lock_order.h). */
#include "content.h"

typedef struct {
    PyObject_HEAD
    PyObject *owner; /* keeps the lock alive */
    pthread_mutex_t *lock;
} Guard;

void guard_lock(pthread_mutex_t *lock)
{
    if (!pthread_mutex_trylock(lock))
        return;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(lock);
    Py_END_ALLOW_THREADS
}

PyObject *guard_new(PyObject *owner, pthread_mutex_t *lock)
{
    Guard *guard = PyObject_New(Guard, &GuardType);
    if (guard) {
        guard->owner = Py_NewRef(owner);
        guard->lock = lock;
    }
    return (PyObject *)guard;
}

static void Guard_dealloc(Guard *self)
{
    Py_DECREF(self->owner);
    PyObject_Free(self);
}

static PyObject *Guard_enter(Guard *self, PyObject *unused)
{
    guard_lock(self->lock);
    Py_RETURN_NONE;
}

static PyObject *Guard_exit(Guard *self, PyObject *unused)
{
    pthread_mutex_unlock(self->lock);
    Py_RETURN_NONE;
}

static PyObject *Guard_locked(Guard *self, PyObject *unused)
{
    if (pthread_mutex_trylock(self->lock))
        Py_RETURN_TRUE;
    pthread_mutex_unlock(self->lock);
    Py_RETURN_FALSE;
}

static PyMethodDef Guard_methods[] = {
    {"__enter__", (PyCFunction)Guard_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)Guard_exit, METH_VARARGS, NULL},
    {"locked", (PyCFunction)Guard_locked, METH_NOARGS, "Whether a thread holds it at this moment."},
    {NULL},
};

PyTypeObject GuardType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.Guard",
    .tp_basicsize = sizeof(Guard),
    .tp_dealloc = (destructor)Guard_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_methods = Guard_methods,
};
