/* The router: what stands between /dev/fuse and pyfuse3. This page is its map; each .c file opens with its own part.
 *
 *     device.c    threads that read the descriptor: wait, read, give each request to its place, end
 *     lead.c      who may look for the next request without sleeping
 *     answer.c    requests that need no change of names, answered from the live tree by its C interface (content_api.h)
 *     splice.c    replies to large reads without a copy
 *     upcall.c    what Python must do before that: with the GIL, and where it can take long in a thread of its own
 *     known.c     which inodes have no setuid
 *     forward.c   to pyfuse3 over the socket pair and back: room, pieces, notifications
 *     module.c    the Python face: snapfs.fuse._router.Router
 *
 * Invariants:
 * 1. A request that was read is answered or forwarded once, by whoever read it. What a stop finds unread stays unread:
 *    the kernel gives it to the next who asks.
 * 2. No thread that reads the descriptor waits for pyfuse3: what finds no room in the socket is queued.
 * 3. Everything that is sent through the socket fits it whole (`piece_bytes`); what is larger goes in pieces.
 * 4. Locks, none held while another is taken but in this order: `replying` (one at a time brings replies to the kernel),
 *    then `sending` (the way to pyfuse3, with its queue and the split requests), then `notices`. The GIL is never waited
 *    for while one is held.
 *
 * A process that dies at any point leaves requests that were read and not answered; NOTIFY_RESEND brings them again.
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

#define MAX_THREADS 64
#define MAX_OPCODES 64 /* the highest of the protocol is far below */
#define REQUEST_BYTES ((1u << 20) + 4096u)
#define READ_HEADER (sizeof(struct fuse_in_header) + sizeof(struct fuse_read_in))
#define WRITE_HEADER (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))
#define REPLY_HEADER sizeof(struct fuse_out_header)
#define LATENCY_BUCKETS 24 /* bucket n: less than 2^n microseconds, the last: all others */
#define ATTR_VALID_SECONDS (365u * 86400u) /* as answers.py */
#define KNOWN_INODES 4096  /* a power of two */

/* Of the protocol, but not of the header of an older distribution. */
#define OP_COPY_FILE_RANGE_64 53
#define VIRTUAL_NODE (1ull << 63)
/* File handles, as in handles.py. */
#define HANDLE_UNPRIVILEGED (1ull << 61)
#define HANDLE_WRITING (1ull << 60)

/* What is asked of Python, beyond to `prepare` for one of the kinds of content_api.h; upcalls.py has the same. */
enum upcall {
    UPCALL_WEAKEN = 16, UPCALL_SIZE, UPCALL_FALLOCATE, UPCALL_LSEEK, UPCALL_COPY, UPCALL_FSYNC, UPCALL_FSYNCDIR
};
#define UPCALL_ARGUMENTS 5

/* A message that waits for its turn. */
struct message {
    struct message *next;
    size_t length;
    char bytes[];
};

struct queue {
    struct message *head, **tail;
};

/* Whether to look is worth it; see lead.c. */
struct luck {
    unsigned vain, pause;
};

/* A thread's buffers: a request as read, and room for a reply of the same size. */
struct worker {
    struct router *router;
    char *buffers, *request, *reply;
    struct luck luck;
    bool answers; /* the last request was answered here */
    pthread_t thread;
    atomic_uint_fast64_t serial; /* odd while it reads or deals with a request */
};

struct split; /* a request that goes to pyfuse3 in pieces; see forward.c */

struct router {
    int device;      /* /dev/fuse, not blocking */
    int ours;        /* our end of the socket pair */
    int theirs;      /* libfuse's end; looked at, never read */
    int epoll;       /* the device, edge by edge, and `stop_event` */
    int stop_event;  /* readable from the moment that the threads shall end */
    int reply_epoll; /* `ours`, armed while nobody promised to bring the replies; and `room_event` */
    int room_event;  /* the queue has something to send, or the end has come */
    size_t piece_bytes;

    int thread_count; /* wanted */
    int running;
    bool has_replier, has_notifier, has_patient;
    struct worker workers[MAX_THREADS];
    struct worker own; /* of the thread of trio */
    pthread_t replier, notifier, patient;
    uint64_t spin_ns; /* 0: nobody looks */
    atomic_bool led;
    int hand_event; /* there is something in `for_others` */
    pthread_mutex_t handing;
    struct queue for_others;
    atomic_int handed_over; /* how much is in it */
    atomic_bool stopping; /* `stop` was called */
    atomic_bool gone;     /* the mount is */

    pthread_mutex_t sending;
    struct queue waiting;  /* for room in the socket */
    struct split *splits;

    pthread_mutex_t replying;
    char *reply; /* piece_bytes */
    atomic_bool armed; /* the replier wakes for replies */
    bool for_room;     /* and for room in the socket; under `replying` */

    pthread_mutex_t notices;
    pthread_cond_t noticed;
    struct queue to_notify;

    const struct sc_api *api; /* NULL: nothing is answered here */
    sc_core *core;
    atomic_bool refusing; /* nothing may change: what can be refused here is, what else changes files is Python's */
    atomic_bool slowed; /* writes and fsyncs are Python's for now: replication holds them back */
    atomic_bool paused;   /* nothing is answered here for now; what pyfuse3 does not know waits */
    atomic_bool patient_busy;
    void *python; /* the callable that upcalls call */
    pthread_mutex_t later;
    pthread_cond_t more_later;
    struct queue for_later; /* requests that wait for what is far away */

    atomic_uint_fast64_t plain[KNOWN_INODES]; /* inodes without setuid and setgid */

    atomic_uint_fast64_t sent; /* messages to pyfuse3, in the order of the socket */
    atomic_uint_fast64_t answered[MAX_OPCODES];
    atomic_uint_fast64_t latency[MAX_OPCODES][LATENCY_BUCKETS];
    atomic_uint_fast64_t latency_ns[MAX_OPCODES];
};

/* lead.c */
uint64_t now_ns(void);
bool lead_take(struct router *router);
void lead_give(struct router *router);
bool luck_lets(struct luck *luck);
void luck_note(struct luck *luck, bool found, bool crowded);

/* device.c */
bool device_may_lead(struct router *router);
int device_look(struct router *router, bool leads, int (*found)(struct router *, uint64_t *), uint64_t *unique,
                uint64_t spin_ns);
void wake(int event);
int device_start(struct router *router);
void device_stop(struct router *router);
int device_reply(struct router *router, const void *reply, size_t length);
void device_settle(struct router *router);
void device_pause(struct router *router, bool paused);
void device_error(struct router *router, uint64_t unique, int error);

/* answer.c */
enum outcome { ANSWERED, FORWARD, LATER };
enum manner { FOR_DISK, QUICK, PATIENT }; /* may wait: for the disk; hardly; for a network too */
enum outcome answer(struct router *router, char *request, size_t length, char *room, enum manner manner);
void later(struct router *router, const char *request, size_t length);

/* splice.c */
bool splice_read(struct router *router, uint64_t ino, uint64_t unique, uint64_t offset, size_t size);
void splice_close(void);

/* upcall.c */
int64_t upcall(struct router *router, int kind, const uint64_t arguments[UPCALL_ARGUMENTS]);
int64_t upcall_for(struct router *router, int kind, uint64_t ino);
void *patient_main(void *router);

/* known.c */
bool known_plain(struct router *router, uint64_t ino);
void know_plain(struct router *router, uint64_t ino, bool plain);
void forget_plain(struct router *router);

/* forward.c */
int forward_open(struct router *router);
void forward_close(struct router *router);
void forward(struct router *router, char *request, size_t length);
void forward_end(struct router *router);
void bring_replies(struct router *router);
void bring_replies_locked(struct router *router);
void arm_replier_locked(struct router *router, bool armed);
void *replier_main(void *router);
void *notifier_main(void *router);

#endif
