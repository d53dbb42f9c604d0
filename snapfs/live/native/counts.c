/* What is counted for all files, known to memory or not: how often each is open, and which names are not durable yet.
 *
 * Invariants:
 * 1. In `opens` are just the files that are open. A release too many counts nothing.
 * 2. A change of a row or a name is in `changed`, or below `changed_floor`, before it is answered, until it is durable.
 *    `names_newest` is the newest of all changes.
 * 3. In `unsynced_names` are all files whose backing file's name may not be durable.
 *
 * The locks are leaves, as in core.c.
 */
#include "content.h"

#define REMEMBERED_CHANGES 100000

int64_t core_count_open(sc_core *core, uint64_t ino, int writing, int step)
{
    pthread_mutex_lock(&core->opens_lock);
    uint64_t *count = map_put(&core->opens, ino), left = 0;
    int64_t result = -ENOMEM;
    if (count) {
        uint32_t opens = (uint32_t)*count, writers = (uint32_t)(*count >> 32);
        opens = opens || step > 0 ? opens + (uint32_t)step : 0;
        writers = writing && (writers || step > 0) ? writers + (uint32_t)step : writers;
        *count = left = (uint64_t)writers << 32 | opens;
        result = opens;
    }
    if (count && !left)
        map_remove(&core->opens, ino);
    pthread_mutex_unlock(&core->opens_lock);
    return result;
}

bool core_may_be_written(sc_core *core, uint64_t ino)
{
    pthread_mutex_lock(&core->opens_lock);
    uint64_t *count = map_find(&core->opens, ino);
    bool written = count && *count >> 32;
    pthread_mutex_unlock(&core->opens_lock);
    return written || atomic_load(&core->opens_unknown);
}

bool core_needs_names(sc_core *core, uint64_t ino)
{
    pthread_mutex_lock(&core->names_lock);
    uint64_t *number = map_find(&core->changed, ino);
    bool needs =
        max_u64(number ? *number : 0, core->changed_floor) > core->names_synced || map_find(&core->unsynced_names, ino);
    pthread_mutex_unlock(&core->names_lock);
    return needs;
}

/* -- for Python */

static PyObject *Core_count_open(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int writing, step;
    if (!PyArg_ParseTuple(args, "Kpi", &ino, &writing, &step))
        return NULL;
    int64_t left = core_count_open(self, ino, writing, step);
    return left < 0 ? PyErr_NoMemory() : PyLong_FromLongLong(left);
}

static PyObject *Core_opens(sc_core *self, PyObject *args)
{
    unsigned long long ino, count;
    if (!PyArg_ParseTuple(args, "K", &ino))
        return NULL;
    pthread_mutex_lock(&self->opens_lock);
    uint64_t *at = map_find(&self->opens, ino);
    count = at ? *at : 0;
    pthread_mutex_unlock(&self->opens_lock);
    return Py_BuildValue("II", (unsigned)count, (unsigned)(count >> 32));
}

static PyObject *Core_opens_are_unknown(sc_core *self, PyObject *unused)
{
    atomic_store(&self->opens_unknown, true);
    Py_RETURN_NONE;
}

/* No tuple is made under the lock: that can run the garbage collector, and with it anything. */
static PyObject *Core_open_files(sc_core *self, PyObject *unused)
{
    PyObject *flat = PyList_New(0);
    pthread_mutex_lock(&self->opens_lock);
    MAP_EACH(&self->opens, i) {
        uint64_t count = MAP_VALUE(&self->opens, i);
        uint64_t row[] = {MAP_KEY(&self->opens, i), count & UINT32_MAX, count >> 32};
        for (int n = 0; n < 3; n++) {
            PyObject *item = PyLong_FromUnsignedLongLong(row[n]);
            if (flat && (!item || PyList_Append(flat, item)))
                Py_CLEAR(flat);
            Py_XDECREF(item);
        }
    }
    pthread_mutex_unlock(&self->opens_lock);
    return flat;
}

/* -- names that are not durable */

static PyObject *Core_needs_names(sc_core *self, PyObject *number)
{
    uint64_t ino = PyLong_AsUnsignedLongLong(number);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(core_needs_names(self, ino));
}

static PyObject *Core_names_changed(sc_core *self, PyObject *args)
{
    PyObject *inos, *each;
    unsigned long long number;
    if (!PyArg_ParseTuple(args, "OK", &inos, &number))
        return NULL;
    PyObject *iterator = PyObject_GetIter(inos);
    while (iterator && (each = PyIter_Next(iterator))) {
        unsigned long long ino = PyLong_AsUnsignedLongLong(each);
        Py_DECREF(each);
        pthread_mutex_lock(&self->names_lock);
        uint64_t *at = self->changed.count < REMEMBERED_CHANGES ? map_put(&self->changed, ino) : NULL;
        *(at ? at : &self->changed_floor) = number;
        self->names_newest = max_u64(self->names_newest, number);
        pthread_mutex_unlock(&self->names_lock);
    }
    Py_XDECREF(iterator);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Core_all_names_changed(sc_core *self, PyObject *number)
{
    unsigned long long floor = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&self->names_lock);
    self->changed_floor = max_u64(self->changed_floor, floor);
    pthread_mutex_unlock(&self->names_lock);
    Py_RETURN_NONE;
}

/* Everything up to `number` is durable. Once much is remembered, all of it counts as changed by the newest change. */
static PyObject *Core_names_synced(sc_core *self, PyObject *args)
{
    unsigned long long number;
    if (!PyArg_ParseTuple(args, "K", &number))
        return NULL;
    pthread_mutex_lock(&self->names_lock);
    self->names_synced = max_u64(self->names_synced, number);
    if (self->changed.count > REMEMBERED_CHANGES / 10) {
        self->changed_floor = max_u64(self->changed_floor, self->names_newest);
        map_clear(&self->changed);
    }
    pthread_mutex_unlock(&self->names_lock);
    Py_RETURN_NONE;
}

static PyObject *Core_set_name_unsynced(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int unsynced;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &unsynced))
        return NULL;
    pthread_mutex_lock(&self->names_lock);
    bool done = unsynced ? map_put(&self->unsynced_names, ino) != NULL : (map_remove(&self->unsynced_names, ino), true);
    pthread_mutex_unlock(&self->names_lock);
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef core_count_methods[] = {
    {"count_open", (PyCFunction)Core_count_open, METH_VARARGS, "count_open(ino, writing, step): opens left."},
    {"opens", (PyCFunction)Core_opens, METH_VARARGS, "opens(ino): (opens, of them for writing)."},
    {"open_files", (PyCFunction)Core_open_files, METH_NOARGS, "ino, opens, of them for writing; ino, ..."},
    {"opens_are_unknown", (PyCFunction)Core_opens_are_unknown, METH_NOARGS, "Files may be open that are not counted."},
    {"needs_names", (PyCFunction)Core_needs_names, METH_O, "needs_names(ino): whether names of it may not be durable."},
    {"names_changed", (PyCFunction)Core_names_changed, METH_VARARGS, "names_changed(inos, transaction)."},
    {"all_names_changed", (PyCFunction)Core_all_names_changed, METH_O, NULL},
    {"names_synced", (PyCFunction)Core_names_synced, METH_VARARGS,
     "names_synced(transaction): up to it all is durable."},
    {"set_name_unsynced", (PyCFunction)Core_set_name_unsynced, METH_VARARGS, "set_name_unsynced(ino, unsynced)."},
    {NULL},
};
