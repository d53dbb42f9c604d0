/* READ, WRITE and FSYNC; answer.c has the invariants. */
#include "answer.h"

#include <errno.h>
#include <string.h>

enum outcome answer_read(struct router *router, const struct fuse_in_header *header, const void *body, char *reply)
{
    const struct fuse_read_in *in = body;
    int64_t result;
    int tries = 0;
    if (splice_read(router, header->nodeid, header->unique, in->offset, in->size))
        return ANSWERED;
    size_t size = in->size < REQUEST_BYTES - REPLY_HEADER ? in->size : REQUEST_BYTES - REPLY_HEADER;
    do {
        result = router->api->read(router->core, header->nodeid, in->offset, reply + REPLY_HEADER, size);
        if (answer_needs_python(result))
            return FORWARD;
    } while (answer_try_again(router, header->nodeid, &result, &tries));
    if (result < 0)
        return answer_failure(router, header->unique, ACT_READ, result);
    return answer_reply(router, header->unique, reply, (size_t)result);
}

/* Of pages that the kernel took from an application (live/content/cached_writes.py): whether the write is to be tried
 * again, with room that was reserved for it. If not, they are lost, and Python is notified. */
static bool has_room(struct router *router, const struct fuse_in_header *header, const struct fuse_write_in *in,
                     int64_t error)
{
    const uint64_t length[UPCALL_ARGUMENTS] = {in->size};
    if (!(in->write_flags & FUSE_WRITE_CACHE))
        return false;
    if ((error == -ENOSPC || error == -EDQUOT) && upcall_run(router, UPCALL_ROOM, length) > 0)
        return true;
    const uint64_t lost[UPCALL_ARGUMENTS] = {header->nodeid, in->offset + in->size, (uint64_t)-error};
    upcall_run(router, UPCALL_LOST, lost);
    return false;
}

enum outcome answer_write(struct router *router, struct fuse_in_header *header, void *body, char *reply,
                          enum waiting waiting)
{
    struct fuse_write_in *in = body;
    if (in->write_flags & WRITE_KILLS_PRIVILEGES && !suid_cache_has_no_suid(router, header->nodeid))
        return FORWARD;
    bool taken = in->write_flags & FUSE_WRITE_CACHE;
    int64_t result;
    do {
        int tries = 0;
        do {
            result = router->api->write(router->core, header->nodeid, in->offset, in + 1, in->size, taken);
            if (answer_needs_python(result) || (waiting == HARDLY_WAITS && SC_IS_NEED(result)))
                return FORWARD;
        } while (answer_try_again(router, header->nodeid, &result, &tries));
        if (result == -EFBIG)
            return FORWARD; /* Python refuses it as well, and corrects the kernel's size */
        if (result >= 0 && result < in->size)
            result = -ENOSPC;
    } while (result < 0 && has_room(router, header, in, result));
    if (result < 0 && taken)
        return answer_error(router, header->unique, result); /* `has_room` notified Python */
    if (result < 0)
        return answer_failure(router, header->unique, ACT_WRITE, result);
    written_inodes_add(router, header->nodeid);
    if (taken)
        answer_refuses(router, header->nodeid);
    struct fuse_write_out out = {.size = in->size};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

enum outcome answer_fsync(struct router *router, const struct fuse_in_header *header, const void *body)
{
    const struct fuse_fsync_in *in = body;
    const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->fsync_flags & 1};
    int64_t result;
    int tries = 0;
    do {
        result = router->api->fsync(router->core, header->nodeid, in->fsync_flags & 1);
        if (answer_needs_python(result))
            return FORWARD;
        if (SC_IS_NEED(result) && SC_KIND(result) == SC_NEED_NAMES)
            result = upcall_run(router, UPCALL_FSYNC, all);
    } while (answer_try_again(router, header->nodeid, &result, &tries));
    return answer_failure(router, header->unique, ACT_SYNC, result < 0 ? result : 0);
}
