/* The Python object of the router, and what its two files share. */
#ifndef SNAPFS_ROUTER_TYPE_H
#define SNAPFS_ROUTER_TYPE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "router.h"

typedef struct {
    PyObject_HEAD
    struct router router;
    PyObject *core, *python;
    bool open;
} Router;

extern PyMethodDef Router_methods[]; /* router_methods.c */

/* module.c */
PyObject *Router_start(Router *self, PyObject *args);
PyObject *Router_stop(Router *self, PyObject *none);
PyObject *Router_attach_core(Router *self, PyObject *args);

#endif
