/* Calls of Python: what it must do before a request can be answered.
 *
 * An upcall takes the GIL in the thread that needs it and calls `python(kind, ...)` with five numbers, which returns
 * one that is >= 0 or a negative errno.
 *
 * Invariants:
 * 1. No lock is held in an upcall.
 * 2. Device threads wait in upcalls only for the GIL and the local disk; what can wait longer is the blocking worker's.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include "router.h"

#include <errno.h>

int64_t upcall_run(struct router *router, int kind, const uint64_t arguments[UPCALL_ARGUMENTS])
{
    PyGILState_STATE state = PyGILState_Ensure();
    int64_t result = -EIO;
    const uint64_t *a = arguments;
    PyObject *answer =
        PyObject_CallFunction(router->python, "iKKKKK", kind, (unsigned long long)a[0], (unsigned long long)a[1],
                              (unsigned long long)a[2], (unsigned long long)a[3], (unsigned long long)a[4]);
    if (answer) {
        result = PyLong_AsLongLong(answer);
        Py_DECREF(answer);
    }
    if (PyErr_Occurred()) { /* `python` catches what can be foreseen */
        PyErr_WriteUnraisable(router->python);
        result = -EIO;
    }
    PyGILState_Release(state);
    return result;
}

int64_t upcall_run_for(struct router *router, int kind, uint64_t ino)
{
    return upcall_run(router, kind, (const uint64_t[UPCALL_ARGUMENTS]){ino});
}
