/* Which backing files have changes that may not be durable: an fsync of any other file has nothing to flush.
 *
 * Each change of a file's bytes, size or times has a `begin` before it and an `end` after it; both give the file's mark
 * a new number. A sync notes the newest number before it looks the file up (`begin_sync`), and if it succeeds takes away
 * marks that are not newer and of whose file no change is under way (`end_sync`): each change of theirs had ended when
 * the sync began. A change that is under way or comes meanwhile leaves its mark.
 *
 * A mark is one number of the map: how many changes are under way in the lower bits, then two flags, then its number.
 *
 *   DATA   an fdatasync has made all but the times durable; the next change takes the flag away
 *   HELD   of a file whose record of what is here must become durable with its bytes (residency.py)
 *
 * Invariants:
 * 1. While `trusted`, a file without a mark has no byte, size or time that is not durable. Its name is another matter
 *    (counts.c).
 * 2. A mark is there from before its change on, until a sync that began after the change's end has succeeded. One that
 *    is HELD goes with a sync of that very file alone (`end_sync`), whose caller has made the record durable, too.
 * 3. `trusted` is false until it is known of all files that they are durable: by a sync of all of the host filesystem
 *    that began in this life, or because the last life ended in order (`trust`).
 * 4. `failed` is for good. It is set when a sync failed: the host reports what it lost once, and that may have been to
 *    another file's sync, after which no sync proves anything; and where there is no memory for a mark.
 * 5. There are at most LIMIT marks. In place of one more, those that are neither HELD nor in use are forgotten, and
 *    nothing is trusted until a later sync of all of the host filesystem.
 *
 * The lock is a leaf. Any thread, with the GIL or without.
 */
#include "content.h"

#define LIMIT 65536
#define USERS 0x3ffffull
#define DATA (1ull << 18)
#define HELD (1ull << 19)
#define NUMBER_SHIFT 20

/* With the lock held. */
static void fail(FlushMarks *self)
{
    self->trusted = false;
    self->failed = true;
    map_clear(&self->marks);
}

/* Take away the marks up to `number` that are neither in use nor HELD. With the lock held. */
static bool sweep(FlushMarks *self, uint64_t number)
{
    struct map left = {0};
    bool done = true;
    MAP_EACH(&self->marks, i) {
        uint64_t mark = MAP_VALUE(&self->marks, i);
        if (!(mark & (USERS | HELD)) && mark >> NUMBER_SHIFT <= number)
            continue;
        uint64_t *copy = map_put(&left, MAP_KEY(&self->marks, i));
        if (copy)
            *copy = mark;
        done = done && copy;
    }
    map_clear(&self->marks);
    self->marks = left;
    return done;
}

/* The mark of a file, a new one if need be; NULL if none can be made. With the lock held. */
static uint64_t *mark_of(FlushMarks *self, uint64_t ino)
{
    uint64_t *mark = map_find(&self->marks, ino);
    bool fits = true;
    if (!mark && self->marks.count >= LIMIT) {
        fits = sweep(self, self->newest) && self->marks.count < LIMIT;
        self->trusted = false;
        self->trust_from = self->newest;
    }
    if (!mark && fits)
        mark = map_put(&self->marks, ino);
    if (!mark)
        fail(self);
    return mark;
}

/* One more change is under way, or (`step` is -1) one less. */
static void change(FlushMarks *self, uint64_t ino, int step, uint64_t flags)
{
    pthread_mutex_lock(&self->lock);
    uint64_t *mark = self->failed ? NULL : mark_of(self, ino);
    if (mark) {
        uint64_t users = *mark & USERS;
        users = step > 0 ? users + 1 : users - (users > 0);
        *mark = ++self->newest << NUMBER_SHIFT | (*mark & HELD) | flags | users;
    }
    pthread_mutex_unlock(&self->lock);
}

void flush_marks_begin(FlushMarks *self, uint64_t ino, bool held) { change(self, ino, 1, held ? HELD : 0); }
void flush_marks_end(FlushMarks *self, uint64_t ino) { change(self, ino, -1, 0); }

bool flush_marks_is_clean(FlushMarks *self, uint64_t ino, bool datasync)
{
    pthread_mutex_lock(&self->lock);
    uint64_t *mark = map_find(&self->marks, ino);
    bool clean = self->trusted && (!mark || (datasync && *mark & DATA && !(*mark & (USERS | HELD))));
    pthread_mutex_unlock(&self->lock);
    return clean;
}

uint64_t flush_marks_begin_sync(FlushMarks *self)
{
    pthread_mutex_lock(&self->lock);
    uint64_t newest = self->newest;
    pthread_mutex_unlock(&self->lock);
    return newest;
}

void flush_marks_end_sync(FlushMarks *self, uint64_t ino, uint64_t begun, bool datasync)
{
    pthread_mutex_lock(&self->lock);
    uint64_t *mark = map_find(&self->marks, ino);
    if (mark && !(*mark & USERS) && *mark >> NUMBER_SHIFT <= begun) {
        if (datasync)
            *mark |= DATA;
        else
            map_remove(&self->marks, ino);
    }
    pthread_mutex_unlock(&self->lock);
}

void flush_marks_fail(FlushMarks *self)
{
    pthread_mutex_lock(&self->lock);
    fail(self);
    pthread_mutex_unlock(&self->lock);
}

/* -- for Python */

static PyObject *FlushMarks_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    FlushMarks *self = (FlushMarks *)type->tp_alloc(type, 0);
    if (self)
        pthread_mutex_init(&self->lock, NULL);
    return (PyObject *)self;
}

static void FlushMarks_dealloc(FlushMarks *self)
{
    map_clear(&self->marks);
    pthread_mutex_destroy(&self->lock);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *FlushMarks_begin(FlushMarks *self, PyObject *args)
{
    unsigned long long ino;
    int held = 0;
    if (!PyArg_ParseTuple(args, "K|p", &ino, &held))
        return NULL;
    change(self, ino, 1, held ? HELD : 0);
    Py_RETURN_NONE;
}

static PyObject *FlushMarks_end(FlushMarks *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    flush_marks_end(self, ino);
    Py_RETURN_NONE;
}

static PyObject *FlushMarks_is_clean(FlushMarks *self, PyObject *args)
{
    unsigned long long ino;
    int datasync;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &datasync))
        return NULL;
    return PyBool_FromLong(flush_marks_is_clean(self, ino, datasync));
}

static PyObject *FlushMarks_begin_sync(FlushMarks *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(flush_marks_begin_sync(self));
}

static PyObject *FlushMarks_end_sync(FlushMarks *self, PyObject *args)
{
    unsigned long long ino, begun;
    int datasync;
    if (!PyArg_ParseTuple(args, "KKp", &ino, &begun, &datasync))
        return NULL;
    flush_marks_end_sync(self, ino, begun, datasync);
    Py_RETURN_NONE;
}

static PyObject *FlushMarks_end_sync_all(FlushMarks *self, PyObject *number)
{
    unsigned long long begun = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&self->lock);
    if (!sweep(self, begun))
        fail(self);
    if (!self->failed && begun >= self->trust_from)
        self->trusted = true;
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *FlushMarks_forget(FlushMarks *self, PyObject *number)
{
    unsigned long long ino = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&self->lock);
    map_remove(&self->marks, ino);
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *FlushMarks_trust(FlushMarks *self, PyObject *unused)
{
    pthread_mutex_lock(&self->lock);
    self->trusted = !self->failed;
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *FlushMarks_fail(FlushMarks *self, PyObject *unused)
{
    flush_marks_fail(self);
    Py_RETURN_NONE;
}

static PyObject *FlushMarks_is_trusted(FlushMarks *self, void *unused)
{
    pthread_mutex_lock(&self->lock);
    bool trusted = self->trusted;
    pthread_mutex_unlock(&self->lock);
    return PyBool_FromLong(trusted);
}

static Py_ssize_t FlushMarks_length(FlushMarks *self)
{
    pthread_mutex_lock(&self->lock);
    size_t count = self->marks.count;
    pthread_mutex_unlock(&self->lock);
    return (Py_ssize_t)count;
}

static PySequenceMethods FlushMarks_sequence = {.sq_length = (lenfunc)FlushMarks_length};

static PyGetSetDef FlushMarks_fields[] = {{"is_trusted", (getter)FlushMarks_is_trusted, NULL, NULL, NULL}, {NULL}};

static PyMethodDef FlushMarks_methods[] = {
    {"begin", (PyCFunction)FlushMarks_begin, METH_VARARGS, "begin(ino, held=False)."},
    {"end", (PyCFunction)FlushMarks_end, METH_O, "end(ino)."},
    {"is_clean", (PyCFunction)FlushMarks_is_clean, METH_VARARGS, "is_clean(ino, datasync)."},
    {"begin_sync", (PyCFunction)FlushMarks_begin_sync, METH_NOARGS, "For end_sync or end_sync_all."},
    {"end_sync", (PyCFunction)FlushMarks_end_sync, METH_VARARGS, "end_sync(ino, begun, datasync)."},
    {"end_sync_all", (PyCFunction)FlushMarks_end_sync_all, METH_O, "end_sync_all(begun)."},
    {"forget", (PyCFunction)FlushMarks_forget, METH_O, "forget(ino): the file is gone."},
    {"trust", (PyCFunction)FlushMarks_trust, METH_NOARGS, "All files without a mark are durable."},
    {"fail", (PyCFunction)FlushMarks_fail, METH_NOARGS, "No file counts as durable from now on."},
    {NULL},
};

PyTypeObject FlushMarksType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.FlushMarks",
    .tp_basicsize = sizeof(FlushMarks),
    .tp_new = FlushMarks_new,
    .tp_dealloc = (destructor)FlushMarks_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = FlushMarks_fields,
    .tp_as_sequence = &FlushMarks_sequence,
    .tp_methods = FlushMarks_methods,
};
