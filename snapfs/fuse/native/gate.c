/* The gate: for a few milliseconds no request is answered that begins a change, so that the cuts of several mounts
 * show one instant. Held requests wait here, in order, until the gate is opened.
 *
 * What passes while it is closed: all of `.snapfs` (the commands that open it come that way), reads, and what the
 * kernel sends of writes that it took before: pages that it writes back, and their times. A write(2) into the kernel's
 * cache makes no request of its own, but asks for the attributes of its file once they are invalid. So those of all
 * files that are open for writing are invalidated behind the closed gate (cut_gate.py), and requests that would make
 * them valid again (GETATTR, LOOKUP, READDIRPLUS) are held.
 *
 * Invariants:
 * 1. A held request is handed off, or dropped with the router, exactly once. If the daemon dies, the kernel sends it
 *    again.
 * 2. No thread waits: a request that is held is in the queue, not on a stack. So pages are always received.
 * 3. Pages of a file whose truncation is held stay with the kernel until it is answered. `held_truncates` counts those:
 *    a flush admits them (`gate_admit`), and is made again.
 *
 * The queue is guarded by handoff_lock, since what is let go moves to the hand-off queue in one step.
 */
#include "router.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define ROOT 1
#define TIMES (FATTR_MTIME | FATTR_CTIME)

static bool truncates(const struct fuse_in_header *header, const void *body, size_t room)
{
    const struct fuse_setattr_in *attributes = body;
    const struct fuse_open_in *opening = body;
    if (header->opcode == FUSE_SETATTR)
        return room >= sizeof *attributes && attributes->valid & FATTR_SIZE;
    return header->opcode == FUSE_OPEN && room >= sizeof *opening && opening->flags & O_TRUNC;
}

static bool is_of_cached_pages(const void *body, size_t room)
{
    const struct fuse_write_in *in = body;
    return room >= sizeof *in && in->write_flags & FUSE_WRITE_CACHE;
}

static bool is_of_times(const void *body, size_t room)
{
    const struct fuse_setattr_in *in = body;
    return room >= sizeof *in && (in->valid & ~(uint32_t)FATTR_FH) == TIMES;
}

static bool passes(const struct fuse_in_header *header, const void *body, size_t room)
{
    static const char control[] = ".snapfs";
    if (header->nodeid & VIRTUAL_NODE)
        return true;
    switch (header->opcode) {
    case FUSE_READ:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_OPENDIR:
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
    case FUSE_FLUSH:
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
    case FUSE_STATFS:
    case FUSE_READLINK:
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
    case FUSE_LSEEK:
    case FUSE_READDIR: return true;
    case FUSE_GETATTR: return header->nodeid == ROOT;
    case FUSE_LOOKUP: return header->nodeid == ROOT && room >= sizeof control && !memcmp(body, control, sizeof control);
    case FUSE_WRITE: return is_of_cached_pages(body, room);
    case FUSE_SETATTR: return is_of_times(body, room);
    default: return false;
    }
}

/* Whether the request is held now, or was refused for want of memory: it is not to be answered by the caller. */
bool gate_holds(struct router *router, const char *request, size_t length)
{
    const struct fuse_in_header *header = (const void *)request;
    const void *body = header + 1;
    size_t room = length - sizeof *header;
    if (!atomic_load(&router->gated) || passes(header, body, room))
        return false;
    struct iovec whole = {(void *)(uintptr_t)request, length};
    pthread_mutex_lock(&router->handoff_lock);
    bool closed = atomic_load(&router->gated);
    bool held = closed && queue_append(&router->held, &whole, 1);
    if (held && truncates(header, body, room))
        router->held_truncates++;
    pthread_mutex_unlock(&router->handoff_lock);
    if (closed && !held)
        device_error(router, header->unique, -ENOMEM);
    return closed;
}

static void let_go(struct router *router, bool truncates_alone)
{
    struct queue rest;
    struct message *message;
    queue_init(&rest);
    while ((message = queue_take(&router->held))) {
        const struct fuse_in_header *header = (const void *)message->bytes;
        bool goes = !truncates_alone || truncates(header, header + 1, message->length - sizeof *header);
        message->next = NULL;
        message->admitted = goes;
        queue_put(goes ? &router->handoff : &rest, message);
        if (goes)
            atomic_fetch_add(&router->handoff_count, 1);
    }
    while ((message = queue_take(&rest))) {
        message->next = NULL;
        queue_put(&router->held, message);
    }
    router->held_truncates = 0;
}

/* Close the gate or open it. Any thread. */
void gate_close(struct router *router, bool closed)
{
    pthread_mutex_lock(&router->handoff_lock);
    atomic_store(&router->gated, closed);
    if (!closed)
        let_go(router, false);
    pthread_mutex_unlock(&router->handoff_lock);
    if (!closed)
        device_wake(router->handoff_event);
}

/* Let the truncations go that are held: how many. Any thread. */
unsigned gate_admit(struct router *router)
{
    pthread_mutex_lock(&router->handoff_lock);
    unsigned count = router->held_truncates;
    if (count)
        let_go(router, true);
    pthread_mutex_unlock(&router->handoff_lock);
    if (count)
        device_wake(router->handoff_event);
    return count;
}
