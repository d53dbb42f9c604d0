/* The life of the router's threads: their buffers, their start, a pause, their end.
 *
 * Invariants:
 * 1. No thread takes a signal; they are Python's.
 * 2. `threads_settle` returns when every request that was read before is answered or sent on; `threads_pause` when, in
 *    addition, none is answered here until the pause ends.
 * 3. `threads_stop` returns when all threads have ended; what was read is dealt with first (device.c, invariant 2).
 * 4. Where it is allowed (CAP_SYS_NICE, RLIMIT_RTPRIO), the threads that an application waits for run before all that
 *    computes: in the lowest real-time priority. They run for microseconds when an application sleeps in a request, and
 *    what they run is what the kernel would run in its name with another filesystem. With the usual class each of its
 *    requests waits for a time slice of everybody else: with 8 busy processes on 2 processors SQLite made 0.12 of
 *    ext4's commits, with this 0.93; a nice value of -20 or a shorter slice changed nothing. No process and no thread
 *    inherits it, and the kernel leaves a share of the processors to the others whatever happens.
 */
#define _GNU_SOURCE
#include "router.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

#define BUFFER_BYTES (REQUEST_BYTES + 4096u)

static bool open_worker(struct worker *worker, struct router *router)
{
    void *buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        return false;
    worker->router = router;
    worker->buffer = buffer;
    worker->reply = worker->buffer + 4096 - REPLY_HEADER; /* so that the data begin a page */
    return true;
}

static void close_worker(struct worker *worker)
{
    if (worker->buffer)
        munmap(worker->buffer, BUFFER_BYTES);
    worker->buffer = NULL;
}

/* Let this thread run before all that computes, if that is allowed. */
static bool run_first(void)
{
    struct sched_param lowest = {.sched_priority = sched_get_priority_min(SCHED_RR)};
    return sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &lowest) == 0;
}

static void *device_main(void *argument)
{
    struct worker *worker = argument;
    if (worker->router->runs_first && !run_first())
        atomic_store(&worker->router->runs_first, false);
    device_serve(worker);
    splice_close();
    return NULL;
}

static void sleep_briefly(void) { nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL); }

/* Return when all that was read before is answered or sent on. Any thread; polls, for it is rare and short. */
void threads_settle(struct router *router)
{
    for (int i = -1; i < router->running; i++) {
        struct worker *worker = i < 0 ? &router->trio_worker : &router->workers[i];
        uint_fast64_t serial = atomic_load(&worker->serial);
        while ((serial & 1 && atomic_load(&worker->serial) == serial) || atomic_load(&router->handoff_count))
            sleep_briefly();
    }
}

/* Begin a pause, and return when nothing is answered here any more; or end it. */
void threads_pause(struct router *router, bool paused)
{
    pthread_mutex_lock(&router->deferred_lock);
    atomic_store(&router->paused, paused);
    pthread_cond_signal(&router->deferred_added);
    pthread_mutex_unlock(&router->deferred_lock);
    if (!paused)
        return;
    threads_settle(router);
    while (atomic_load(&router->blocking_worker_busy))
        sleep_briefly();
}

static int start_thread(pthread_t *thread, void *(*body)(void *), void *argument, const char *name)
{
    int error = pthread_create(thread, NULL, body, argument);
    if (!error)
        pthread_setname_np(*thread, name);
    return error;
}

/* As many of the wanted threads as can be had; an error if that is not one of each kind. */
static int start_all(struct router *router)
{
    if (!open_worker(&router->trio_worker, router) || !request_memory_open(router))
        return ENOMEM;
    int error = start_thread(&router->replier, replier_main, router, "snapfs-replies");
    if (error)
        return error;
    router->has_replier = true;
    error = start_thread(&router->notifier, notifier_main, router, "snapfs-notices");
    if (error)
        return error;
    router->has_notifier = true;
    error = start_thread(&router->blocking_worker, blocking_worker_main, router, "snapfs-blocking");
    if (error)
        return error;
    router->has_blocking_worker = true;
    for (; router->running < router->thread_count; router->running++) {
        char name[16];
        snprintf(name, sizeof name, "snapfs-dev-%u", (unsigned)router->running % 100u);
        struct worker *worker = &router->workers[router->running];
        error = open_worker(worker, router) ? start_thread(&worker->thread, device_main, worker, name) : ENOMEM;
        if (error)
            return router->running ? 0 : error;
    }
    return 0;
}

int threads_start(struct router *router)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = start_all(router);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        threads_stop(router);
    return -error;
}

void threads_stop(struct router *router)
{
    atomic_store(&router->stopping, true);
    device_wake(router->stop_event);
    device_wake(router->room_event);
    pthread_mutex_lock(&router->notice_lock);
    pthread_cond_signal(&router->notice_added);
    pthread_mutex_unlock(&router->notice_lock);
    pthread_mutex_lock(&router->deferred_lock);
    pthread_cond_signal(&router->deferred_added);
    pthread_mutex_unlock(&router->deferred_lock);
    for (; router->running; router->running--)
        pthread_join(router->workers[router->running - 1].thread, NULL);
    if (router->has_replier)
        pthread_join(router->replier, NULL);
    if (router->has_notifier)
        pthread_join(router->notifier, NULL);
    if (router->has_blocking_worker)
        pthread_join(router->blocking_worker, NULL);
    router->has_replier = router->has_notifier = router->has_blocking_worker = false;
    for (int i = 0; i < MAX_THREADS; i++)
        close_worker(&router->workers[i]);
    close_worker(&router->trio_worker);
    request_memory_trim(router, 0);
}
