/* The way to pyfuse3 and back: a pair of SOCK_SEQPACKET sockets, one message a request, one a reply.
 *
 * To pyfuse3. Whoever read a request sends it. What finds no room waits in a queue, in order, for the replier thread,
 * which is told by `room_event` and then sends as there is room. Large requests go in pieces: a READ or WRITE under its own
 * `unique`, one piece after the other, each when the one before is answered; forgets as several messages; a listing is
 * asked for less.
 *
 * Back. Replies are brought to the kernel by `bring_replies`, in whatever thread calls it: the one in which trio runs, when it
 * looks for the next request (a wake-up less), or else the replier. Replies of pieces are joined here.
 *
 * Invariants:
 * 1. Order is kept: nothing is sent past what waits.
 * 2. The replier is armed, or the thread that disarmed it brings the replies before it sleeps. While it is disarmed at
 *    most one reply is on its way, so libfuse never finds the socket full.
 * 3. A split request has one piece on its way, and is taken from the list before it is answered.
 * 4. A notification (unique 0) can wait for a lock that is freed only by a reply; so a thread of its own writes them.
 *
 * After `forward_end`, pyfuse3 reads the end of the socket behind what is in it; replies that come after that are
 * dropped by the kernel.
 */
#define _GNU_SOURCE
#include "router.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

struct split {
    struct split *next;
    uint64_t unique;
    uint32_t opcode;
    size_t done, total; /* bytes of data, answered and asked for */
    size_t length;      /* of the request */
    char *reply;        /* of a READ: the header and the data so far */
    char request[];
};

/* -- the queue */

static bool enqueue(struct queue *queue, const struct iovec *parts, int count) {
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;
    struct message *message = malloc(sizeof *message + length);
    if (!message)
        return false;
    message->next = NULL;
    message->length = 0;
    for (int i = 0; i < count; i++) {
        memcpy(message->bytes + message->length, parts[i].iov_base, parts[i].iov_len);
        message->length += parts[i].iov_len;
    }
    *queue->tail = message;
    queue->tail = &message->next;
    return true;
}

static struct message *dequeue(struct queue *queue) {
    struct message *first = queue->head;
    if (first && !(queue->head = first->next))
        queue->tail = &queue->head;
    return first;
}

static void drop_all(struct queue *queue) {
    struct message *message;
    while ((message = dequeue(queue)))
        free(message);
}

/* -- sending, with `sending` held */

static bool is_full(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM; }

/* Whether the message is on its way or in the queue; if not, there is no memory, or nobody to read it. */
static bool send_parts(struct router *router, struct iovec *parts, int count) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    atomic_fetch_add(&router->sent, 1);
    if (!router->waiting.head) {
        ssize_t done;
        do
            done = sendmsg(router->ours, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (done < 0 && errno == EINTR);
        if (done >= 0)
            return true;
        if (!is_full())
            return false;
    }
    if (!enqueue(&router->waiting, parts, count))
        return false;
    wake(router->room_event);
    return true;
}

/* Whether all that waited is sent. */
static bool send_waiting(struct router *router) {
    while (router->waiting.head) {
        struct message *first = router->waiting.head;
        if (send(router->ours, first->bytes, first->length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
            if (errno == EINTR)
                continue;
            if (is_full())
                return false;
        }
        free(dequeue(&router->waiting));
    }
    return true;
}

/* -- pieces, with `sending` held */

static bool send_piece(struct router *router, struct split *split) {
    struct fuse_in_header header;
    memcpy(&header, split->request, sizeof header);
    size_t size = split->total - split->done;
    if (size > router->piece_bytes)
        size = router->piece_bytes;
    struct fuse_read_in read_in;
    struct fuse_write_in write_in;
    struct iovec parts[3] = {{&header, sizeof header}};
    int count = 2;
    if (split->opcode == FUSE_READ) {
        memcpy(&read_in, split->request + sizeof header, sizeof read_in);
        read_in.offset += split->done;
        read_in.size = (uint32_t)size;
        parts[1] = (struct iovec){&read_in, sizeof read_in};
        header.len = READ_HEADER;
    } else {
        memcpy(&write_in, split->request + sizeof header, sizeof write_in);
        write_in.offset += split->done;
        write_in.size = (uint32_t)size;
        parts[1] = (struct iovec){&write_in, sizeof write_in};
        parts[2] = (struct iovec){split->request + WRITE_HEADER + split->done, size};
        count = 3;
        header.len = (uint32_t)(WRITE_HEADER + size);
    }
    return send_parts(router, parts, count);
}

static void free_split(struct split *split) {
    free(split->reply);
    free(split);
}

/* Begin a request that is too large for one message. */
static bool begin_split(struct router *router, const char *request, size_t length, uint32_t opcode, size_t total) {
    struct split *split = calloc(1, sizeof *split + length);
    if (!split)
        return false;
    memcpy(split->request, request, length);
    split->unique = ((const struct fuse_in_header *)(const void *)request)->unique;
    split->opcode = opcode;
    split->total = total;
    split->length = length;
    split->reply = malloc(REPLY_HEADER + (opcode == FUSE_READ ? total : sizeof(struct fuse_write_out)));
    if (!split->reply || !send_piece(router, split)) {
        free_split(split);
        return false;
    }
    split->next = router->splits;
    router->splits = split;
    return true;
}

static bool send_forgets(struct router *router, char *request, size_t length) {
    struct fuse_in_header *header = (void *)request;
    struct fuse_batch_forget_in *batch = (void *)(header + 1);
    struct fuse_forget_one *ones = (void *)(batch + 1);
    size_t head = sizeof *header + sizeof *batch, left = (length - head) / sizeof *ones;
    size_t most = (router->piece_bytes - head) / sizeof *ones;
    bool sent = true;
    while (left && sent) {
        size_t count = left < most ? left : most;
        batch->count = (uint32_t)count;
        header->len = (uint32_t)(head + count * sizeof *ones);
        struct iovec parts[2] = {{request, head}, {ones, count * sizeof *ones}};
        sent = send_parts(router, parts, 2);
        ones += count;
        left -= count;
    }
    return sent;
}

static bool send_request(struct router *router, char *request, size_t length) {
    struct fuse_in_header *header = (void *)request;
    struct fuse_read_in *read_in = (void *)(header + 1);
    uint32_t opcode = header->opcode;
    bool reads = opcode == FUSE_READ || opcode == FUSE_READDIR || opcode == FUSE_READDIRPLUS;
    if (opcode == FUSE_READ && read_in->size > router->piece_bytes)
        return begin_split(router, request, length, opcode, read_in->size);
    if (opcode == FUSE_WRITE && length > WRITE_HEADER + router->piece_bytes)
        return begin_split(router, request, length, opcode, length - WRITE_HEADER);
    if (opcode == FUSE_BATCH_FORGET && length > router->piece_bytes)
        return send_forgets(router, request, length);
    if (reads && read_in->size > router->piece_bytes)
        read_in->size = (uint32_t)router->piece_bytes;
    struct iovec whole = {request, length};
    return send_parts(router, &whole, 1);
}

static bool has_reply(uint32_t opcode) { return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET; }

void forward(struct router *router, char *request, size_t length) {
    struct fuse_in_header header;
    memcpy(&header, request, sizeof header);
    pthread_mutex_lock(&router->sending);
    bool sent = send_request(router, request, length);
    pthread_mutex_unlock(&router->sending);
    if (!sent && has_reply(header.opcode) && !atomic_load(&router->stopping))
        device_error(router, header.unique, -EIO);
}

void forward_end(struct router *router) { shutdown(router->ours, SHUT_WR); }

/* -- replies */

static struct split *take_split(struct router *router, uint64_t unique) {
    for (struct split **at = &router->splits; *at; at = &(*at)->next)
        if ((*at)->unique == unique) {
            struct split *found = *at;
            *at = found->next;
            return found;
        }
    return NULL;
}

/* Add a piece's reply. True if the whole is complete, an error of any piece being one of the whole: of pages that are
 * written back the kernel would take the rest for written, and of a short read for the end of the file. */
static bool add_piece(struct router *router, struct split *split, const char *reply, size_t length) {
    const struct fuse_out_header *header = (const void *)reply;
    size_t asked = split->total - split->done, data = length - REPLY_HEADER;
    if (asked > router->piece_bytes)
        asked = router->piece_bytes;
    if (header->error) {
        memcpy(split->reply, reply, REPLY_HEADER);
        split->done = 0;
        return true;
    }
    memcpy(split->reply, header, REPLY_HEADER);
    if (split->opcode == FUSE_READ) {
        if (data > asked)
            data = asked;
        memcpy(split->reply + REPLY_HEADER + split->done, reply + REPLY_HEADER, data);
    } else {
        struct fuse_write_out out = {0};
        memcpy(&out, reply + REPLY_HEADER, data < sizeof out ? data : sizeof out);
        data = out.size < asked ? out.size : asked;
    }
    split->done += data;
    return data < asked || split->done == split->total;
}

static void answer_split(struct router *router, struct split *split) {
    struct fuse_out_header *header = (void *)split->reply;
    size_t length = REPLY_HEADER;
    if (!header->error && split->opcode == FUSE_WRITE) {
        struct fuse_write_out out = {.size = (uint32_t)split->done};
        memcpy(split->reply + REPLY_HEADER, &out, sizeof out);
        length += sizeof out;
    } else if (!header->error) {
        length += split->done;
    }
    header->len = (uint32_t)length;
    device_reply(router, split->reply, length);
}

/* Whether the reply was one of a piece, and is dealt with. */
static bool join(struct router *router, const char *reply, size_t length) {
    const struct fuse_out_header *header = (const void *)reply;
    pthread_mutex_lock(&router->sending);
    struct split *split = router->splits ? take_split(router, header->unique) : NULL;
    bool complete = false;
    if (split && !(complete = add_piece(router, split, reply, length))) {
        if (send_piece(router, split)) {
            split->next = router->splits;
            router->splits = split;
        } else {
            complete = true;
            ((struct fuse_out_header *)(void *)split->reply)->error = -EIO;
        }
    }
    pthread_mutex_unlock(&router->sending);
    if (complete) {
        answer_split(router, split);
        free_split(split);
    }
    return split != NULL;
}

static void pass_on(struct router *router, char *reply, size_t length) {
    const struct fuse_out_header *header = (const void *)reply;
    if (length < sizeof *header)
        return;
    if (header->unique == 0) {
        struct iovec whole = {reply, length};
        pthread_mutex_lock(&router->notices);
        enqueue(&router->to_notify, &whole, 1);
        pthread_cond_signal(&router->noticed);
        pthread_mutex_unlock(&router->notices);
    } else if (!join(router, reply, length)) {
        device_reply(router, reply, length);
    }
}

/* Bring all replies that are there to the kernel, with `replying` held. Never waits for one. */
void bring_replies_locked(struct router *router) {
    for (;;) {
        ssize_t length = recv(router->ours, router->reply, router->piece_bytes + REPLY_HEADER, MSG_DONTWAIT);
        if (length > 0)
            pass_on(router, router->reply, (size_t)length);
        else if (length == 0 || errno != EINTR)
            break;
    }
}

void bring_replies(struct router *router) {
    pthread_mutex_lock(&router->replying);
    bring_replies_locked(router);
    pthread_mutex_unlock(&router->replying);
}

static void arm(struct router *router, bool armed, bool for_room) {
    uint32_t events = (armed ? EPOLLIN : 0u) | (for_room ? EPOLLOUT : 0u);
    struct epoll_event event = {.events = events, .data.fd = router->ours};
    epoll_ctl(router->reply_epoll, EPOLL_CTL_MOD, router->ours, &event);
}

/* Let the replier wake for replies, or promise to bring them. For one thread at a time, that in which trio runs, with
 * `replying` held. */
void arm_replier_locked(struct router *router, bool armed) {
    atomic_store(&router->armed, armed);
    arm(router, armed, router->for_room);
}

static void make_room(struct router *router) {
    uint64_t ignored;
    ssize_t done = read(router->room_event, &ignored, sizeof ignored);
    (void)done; /* EAGAIN: it was the socket that has room */
    pthread_mutex_lock(&router->sending);
    bool empty = send_waiting(router);
    pthread_mutex_unlock(&router->sending);
    pthread_mutex_lock(&router->replying);
    router->for_room = !empty;
    arm(router, atomic_load(&router->armed), !empty);
    pthread_mutex_unlock(&router->replying);
}

void *replier_main(void *argument) {
    struct router *router = argument;
    while (!atomic_load(&router->stopping)) {
        struct epoll_event events[3];
        int count = epoll_wait(router->reply_epoll, events, 3, -1);
        bool room = false, replies = false, over = false;
        for (int i = 0; i < count; i++) {
            bool socket = events[i].data.fd == router->ours;
            over = over || (socket && events[i].events & (EPOLLHUP | EPOLLERR));
            room = room || events[i].data.fd == router->room_event || (socket && events[i].events & EPOLLOUT);
            replies = replies || (socket && events[i].events & (EPOLLIN | EPOLLHUP));
        }
        if (room)
            make_room(router);
        if (replies)
            bring_replies(router);
        if (over)
            break;
    }
    return NULL;
}

void *notifier_main(void *argument) {
    struct router *router = argument;
    pthread_mutex_lock(&router->notices);
    while (!atomic_load(&router->stopping)) {
        struct message *notice = dequeue(&router->to_notify);
        if (!notice) {
            pthread_cond_wait(&router->noticed, &router->notices);
            continue;
        }
        pthread_mutex_unlock(&router->notices);
        device_reply(router, notice->bytes, notice->length);
        free(notice);
        pthread_mutex_lock(&router->notices);
    }
    pthread_mutex_unlock(&router->notices);
    return NULL;
}

/* -- beginning and end */

int forward_open(struct router *router) {
    router->waiting.tail = &router->waiting.head;
    router->to_notify.tail = &router->to_notify.head;
    router->for_later.tail = &router->for_later.head;
    router->for_others.tail = &router->for_others.head;
    router->reply = malloc(router->piece_bytes + REPLY_HEADER);
    return router->reply ? 0 : -ENOMEM;
}

void forward_close(struct router *router) {
    drop_all(&router->waiting);
    drop_all(&router->to_notify);
    drop_all(&router->for_later);
    drop_all(&router->for_others);
    while (router->splits) {
        struct split *split = router->splits;
        router->splits = split->next;
        free_split(split);
    }
    free(router->reply);
}
