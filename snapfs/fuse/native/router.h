/* The router: what stands between /dev/fuse and pyfuse3. This page is its map; each .c file opens with its own part.
 *
 *     device.c            threads that read the descriptor: wait, read, dispatch each request
 *     threads.c           start, pause and end of all threads
 *     request_memory.c    the memory that requests are read into
 *     poller.c            the one thread at a time that looks for the next request without sleeping
 *     answer*.c           requests that are answered from the live tree (content_api.h): bytes, ranges,
 *                         open files, looks at names (answer_lookups.c) and changes of them (answer_changes.c)
 *     splice.c            replies to large reads without a copy
 *     upcall.c            calls of Python: what it must do before a request can be answered
 *     blocking_worker.c   the thread for requests that can wait for a network
 *     suid_cache.c        inodes that have no setuid
 *     written_inodes.c    inodes of which the kernel may show an older st_blocks
 *     cached_listings.c   directories whose names the kernel keeps
 *     forward.c           requests to pyfuse3 over the socket pair
 *     split.c             large ones in pieces
 *     replies.c           replies and notifications back
 *     queue.c             lists of messages
 *     module.c            the Python type snapfs.fuse.kernel._router.Router; router_methods.c has its methods
 *
 * Invariants:
 * 1. A request that was read is answered or forwarded once, by the thread that read it. What a stop finds unread stays
 *    unread: the kernel gives it to the next reader.
 * 2. No thread that reads the descriptor waits for pyfuse3: what finds no room in the socket is queued.
 * 3. Everything that is sent through the socket fits it whole (`piece_bytes`); what is larger goes in pieces.
 * 4. Locks are taken in the order of lock_order.h. No thread waits for the GIL while it holds one.
 *
 * A process that dies at any point leaves requests that were read and not answered; NOTIFY_RESEND makes the kernel send
 * them again.
 */
#ifndef SNAPFS_ROUTER_H
#define SNAPFS_ROUTER_H

#include "content_api.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define MAX_THREADS 64
#define MAX_OPCODES 64 /* the highest of the protocol is far below */
#define REQUEST_BYTES ((1u << 20) + 4096u)
#define READ_HEADER (sizeof(struct fuse_in_header) + sizeof(struct fuse_read_in))
#define WRITE_HEADER (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define REPLY_HEADER sizeof(struct fuse_out_header)
#define LATENCY_BUCKETS 24 /* bucket n: less than 2^n microseconds, the last: all others */
#define ATTR_VALID_SECONDS (365u * 86400u) /* replies.py: FOREVER_SECONDS */
#define CACHED_INODES 4096 /* a power of two */
#define LISTED_PARENTS 16384 /* another */

/* Of the protocol, but not of the header of an older distribution. */
#define OP_TMPFILE 51
#define OP_COPY_FILE_RANGE_64 53
#define WRITE_KILLS_PRIVILEGES (1u << 2) /* FUSE_WRITE_KILL_SUIDGID */
#define VIRTUAL_NODE (1ull << 63)
/* File handles, as in file_handles.py. */
#define HANDLE_UNPRIVILEGED (1ull << 61)
#define HANDLE_WRITING (1ull << 60)
#define HANDLE_DIRECT (1ull << 59)
#define HANDLE_CACHED (1ull << 58) /* of a directory */

/* What Python is called for, besides `prepare` for one of the kinds of content_api.h; upcalls.py has the same. */
enum upcall {
    UPCALL_CLEAR_SUID = 16,
    UPCALL_FALLOCATE,
    UPCALL_LSEEK,
    UPCALL_COPY,
    UPCALL_FSYNC,
    UPCALL_FSYNCDIR,
    UPCALL_FAILED,
    UPCALL_ROOM,
    UPCALL_LOST
};
#define UPCALL_ARGUMENTS 5

/* A message in a queue. */
struct message {
    struct message *next;
    size_t length;
    bool admitted; /* the gate does not hold it */
    _Alignas(8) char bytes[];
};

struct queue {
    struct message *head, **tail;
};

/* Whether polling is worth it; see poller.c. */
struct spin_budget {
    unsigned misses, pause;
};

/* A thread's buffers: a request as read (request_memory.c), and room for a reply of the same size. */
struct worker {
    struct router *router;
    char *request; /* NULL while it sleeps */
    char *buffer, *reply;
    struct spin_budget spin_budget;
    bool answers; /* the last request was answered here */
    bool admitted; /* the next one is not held by the gate */
    pthread_t thread;
    atomic_uint_fast64_t serial; /* odd while it reads or deals with a request */
};

struct piece; /* memory for a request; see request_memory.c */
struct split; /* a request that goes to pyfuse3 in pieces; see split.c */

struct router {
    int device; /* /dev/fuse, not blocking */
    int router_end; /* our end of the socket pair */
    int libfuse_end; /* libfuse's end; looked at, never read */
    int epoll; /* the device, edge by edge, and `stop_event` */
    int stop_event; /* readable from the moment that the threads shall end */
    int reply_epoll; /* `router_end`, armed while no thread undertook to deliver the replies; and `room_event` */
    int room_event; /* the queue has something to send, or the end has come */
    size_t piece_bytes;

    int thread_count; /* wanted */
    atomic_int running; /* device threads; a settle may read it during a stop */
    bool has_replier, has_notifier, has_blocking_worker;
    atomic_bool runs_first; /* wanted, and not refused: the device threads run before what computes (threads.c) */
    struct worker workers[MAX_THREADS];
    struct worker trio_worker; /* of the thread of trio */
    pthread_t replier, notifier, blocking_worker;
    uint64_t spin_ns; /* 0: no thread polls */
    atomic_bool has_poller;
    int handoff_event; /* there is something in `handoff` */
    int activity_event; /* a request was read after `active` was cleared */
    atomic_bool active;
    pthread_mutex_t handoff_lock;
    struct queue handoff;
    atomic_int handoff_count; /* length of `handoff` */
    atomic_bool gated; /* requests that begin a change are held (gate.c) */
    struct queue held; /* those, and how many of them truncate; under `handoff_lock` */
    unsigned held_truncates;
    atomic_bool stopping; /* `stop` was called */
    atomic_bool unmounted; /* the mount is gone */

    pthread_mutex_t memory_lock;
    struct piece *memory; /* what no thread uses */

    pthread_mutex_t send_lock;
    struct queue send_queue; /* for room in the socket */
    struct split *splits;

    pthread_mutex_t reply_lock;
    char *reply; /* piece_bytes */
    atomic_bool armed; /* the replier wakes for replies */
    bool for_room; /* and for room in the socket; under `reply_lock` */

    pthread_mutex_t notice_lock;
    pthread_cond_t notice_added;
    struct queue notices;

    const struct sc_api *api; /* NULL: nothing is answered here */
    sc_core *core;
    atomic_bool read_only; /* nothing may change: refused here or by Python (answer.c) */
    atomic_bool throttled; /* writes and fsyncs go to Python, where replication holds them back */
    atomic_bool paused; /* nothing is answered here for now; what pyfuse3 does not know is deferred */
    atomic_bool blocking_worker_busy;
    void *python; /* the callable that upcalls call */
    pthread_mutex_t deferred_lock;
    pthread_cond_t deferred_added;
    struct queue deferred; /* requests for the blocking worker */

    atomic_uint_fast64_t no_suid[CACHED_INODES]; /* inodes without setuid and setgid */
    atomic_uint_fast64_t written[CACHED_INODES]; /* since the kernel got their blocks */
    atomic_uint_fast64_t listed[CACHED_INODES]; /* directories with a handle that has the kernel's cache of names */
    atomic_uint_fast64_t parents[LISTED_PARENTS]; /* with its directory, as of the last handle that got the cache */
    atomic_bool caches_listings; /* every open handle of a directory is ours */

    atomic_uint_fast64_t sent; /* messages to pyfuse3, in the order of the socket */
    atomic_uint_fast64_t answered[MAX_OPCODES];
    atomic_uint_fast64_t latency[MAX_OPCODES][LATENCY_BUCKETS];
    atomic_uint_fast64_t latency_ns[MAX_OPCODES];
};

/* poller.c */
uint64_t poller_now_ns(void);
bool poller_claim(struct router *router);
void poller_release(struct router *router);
bool spin_budget_allows(struct spin_budget *budget);
void spin_budget_note(struct spin_budget *budget, bool found, bool crowded);

/* device.c */
bool device_claim_poller(struct router *router);
int device_poll(struct router *router, bool is_poller, int (*found)(struct router *, uint64_t *), uint64_t *unique,
                uint64_t spin_ns);
void device_wake(int event);
int device_reply(struct router *router, const void *reply, size_t length);
void device_error(struct router *router, uint64_t unique, int error);
void device_serve(struct worker *worker);

/* threads.c */
int threads_start(struct router *router);
void threads_stop(struct router *router);
void threads_settle(struct router *router);
void threads_pause(struct router *router, bool paused);

/* request_memory.c */
bool request_memory_open(struct router *router);
void request_memory_take(struct worker *worker);
void request_memory_give(struct worker *worker);
void request_memory_trim(struct router *router, int keep);

/* gate.c */
bool gate_holds(struct router *router, const char *request, size_t length);
void gate_close(struct router *router, bool closed);
unsigned gate_admit(struct router *router);

/* answer.c */
enum outcome { ANSWERED, FORWARD, DEFER };
enum waiting { WAITS_FOR_DISK, HARDLY_WAITS, WAITS_FOR_NETWORK }; /* what the calling thread may wait for */
enum outcome answer_request(struct router *router, char *request, size_t length, char *reply, enum waiting waiting);

/* splice.c */
bool splice_read(struct router *router, uint64_t ino, uint64_t unique, uint64_t offset, size_t size);
void splice_close(void);

/* upcall.c */
int64_t upcall_run(struct router *router, int kind, const uint64_t arguments[UPCALL_ARGUMENTS]);
int64_t upcall_run_for(struct router *router, int kind, uint64_t ino);

/* blocking_worker.c */
void blocking_worker_defer(struct router *router, const char *request, size_t length);
void *blocking_worker_main(void *router);

/* suid_cache.c */
bool suid_cache_has_no_suid(struct router *router, uint64_t ino);
void suid_cache_set(struct router *router, uint64_t ino, bool no_suid);
void suid_cache_clear(struct router *router);

/* written_inodes.c */
void written_inodes_add(struct router *router, uint64_t ino);
void written_inodes_remove(struct router *router, uint64_t ino);
void written_inodes_invalidate(struct router *router);
void written_inodes_forget(struct router *router, uint64_t ino); /* have the kernel request the attributes */

/* cached_listings.c */
bool cached_listings_begin(struct router *router, uint64_t directory);
bool cached_listings_keep(struct router *router, uint64_t directory, uint64_t parent);
void cached_listings_end(struct router *router, uint64_t directory);

/* queue.c */
void queue_init(struct queue *queue);
bool queue_append(struct queue *queue, const struct iovec *parts, int count); /* false: there is no memory */
void queue_put(struct queue *queue, struct message *message);
struct message *queue_take(struct queue *queue); /* to be freed; NULL if it is empty */
void queue_clear(struct queue *queue);

/* forward.c */
int forward_open(struct router *router);
void forward_close(struct router *router);
void forward_request(struct router *router, char *request, size_t length);
void forward_end(struct router *router);

/* replies.c */
void replies_deliver(struct router *router);
void replies_deliver_locked(struct router *router);
void replies_arm_locked(struct router *router, bool armed);
void *replier_main(void *router);
void *notifier_main(void *router);

#endif
