/* The threads that read /dev/fuse.
 *
 * The descriptor does not block. A thread reads until there is nothing, then waits in the epoll instance that all share:
 * it is triggered by the edge, so each request wakes one thread, and `stop_event` by level, so it wakes them all.
 *
 * Invariants:
 * 1. A thread waits only after a read that found nothing: an edge that came before it is not lost, for epoll keeps it.
 * 2. `stop` takes effect between requests; one that was read is dealt with first.
 * 3. The first thread that is told ENODEV says so to all others and to pyfuse3, once.
 * 4. No thread takes a signal; they are Python's.
 */
#define _GNU_SOURCE
#include "router.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int device_reply(struct router *router, const void *reply, size_t length) {
    ssize_t done;
    do
        done = write(router->device, reply, length);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : 0; /* ENOENT: nobody waits for it any more */
}

void device_error(struct router *router, uint64_t unique, int error) {
    struct fuse_out_header reply = {.len = sizeof reply, .error = error, .unique = unique};
    device_reply(router, &reply, sizeof reply);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void count(struct router *router, uint32_t opcode, uint64_t took_ns) {
    if (opcode >= MAX_OPCODES)
        return;
    int bucket = 0;
    while (bucket < LATENCY_BUCKETS - 1 && took_ns >= 1000ull << bucket)
        bucket++;
    atomic_fetch_add_explicit(&router->answered[opcode], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&router->latency[opcode][bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&router->latency_ns[opcode], took_ns, memory_order_relaxed);
}

static void dispatch(struct worker *worker, size_t length) {
    struct router *router = worker->router;
    struct fuse_in_header *header = (void *)worker->request;
    if (length < sizeof *header || header->len != length)
        return; /* the kernel writes whole requests */
    if (header->opcode == FUSE_INTERRUPT)
        return; /* nobody behind us stops half way: it may be ignored, and costs nobody a wake-up */
    if (router->api) {
        uint32_t opcode = header->opcode;
        uint64_t start = now_ns();
        switch (answer(router, worker->request, length, worker->reply, false)) {
        case ANSWERED: count(router, opcode, now_ns() - start); return;
        case LATER: later(router, worker->request, length); return;
        case FORWARD: break;
        }
        note_forwarded(router, header, header + 1);
    }
    forward(router, worker->request, length);
}

void wake(int event) {
    uint64_t one = 1;
    ssize_t done = write(event, &one, sizeof one);
    (void)done; /* EAGAIN: it is readable already */
}

/* Wait for a request or the end. */
static void wait_for_work(struct router *router) {
    struct epoll_event event;
    epoll_wait(router->epoll, &event, 1, -1);
}

static void declare_end(struct router *router) {
    if (!atomic_exchange(&router->gone, true))
        forward_end(router);
    wake(router->stop_event);
}

static void serve(struct worker *worker) {
    struct router *router = worker->router;
    while (!atomic_load(&router->stopping) && !atomic_load(&router->gone)) {
        atomic_fetch_add(&worker->serial, 1);
        ssize_t length = read(router->device, worker->request, REQUEST_BYTES);
        int error = length < 0 ? errno : 0;
        if (length > 0)
            dispatch(worker, (size_t)length);
        atomic_fetch_add(&worker->serial, 1);
        if (error == EAGAIN)
            wait_for_work(router);
        else if (length == 0 || (error && error != EINTR && error != ENOENT)) /* ENOENT: it was taken back meanwhile */
            declare_end(router);
    }
}

static void *device_main(void *argument) {
    struct worker *worker = argument;
    size_t each = REQUEST_BYTES + 4096;
    char *buffers = mmap(NULL, 2 * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffers == MAP_FAILED)
        return NULL;
    worker->request = buffers + 4096 - WRITE_HEADER; /* so that the data of both begin a page */
    worker->reply = buffers + each + 4096 - REPLY_HEADER;
    serve(worker);
    munmap(buffers, 2 * each);
    return NULL;
}

/* Return when all that was read before is answered or sent on. Any thread; polls, for it is rare and short. */
void device_settle(struct router *router) {
    const struct timespec moment = {.tv_nsec = 50000};
    for (int i = 0; i < router->running; i++) {
        uint_fast64_t serial = atomic_load(&router->workers[i].serial);
        while (serial & 1 && atomic_load(&router->workers[i].serial) == serial)
            nanosleep(&moment, NULL);
    }
}

static int start_thread(pthread_t *thread, void *(*body)(void *), void *argument, const char *name) {
    int error = pthread_create(thread, NULL, body, argument);
    if (!error)
        pthread_setname_np(*thread, name);
    return error;
}

/* As many of the wanted threads as can be had; an error if that is not one of each kind. */
static int start_all(struct router *router) {
    int error = start_thread(&router->replier, replier_main, router, "snapfs-replies");
    if (error)
        return error;
    router->has_replier = true;
    error = start_thread(&router->notifier, notifier_main, router, "snapfs-notices");
    if (error)
        return error;
    router->has_notifier = true;
    error = start_thread(&router->patient, patient_main, router, "snapfs-patient");
    if (error)
        return error;
    router->has_patient = true;
    for (; router->running < router->thread_count; router->running++) {
        char name[16];
        snprintf(name, sizeof name, "snapfs-dev-%u", (unsigned)router->running % 100u);
        struct worker *worker = &router->workers[router->running];
        worker->router = router;
        error = start_thread(&worker->thread, device_main, worker, name);
        if (error)
            return router->running ? 0 : error;
    }
    return 0;
}

int device_start(struct router *router) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = start_all(router);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        device_stop(router);
    return -error;
}

void device_stop(struct router *router) {
    atomic_store(&router->stopping, true);
    wake(router->stop_event);
    wake(router->room_event);
    pthread_mutex_lock(&router->notices);
    pthread_cond_signal(&router->noticed);
    pthread_mutex_unlock(&router->notices);
    pthread_mutex_lock(&router->later);
    pthread_cond_signal(&router->more_later);
    pthread_mutex_unlock(&router->later);
    for (; router->running; router->running--)
        pthread_join(router->workers[router->running - 1].thread, NULL);
    if (router->has_replier)
        pthread_join(router->replier, NULL);
    if (router->has_notifier)
        pthread_join(router->notifier, NULL);
    if (router->has_patient)
        pthread_join(router->patient, NULL);
    router->has_replier = router->has_notifier = router->has_patient = false;
}
