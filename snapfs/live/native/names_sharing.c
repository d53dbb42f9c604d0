/* The turn, and what changes in C leave to be done, for Python: names_writer.h has the invariants.
 *
 * Python's side is snapfs/live/writer/turn.py. It lends the mappings of the mark and of the wal-index as it begins to
 * share, and gets them back when it ends, after `Core.close`.
 */
#include "content.h"

#include <string.h>

static PyObject *numbers_of(const struct names_state *state)
{
    const uint64_t *numbers = (const uint64_t *)state;
    PyObject *all = PyTuple_New(STATE_NUMBERS);
    for (size_t i = 0; all && i < STATE_NUMBERS; i++) {
        PyObject *number = PyLong_FromLongLong((long long)numbers[i]);
        if (number)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, number);
        else
            Py_CLEAR(all);
    }
    return all;
}

static int state_from(PyObject *all, struct names_state *state)
{
    uint64_t numbers[STATE_NUMBERS];
    if (!PyTuple_Check(all) || PyTuple_GET_SIZE(all) != (Py_ssize_t)STATE_NUMBERS) {
        PyErr_SetString(PyExc_TypeError, "the numbers of the writer are needed");
        return -1;
    }
    for (size_t i = 0; i < STATE_NUMBERS; i++)
        numbers[i] = (uint64_t)PyLong_AsLongLong(PyTuple_GET_ITEM(all, (Py_ssize_t)i));
    if (PyErr_Occurred())
        return -1;
    memcpy(state, numbers, sizeof numbers);
    return 0;
}

static PyObject *Core_share_names(sc_core *self, PyObject *args)
{
    struct names_writer *writer = &self->writer;
    const char *path;
    PyObject *numbers;
    Py_buffer slots, index, boot;
    unsigned long long turn, committed;
    int error = -EINVAL;
    if (!PyArg_ParseTuple(args, "sw*y*y*KKO", &path, &slots, &index, &boot, &turn, &committed, &numbers))
        return NULL;
    bool fits = slots.len >= 1024 && index.len >= 136 && boot.len == sizeof writer->mark.boot && !writer->is_shared;
    if (fits && self->readers.path && !state_from(numbers, &writer->state)) {
        Py_BEGIN_ALLOW_THREADS
        error = names_writer_open(writer, path);
        Py_END_ALLOW_THREADS
    }
    if (!error) {
        writer->slots_lent = slots;
        writer->index_lent = index;
        writer->mark.slots = slots.buf;
        writer->mark.index = index.buf;
        writer->mark.turn = turn;
        memcpy(writer->mark.boot, boot.buf, sizeof writer->mark.boot);
        writer->mark.committed = wal_mark_position(&writer->mark);
        atomic_store(&writer->committed, committed);
        atomic_store(&writer->is_shared, true);
    } else {
        PyBuffer_Release(&slots);
        PyBuffer_Release(&index);
    }
    PyBuffer_Release(&boot);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(!error);
}

/* Ends the sharing: with the turn, which ends with it. The turn of the mark is returned. */
static PyObject *Core_unshare_names(sc_core *self, PyObject *unused)
{
    struct names_writer *writer = &self->writer;
    uint64_t turn = writer->mark.turn;
    if (!writer->is_shared)
        return PyErr_Format(PyExc_RuntimeError, "the names are not shared");
    Py_BEGIN_ALLOW_THREADS
    names_writer_close(writer);
    Py_END_ALLOW_THREADS
    writer->mark.slots = NULL;
    writer->mark.index = NULL;
    PyBuffer_Release(&writer->slots_lent);
    PyBuffer_Release(&writer->index_lent);
    names_turn_end(&writer->turn);
    return PyLong_FromUnsignedLongLong(turn);
}

static PyObject *Core_take_turn(sc_core *self, PyObject *unused)
{
    struct names_turn *turn = &self->writer.turn;
    if (!names_turn_try(turn, TURN_OF_PYTHON)) {
        Py_BEGIN_ALLOW_THREADS
        names_turn_take(turn, TURN_OF_PYTHON);
        Py_END_ALLOW_THREADS
    }
    PyObject *numbers = numbers_of(&self->writer.state);
    if (!numbers)
        names_turn_end(turn);
    return numbers;
}

static PyObject *Core_end_turn(sc_core *self, PyObject *numbers)
{
    struct names_writer *writer = &self->writer;
    uint64_t sealed = writer->state.sealed;
    int failed = state_from(numbers, &writer->state);
    map_clear(&writer->touched); /* the epoch may have ended, or the rows be gone */
    if (sealed != writer->state.sealed)
        writer->purging = true;
    names_turn_end(&writer->turn);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

/* -- the mark, for the thread that has the turn; `mark_synced` for any */

static PyObject *Core_mark_committed(sc_core *self, PyObject *unused)
{
    wal_mark_committed(&self->writer.mark);
    Py_RETURN_NONE;
}

static PyObject *Core_mark_synced(sc_core *self, PyObject *args)
{
    struct wal_position synced;
    if (!PyArg_ParseTuple(args, "III", &synced.salt1, &synced.salt2, &synced.frames))
        return NULL;
    wal_mark_synced(&self->writer.mark, synced);
    Py_RETURN_NONE;
}

static PyObject *Core_mark_reached(sc_core *self, PyObject *unused)
{
    struct wal_mark *mark = &self->writer.mark;
    pthread_mutex_lock(&mark->lock);
    struct wal_position reached = mark->committed;
    pthread_mutex_unlock(&mark->lock);
    return Py_BuildValue("III", reached.salt1, reached.salt2, reached.frames);
}

static PyObject *Core_count_commit(sc_core *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_fetch_add(&self->writer.committed, 1) + 1);
}

static PyObject *Core_committed(sc_core *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_load(&self->writer.committed));
}

/* -- lists. The numbers are copied first: no object is made under the lock */

static PyObject *taken(struct names_writer *writer, struct names_list *list)
{
    pthread_mutex_lock(&writer->lists_lock);
    size_t count = list->count;
    uint64_t *copy = count ? malloc(count * sizeof *copy) : NULL;
    if (copy) {
        memcpy(copy, list->numbers, count * sizeof *copy);
        list->count = 0;
    }
    pthread_mutex_unlock(&writer->lists_lock);
    if (count && !copy)
        return PyErr_NoMemory();
    PyObject *numbers = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; numbers && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(copy[i]);
        if (number)
            PyList_SET_ITEM(numbers, (Py_ssize_t)i, number);
        else
            Py_CLEAR(numbers);
    }
    free(copy);
    return numbers;
}

static PyObject *Core_take_orphans(sc_core *self, PyObject *unused)
{
    return taken(&self->writer, &self->writer.orphans);
}
static PyObject *Core_take_made(sc_core *self, PyObject *unused) { return taken(&self->writer, &self->writer.made); }
static PyObject *Core_take_replaced(sc_core *self, PyObject *unused)
{
    return taken(&self->writer, &self->writer.replaced);
}
static PyObject *Core_take_depends(sc_core *self, PyObject *unused)
{
    return taken(&self->writer, &self->writer.depends);
}
static PyObject *Core_take_left_over(sc_core *self, PyObject *unused)
{
    return taken(&self->writer, &self->writer.left_over);
}

static PyObject *Core_set_orphan(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int is_orphan;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &is_orphan))
        return NULL;
    pthread_mutex_lock(&self->writer.lists_lock);
    bool done = is_orphan ? map_put(&self->writer.known_orphans, ino) != NULL
                          : (map_remove(&self->writer.known_orphans, ino), true);
    pthread_mutex_unlock(&self->writer.lists_lock);
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *Core_flush_begins(sc_core *self, PyObject *unused)
{
    pthread_mutex_lock(&self->writer.lists_lock);
    self->writer.flushes++;
    pthread_mutex_unlock(&self->writer.lists_lock);
    Py_RETURN_NONE;
}

static PyObject *Core_flush_ends(sc_core *self, PyObject *unused)
{
    pthread_mutex_lock(&self->writer.lists_lock);
    self->writer.flushes--;
    pthread_mutex_unlock(&self->writer.lists_lock);
    Py_RETURN_NONE;
}

PyMethodDef core_sharing_methods[] = {
    {"share_names", (PyCFunction)Core_share_names, METH_VARARGS,
     "share_names(database, mark, wal-index, boot tag, turn of the mark, transactions, numbers): whether C changes "
     "names "
     "from now on."},
    {"unshare_names", (PyCFunction)Core_unshare_names, METH_NOARGS, "With the turn: end that. The turn of the mark."},
    {"take_turn", (PyCFunction)Core_take_turn, METH_NOARGS, "The writer's numbers; nobody else changes names then."},
    {"end_turn", (PyCFunction)Core_end_turn, METH_O, "end_turn(numbers)."},
    {"mark_committed", (PyCFunction)Core_mark_committed, METH_NOARGS, "A transaction is in the log."},
    {"mark_synced", (PyCFunction)Core_mark_synced, METH_VARARGS, "mark_synced(salt, salt, frames)."},
    {"mark_reached", (PyCFunction)Core_mark_reached, METH_NOARGS, "(salt, salt, frames) of the last transaction."},
    {"count_commit", (PyCFunction)Core_count_commit, METH_NOARGS, "The number of the noted transaction."},
    {"committed", (PyCFunction)Core_committed, METH_NOARGS, "The number of the newest transaction."},
    {"take_orphans", (PyCFunction)Core_take_orphans, METH_NOARGS, "Inodes that lost their last name since."},
    {"take_made", (PyCFunction)Core_take_made, METH_NOARGS, "Files whose backing files were made since."},
    {"take_replaced", (PyCFunction)Core_take_replaced, METH_NOARGS, "ino, whose last name it took; ino, ..."},
    {"take_depends", (PyCFunction)Core_take_depends, METH_NOARGS, "Files that took another one's name since."},
    {"take_left_over", (PyCFunction)Core_take_left_over, METH_NOARGS, "Files whose rows could not be made since."},
    {"set_orphan", (PyCFunction)Core_set_orphan, METH_VARARGS, "set_orphan(ino, is_orphan): whether a forget counts."},
    {"flush_begins", (PyCFunction)Core_flush_begins, METH_NOARGS, "A flush of the log begins."},
    {"flush_ends", (PyCFunction)Core_flush_ends, METH_NOARGS, "It has ended."},
    {NULL},
};
