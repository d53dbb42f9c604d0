/* The way up: what Python must do before a request can be answered.
 *
 * An upcall takes the GIL in the thread that needs it and calls `python(kind, ...)` with five numbers, which returns one
 * that is >= 0 or a negative errno. What can wait for a network, or for the thread of trio, is left to the patient thread, one at a time, for
 * the kinds of requests that pyfuse3 cannot take over (all others are forwarded to it).
 *
 * Invariants:
 * 1. No lock is held in an upcall.
 * 2. Device threads wait in upcalls only for the GIL and the local disk.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include "router.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int64_t upcall(struct router *router, int kind, const uint64_t arguments[UPCALL_ARGUMENTS]) {
    PyGILState_STATE state = PyGILState_Ensure();
    int64_t result = -EIO;
    const uint64_t *a = arguments;
    PyObject *answer = PyObject_CallFunction(router->python, "iKKKKK", kind, (unsigned long long)a[0],
                                             (unsigned long long)a[1], (unsigned long long)a[2],
                                             (unsigned long long)a[3], (unsigned long long)a[4]);
    if (answer) {
        result = PyLong_AsLongLong(answer);
        Py_DECREF(answer);
    }
    if (PyErr_Occurred()) { /* `python` catches what can be foreseen */
        PyErr_WriteUnraisable(router->python);
        result = -EIO;
    }
    PyGILState_Release(state);
    return result;
}

int64_t upcall_for(struct router *router, int kind, uint64_t ino) {
    return upcall(router, kind, (const uint64_t[UPCALL_ARGUMENTS]){ino});
}

void later(struct router *router, const char *request, size_t length) {
    struct message *message = malloc(sizeof *message + length);
    if (!message) {
        device_error(router, ((const struct fuse_in_header *)(const void *)request)->unique, -ENOMEM);
        return;
    }
    message->next = NULL;
    message->length = length;
    memcpy(message->bytes, request, length);
    pthread_mutex_lock(&router->later);
    *router->for_later.tail = message;
    router->for_later.tail = &message->next;
    pthread_cond_signal(&router->more_later);
    pthread_mutex_unlock(&router->later);
}

void *patient_main(void *argument) {
    struct router *router = argument;
    char room[256]; /* replies that wait are short */
    pthread_mutex_lock(&router->later);
    while (!atomic_load(&router->stopping)) {
        struct message *first = router->for_later.head;
        if (!first || atomic_load(&router->paused)) {
            pthread_cond_wait(&router->more_later, &router->later);
            continue;
        }
        if (!(router->for_later.head = first->next))
            router->for_later.tail = &router->for_later.head;
        atomic_store(&router->patient_busy, true);
        pthread_mutex_unlock(&router->later);
        answer(router, first->bytes, first->length, room, PATIENT);
        free(first);
        pthread_mutex_lock(&router->later);
        atomic_store(&router->patient_busy, false);
    }
    pthread_mutex_unlock(&router->later);
    return NULL;
}
