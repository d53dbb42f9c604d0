/* The methods of a running router: `next` and `promise` for the thread of trio, counters, and what Python sets. */
#define _GNU_SOURCE
#include "router_type.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

static void deliver(struct router *router)
{
    if (pthread_mutex_trylock(&router->reply_lock) == 0) {
        replies_deliver_locked(router);
        pthread_mutex_unlock(&router->reply_lock);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    replies_deliver(router);
    Py_END_ALLOW_THREADS
}

/* 1: there is a request, `*unique` its own; 0: there is none; -1: there will be none any more. */
static int peek(struct router *router, uint64_t *unique)
{
    struct fuse_in_header header;
    ssize_t length = recv(router->libfuse_end, &header, sizeof header, MSG_PEEK | MSG_DONTWAIT);
    if (length == (ssize_t)sizeof header) {
        *unique = header.unique;
        return 1;
    }
    return length < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static PyObject *Router_next(Router *self, PyObject *argument)
{
    double spin_s = PyFloat_AsDouble(argument);
    if (spin_s == -1.0 && PyErr_Occurred())
        return NULL;
    if (!self->open)
        return PyLong_FromLong(-1);
    struct router *router = &self->router;
    uint64_t unique = 0;
    bool is_poller = spin_s > 0 && device_claim_poller(router);
    deliver(router);
    int found = peek(router, &unique);
    if (!found && spin_s > 0) {
        Py_BEGIN_ALLOW_THREADS
        found = device_poll(router, is_poller, peek, &unique, (uint64_t)(1e9 * spin_s));
        Py_END_ALLOW_THREADS
    } else if (is_poller) {
        poller_release(router);
    }
    return found < 0 ? PyLong_FromLong(-1) : PyLong_FromUnsignedLongLong(found ? unique : 0);
}

static PyObject *Router_promise(Router *self, PyObject *argument)
{
    int promised = PyObject_IsTrue(argument);
    if (promised < 0)
        return NULL;
    struct router *router = &self->router;
    if (!self->open || atomic_load(&router->armed) == !promised)
        Py_RETURN_NONE;
    if (pthread_mutex_trylock(&router->reply_lock)) {
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&router->reply_lock);
        replies_arm_locked(router, !promised);
        pthread_mutex_unlock(&router->reply_lock);
        Py_END_ALLOW_THREADS
    } else {
        replies_arm_locked(router, !promised);
        pthread_mutex_unlock(&router->reply_lock);
    }
    Py_RETURN_NONE;
}

static PyObject *counts_of(atomic_uint_fast64_t *counters)
{
    PyObject *counts = PyDict_New();
    for (int opcode = 0; counts && opcode < MAX_OPCODES; opcode++) {
        uint64_t count = atomic_load_explicit(&counters[opcode], memory_order_relaxed);
        if (!count)
            continue;
        PyObject *key = PyLong_FromLong(opcode), *value = PyLong_FromUnsignedLongLong(count);
        if (!key || !value || PyDict_SetItem(counts, key, value))
            Py_CLEAR(counts);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return counts;
}

static PyObject *Router_answered(Router *self, PyObject *none)
{
    (void)none;
    return counts_of(self->router.answered);
}

static PyObject *latency_of(struct router *router, int opcode)
{
    PyObject *buckets = PyList_New(LATENCY_BUCKETS);
    for (int i = 0; buckets && i < LATENCY_BUCKETS; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(atomic_load(&router->latency[opcode][i]));
        if (!value)
            Py_CLEAR(buckets);
        else
            PyList_SET_ITEM(buckets, i, value);
    }
    return buckets ? Py_BuildValue("(Nd)", buckets, 1e-9 * (double)atomic_load(&router->latency_ns[opcode])) : NULL;
}

static PyObject *Router_latency(Router *self, PyObject *argument)
{
    long opcode = PyLong_AsLong(argument);
    if (opcode == -1 && PyErr_Occurred())
        return NULL;
    if (opcode < 0 || opcode >= MAX_OPCODES) {
        PyErr_SetString(PyExc_ValueError, "no such opcode");
        return NULL;
    }
    return latency_of(&self->router, (int)opcode);
}

static PyObject *Router_settle(Router *self, PyObject *none)
{
    (void)none;
    if (self->open) {
        Py_BEGIN_ALLOW_THREADS
        threads_settle(&self->router);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromUnsignedLongLong(atomic_load(&self->router.sent));
}

static PyObject *Router_pause(Router *self, PyObject *argument)
{
    int paused = PyObject_IsTrue(argument);
    if (paused < 0)
        return NULL;
    if (self->open) {
        Py_BEGIN_ALLOW_THREADS
        threads_pause(&self->router, paused);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *Router_runs_first(Router *self, PyObject *none)
{
    (void)none;
    return PyBool_FromLong(atomic_load(&self->router.runs_first));
}

static PyObject *Router_watch_activity(Router *self, PyObject *none)
{
    (void)none;
    uint64_t ignored;
    if (self->open) {
        ssize_t done = read(self->router.activity_event, &ignored, sizeof ignored);
        (void)done; /* EAGAIN: no request was reported */
        atomic_store(&self->router.active, false);
        request_memory_trim(&self->router, 1);
    }
    return PyLong_FromLong(self->router.activity_event);
}

static PyObject *Router_set_no_suid(Router *self, PyObject *args)
{
    unsigned long long ino;
    int no_suid;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &no_suid))
        return NULL;
    suid_cache_set(&self->router, ino, no_suid);
    Py_RETURN_NONE;
}

static PyObject *Router_clear_no_suid(Router *self, PyObject *none)
{
    (void)none;
    suid_cache_clear(&self->router);
    Py_RETURN_NONE;
}

static PyObject *Router_invalidate_written(Router *self, PyObject *none)
{
    (void)none;
    if (self->open) {
        Py_BEGIN_ALLOW_THREADS
        written_inodes_invalidate(&self->router);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *Router_cache_listings(Router *self, PyObject *none)
{
    (void)none;
    atomic_store(&self->router.caches_listings, true);
    Py_RETURN_NONE;
}

static PyObject *Router_throttle(Router *self, PyObject *argument)
{
    int throttled = PyObject_IsTrue(argument);
    if (throttled < 0)
        return NULL;
    atomic_store(&self->router.throttled, throttled);
    Py_RETURN_NONE;
}

static PyObject *Router_set_read_only(Router *self, PyObject *argument)
{
    int read_only = PyObject_IsTrue(argument);
    if (read_only < 0)
        return NULL;
    atomic_store(&self->router.read_only, read_only);
    Py_RETURN_NONE;
}

static PyObject *Router_gate(Router *self, PyObject *argument)
{
    int closed = PyObject_IsTrue(argument);
    if (closed < 0)
        return NULL;
    if (closed && (!self->open || !self->router.api)) {
        PyErr_SetString(PyExc_RuntimeError, "nothing is answered here");
        return NULL;
    }
    gate_close(&self->router, closed);
    Py_RETURN_NONE;
}

static PyObject *Router_admit(Router *self, PyObject *none)
{
    (void)none;
    return PyLong_FromUnsignedLong(gate_admit(&self->router));
}

PyMethodDef Router_methods[] = {
    {"start", (PyCFunction)Router_start, METH_VARARGS,
     "(first=False): start the threads; `first`: before all that computes, where that is allowed. OSError if there can "
     "be none."},
    {"runs_first", (PyCFunction)Router_runs_first, METH_NOARGS,
     "Whether the threads run before all that computes: it was wanted, and not refused."},
    {"stop", (PyCFunction)Router_stop, METH_NOARGS,
     "End the threads, deliver the last replies, close. Again: nothing."},
    {"next", (PyCFunction)Router_next, METH_O,
     "Bring the replies; return the unique of the next request for libfuse. If there is none, look for so many "
     "seconds, "
     "then return 0. -1: there will be none any more."},
    {"promise", (PyCFunction)Router_promise, METH_O,
     "True: this thread will call `next` before it sleeps. False: the replier thread delivers the replies."},
    {"attach_core", (PyCFunction)Router_attach_core, METH_VARARGS,
     "(core, python): answer from the live tree of `core`; upcalls call `python(kind, *numbers)`."},
    {"answered", (PyCFunction)Router_answered, METH_NOARGS, "Requests answered here, by opcode."},
    {"latency", (PyCFunction)Router_latency, METH_O,
     "Of an opcode: ([requests of less than 1, 2, 4... microseconds; the last: of any], the seconds of all)."},
    {"settle", (PyCFunction)Router_settle, METH_NOARGS,
     "Return when all requests read before are answered or sent to pyfuse3: how many were sent so far."},
    {"pause", (PyCFunction)Router_pause, METH_O,
     "True: return when no request is answered here any more, until False: what pyfuse3 knows goes there, the rest "
     "waits."},
    {"gate", (PyCFunction)Router_gate, METH_O,
     "True: hold requests that begin a change, until False. RuntimeError without a core."},
    {"admit", (PyCFunction)Router_admit, METH_NOARGS,
     "Let truncations go that the closed gate holds: how many there were."},
    {"watch_activity", (PyCFunction)Router_watch_activity, METH_NOARGS,
     "Report the next request that is read: the descriptor that is readable from then on, until the next call."},
    {"set_no_suid", (PyCFunction)Router_set_no_suid, METH_VARARGS,
     "(ino, is): whether an inode has neither setuid nor setgid."},
    {"invalidate_written", (PyCFunction)Router_invalidate_written, METH_NOARGS,
     "Invalidate the kernel's attributes of files that were written and are open. Not while it may be stopped."},
    {"cache_listings", (PyCFunction)Router_cache_listings, METH_NOARGS,
     "Let the kernel keep the names of directories. Before `start`, and only where no directory is open yet."},
    {"throttle", (PyCFunction)Router_throttle, METH_O,
     "Whether writes and fsyncs go to pyfuse3, to be held back there."},
    {"set_read_only", (PyCFunction)Router_set_read_only, METH_O,
     "Whether nothing may change: EROFS, or pyfuse3's to refuse."},
    {"clear_no_suid", (PyCFunction)Router_clear_no_suid, METH_NOARGS,
     "Drop all entries: modes changed in a way that no request reports."},
    {NULL, NULL, 0, NULL},
};
