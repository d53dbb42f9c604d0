/* The threads that read /dev/fuse.
 *
 * The descriptor does not block. A thread reads until there is nothing, then waits in the epoll instance that all
 * share: it is triggered by the edge, so each request wakes one thread, and `stop_event` by level, so it wakes them
 * all.
 *
 * Invariants:
 * 1. A thread waits only after a read that found nothing: an edge that came before it is not lost, for epoll keeps it.
 *    One edge may stand for several requests, though. So a thread that has read one that may wait for a disk has epoll
 *    look at the device again first (`wake_another`): another thread reads what came with it.
 * 2. `threads_stop` takes effect between requests; the thread that read one deals with it first. What was handed off is
 *    dealt with as well: by the threads as they end, and after that by the thread that hands off.
 * 3. The first thread that gets ENODEV ends all others and pyfuse3's reading, once.
 */
#define _GNU_SOURCE
#include "router.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define QUICK_BYTES 65536u
#define MAX_ANSWERED 16

int device_reply(struct router *router, const void *reply, size_t length)
{
    ssize_t done;
    do
        done = write(router->device, reply, length);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : 0; /* ENOENT: the request was interrupted */
}

void device_error(struct router *router, uint64_t unique, int error)
{
    struct fuse_out_header reply = {.len = sizeof reply, .error = error, .unique = unique};
    device_reply(router, &reply, sizeof reply);
}

static void count(struct router *router, uint32_t opcode, uint64_t took_ns)
{
    if (opcode >= MAX_OPCODES)
        return;
    int bucket = 0;
    while (bucket < LATENCY_BUCKETS - 1 && took_ns >= 1000ull << bucket)
        bucket++;
    atomic_fetch_add_explicit(&router->answered[opcode], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&router->latency[opcode][bucket], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&router->latency_ns[opcode], took_ns, memory_order_relaxed);
}

static bool may_wait(uint32_t opcode)
{
    return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FSYNC || opcode == FUSE_FALLOCATE ||
           opcode == FUSE_COPY_FILE_RANGE || opcode == OP_COPY_FILE_RANGE_64 || opcode == FUSE_LSEEK ||
           opcode == FUSE_FSYNCDIR;
}

/* Whether the thread of trio may answer it: what hardly waits. A small write goes into the host's cache. */
static bool is_quick(const struct fuse_in_header *header)
{
    return header->opcode == FUSE_WRITE ? header->len <= WRITE_HEADER + QUICK_BYTES : !may_wait(header->opcode);
}

/* Let another thread read what came together with a request that this one may be busy with for long. While a thread
 * polls, the device is not in the epoll instance, and is looked at anyway. */
static void wake_another(struct router *router)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = router->device};
    epoll_ctl(router->epoll, EPOLL_CTL_MOD, router->device, &event);
}

/* Answer, defer or forward a request that was read. Whether it was answered here. */
static bool dispatch(struct worker *worker, size_t length, enum waiting waiting)
{
    struct router *router = worker->router;
    struct fuse_in_header *header = (void *)worker->request;
    if (length < sizeof *header || header->len != length)
        return false; /* the kernel writes whole requests */
    if (!atomic_load_explicit(&router->active, memory_order_relaxed) && !atomic_exchange(&router->active, true))
        device_wake(router->activity_event);
    if (header->opcode == FUSE_INTERRUPT)
        return false; /* no handler stops half way: it may be ignored, and wakes no thread */
    bool admitted = worker->admitted;
    worker->admitted = false;
    if (!admitted && gate_holds(router, worker->request, length))
        return false;
    if (router->api) {
        uint32_t opcode = header->opcode;
        if (waiting == WAITS_FOR_DISK && may_wait(opcode))
            wake_another(router);
        uint64_t start = poller_now_ns();
        switch (answer_request(router, worker->request, length, worker->reply, waiting)) {
        case ANSWERED: count(router, opcode, poller_now_ns() - start); return true;
        case DEFER: blocking_worker_defer(router, worker->request, length); return false;
        case FORWARD: break;
        }
    }
    forward_request(router, worker->request, length);
    return false;
}

void device_wake(int event)
{
    uint64_t one = 1;
    ssize_t done = write(event, &one, sizeof one);
    (void)done; /* EAGAIN: it is readable already */
}

/* Deal with one request that the thread of trio handed off; false if there is none. */
static bool take_handed_off(struct worker *worker)
{
    struct router *router = worker->router;
    if (!atomic_load(&router->handoff_count))
        return false;
    pthread_mutex_lock(&router->handoff_lock);
    struct message *first = queue_take(&router->handoff);
    if (first)
        atomic_fetch_sub(&router->handoff_count, 1);
    pthread_mutex_unlock(&router->handoff_lock);
    if (!first)
        return false;
    if (atomic_load(&router->handoff_count))
        device_wake(router->handoff_event); /* one edge may stand for several here, too */
    request_memory_take(worker);
    memcpy(worker->request, first->bytes, first->length);
    worker->admitted = first->admitted;
    worker->answers = dispatch(worker, first->length, WAITS_FOR_DISK);
    free(first);
    return true;
}

static void hand_off(struct worker *worker, size_t length)
{
    struct router *router = worker->router;
    struct iovec whole = {worker->request, length};
    pthread_mutex_lock(&router->handoff_lock);
    bool handed_off = queue_append(&router->handoff, &whole, 1);
    if (handed_off)
        atomic_fetch_add(&router->handoff_count, 1);
    pthread_mutex_unlock(&router->handoff_lock);
    if (!handed_off) {
        dispatch(worker, length, WAITS_FOR_DISK);
        return;
    }
    device_wake(router->handoff_event);
    while ((atomic_load(&router->stopping) || atomic_load(&router->unmounted)) && take_handed_off(worker))
        ; /* the device threads may have looked for the last time */
}

/* Wait for a request or the end. */
static void wait_for_work(struct worker *worker)
{
    struct epoll_event event;
    request_memory_give(worker);
    epoll_wait(worker->router->epoll, &event, 1, -1);
}

/* As the poller, look for a request for `spin_ns`: its length, else what the last read(2) gave, with errno. */
static ssize_t poll_device(struct worker *worker)
{
    struct router *router = worker->router;
    ssize_t length;
    uint64_t end = poller_now_ns() + router->spin_ns;
    do
        length = read(router->device, worker->request, REQUEST_BYTES);
    while (length < 0 && errno == EAGAIN && poller_now_ns() < end &&
           !atomic_load_explicit(&router->stopping, memory_order_relaxed));
    int error = errno;
    spin_budget_note(&worker->spin_budget, length > 0, poller_now_ns() > end + router->spin_ns);
    poller_release(router);
    errno = error;
    return length;
}

static void declare_end(struct router *router)
{
    if (!atomic_exchange(&router->unmounted, true))
        forward_end(router);
    device_wake(router->stop_event);
}

/* One request, if there is one; the errno of the read. After one that went to pyfuse3 the thread of trio polls: the
 * next one is likely its own, too. */
static int serve_one(struct worker *worker)
{
    struct router *router = worker->router;
    request_memory_take(worker);
    ssize_t length = read(router->device, worker->request, REQUEST_BYTES);
    if (length < 0 && errno == EAGAIN && worker->answers && spin_budget_allows(&worker->spin_budget) &&
        poller_claim(router))
        length = poll_device(worker);
    worker->answers = length > 0 && dispatch(worker, (size_t)length, WAITS_FOR_DISK);
    return length < 0 ? errno : length ? 0 : ENODEV;
}

void device_serve(struct worker *worker)
{
    struct router *router = worker->router;
    wait_for_work(worker); /* epoll reports what came before; all threads at once would need memory at once */
    while (!atomic_load(&router->stopping) && !atomic_load(&router->unmounted)) {
        atomic_fetch_add(&worker->serial, 1);
        int error = take_handed_off(worker) ? 0 : serve_one(worker);
        atomic_fetch_add(&worker->serial, 1);
        if (error == EAGAIN)
            wait_for_work(worker);
        else if (error && error != EINTR && error != ENOENT) /* ENOENT: it was interrupted meanwhile */
            declare_end(router);
    }
    bool more = true;
    while (more) {
        atomic_fetch_add(&worker->serial, 1);
        more = take_handed_off(worker);
        atomic_fetch_add(&worker->serial, 1);
    }
    request_memory_give(worker);
}

/* For the thread of trio: to be the poller before the reply is delivered that lets the application go on. */
bool device_claim_poller(struct router *router)
{
    return spin_budget_allows(&router->trio_worker.spin_budget) && poller_claim(router);
}

/* Read a request if there is one, as the poller: it then gives the role up, unless it answers it and can take it again.
 * */
static bool poll_once(struct worker *worker, bool *is_poller)
{
    struct router *router = worker->router;
    atomic_fetch_add(&worker->serial, 1);
    request_memory_take(worker);
    ssize_t length = read(router->device, worker->request, REQUEST_BYTES);
    bool answered = false;
    if (length > 0) {
        bool quick = is_quick((struct fuse_in_header *)(void *)worker->request);
        spin_budget_note(&worker->spin_budget, quick, false);
        poller_release(router);
        if (quick)
            answered = dispatch(worker, (size_t)length, HARDLY_WAITS);
        else
            hand_off(worker, (size_t)length);
        *is_poller = answered && poller_claim(router);
    }
    atomic_fetch_add(&worker->serial, 1);
    return answered;
}

/* Without the GIL: look for `spin_ns`, at the device too if this thread is the poller, until `found` finds something.
 * What is answered meanwhile extends the time, a few times, for trio may have something else to do. */
int device_poll(struct router *router, bool is_poller, int (*found)(struct router *, uint64_t *), uint64_t *unique,
                uint64_t spin_ns)
{
    uint64_t end = poller_now_ns() + spin_ns;
    int result, answered = 0;
    do {
        if (is_poller && poll_once(&router->trio_worker, &is_poller) && ++answered < MAX_ANSWERED)
            end = poller_now_ns() + spin_ns;
        result = found(router, unique);
    } while (!result && poller_now_ns() < end);
    request_memory_give(&router->trio_worker);
    if (is_poller) {
        spin_budget_note(&router->trio_worker.spin_budget, false, poller_now_ns() > end + spin_ns);
        poller_release(router);
    }
    return result;
}
