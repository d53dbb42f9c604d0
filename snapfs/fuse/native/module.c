/* snapfs.fuse._router: the Python face of the router.
 *
 *     Router(device, ours, theirs, piece_bytes, threads, spin_s)
 *     answer_from(core, python)      before `start`, or nothing is answered here
 *
 * `device` and `ours` are consumed; `theirs` is libfuse's, which closes it. Made in the thread in which trio runs, which
 * alone calls `next`, `promise`, `start` and `stop`.
 *
 * Invariants:
 * 1. The GIL is given up where another thread is waited for; a lock that is free is taken without giving it up, since to
 *    get it back may take as long as a switch interval.
 * 2. The descriptors are closed after the threads are gone.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include "router.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    struct router router;
    PyObject *core, *python;
    bool open;
} RouterObject;

static int watch(int epoll, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static int open_events(struct router *router) {
    router->epoll = epoll_create1(EPOLL_CLOEXEC);
    router->reply_epoll = epoll_create1(EPOLL_CLOEXEC);
    router->stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    router->room_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    router->hand_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (router->epoll < 0 || router->reply_epoll < 0 || router->stop_event < 0 || router->room_event < 0 ||
        router->hand_event < 0)
        return -1;
    int flags = fcntl(router->device, F_GETFL);
    if (flags < 0 || fcntl(router->device, F_SETFL, flags | O_NONBLOCK) < 0)
        return -1;
    if (watch(router->epoll, router->device, EPOLLIN | EPOLLET) || watch(router->epoll, router->stop_event, EPOLLIN) ||
        watch(router->epoll, router->hand_event, EPOLLIN | EPOLLET))
        return -1;
    if (watch(router->reply_epoll, router->ours, EPOLLIN) || watch(router->reply_epoll, router->room_event, EPOLLIN))
        return -1;
    atomic_store(&router->armed, true);
    return 0;
}

static int router_init(RouterObject *self, PyObject *args, PyObject *keywords) {
    static char *names[] = {"device", "ours", "theirs", "piece_bytes", "threads", "spin_s", NULL};
    double spin_s;
    struct router *router = &self->router;
    Py_ssize_t piece_bytes;
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "a router is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iiinid", names, &router->device, &router->ours, &router->theirs,
                                     &piece_bytes, &router->thread_count, &spin_s))
        return -1;
    router->spin_ns = (uint64_t)(1e9 * spin_s);
    if (piece_bytes < 65536 + 4096 || router->thread_count < 1 || router->thread_count > MAX_THREADS) {
        PyErr_SetString(PyExc_ValueError, "a message must hold an xattr, and there must be 1 to 64 threads");
        return -1;
    }
    router->piece_bytes = (size_t)piece_bytes;
    router->epoll = router->reply_epoll = router->stop_event = router->room_event = router->hand_event = -1;
    pthread_mutex_init(&router->sending, NULL);
    pthread_mutex_init(&router->replying, NULL);
    pthread_mutex_init(&router->notices, NULL);
    pthread_mutex_init(&router->later, NULL);
    pthread_mutex_init(&router->handing, NULL);
    pthread_cond_init(&router->more_later, NULL);
    pthread_cond_init(&router->noticed, NULL);
    self->open = true;
    if (open_events(router)) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (forward_open(router)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void close_descriptors(struct router *router) {
    int *all[] = {&router->epoll, &router->reply_epoll, &router->stop_event, &router->room_event, &router->hand_event,
                  &router->ours, &router->device};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (*all[i] >= 0) {
            close(*all[i]);
            *all[i] = -1;
        }
}

static PyObject *router_start(RouterObject *self, PyObject *none) {
    (void)none;
    int error;
    if (!self->open || self->router.running) {
        PyErr_SetString(PyExc_RuntimeError, "a router is started once");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    error = device_start(&self->router);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = -error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *router_answer_from(RouterObject *self, PyObject *args) {
    PyObject *core, *python;
    if (!PyArg_ParseTuple(args, "OO", &core, &python))
        return NULL;
    if (!self->open || self->router.running || self->core) {
        PyErr_SetString(PyExc_RuntimeError, "a router is told before it is started, once");
        return NULL;
    }
    const struct sc_api *api = PyCapsule_Import(SC_CAPSULE, 0);
    if (!api)
        return NULL;
    if (api->version != SC_API_VERSION || api->bytes < sizeof *api) {
        PyErr_SetString(PyExc_ImportError, "the two extensions were not built together: install snapfs anew");
        return NULL;
    }
    self->router.core = api->core_of(core);
    if (!self->router.core)
        return NULL;
    self->core = Py_NewRef(core);
    self->python = Py_NewRef(python);
    self->router.python = python;
    self->router.api = api;
    Py_RETURN_NONE;
}

static void stop(RouterObject *self) {
    if (!self->open)
        return;
    self->open = false;
    device_stop(&self->router);
    if (self->router.reply)
        bring_replies(&self->router);
    forward_close(&self->router);
    close_descriptors(&self->router);
}

static PyObject *router_stop(RouterObject *self, PyObject *none) {
    (void)none;
    Py_BEGIN_ALLOW_THREADS
    stop(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void router_dealloc(RouterObject *self) {
    if (self->open) {
        Py_BEGIN_ALLOW_THREADS
        stop(self);
        Py_END_ALLOW_THREADS
    }
    Py_CLEAR(self->core);
    Py_CLEAR(self->python);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* -- what the thread of trio does between two requests */

static void bring(struct router *router) {
    if (pthread_mutex_trylock(&router->replying) == 0) {
        bring_replies_locked(router);
        pthread_mutex_unlock(&router->replying);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    bring_replies(router);
    Py_END_ALLOW_THREADS
}

/* 1: there is a request, `*unique` its own; 0: there is none; -1: there will be none any more. */
static int peek(struct router *router, uint64_t *unique) {
    struct fuse_in_header header;
    ssize_t length = recv(router->theirs, &header, sizeof header, MSG_PEEK | MSG_DONTWAIT);
    if (length == (ssize_t)sizeof header) {
        *unique = header.unique;
        return 1;
    }
    return length < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

static PyObject *router_next(RouterObject *self, PyObject *argument) {
    double spin_s = PyFloat_AsDouble(argument);
    if (spin_s == -1.0 && PyErr_Occurred())
        return NULL;
    if (!self->open)
        return PyLong_FromLong(-1);
    struct router *router = &self->router;
    uint64_t unique = 0;
    bool leads = spin_s > 0 && device_may_lead(router);
    bring(router);
    int found = peek(router, &unique);
    if (!found && spin_s > 0) {
        Py_BEGIN_ALLOW_THREADS
        found = device_look(router, leads, peek, &unique, (uint64_t)(1e9 * spin_s));
        Py_END_ALLOW_THREADS
    } else if (leads) {
        lead_give(router);
    }
    return found < 0 ? PyLong_FromLong(-1) : PyLong_FromUnsignedLongLong(found ? unique : 0);
}

static PyObject *router_promise(RouterObject *self, PyObject *argument) {
    int promised = PyObject_IsTrue(argument);
    if (promised < 0)
        return NULL;
    struct router *router = &self->router;
    if (!self->open || atomic_load(&router->armed) == !promised)
        Py_RETURN_NONE;
    if (pthread_mutex_trylock(&router->replying)) {
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&router->replying);
        arm_replier_locked(router, !promised);
        pthread_mutex_unlock(&router->replying);
        Py_END_ALLOW_THREADS
    } else {
        arm_replier_locked(router, !promised);
        pthread_mutex_unlock(&router->replying);
    }
    Py_RETURN_NONE;
}

static PyObject *counts_of(atomic_uint_fast64_t *counters) {
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

static PyObject *router_answered(RouterObject *self, PyObject *none) {
    (void)none;
    return counts_of(self->router.answered);
}

static PyObject *latency_of(struct router *router, int opcode) {
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

static PyObject *router_latency(RouterObject *self, PyObject *argument) {
    long opcode = PyLong_AsLong(argument);
    if (opcode == -1 && PyErr_Occurred())
        return NULL;
    if (opcode < 0 || opcode >= MAX_OPCODES) {
        PyErr_SetString(PyExc_ValueError, "no such opcode");
        return NULL;
    }
    return latency_of(&self->router, (int)opcode);
}

/* -- what Python tells, and waits for */

static PyObject *router_settle(RouterObject *self, PyObject *none) {
    (void)none;
    if (self->open) {
        Py_BEGIN_ALLOW_THREADS
        device_settle(&self->router);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromUnsignedLongLong(atomic_load(&self->router.sent));
}

static PyObject *router_pause(RouterObject *self, PyObject *argument) {
    int paused = PyObject_IsTrue(argument);
    if (paused < 0)
        return NULL;
    if (self->open) {
        Py_BEGIN_ALLOW_THREADS
        device_pause(&self->router, paused);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *router_plain(RouterObject *self, PyObject *args) {
    unsigned long long ino;
    int plain;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &plain))
        return NULL;
    know_plain(&self->router, ino, plain);
    Py_RETURN_NONE;
}

static PyObject *router_forget(RouterObject *self, PyObject *none) {
    (void)none;
    forget_plain(&self->router);
    Py_RETURN_NONE;
}

static PyObject *router_slow(RouterObject *self, PyObject *argument) {
    int slowed = PyObject_IsTrue(argument);
    if (slowed < 0)
        return NULL;
    atomic_store(&self->router.slowed, slowed);
    Py_RETURN_NONE;
}

static PyObject *router_refuse(RouterObject *self, PyObject *argument) {
    int refusing = PyObject_IsTrue(argument);
    if (refusing < 0)
        return NULL;
    atomic_store(&self->router.refusing, refusing);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"start", (PyCFunction)router_start, METH_NOARGS, "Start the threads. OSError if there can be none."},
    {"stop", (PyCFunction)router_stop, METH_NOARGS, "End the threads, bring the last replies, close. Again: nothing."},
    {"next", (PyCFunction)router_next, METH_O,
     "Bring the replies; return the unique of the next request for libfuse. If there is none, look for so many seconds, "
     "then return 0. -1: there will be none any more."},
    {"promise", (PyCFunction)router_promise, METH_O,
     "True: this thread will call `next` before it sleeps. False: another shall bring the replies."},
    {"answer_from", (PyCFunction)router_answer_from, METH_VARARGS,
     "(core, python): answer from the live tree of `core`; `python(ino, kind)` does what only Python can."},
    {"answered", (PyCFunction)router_answered, METH_NOARGS, "Requests answered here, by opcode."},
    {"latency", (PyCFunction)router_latency, METH_O,
     "Of an opcode: ([requests of less than 1, 2, 4... microseconds; the last: of any], the seconds of all)."},
    {"settle", (PyCFunction)router_settle, METH_NOARGS,
     "Return when all requests read before are answered or sent to pyfuse3: how many were sent so far."},
    {"pause", (PyCFunction)router_pause, METH_O,
     "True: return when no request is answered here any more, until False: what pyfuse3 knows goes there, the rest waits."},
    {"plain", (PyCFunction)router_plain, METH_VARARGS, "(ino, is): whether an inode has neither setuid nor setgid."},
    {"slow", (PyCFunction)router_slow, METH_O, "Whether writes and fsyncs go to pyfuse3, to be held back there."},
    {"refuse", (PyCFunction)router_refuse, METH_O, "Whether nothing may change: EROFS, or pyfuse3's to refuse."},
    {"forget", (PyCFunction)router_forget, METH_NOARGS, "Modes and names changed in a way that no request tells of."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject router_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.fuse._router.Router",
    .tp_basicsize = sizeof(RouterObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Owns /dev/fuse: answers requests about bytes, hands all others to pyfuse3.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)router_init,
    .tp_dealloc = (destructor)router_dealloc,
    .tp_methods = methods,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "snapfs.fuse._router", .m_doc = "The router; see router.h.", .m_size = -1,
};

PyMODINIT_FUNC PyInit__router(void) {
    if (PyType_Ready(&router_type) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddObjectRef(made, "Router", (PyObject *)&router_type) < 0)
        Py_CLEAR(made);
    return made;
}
