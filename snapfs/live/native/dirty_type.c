/* DirtyMap for Python, in the words of snapfs/live/intents/dirty_map.py. The steps themselves are in dirty.c. */
#include "content.h"

#include <stdlib.h>

static PyObject *DirtyMap_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"floor", "reach", "whole", NULL};
    unsigned long long floor = NO_FLOOR, reach = 0;
    int whole = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|KKp", names, &floor, &reach, &whole))
        return NULL;
    DirtyMap *self = (DirtyMap *)type->tp_alloc(type, 0);
    if (self)
        self->map = (struct dirty){.floor = floor, .reach = reach, .whole = whole};
    return (PyObject *)self;
}

static void DirtyMap_dealloc(DirtyMap *self)
{
    dirty_free(&self->map);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *DirtyMap_covers(DirtyMap *self, PyObject *chunk)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(chunk);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(dirty_covers(&self->map, number));
}

static PyObject *DirtyMap_has(DirtyMap *self, PyObject *args)
{
    unsigned long long offset, length;
    if (!PyArg_ParseTuple(args, "KK", &offset, &length))
        return NULL;
    return PyBool_FromLong(dirty_has(&self->map, offset, length));
}

static PyObject *DirtyMap_is_clean(DirtyMap *self, PyObject *unused)
{
    return PyBool_FromLong(dirty_is_clean(&self->map));
}

static PyObject *marked(int64_t result) { return result < 0 ? PyErr_NoMemory() : PyLong_FromLongLong(result); }

static PyObject *DirtyMap_mark(DirtyMap *self, PyObject *args)
{
    unsigned long long offset, length;
    if (!PyArg_ParseTuple(args, "KK", &offset, &length))
        return NULL;
    return marked(dirty_mark(&self->map, offset, length));
}

static PyObject *DirtyMap_mark_blocks(DirtyMap *self, PyObject *args)
{
    unsigned long long first, count;
    if (!PyArg_ParseTuple(args, "KK", &first, &count))
        return NULL;
    return marked(dirty_mark(&self->map, first << BLOCK_SHIFT, count << BLOCK_SHIFT));
}

static PyObject *DirtyMap_lower(DirtyMap *self, PyObject *args)
{
    unsigned long long floor, reach = 0;
    if (!PyArg_ParseTuple(args, "K|K", &floor, &reach))
        return NULL;
    dirty_lower(&self->map, floor, reach);
    Py_RETURN_NONE;
}

static PyObject *DirtyMap_mark_whole(DirtyMap *self, PyObject *unused)
{
    dirty_mark_whole(&self->map);
    Py_RETURN_NONE;
}

static PyObject *DirtyMap_join(DirtyMap *self, PyObject *other)
{
    if (!Py_IS_TYPE(other, &DirtyMapType))
        return PyErr_Format(PyExc_TypeError, "only a map of the same kind can be joined");
    if (dirty_join(&self->map, &((DirtyMap *)other)->map))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* A list with `item(chunk, mask)` for each listed chunk, ascending. */
static PyObject *DirtyMap_listed_chunks(DirtyMap *self, PyObject *unused)
{
    size_t count;
    uint64_t *chunks = dirty_sorted(&self->map, &count);
    PyObject *list = chunks ? PyList_New((Py_ssize_t)count) : PyErr_NoMemory();
    for (size_t i = 0; list && i < count; i++) {
        PyObject *item = Py_BuildValue("KK", (unsigned long long)chunks[i],
                                       (unsigned long long)*map_find(&self->map.masks, chunks[i]));
        if (item)
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
        else
            Py_CLEAR(list);
    }
    free(chunks);
    return list;
}

static int add_run(PyObject *list, uint64_t first, uint64_t end)
{
    PyObject *run =
        end > first ? Py_BuildValue("KK", (unsigned long long)first, (unsigned long long)(end - first)) : NULL;
    int failed = run ? PyList_Append(list, run) : end > first;
    Py_XDECREF(run);
    return failed;
}

static PyObject *DirtyMap_runs(DirtyMap *self, PyObject *unused)
{
    size_t count;
    uint64_t *chunks = dirty_sorted(&self->map, &count), first = 0, end = 0;
    PyObject *list = chunks ? PyList_New(0) : PyErr_NoMemory();
    int failed = !list;
    for (size_t i = 0; !failed && i < count; i++) {
        uint64_t mask = *map_find(&self->map.masks, chunks[i]);
        for (unsigned bit = 0; !failed && bit < CHUNK_BLOCKS; bit++) {
            uint64_t block = chunks[i] * CHUNK_BLOCKS + bit;
            if (!(mask >> bit & 1))
                continue;
            if (block != end) {
                failed = add_run(list, first, end);
                first = block;
            }
            end = block + 1;
        }
    }
    failed = failed || add_run(list, first, end);
    free(chunks);
    if (failed)
        Py_CLEAR(list);
    PyObject *runs = list ? PyObject_GetIter(list) : NULL;
    Py_XDECREF(list);
    return runs;
}

static PyObject *DirtyMap_masks(DirtyMap *self, void *unused)
{
    PyObject *masks = PyDict_New();
    MAP_EACH(&self->map.masks, i) {
        PyObject *key = PyLong_FromUnsignedLongLong(MAP_KEY(&self->map.masks, i));
        PyObject *value = PyLong_FromUnsignedLongLong(MAP_VALUE(&self->map.masks, i));
        if (!masks || !key || !value || PyDict_SetItem(masks, key, value))
            Py_CLEAR(masks);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return masks;
}

static PyObject *DirtyMap_check_invariants(DirtyMap *self, PyObject *unused)
{
    bool sound = (!self->map.whole || !self->map.floor) && self->map.floor <= NO_FLOOR;
    MAP_EACH(&self->map.masks, i)
        sound = sound && MAP_VALUE(&self->map.masks, i) - 1 < FULL_MASK;
    if (!sound)
        return PyErr_Format(PyExc_AssertionError, "a dirty map with floor %llu", (unsigned long long)self->map.floor);
    Py_RETURN_NONE;
}

static PyObject *DirtyMap_floor(DirtyMap *self, void *unused) { return PyLong_FromUnsignedLongLong(self->map.floor); }
static PyObject *DirtyMap_reach(DirtyMap *self, void *unused) { return PyLong_FromUnsignedLongLong(self->map.reach); }
static PyObject *DirtyMap_whole(DirtyMap *self, void *unused) { return PyBool_FromLong(self->map.whole); }
static PyObject *DirtyMap_count(DirtyMap *self, void *unused) { return PyLong_FromSize_t(self->map.masks.count); }

static PyGetSetDef DirtyMap_fields[] = {
    {"floor", (getter)DirtyMap_floor, NULL, NULL, NULL},      {"reach", (getter)DirtyMap_reach, NULL, NULL, NULL},
    {"whole", (getter)DirtyMap_whole, NULL, NULL, NULL},      {"count", (getter)DirtyMap_count, NULL, NULL, NULL},
    {"masks", (getter)DirtyMap_masks, NULL, "A copy.", NULL}, {NULL},
};

static PyMethodDef DirtyMap_methods[] = {
    {"covers", (PyCFunction)DirtyMap_covers, METH_O, NULL},
    {"has", (PyCFunction)DirtyMap_has, METH_VARARGS, NULL},
    {"is_clean", (PyCFunction)DirtyMap_is_clean, METH_NOARGS, NULL},
    {"listed_chunks", (PyCFunction)DirtyMap_listed_chunks, METH_NOARGS, NULL},
    {"runs", (PyCFunction)DirtyMap_runs, METH_NOARGS, NULL},
    {"mark", (PyCFunction)DirtyMap_mark, METH_VARARGS, NULL},
    {"mark_blocks", (PyCFunction)DirtyMap_mark_blocks, METH_VARARGS, NULL},
    {"lower", (PyCFunction)DirtyMap_lower, METH_VARARGS, NULL},
    {"mark_whole", (PyCFunction)DirtyMap_mark_whole, METH_NOARGS, NULL},
    {"join", (PyCFunction)DirtyMap_join, METH_O, NULL},
    {"check_invariants", (PyCFunction)DirtyMap_check_invariants, METH_NOARGS, NULL},
    {NULL},
};

PyTypeObject DirtyMapType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.DirtyMap",
    .tp_basicsize = sizeof(DirtyMap),
    .tp_new = DirtyMap_new,
    .tp_dealloc = (destructor)DirtyMap_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = DirtyMap_fields,
    .tp_methods = DirtyMap_methods,
};
