/* Replies to large reads, from the host's cache to the kernel without a copy through our memory.
 *
 * Each thread that reads the device has a pipe. The reply's header is written into it, the file's pages are spliced
 * behind it, and all of it into the device. The header has the length, so this is for reads that end before the file
 * does; what turns out shorter, since the file was truncated meanwhile, is read again the common way.
 *
 * Invariants:
 * 1. Between two replies a pipe is empty: after anything unexpected it is closed.
 * 2. `splice_read` has answered the request, or returns false and has changed nothing.
 */
#define _GNU_SOURCE
#include "router.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define MIN_BYTES 16384u
#define MAX_BYTES (256u << 10)
#define PIPE_BYTES (512 << 10)

static _Thread_local int ends[2] = {-1, -1};
static _Thread_local bool hopeless; /* no pipe that is long enough can be had */

void splice_close(void)
{
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0)
            close(ends[i]);
    ends[0] = ends[1] = -1;
}

static bool have_pipe(void)
{
    if (ends[0] >= 0 || hopeless)
        return !hopeless;
    hopeless = pipe2(ends, O_CLOEXEC | O_NONBLOCK) || fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES) < PIPE_BYTES;
    if (hopeless)
        splice_close();
    return !hopeless;
}

static bool fill(const struct fuse_out_header *header, int fd, uint64_t offset, size_t size)
{
    off_t from = (off_t)offset;
    if (write(ends[1], header, sizeof *header) != (ssize_t)sizeof *header)
        return false;
    while (size) {
        ssize_t done = splice(fd, &from, ends[1], NULL, size, 0);
        if (done <= 0)
            return false;
        size -= (size_t)done;
    }
    return true;
}

bool splice_read(struct router *router, uint64_t ino, uint64_t unique, uint64_t offset, size_t size)
{
    struct sc_attr file;
    struct sc_lent lent;
    if (size < MIN_BYTES || size > MAX_BYTES || !have_pipe() || router->api->get_attr(router->core, ino, &file) < 0 ||
        offset > file.size || size > file.size - offset || router->api->lend(router->core, ino, &lent) < 0)
        return false;
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .unique = unique};
    bool filled = fill(&header, lent.fd, offset, size);
    ssize_t sent = filled ? splice(ends[0], NULL, router->device, NULL, header.len, 0) : 0;
    router->api->give_back(router->core, &lent);
    bool gone = sent < 0 && errno == ENOENT; /* the request was interrupted */
    if (sent != (ssize_t)header.len)
        splice_close();
    return sent == (ssize_t)header.len || gone;
}
