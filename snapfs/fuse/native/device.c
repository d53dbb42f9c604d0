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

static void dispatch(struct router *router, char *request, size_t length) {
    const struct fuse_in_header *header = (const void *)request;
    if (length < sizeof *header || header->len != length)
        return; /* the kernel writes whole requests */
    if (header->opcode == FUSE_INTERRUPT)
        return; /* nobody behind us stops half way: it may be ignored, and costs nobody a wake-up */
    if (header->opcode < MAX_OPCODES)
        atomic_fetch_add_explicit(&router->forwarded[header->opcode], 1, memory_order_relaxed);
    forward(router, request, length);
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

static void *device_main(void *argument) {
    struct router *router = argument;
    char *buffer = mmap(NULL, REQUEST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        return NULL;
    while (!atomic_load(&router->stopping) && !atomic_load(&router->gone)) {
        ssize_t length = read(router->device, buffer, REQUEST_BYTES);
        if (length > 0)
            dispatch(router, buffer, (size_t)length);
        else if (length < 0 && errno == EAGAIN)
            wait_for_work(router);
        else if (length == 0 || (errno != EINTR && errno != ENOENT)) /* ENOENT: it was taken back meanwhile */
            declare_end(router);
    }
    munmap(buffer, REQUEST_BYTES);
    return NULL;
}

static int start_thread(pthread_t *thread, void *(*body)(void *), struct router *router, const char *name) {
    int error = pthread_create(thread, NULL, body, router);
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
    for (; router->running < router->thread_count; router->running++) {
        char name[16];
        snprintf(name, sizeof name, "snapfs-dev-%u", (unsigned)router->running % 100u);
        error = start_thread(&router->threads[router->running], device_main, router, name);
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
    while (router->running)
        pthread_join(router->threads[--router->running], NULL);
    if (router->has_replier)
        pthread_join(router->replier, NULL);
    if (router->has_notifier)
        pthread_join(router->notifier, NULL);
    router->has_replier = router->has_notifier = false;
}
