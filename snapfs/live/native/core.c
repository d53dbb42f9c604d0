/* What the hot steps share: the table of states, the current epoch and its log, and whose times are pending.
 *
 * Invariants:
 * 1. A state is looked up and pinned in one step under its shard's lock; `withdraw` takes it out only if it is not
 *    pinned. So a pinned state is the file's only one.
 * 2. `log` is the current epoch's, or was it a moment ago; it is pinned under `log_lock`, and replaced under it.
 * 3. In `pending` are just the states with `times_pending`; both change with the file's lock held.
 *
 * All locks here are leaves: nothing is waited for under them, no system call is made, and nothing of Python's that
 * could run other code. So they may be taken with the GIL in hand.
 */
#include "content.h"

#include <stdlib.h>
#include <unistd.h>

static struct shard *shard_of(sc_core *core, uint64_t ino)
{
    return core->shards + (ino * 0x9e3779b97f4a7c15ull >> 58);
}

FileState *core_pin(sc_core *core, uint64_t ino)
{
    struct shard *shard = shard_of(core, ino);
    pthread_mutex_lock(&shard->lock);
    uint64_t *at = map_find(&shard->states, ino);
    FileState *state = at ? (FileState *)(uintptr_t)*at : NULL;
    if (state)
        atomic_fetch_add(&state->users, 1);
    pthread_mutex_unlock(&shard->lock);
    return state;
}

void core_unpin(FileState *state) { atomic_fetch_sub(&state->users, 1); }

int core_append(sc_core *core, const void *records, size_t length)
{
    pthread_mutex_lock(&core->log_lock);
    LogFile *log = core->log;
    atomic_fetch_add(&log->users, 1);
    pthread_mutex_unlock(&core->log_lock);
    int result = log_file_append(log, "intents:append", records, length);
    atomic_fetch_sub(&log->users, 1);
    return result;
}

void core_set_pending(sc_core *core, FileState *state, bool pending)
{
    pthread_mutex_lock(&core->pending_lock);
    if (!pending) {
        map_remove(&core->pending, state->ino);
    } else {
        uint64_t *at = map_put(&core->pending, state->ino);
        if (at) /* else the times are written to the file when it is released, or synced */
            *at = (uint64_t)(uintptr_t)state;
    }
    atomic_store(&state->times_pending, pending);
    pthread_mutex_unlock(&core->pending_lock);
}

/* -- for Python */

static PyObject *Core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *descriptors, *disk, *log, *marks;
    unsigned long long epoch;
    if (!PyArg_ParseTuple(args, "O!OKO!O!", &DescriptorsType, &descriptors, &disk, &epoch, &LogFileType, &log,
                          &FlushMarksType, &marks))
        return NULL;
    sc_core *self = (sc_core *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (posix_memalign((void **)&self->shards, 64, SHARDS * sizeof *self->shards) ||
        attr_cache_open(&self->attr_cache)) {
        free(self->shards);
        self->shards = NULL;
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (int i = 0; i < SHARDS; i++) {
        self->shards[i] = (struct shard){0};
        pthread_mutex_init(&self->shards[i].lock, NULL);
    }
    pthread_mutex_t *locks[] = {&self->log_lock, &self->pending_lock, &self->opens_lock, &self->names_lock};
    for (size_t i = 0; i < sizeof locks / sizeof *locks; i++)
        pthread_mutex_init(locks[i], NULL);
    names_readers_init(&self->readers);
    names_writer_init(&self->writer);
    atomic_init(&self->epoch, epoch);
    self->max_bytes = MAX_OFFSET;
    self->time_min_ns = INT64_MIN;
    self->time_max_ns = INT64_MAX;
    self->descriptors = (Descriptors *)Py_NewRef(descriptors);
    self->log = (LogFile *)Py_NewRef(log);
    self->flush_marks = (FlushMarks *)Py_NewRef(marks);
    disk_init(&self->disk, disk);
    return (PyObject *)self;
}

static void Core_dealloc(sc_core *self)
{
    for (int i = 0; self->shards && i < SHARDS; i++) {
        struct map *states = &self->shards[i].states;
        MAP_EACH(states, n)
            Py_DECREF((PyObject *)(uintptr_t)MAP_VALUE(states, n));
        map_clear(states);
    }
    if (self->shards) {
        names_readers_close(&self->readers);
        names_readers_free(&self->readers);
        names_writer_free(&self->writer);
    }
    free(self->shards);
    struct map *maps[] = {&self->pending, &self->opens, &self->changed, &self->unsynced_names};
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
        map_clear(maps[i]);
    Py_XDECREF(self->descriptors);
    Py_XDECREF(self->log);
    Py_XDECREF(self->flush_marks);
    Py_XDECREF(self->slots);
    attr_cache_close(&self->attr_cache);
    disk_free(&self->disk);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *Core_publish(sc_core *self, PyObject *state)
{
    if (!Py_IS_TYPE(state, &FileStateType))
        return PyErr_Format(PyExc_TypeError, "a FileState is needed");
    uint64_t ino = ((FileState *)state)->ino;
    struct shard *shard = shard_of(self, ino);
    pthread_mutex_lock(&shard->lock);
    uint64_t *at = map_put(&shard->states, ino);
    bool is_new = at && !*at, is_it = at && *at == (uint64_t)(uintptr_t)state;
    if (is_new)
        *at = (uint64_t)(uintptr_t)Py_NewRef(state);
    pthread_mutex_unlock(&shard->lock);
    if (!at)
        return PyErr_NoMemory();
    if (!is_new && !is_it)
        return PyErr_Format(PyExc_AssertionError, "inode %llu has another state", (unsigned long long)ino);
    Py_RETURN_NONE;
}

/* 1: taken out; 0: was not there; -1: a thread has it pinned, or its times are pending (unless `even_pending`). */
static int take_out(sc_core *core, uint64_t ino, bool even_pending, FileState **out)
{
    struct shard *shard = shard_of(core, ino);
    pthread_mutex_lock(&shard->lock);
    uint64_t *at = map_find(&shard->states, ino);
    *out = at ? (FileState *)(uintptr_t)*at : NULL;
    bool held = at && (atomic_load(&(*out)->users) || (!even_pending && atomic_load(&(*out)->times_pending)));
    int result = !at ? 0 : held ? -1 : 1;
    if (result > 0)
        map_remove(&shard->states, ino);
    pthread_mutex_unlock(&shard->lock);
    return result;
}

/* Never waits for a pin: its owner may be waiting for the file's lock, and that lock's owner for the caller's latch. */
static PyObject *Core_withdraw(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int even_pending = 0;
    FileState *state;
    if (!PyArg_ParseTuple(args, "K|p", &ino, &even_pending))
        return NULL;
    int result = take_out(self, ino, even_pending, &state);
    if (result > 0) {
        if (atomic_load(&state->times_pending))
            core_set_pending(self, state, false);
        Py_DECREF(state);
    }
    return PyBool_FromLong(result >= 0);
}

static PyObject *Core_advance(sc_core *self, PyObject *args)
{
    unsigned long long epoch;
    PyObject *log, *slots;
    if (!PyArg_ParseTuple(args, "KO!O!", &epoch, &LogFileType, &log, &SlotFileType, &slots))
        return NULL;
    Py_XSETREF(self->slots, (SlotFile *)Py_NewRef(slots));
    pthread_mutex_lock(&self->log_lock);
    LogFile *before = self->log;
    self->log = (LogFile *)Py_NewRef(log);
    pthread_mutex_unlock(&self->log_lock);
    atomic_store(&self->epoch, epoch);
    Py_DECREF(before);
    return PyLong_FromUnsignedLongLong(atomic_exchange(&self->chunks, 0));
}

static PyObject *Core_set_limits(sc_core *self, PyObject *args)
{
    unsigned long long max_bytes;
    long long time_min_ns, time_max_ns;
    if (!PyArg_ParseTuple(args, "KLL", &max_bytes, &time_min_ns, &time_max_ns))
        return NULL;
    self->max_bytes = max_bytes < MAX_OFFSET ? max_bytes : MAX_OFFSET;
    self->time_min_ns = time_min_ns;
    self->time_max_ns = time_max_ns;
    Py_RETURN_NONE;
}

static PyObject *Core_pending(sc_core *self, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    pthread_mutex_lock(&self->pending_lock);
    MAP_EACH(&self->pending, i)
        if (list && PyList_Append(list, (PyObject *)(uintptr_t)MAP_VALUE(&self->pending, i)))
            Py_CLEAR(list);
    pthread_mutex_unlock(&self->pending_lock);
    return list;
}

static PyObject *Core_set_pending(sc_core *self, PyObject *args)
{
    PyObject *state;
    int pending;
    if (!PyArg_ParseTuple(args, "O!p", &FileStateType, &state, &pending))
        return NULL;
    core_set_pending(self, (FileState *)state, pending);
    Py_RETURN_NONE;
}

static PyObject *Core_close(sc_core *self, PyObject *unused)
{
    atomic_store(&self->closed, true);
    for (int i = 0; i < SHARDS; i++) { /* wait for those under way */
        struct shard *shard = self->shards + i;
        for (bool busy = true; busy;) {
            busy = false;
            pthread_mutex_lock(&shard->lock);
            MAP_EACH(&shard->states, n)
                busy = busy || atomic_load(&((FileState *)(uintptr_t)MAP_VALUE(&shard->states, n))->users);
            pthread_mutex_unlock(&shard->lock);
            Py_BEGIN_ALLOW_THREADS
            if (busy)
                usleep(100);
            Py_END_ALLOW_THREADS
        }
    }
    Py_BEGIN_ALLOW_THREADS
    names_readers_close(&self->readers);
    names_turn_take(&self->writer.turn, TURN_OF_PYTHON); /* a change that is under way ends; no other begins */
    names_turn_end(&self->writer.turn);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *Core_epoch(sc_core *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_load(&self->epoch));
}
static PyObject *Core_chunks(sc_core *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_load(&self->chunks));
}

static PyObject *Core_written(sc_core *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_load(&self->written));
}

static PyGetSetDef Core_fields[] = {
    {"written", (getter)Core_written, NULL, "Bytes that were written, copied ones included, without Python.", NULL},
    {"epoch", (getter)Core_epoch, NULL, NULL, NULL},
    {"chunks", (getter)Core_chunks, NULL, "What was marked in this epoch without Python.", NULL},
    {NULL},
};

static PyMethodDef Core_methods[] = {
    {"publish", (PyCFunction)Core_publish, METH_O, "Let all threads find a state."},
    {"withdraw", (PyCFunction)Core_withdraw, METH_VARARGS,
     "withdraw(ino, even_pending=False): false if it is pinned, or its times are pending."},
    {"advance", (PyCFunction)Core_advance, METH_VARARGS,
     "advance(epoch, log, slots of the cut): the chunks of the epoch that ends."},
    {"set_limits", (PyCFunction)Core_set_limits, METH_VARARGS,
     "set_limits(max_bytes, time_min_ns, time_max_ns), before the first change."},
    {"pending", (PyCFunction)Core_pending, METH_NOARGS, "The states whose times the backing file does not have yet."},
    {"set_pending", (PyCFunction)Core_set_pending, METH_VARARGS, NULL},
    {"close", (PyCFunction)Core_close, METH_NOARGS,
     "From now on all calls of the API return SC_NEED_CLOSED. Waits for those under way."},
    {NULL},
};

PyTypeObject CoreType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.Core",
    .tp_basicsize = sizeof(sc_core),
    .tp_new = Core_new,
    .tp_dealloc = (destructor)Core_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_getset = Core_fields,
    .tp_methods = Core_methods,
};
