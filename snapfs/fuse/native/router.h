/* The router: what stands between /dev/fuse and pyfuse3. This page is its map; each .c file opens with its own part.
 *
 *     device.c    threads that read the descriptor: wait, read, give each request to its place, end
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
#define REPLY_HEADER sizeof(struct fuse_out_header)

/* A message that waits for its turn. */
struct message {
    struct message *next;
    size_t length;
    char bytes[];
};

struct queue {
    struct message *head, **tail;
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
    bool has_replier, has_notifier;
    pthread_t threads[MAX_THREADS];
    pthread_t replier, notifier;
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

    atomic_uint_fast64_t forwarded[MAX_OPCODES]; /* requests by opcode */
    atomic_uint_fast64_t answered[MAX_OPCODES];
};

/* device.c */
void wake(int event);
int device_start(struct router *router);
void device_stop(struct router *router);
int device_reply(struct router *router, const void *reply, size_t length);
void device_error(struct router *router, uint64_t unique, int error);

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
