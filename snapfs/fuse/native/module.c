/* snapfs.fuse.kernel._router: the Python face of the router.
 *
 *     Router(device, router_end, libfuse_end, piece_bytes, threads, spin_s)
 *     attach_core(core, python)      before `start`, or nothing is answered here
 *
 * `device` and `router_end` are consumed; `libfuse_end` is libfuse's, which closes it. Made in the thread in which trio
 * runs, which alone calls `next`, `promise`, `start` and `stop`.
 *
 * Invariants:
 * 1. The GIL is released where another thread is waited for; a lock that is free is taken without releasing it, since
 *    to get it back may take as long as a switch interval.
 * 2. The descriptors are closed after the threads are gone.
 */
#define _GNU_SOURCE
#include "router_type.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int watch(int epoll, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static int open_events(struct router *router)
{
    router->epoll = epoll_create1(EPOLL_CLOEXEC);
    router->reply_epoll = epoll_create1(EPOLL_CLOEXEC);
    router->stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    router->room_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    router->handoff_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    router->activity_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_store(&router->active, true);
    if (router->epoll < 0 || router->reply_epoll < 0 || router->stop_event < 0 || router->room_event < 0 ||
        router->handoff_event < 0 || router->activity_event < 0)
        return -1;
    int flags = fcntl(router->device, F_GETFL);
    if (flags < 0 || fcntl(router->device, F_SETFL, flags | O_NONBLOCK) < 0)
        return -1;
    if (watch(router->epoll, router->device, EPOLLIN | EPOLLET) || watch(router->epoll, router->stop_event, EPOLLIN) ||
        watch(router->epoll, router->handoff_event, EPOLLIN | EPOLLET))
        return -1;
    if (watch(router->reply_epoll, router->router_end, EPOLLIN) ||
        watch(router->reply_epoll, router->room_event, EPOLLIN))
        return -1;
    atomic_store(&router->armed, true);
    return 0;
}

static int Router_init(Router *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"device", "router_end", "libfuse_end", "piece_bytes", "threads", "spin_s", NULL};
    double spin_s;
    struct router *router = &self->router;
    Py_ssize_t piece_bytes;
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "a router is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iiinid", names, &router->device, &router->router_end,
                                     &router->libfuse_end, &piece_bytes, &router->thread_count, &spin_s))
        return -1;
    router->spin_ns = (uint64_t)(1e9 * spin_s);
    if (piece_bytes < 65536 + 4096 || router->thread_count < 1 || router->thread_count > MAX_THREADS) {
        PyErr_SetString(PyExc_ValueError, "a message must hold an xattr, and there must be 1 to 64 threads");
        return -1;
    }
    router->piece_bytes = (size_t)piece_bytes;
    router->epoll = router->reply_epoll = router->stop_event = router->room_event = router->handoff_event = -1;
    router->activity_event = -1;
    pthread_mutex_init(&router->memory_lock, NULL);
    pthread_mutex_init(&router->send_lock, NULL);
    pthread_mutex_init(&router->reply_lock, NULL);
    pthread_mutex_init(&router->notice_lock, NULL);
    pthread_mutex_init(&router->deferred_lock, NULL);
    pthread_mutex_init(&router->handoff_lock, NULL);
    pthread_cond_init(&router->deferred_added, NULL);
    pthread_cond_init(&router->notice_added, NULL);
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

static void close_descriptors(struct router *router)
{
    int *all[] = {&router->epoll,         &router->reply_epoll,    &router->stop_event, &router->room_event,
                  &router->handoff_event, &router->activity_event, &router->router_end, &router->device};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (*all[i] >= 0) {
            close(*all[i]);
            *all[i] = -1;
        }
}

PyObject *Router_start(Router *self, PyObject *args)
{
    int error, runs_first = 0;
    if (!PyArg_ParseTuple(args, "|p", &runs_first))
        return NULL;
    if (!self->open || self->router.running) {
        PyErr_SetString(PyExc_RuntimeError, "a router is started once");
        return NULL;
    }
    atomic_store(&self->router.runs_first, runs_first);
    Py_BEGIN_ALLOW_THREADS
    error = threads_start(&self->router);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = -error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyObject *Router_attach_core(Router *self, PyObject *args)
{
    PyObject *core, *python;
    if (!PyArg_ParseTuple(args, "OO", &core, &python))
        return NULL;
    if (!self->open || self->router.running || self->core) {
        PyErr_SetString(PyExc_RuntimeError, "a core is attached before the start, once");
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

static void stop(Router *self)
{
    if (!self->open)
        return;
    self->open = false;
    threads_stop(&self->router);
    if (self->router.reply)
        replies_deliver(&self->router);
    forward_close(&self->router);
    close_descriptors(&self->router);
}

PyObject *Router_stop(Router *self, PyObject *none)
{
    (void)none;
    Py_BEGIN_ALLOW_THREADS
    stop(self);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void Router_dealloc(Router *self)
{
    if (self->open) {
        Py_BEGIN_ALLOW_THREADS
        stop(self);
        Py_END_ALLOW_THREADS
    }
    Py_CLEAR(self->core);
    Py_CLEAR(self->python);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject RouterType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.fuse.kernel._router.Router",
    .tp_basicsize = sizeof(Router),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Owns /dev/fuse: answers requests about bytes, forwards all others to pyfuse3.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Router_init,
    .tp_dealloc = (destructor)Router_dealloc,
    .tp_methods = Router_methods,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "snapfs.fuse.kernel._router",
    .m_doc = "The router; see router.h.",
    .m_size = -1,
};

#ifdef SNAPFS_TEST
/* `UPCALLS`: the numbers of the upcalls by their names, for the test that holds those of upcalls.py equal. */
static int add_test_hooks(PyObject *module)
{
    PyObject *kinds =
        Py_BuildValue("{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}", "CLEAR_SUID", UPCALL_CLEAR_SUID, "FALLOCATE",
                      UPCALL_FALLOCATE, "LSEEK", UPCALL_LSEEK, "COPY", UPCALL_COPY, "FSYNC", UPCALL_FSYNC, "FSYNCDIR",
                      UPCALL_FSYNCDIR, "FAILED", UPCALL_FAILED, "ROOM", UPCALL_ROOM, "LOST", UPCALL_LOST);
    int failed = !kinds || PyModule_AddObjectRef(module, "UPCALLS", kinds) ||
                 PyModule_AddObjectRef(module, "TEST_HOOKS", Py_True);
    Py_XDECREF(kinds);
    return failed;
}
#else
static int add_test_hooks(PyObject *module) { return PyModule_AddObjectRef(module, "TEST_HOOKS", Py_False); }
#endif

PyMODINIT_FUNC PyInit__router(void)
{
    if (PyType_Ready(&RouterType) < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made && (add_test_hooks(made) || PyModule_AddStringConstant(made, "SOURCES_HASH", SNAPFS_SOURCES_HASH) ||
                 PyModule_AddObjectRef(made, "Router", (PyObject *)&RouterType)))
        Py_CLEAR(made);
    return made;
}
