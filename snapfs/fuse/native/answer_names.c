/* Requests about open files, attributes and directories that change no name. */
#define _GNU_SOURCE
#include "answer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* The handle of a file that is opened so, as in file_handles.py. */
uint64_t answer_handle(const struct fuse_in_header *header, uint64_t ino, uint32_t flags)
{
    if ((flags & O_ACCMODE) == O_RDONLY)
        return ino;
    return ino | HANDLE_WRITING | (header->uid ? HANDLE_UNPRIVILEGED : 0) | (flags & O_DIRECT ? HANDLE_DIRECT : 0);
}

enum outcome answer_open(struct router *router, const struct fuse_in_header *header, const void *body, char *reply)
{
    const struct fuse_open_in *in = body;
    bool writing = (in->flags & O_ACCMODE) != O_RDONLY;
    if (in->flags & O_TRUNC)
        return FORWARD;
    int64_t result;
    int tries = 0;
    do {
        result = router->api->open(router->core, header->nodeid, writing);
        if (SC_IS_NEED(result) && SC_KIND(result) != SC_NEED_LOAD)
            return FORWARD;
    } while (answer_try_again(router, header->nodeid, &result, &tries));
    if (result < 0)
        return answer_error(router, header->unique, result);
    if (writing)
        answer_refuses(router, header->nodeid);
    struct fuse_open_out out = {.fh = answer_handle(header, header->nodeid, in->flags), .open_flags = FOPEN_KEEP_CACHE};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

enum outcome answer_release(struct router *router, const struct fuse_in_header *header, const void *body)
{
    const struct fuse_release_in *in = body;
    int64_t result = router->api->release(router->core, header->nodeid, (in->fh & HANDLE_WRITING) != 0);
    if (SC_IS_NEED(result))
        return FORWARD;
    if (!result)
        written_inodes_remove(router, header->nodeid);
    return answer_error(router, header->unique, result < 0 ? result : 0);
}

/* The kernel may keep the names of a directory, since only its own requests change them, and the notices of a rollback
 * drop its pages. */
enum outcome answer_opendir(struct router *router, const struct fuse_in_header *header, char *reply)
{
    struct sc_inode row;
    bool cached = cached_listings_begin(router, header->nodeid);
    bool keep = !cached || (!router->api->find_inode(router->core, header->nodeid, &row) &&
                            cached_listings_keep(router, header->nodeid, row.parent));
    struct fuse_open_out out = {
        .fh = header->nodeid | (cached ? HANDLE_CACHED : 0),
        .open_flags = (keep ? FOPEN_KEEP_CACHE : 0) | (cached ? FOPEN_CACHE_DIR : 0),
    };
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

enum outcome answer_releasedir(struct router *router, const struct fuse_in_header *header, const void *body)
{
    const struct fuse_release_in *in = body;
    if (in->fh & HANDLE_CACHED)
        cached_listings_end(router, header->nodeid);
    return answer_error(router, header->unique, 0);
}

enum outcome answer_fsyncdir(struct router *router, const struct fuse_in_header *header)
{
    int64_t result = router->api->needs_names(router->core, header->nodeid);
    if (SC_IS_NEED(result))
        return FORWARD;
    if (result)
        result = upcall_run_for(router, UPCALL_FSYNCDIR, header->nodeid);
    return answer_error(router, header->unique, result);
}

#define TIMES (FATTR_MTIME | FATTR_CTIME)
#define MAX_SECONDS (INT64_MAX / 1000000000)

#define MIN_SECONDS (-(INT64_C(1) << 31)) /* limits.py */

static bool is_representable(uint64_t seconds)
{
    return (int64_t)seconds < MAX_SECONDS && (int64_t)seconds >= MIN_SECONDS;
}

/* The times of a regular file alone, as the kernel sends them when it writes an inode back. */
enum outcome answer_setattr(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                            enum waiting waiting)
{
    const struct fuse_setattr_in *in = body;
    struct sc_inode row;
    if ((in->valid & ~(uint32_t)FATTR_FH) != TIMES || router->api->find_inode(router->core, header->nodeid, &row) ||
        !S_ISREG(row.mode) || !is_representable(in->mtime) || !is_representable(in->ctime))
        return FORWARD; /* Python clamps what is beyond the range, and corrects the kernel */
    int64_t mtime_ns = (int64_t)in->mtime * 1000000000 + in->mtimensec;
    int64_t ctime_ns = (int64_t)in->ctime * 1000000000 + in->ctimensec;
    int64_t result;
    int tries = 0;
    do {
        result = router->api->set_times(router->core, header->nodeid, &mtime_ns, ctime_ns);
        if (answer_needs_python(result) || (waiting == HARDLY_WAITS && SC_IS_NEED(result)))
            return FORWARD;
    } while (answer_try_again(router, header->nodeid, &result, &tries));
    if (result)
        return FORWARD;
    return answer_attributes(router, header, reply); /* to set them twice does no harm */
}
