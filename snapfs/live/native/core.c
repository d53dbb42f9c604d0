/* What the hot steps share: the table of states, the current epoch and its log, and whose times are pending.
 *
 * Invariants:
 * 1. A state is looked up and pinned in one step under its shard's lock; `withdraw` takes it out only when nobody has it
 *    pinned. So who has a state pinned has the file's one state.
 * 2. `log` is the current epoch's, or was it a moment ago; it is pinned under `word`, and replaced under it.
 * 3. In `pending` are just the states with `times_pending`; both change with the file's lock held.
 *
 * All locks here are leaves: nothing is waited for under them, no system call is made, and nothing of Python's that could
 * run other code. So they may be taken with the GIL in hand.
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

void core_unpin(FileState *state)
{
    atomic_fetch_sub(&state->users, 1);
}

int core_append(sc_core *core, const void *records, size_t length)
{
    pthread_mutex_lock(&core->word);
    LogFile *log = core->log;
    atomic_fetch_add(&log->users, 1);
    pthread_mutex_unlock(&core->word);
    int result = log_append(log, "intents:append", records, length);
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
        if (at) /* else the times are brought to the file when it is released, or synced */
            *at = (uint64_t)(uintptr_t)state;
    }
    atomic_store(&state->times_pending, pending);
    pthread_mutex_unlock(&core->pending_lock);
}

/* -- for Python */

static PyObject *Core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *descriptors, *disk, *log;
    unsigned long long epoch;
    if (!PyArg_ParseTuple(args, "O!OKO!", &DescriptorsType, &descriptors, &disk, &epoch, &LogFileType, &log))
        return NULL;
    sc_core *self = (sc_core *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (posix_memalign((void **)&self->shards, 64, SHARDS * sizeof *self->shards) || rows_open(&self->rows)) {
        free(self->shards);
        self->shards = NULL;
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (int i = 0; i < SHARDS; i++) {
        self->shards[i] = (struct shard){0};
        pthread_mutex_init(&self->shards[i].lock, NULL);
    }
    pthread_mutex_t *locks[] = {&self->word, &self->pending_lock, &self->opens_lock, &self->names_lock};
    for (size_t i = 0; i < sizeof locks / sizeof *locks; i++)
        pthread_mutex_init(locks[i], NULL);
    atomic_init(&self->epoch, epoch);
    self->descriptors = (Descriptors *)Py_NewRef(descriptors);
    self->log = (LogFile *)Py_NewRef(log);
    disk_init(&self->disk, disk);
    return (PyObject *)self;
}

static void Core_dealloc(sc_core *self)
{
    for (int i = 0; self->shards && i < SHARDS; i++) {
        struct map *states = &self->shards[i].states;
        MAP_EACH(states, n) Py_DECREF((PyObject *)(uintptr_t)MAP_VALUE(states, n));
        map_clear(states);
    }
    free(self->shards);
    struct map *maps[] = {&self->pending, &self->opens, &self->changed, &self->fresh};
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
        map_clear(maps[i]);
    Py_XDECREF(self->descriptors);
    Py_XDECREF(self->log);
    Py_XDECREF(self->slots);
    rows_close(&self->rows);
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

/* 1: taken out; 0: was not there; -1: somebody has it pinned, or (unless `any`) its times are pending. */
static int take_out(sc_core *core, uint64_t ino, bool any, FileState **out)
{
    struct shard *shard = shard_of(core, ino);
    pthread_mutex_lock(&shard->lock);
    uint64_t *at = map_find(&shard->states, ino);
    *out = at ? (FileState *)(uintptr_t)*at : NULL;
    bool held = at && (atomic_load(&(*out)->users) || (!any && atomic_load(&(*out)->times_pending)));
    int result = !at ? 0 : held ? -1 : 1;
    if (result > 0)
        map_remove(&shard->states, ino);
    pthread_mutex_unlock(&shard->lock);
    return result;
}

static PyObject *Core_withdraw(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int wait = 0, result;
    FileState *state;
    if (!PyArg_ParseTuple(args, "K|p", &ino, &wait))
        return NULL;
    while ((result = take_out(self, ino, wait, &state)) < 0 && wait) {
        Py_BEGIN_ALLOW_THREADS
        usleep(20);
        Py_END_ALLOW_THREADS
    }
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
    pthread_mutex_lock(&self->word);
    LogFile *before = self->log;
    self->log = (LogFile *)Py_NewRef(log);
    pthread_mutex_unlock(&self->word);
    atomic_store(&self->epoch, epoch);
    Py_DECREF(before);
    return PyLong_FromUnsignedLongLong(atomic_exchange(&self->chunks, 0));
}

static PyObject *Core_pending(sc_core *self, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    pthread_mutex_lock(&self->pending_lock);
    MAP_EACH(&self->pending, i) if (list && PyList_Append(list, (PyObject *)(uintptr_t)MAP_VALUE(&self->pending, i)))
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
    for (int i = 0; i < SHARDS; i++) { /* let those who have begun finish */
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
    Py_RETURN_NONE;
}

static PyObject *Core_epoch(sc_core *self, void *unused) { return PyLong_FromUnsignedLongLong(atomic_load(&self->epoch)); }
static PyObject *Core_chunks(sc_core *self, void *unused) { return PyLong_FromUnsignedLongLong(atomic_load(&self->chunks)); }

static PyGetSetDef Core_fields[] = {
    {"epoch", (getter)Core_epoch, NULL, NULL, NULL},
    {"chunks", (getter)Core_chunks, NULL, "What was marked in this epoch without Python.", NULL},
    {NULL},
};

static PyMethodDef Core_methods[] = {
    {"publish", (PyCFunction)Core_publish, METH_O, "Let all threads find a state."},
    {"withdraw", (PyCFunction)Core_withdraw, METH_VARARGS, "withdraw(ino, wait=False): false if it is in use, or its times are pending."},
    {"advance", (PyCFunction)Core_advance, METH_VARARGS, "advance(epoch, log, slots of the cut): the chunks of the epoch that ends."},
    {"pending", (PyCFunction)Core_pending, METH_NOARGS, "The states whose times the backing file does not have yet."},
    {"set_pending", (PyCFunction)Core_set_pending, METH_VARARGS, NULL},
    {"close", (PyCFunction)Core_close, METH_NOARGS, "From now on all calls of the API ask for SC_NEED_CLOSED."},
    {NULL},
};

PyTypeObject CoreType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live._content.Core",
    .tp_basicsize = sizeof(sc_core),
    .tp_new = Core_new,
    .tp_dealloc = (destructor)Core_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_getset = Core_fields,
    .tp_methods = Core_methods,
};
