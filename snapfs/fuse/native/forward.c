/* The way to pyfuse3: a pair of SOCK_SEQPACKET sockets, one message a request, one a reply (replies.c).
 *
 * The thread that read a request sends it. What finds no room waits in a queue, in order, for the replier thread, which
 * `room_event` wakes and which sends as there is room. Large requests go in pieces: READ and WRITE as split.c has it,
 * forgets as several messages; a listing gets a smaller size.
 *
 * Invariants:
 * 1. Order is kept: nothing is sent past what waits.
 * 2. Each message fits the socket whole (`piece_bytes`).
 *
 * After `forward_end`, pyfuse3 reads the end of the socket behind what is in it; the kernel drops replies that come
 * later.
 */
#define _GNU_SOURCE
#include "forward.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* -- sending, with `send_lock` held */

static bool is_full(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM; }

/* Whether the message is sent or queued; if not, there is no memory, or the other end is closed. */
bool forward_send_parts(struct router *router, struct iovec *parts, int count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    atomic_fetch_add(&router->sent, 1);
    if (!router->send_queue.head) {
        ssize_t done;
        do
            done = sendmsg(router->router_end, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (done < 0 && errno == EINTR);
        if (done >= 0)
            return true;
        if (!is_full())
            return false;
    }
    if (!queue_append(&router->send_queue, parts, count))
        return false;
    device_wake(router->room_event);
    return true;
}

/* Whether all that waited is sent. */
bool forward_send_waiting(struct router *router)
{
    while (router->send_queue.head) {
        struct message *first = router->send_queue.head;
        if (send(router->router_end, first->bytes, first->length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
            if (errno == EINTR)
                continue;
            if (is_full())
                return false;
        }
        free(queue_take(&router->send_queue));
    }
    return true;
}

static bool send_forgets(struct router *router, char *request, size_t length)
{
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
        sent = forward_send_parts(router, parts, 2);
        ones += count;
        left -= count;
    }
    return sent;
}

static bool send_request(struct router *router, char *request, size_t length)
{
    struct fuse_in_header *header = (void *)request;
    struct fuse_read_in *read_in = (void *)(header + 1);
    uint32_t opcode = header->opcode;
    bool reads = opcode == FUSE_READ || opcode == FUSE_READDIR || opcode == FUSE_READDIRPLUS;
    if (opcode == FUSE_READ && read_in->size > router->piece_bytes)
        return split_begin(router, request, length, opcode, read_in->size);
    if (opcode == FUSE_WRITE && length > WRITE_HEADER + router->piece_bytes)
        return split_begin(router, request, length, opcode, length - WRITE_HEADER);
    if (opcode == FUSE_BATCH_FORGET && length > router->piece_bytes)
        return send_forgets(router, request, length);
    if (reads && read_in->size > router->piece_bytes)
        read_in->size = (uint32_t)router->piece_bytes;
    struct iovec whole = {request, length};
    return forward_send_parts(router, &whole, 1);
}

/* pyfuse3 passes the handle of a WRITE on, but not its flags. So the handle carries them: whether this write takes setuid
 * and setgid away, and whether it goes past the kernel's cache. (What the opener was and asked for would not do: the
 * kernel writes pages back by any handle of the file, and these take nothing away.) */
static void mark_handle(struct fuse_in_header *header)
{
    struct fuse_write_in *in = (void *)(header + 1);
    if (in->fh & VIRTUAL_NODE)
        return;
    if (in->write_flags & WRITE_KILLS_PRIVILEGES)
        in->fh |= HANDLE_UNPRIVILEGED;
    else
        in->fh &= ~HANDLE_UNPRIVILEGED;
    if (in->write_flags & FUSE_WRITE_CACHE)
        in->fh &= ~HANDLE_DIRECT;
    else
        in->fh |= HANDLE_DIRECT;
}

static bool has_reply(uint32_t opcode) { return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET; }

void forward_request(struct router *router, char *request, size_t length)
{
    struct fuse_in_header header;
    memcpy(&header, request, sizeof header);
    /* pyfuse3 does not know TMPFILE: it gets a CREATE of the name "/", which no file has. */
    if (header.opcode == OP_TMPFILE)
        ((struct fuse_in_header *)(void *)request)->opcode = FUSE_CREATE;
    if (header.opcode == FUSE_WRITE && length >= WRITE_HEADER)
        mark_handle((void *)request);
    pthread_mutex_lock(&router->send_lock);
    bool sent = send_request(router, request, length);
    pthread_mutex_unlock(&router->send_lock);
    if (!sent && has_reply(header.opcode) && !atomic_load(&router->stopping))
        device_error(router, header.unique, -EIO);
}

void forward_end(struct router *router) { shutdown(router->router_end, SHUT_WR); }

/* -- beginning and end */

int forward_open(struct router *router)
{
    queue_init(&router->send_queue);
    queue_init(&router->notices);
    queue_init(&router->deferred);
    queue_init(&router->handoff);
    queue_init(&router->held);
    router->reply = malloc(router->piece_bytes + REPLY_HEADER);
    return router->reply ? 0 : -ENOMEM;
}

void forward_close(struct router *router)
{
    queue_clear(&router->send_queue);
    queue_clear(&router->notices);
    queue_clear(&router->deferred);
    queue_clear(&router->handoff);
    queue_clear(&router->held);
    while (router->splits) {
        struct split *split = router->splits;
        router->splits = split->next;
        split_free(split);
    }
    free(router->reply);
}
