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
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include <time.h>
#include <unistd.h>

#define QUICK_BYTES 65536u
#define MOST_ANSWERED 16

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

static bool may_wait(uint32_t opcode) {
    return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FSYNC || opcode == FUSE_FALLOCATE ||
           opcode == FUSE_COPY_FILE_RANGE || opcode == OP_COPY_FILE_RANGE_64 || opcode == FUSE_LSEEK ||
           opcode == FUSE_FSYNCDIR;
}

/* Whether the thread of trio may answer it: all that hardly waits, and so does a small write, into the host's cache. */
static bool is_quick(const struct fuse_in_header *header) {
    return header->opcode == FUSE_WRITE ? header->len <= WRITE_HEADER + QUICK_BYTES : !may_wait(header->opcode);
}

/* Deal with a request that was read. Whether it was answered here. */
static bool dispatch(struct worker *worker, size_t length, enum manner manner) {
    struct router *router = worker->router;
    struct fuse_in_header *header = (void *)worker->request;
    if (length < sizeof *header || header->len != length)
        return false; /* the kernel writes whole requests */
    if (header->opcode == FUSE_INTERRUPT)
        return false; /* nobody behind us stops half way: it may be ignored, and costs nobody a wake-up */
    if (router->api) {
        uint32_t opcode = header->opcode;
        uint64_t start = now_ns();
        switch (answer(router, worker->request, length, worker->reply, manner)) {
        case ANSWERED: count(router, opcode, now_ns() - start); return true;
        case LATER: later(router, worker->request, length); return false;
        case FORWARD: break;
        }
    }
    forward(router, worker->request, length);
    return false;
}

void wake(int event) {
    uint64_t one = 1;
    ssize_t done = write(event, &one, sizeof one);
    (void)done; /* EAGAIN: it is readable already */
}

/* Take what the thread of trio handed over. */
static bool take_over(struct worker *worker) {
    struct router *router = worker->router;
    if (!atomic_load(&router->handed_over))
        return false;
    pthread_mutex_lock(&router->handing);
    struct message *first = router->for_others.head;
    if (first) {
        atomic_fetch_sub(&router->handed_over, 1);
        if (!(router->for_others.head = first->next))
            router->for_others.tail = &router->for_others.head;
    }
    pthread_mutex_unlock(&router->handing);
    if (!first)
        return false;
    memcpy(worker->request, first->bytes, first->length);
    worker->answers = dispatch(worker, first->length, FOR_DISK);
    free(first);
    return true;
}

static void hand_over(struct worker *worker, size_t length) {
    struct router *router = worker->router;
    struct message *message = malloc(sizeof *message + length);
    if (!message) {
        dispatch(worker, length, FOR_DISK);
        return;
    }
    message->next = NULL;
    message->length = length;
    memcpy(message->bytes, worker->request, length);
    pthread_mutex_lock(&router->handing);
    *router->for_others.tail = message;
    router->for_others.tail = &message->next;
    atomic_fetch_add(&router->handed_over, 1);
    pthread_mutex_unlock(&router->handing);
    wake(router->hand_event);
}

/* Wait for a request or the end. */
static void wait_for_work(struct router *router) {
    struct epoll_event event;
    epoll_wait(router->epoll, &event, 1, -1);
}

/* Look for a request for a moment, if nobody else does: its length, else what the last read(2) gave, with errno. */
static ssize_t look(struct worker *worker) {
    struct router *router = worker->router;
    ssize_t length;
    uint64_t end = now_ns() + router->spin_ns;
    do
        length = read(router->device, worker->request, REQUEST_BYTES);
    while (length < 0 && errno == EAGAIN && now_ns() < end && !atomic_load_explicit(&router->stopping, memory_order_relaxed));
    int error = errno;
    luck_note(&worker->luck, length > 0, now_ns() > end + router->spin_ns);
    lead_give(router);
    errno = error;
    return length;
}

static void declare_end(struct router *router) {
    if (!atomic_exchange(&router->gone, true))
        forward_end(router);
    wake(router->stop_event);
}

/* One request, if there is one; the errno of the read. After one that went to pyfuse3 it is the thread of trio that looks:
 * the next one is likely its own, too. */
static int serve_one(struct worker *worker) {
    struct router *router = worker->router;
    ssize_t length = read(router->device, worker->request, REQUEST_BYTES);
    if (length < 0 && errno == EAGAIN && worker->answers && luck_lets(&worker->luck) && lead_take(router))
        length = look(worker);
    worker->answers = length > 0 && dispatch(worker, (size_t)length, FOR_DISK);
    return length < 0 ? errno : length ? 0 : ENODEV;
}

static void serve(struct worker *worker) {
    struct router *router = worker->router;
    while (!atomic_load(&router->stopping) && !atomic_load(&router->gone)) {
        atomic_fetch_add(&worker->serial, 1);
        int error = take_over(worker) ? 0 : serve_one(worker);
        atomic_fetch_add(&worker->serial, 1);
        if (error == EAGAIN)
            wait_for_work(router);
        else if (error && error != EINTR && error != ENOENT) /* ENOENT: it was taken back meanwhile */
            declare_end(router);
    }
}

/* For the thread of trio: to lead, before the reply is brought that lets the application go on. */
bool device_may_lead(struct router *router) { return luck_lets(&router->own.luck) && lead_take(router); }

/* Read a request if there is one, as the leader: who then no longer leads, unless it answers it and can lead again. */
static bool lead_once(struct worker *worker, bool *leads) {
    struct router *router = worker->router;
    atomic_fetch_add(&worker->serial, 1);
    ssize_t length = read(router->device, worker->request, REQUEST_BYTES);
    bool answered = false;
    if (length > 0) {
        bool quick = is_quick((struct fuse_in_header *)(void *)worker->request);
        luck_note(&worker->luck, quick, false);
        lead_give(router);
        if (quick)
            answered = dispatch(worker, (size_t)length, QUICK);
        else
            hand_over(worker, (size_t)length);
        *leads = answered && lead_take(router);
    }
    atomic_fetch_add(&worker->serial, 1);
    return answered;
}

/* Without the GIL: look for `spin_ns`, at the device too if this thread leads, until `found` finds something. What is
 * answered meanwhile makes the look longer, a few times, for trio may have something else to do. */
int device_look(struct router *router, bool leads, int (*found)(struct router *, uint64_t *), uint64_t *unique,
                uint64_t spin_ns) {
    uint64_t end = now_ns() + spin_ns;
    int result, answered = 0;
    do {
        if (leads && lead_once(&router->own, &leads) && ++answered < MOST_ANSWERED)
            end = now_ns() + spin_ns;
        result = found(router, unique);
    } while (!result && now_ns() < end);
    if (leads) {
        luck_note(&router->own.luck, false, now_ns() > end + spin_ns);
        lead_give(router);
    }
    return result;
}

#define BUFFER_BYTES (REQUEST_BYTES + 4096u)

static bool open_worker(struct worker *worker, struct router *router) {
    void *buffers = mmap(NULL, 2 * BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffers == MAP_FAILED)
        return false;
    worker->router = router;
    worker->buffers = buffers;
    worker->request = worker->buffers + 4096 - WRITE_HEADER; /* so that the data of both begin a page */
    worker->reply = worker->buffers + BUFFER_BYTES + 4096 - REPLY_HEADER;
    return true;
}

static void close_worker(struct worker *worker) {
    if (worker->buffers)
        munmap(worker->buffers, 2 * BUFFER_BYTES);
    worker->buffers = NULL;
}

static void *device_main(void *worker) {
    serve(worker);
    splice_close();
    return NULL;
}

static void doze(void) { nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL); }

/* Return when all that was read before is answered or sent on. Any thread; polls, for it is rare and short. */
void device_settle(struct router *router) {
    for (int i = -1; i < router->running; i++) {
        struct worker *worker = i < 0 ? &router->own : &router->workers[i];
        uint_fast64_t serial = atomic_load(&worker->serial);
        while ((serial & 1 && atomic_load(&worker->serial) == serial) || atomic_load(&router->handed_over))
            doze();
    }
}

/* Begin, and return when nothing is answered here any more; or end it. */
void device_pause(struct router *router, bool paused) {
    pthread_mutex_lock(&router->later);
    atomic_store(&router->paused, paused);
    pthread_cond_signal(&router->more_later);
    pthread_mutex_unlock(&router->later);
    if (!paused)
        return;
    device_settle(router);
    while (atomic_load(&router->patient_busy))
        doze();
}

static int start_thread(pthread_t *thread, void *(*body)(void *), void *argument, const char *name) {
    int error = pthread_create(thread, NULL, body, argument);
    if (!error)
        pthread_setname_np(*thread, name);
    return error;
}

/* As many of the wanted threads as can be had; an error if that is not one of each kind. */
static int start_all(struct router *router) {
    if (!open_worker(&router->own, router))
        return ENOMEM;
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
        error = open_worker(worker, router) ? start_thread(&worker->thread, device_main, worker, name) : ENOMEM;
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
    for (int i = 0; i < MAX_THREADS; i++)
        close_worker(&router->workers[i]);
    close_worker(&router->own);
}
