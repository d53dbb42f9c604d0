/* The way back: replies of pyfuse3 from the socket to the kernel.
 *
 * `replies_deliver` runs in whatever thread calls it: the one in which trio runs, when it looks for the next request
 * (one wake-up less), or else the replier thread.
 *
 * Invariants:
 * 1. The replier is armed, or the thread that disarmed it delivers the replies before it sleeps. While it is disarmed
 *    at most one reply is on its way, so libfuse never finds the socket full.
 * 2. A notification (unique 0) can wait in the kernel for a lock that is freed only by a reply; so a thread of its own
 *    writes them.
 */
#define _GNU_SOURCE
#include "forward.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Whether the reply was one of a piece, and has been joined to the others. */
static bool join(struct router *router, const char *reply, size_t length)
{
    const struct fuse_out_header *header = (const void *)reply;
    pthread_mutex_lock(&router->send_lock);
    struct split *split = router->splits ? split_take(router, header->unique) : NULL;
    bool complete = false;
    if (split && !(complete = split_add_piece(router, split, reply, length))) {
        if (split_send_piece(router, split)) {
            split->next = router->splits;
            router->splits = split;
        } else {
            complete = true;
            ((struct fuse_out_header *)(void *)split->reply)->error = -EIO;
        }
    }
    pthread_mutex_unlock(&router->send_lock);
    if (complete) {
        split_answer(router, split);
        split_free(split);
    }
    return split != NULL;
}

static void pass_on(struct router *router, char *reply, size_t length)
{
    const struct fuse_out_header *header = (const void *)reply;
    if (length < sizeof *header)
        return;
    if (header->unique == 0) {
        struct iovec whole = {reply, length};
        pthread_mutex_lock(&router->notice_lock);
        queue_append(&router->notices, &whole, 1);
        pthread_cond_signal(&router->notice_added);
        pthread_mutex_unlock(&router->notice_lock);
    } else if (!join(router, reply, length)) {
        device_reply(router, reply, length);
    }
}

/* Write all replies that are there to the device, with `reply_lock` held. Waits for none. */
void replies_deliver_locked(struct router *router)
{
    for (;;) {
        ssize_t length = recv(router->router_end, router->reply, router->piece_bytes + REPLY_HEADER, MSG_DONTWAIT);
        if (length > 0)
            pass_on(router, router->reply, (size_t)length);
        else if (length == 0 || errno != EINTR)
            break;
    }
}

void replies_deliver(struct router *router)
{
    pthread_mutex_lock(&router->reply_lock);
    replies_deliver_locked(router);
    pthread_mutex_unlock(&router->reply_lock);
}

static void arm(struct router *router, bool armed, bool for_room)
{
    uint32_t events = (armed ? EPOLLIN : 0u) | (for_room ? EPOLLOUT : 0u);
    struct epoll_event event = {.events = events, .data.fd = router->router_end};
    epoll_ctl(router->reply_epoll, EPOLL_CTL_MOD, router->router_end, &event);
}

/* Let the replier wake for replies, or undertake to deliver them. For one thread at a time, that in which trio runs,
 * with `reply_lock` held. */
void replies_arm_locked(struct router *router, bool armed)
{
    atomic_store(&router->armed, armed);
    arm(router, armed, router->for_room);
}

static void make_room(struct router *router)
{
    uint64_t ignored;
    ssize_t done = read(router->room_event, &ignored, sizeof ignored);
    (void)done; /* EAGAIN: it was the socket that has room */
    pthread_mutex_lock(&router->send_lock);
    bool empty = forward_send_waiting(router);
    pthread_mutex_unlock(&router->send_lock);
    pthread_mutex_lock(&router->reply_lock);
    router->for_room = !empty;
    arm(router, atomic_load(&router->armed), !empty);
    pthread_mutex_unlock(&router->reply_lock);
}

void *replier_main(void *argument)
{
    struct router *router = argument;
    while (!atomic_load(&router->stopping)) {
        struct epoll_event events[3];
        int count = epoll_wait(router->reply_epoll, events, 3, -1);
        bool room = false, replies = false, over = false;
        for (int i = 0; i < count; i++) {
            bool socket = events[i].data.fd == router->router_end;
            over = over || (socket && events[i].events & (EPOLLHUP | EPOLLERR));
            room = room || events[i].data.fd == router->room_event || (socket && events[i].events & EPOLLOUT);
            replies = replies || (socket && events[i].events & (EPOLLIN | EPOLLHUP));
        }
        if (room)
            make_room(router);
        if (replies)
            replies_deliver(router);
        if (over)
            break;
    }
    return NULL;
}

void *notifier_main(void *argument)
{
    struct router *router = argument;
    pthread_mutex_lock(&router->notice_lock);
    while (!atomic_load(&router->stopping)) {
        struct message *notice = queue_take(&router->notices);
        if (!notice) {
            pthread_cond_wait(&router->notice_added, &router->notice_lock);
            continue;
        }
        pthread_mutex_unlock(&router->notice_lock);
        device_reply(router, notice->bytes, notice->length);
        free(notice);
        pthread_mutex_lock(&router->notice_lock);
    }
    pthread_mutex_unlock(&router->notice_lock);
    return NULL;
}
