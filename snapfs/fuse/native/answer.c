/* Requests about the bytes of files, and what can be said of names without changing any, answered from the live tree:
 * content_api.h knows how.
 *
 * A file is found by the request's node id, which is its inode number; a node with bit 63 is virtual, and pyfuse3's. So no
 * state of an open file is needed. OPEN and RELEASE are counted all the same (a rollback must know who writes);
 * NO_OPEN_SUPPORT would hold for all of the mount, and `.snapfs/control` lives by handles of its own.
 *
 * Invariants:
 * 1. `answer` answers, or has changed nothing and says where the request belongs.
 * 2. What pyfuse3 does not know (FALLOCATE, LSEEK, COPY_FILE_RANGE) is never forwarded: ENOSYS would end it for good.
 *    FLUSH is ENOSYS on purpose: close(2) has nothing to do, and the kernel asks no more.
 * 3. What waits for bytes that are far away is not waited for in a thread that reads the device.
 * 4. setuid and setgid go before the bytes change, wherever HANDLE_KILLPRIV_V2 leaves it to us: at a write that is so
 *    marked, and at a fallocate or copy by anybody but root, which the protocol does not mark.
 * 5. A short write is an error: of pages written back the kernel would take the rest for written.
 */
#define _GNU_SOURCE
#include "router.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef FUSE_WRITE_KILL_SUIDGID
#define FUSE_WRITE_KILL_SUIDGID (1 << 2)
#endif
#define BLOCK_BYTES 4096
#define MOST_TRIES 1000 /* a cut may come between two; so many cannot */

static enum outcome reply_with(struct router *router, uint64_t unique, char *reply, size_t data) {
    struct fuse_out_header header = {.len = (uint32_t)(REPLY_HEADER + data), .unique = unique};
    memcpy(reply, &header, sizeof header);
    device_reply(router, reply, REPLY_HEADER + data);
    return ANSWERED;
}

static enum outcome reply_error(struct router *router, uint64_t unique, int64_t error) {
    device_error(router, unique, (int)error);
    return ANSWERED;
}

/* What to do about a call that gave `result`: true, and it is tried again; or false, and `*result` is final. */
static bool try_again(struct router *router, uint64_t ino, int64_t *result, int *tries) {
    if (!SC_IS_NEED(*result))
        return false;
    if (SC_KIND(*result) == SC_NEED_CLOSED || ++*tries > MOST_TRIES) {
        *result = -EIO;
        return false;
    }
    int64_t done = upcall_for(router, SC_KIND(*result), ino);
    *result = done < 0 ? done : 0;
    return done >= 0;
}

/* Not all bytes are here: Python answers the request as a whole. */
static bool is_far(int64_t result) { return SC_IS_NEED(result) && SC_KIND(result) == SC_NEED_PYTHON; }

/* Whether the privileges of a file are gone, or were none. Asks Python if it does not know. */
static int64_t weaken(struct router *router, uint64_t ino) {
    return known_plain(router, ino) ? 0 : upcall_for(router, UPCALL_WEAKEN, ino);
}

/* -- the requests */

static enum outcome do_read(struct router *router, const struct fuse_in_header *header, const void *body, char *reply) {
    const struct fuse_read_in *in = body;
    int64_t result;
    int tries = 0;
    if (splice_read(router, header->nodeid, header->unique, in->offset, in->size))
        return ANSWERED;
    size_t size = in->size < REQUEST_BYTES - REPLY_HEADER ? in->size : REQUEST_BYTES - REPLY_HEADER;
    do {
        result = router->api->read(router->core, header->nodeid, in->offset, reply + REPLY_HEADER, size);
        if (is_far(result))
            return FORWARD;
    } while (try_again(router, header->nodeid, &result, &tries));
    if (result < 0)
        return reply_error(router, header->unique, result);
    return reply_with(router, header->unique, reply, (size_t)result);
}

static enum outcome do_write(struct router *router, struct fuse_in_header *header, void *body, char *reply,
                             enum manner manner) {
    struct fuse_write_in *in = body;
    if (in->write_flags & FUSE_WRITE_KILL_SUIDGID && !known_plain(router, header->nodeid)) {
        in->fh |= HANDLE_UNPRIVILEGED; /* pyfuse3 passes the handle on, but not the flag */
        return FORWARD;
    }
    int64_t result;
    int tries = 0;
    do {
        result = router->api->write(router->core, header->nodeid, in->offset, in + 1, in->size);
        if (is_far(result) || (manner == QUICK && SC_IS_NEED(result)))
            return FORWARD;
    } while (try_again(router, header->nodeid, &result, &tries));
    if (result >= 0 && result < in->size)
        result = -ENOSPC;
    if (result < 0)
        return reply_error(router, header->unique, result);
    struct fuse_write_out out = {.size = in->size};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return reply_with(router, header->unique, reply, sizeof out);
}

static enum outcome do_fsync(struct router *router, const struct fuse_in_header *header, const void *body) {
    const struct fuse_fsync_in *in = body;
    const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->fsync_flags & 1};
    int64_t result;
    int tries = 0;
    do {
        result = router->api->fsync(router->core, header->nodeid, in->fsync_flags & 1);
        if (is_far(result))
            return FORWARD;
        if (SC_IS_NEED(result) && SC_KIND(result) == SC_NEED_NAMES)
            result = upcall(router, UPCALL_FSYNC, all);
    } while (try_again(router, header->nodeid, &result, &tries));
    return reply_error(router, header->unique, result < 0 ? result : 0);
}

static enum outcome do_fsyncdir(struct router *router, const struct fuse_in_header *header) {
    int64_t result = router->api->needs_names(router->core, header->nodeid);
    if (SC_IS_NEED(result))
        return FORWARD;
    if (result)
        result = upcall_for(router, UPCALL_FSYNCDIR, header->nodeid);
    return reply_error(router, header->unique, result);
}

/* The handle of a directory of the live tree is its node id, and means nothing. */
static enum outcome do_opendir(struct router *router, const struct fuse_in_header *header, char *reply) {
    struct fuse_open_out out = {.fh = header->nodeid};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return reply_with(router, header->unique, reply, sizeof out);
}

/* Of an inode without any attribute there is one answer for all names. */
static enum outcome do_getxattr(struct router *router, const struct fuse_in_header *header) {
    return router->api->is_bare(router->core, header->nodeid) ? reply_error(router, header->unique, -ENODATA) : FORWARD;
}

static enum outcome do_fallocate(struct router *router, const struct fuse_in_header *header, const void *body,
                                 bool patient) {
    const struct fuse_fallocate_in *in = body;
    int64_t result = header->uid ? weaken(router, header->nodeid) : 0;
    int tries = 0;
    while (result >= 0) {
        result = router->api->fallocate(router->core, header->nodeid, in->mode, in->offset, in->length);
        if (is_far(result) && !patient)
            return LATER;
        if (is_far(result)) {
            const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->mode, in->offset, in->length};
            result = upcall(router, UPCALL_FALLOCATE, all);
        }
        if (!try_again(router, header->nodeid, &result, &tries))
            break;
    }
    return reply_error(router, header->unique, result < 0 ? result : 0);
}

static enum outcome do_lseek(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                             bool patient) {
    const struct fuse_lseek_in *in = body;
    int64_t result;
    int tries = 0;
    if (header->nodeid & VIRTUAL_NODE) { /* what the kernel would do itself: data to the end, a hole behind it */
        if (!patient)
            return LATER;
        result = upcall_for(router, UPCALL_SIZE, header->nodeid);
        if (result >= 0)
            result = in->offset >= (uint64_t)result ? -ENXIO : in->whence == SEEK_DATA ? (int64_t)in->offset : result;
    } else {
        do {
            result = router->api->lseek(router->core, header->nodeid, in->offset, (int)in->whence);
            if (is_far(result) && !patient)
                return LATER;
            if (is_far(result)) {
                const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->offset, in->whence};
                result = upcall(router, UPCALL_LSEEK, all);
            }
        } while (try_again(router, header->nodeid, &result, &tries));
    }
    if (result < 0)
        return reply_error(router, header->unique, result);
    struct fuse_lseek_out out = {.offset = (uint64_t)result};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return reply_with(router, header->unique, reply, sizeof out);
}

static enum outcome do_copy(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                            bool patient) {
    const struct fuse_copy_file_range_in *in = body;
    if ((header->nodeid | in->nodeid_out) & VIRTUAL_NODE)
        return reply_error(router, header->unique, -EXDEV); /* then the kernel reads and writes */
    int64_t result = header->uid ? weaken(router, in->nodeid_out) : 0;
    uint64_t needy = header->nodeid;
    int tries = 0;
    while (result >= 0) {
        result = router->api->copy_range(router->core, header->nodeid, in->off_in, in->nodeid_out, in->off_out, in->len,
                                         &needy);
        if (is_far(result) && !patient)
            return LATER;
        if (is_far(result)) {
            const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->off_in, in->nodeid_out, in->off_out, in->len};
            result = upcall(router, UPCALL_COPY, all);
        }
        if (!try_again(router, needy, &result, &tries))
            break;
    }
    if (result < 0)
        return reply_error(router, header->unique, result);
    if (header->opcode == OP_COPY_FILE_RANGE_64) {
        uint64_t copied = (uint64_t)result;
        memcpy(reply + REPLY_HEADER, &copied, sizeof copied);
        return reply_with(router, header->unique, reply, sizeof copied);
    }
    struct fuse_write_out out = {.size = (uint32_t)result};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return reply_with(router, header->unique, reply, sizeof out);
}

static enum outcome do_open(struct router *router, const struct fuse_in_header *header, const void *body, char *reply) {
    const struct fuse_open_in *in = body;
    bool writing = (in->flags & O_ACCMODE) != O_RDONLY;
    if (in->flags & O_TRUNC)
        return FORWARD;
    int64_t result = router->api->open(router->core, header->nodeid, writing);
    if (SC_IS_NEED(result))
        return FORWARD;
    if (result < 0)
        return reply_error(router, header->unique, result);
    struct fuse_open_out out = {.fh = header->nodeid, .open_flags = FOPEN_KEEP_CACHE};
    if (writing)
        out.fh |= HANDLE_WRITING | (header->uid ? HANDLE_UNPRIVILEGED : 0);
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return reply_with(router, header->unique, reply, sizeof out);
}

static enum outcome do_release(struct router *router, const struct fuse_in_header *header, const void *body) {
    const struct fuse_release_in *in = body;
    int64_t result = router->api->release(router->core, header->nodeid, (in->fh & HANDLE_WRITING) != 0);
    if (SC_IS_NEED(result))
        return FORWARD;
    return reply_error(router, header->unique, result < 0 ? result : 0);
}

static uint64_t seconds_of(int64_t ns) { return (uint64_t)(ns / 1000000000 - (ns % 1000000000 < 0)); }

static uint32_t rest_of(int64_t ns) {
    int64_t rest = ns % 1000000000;
    return (uint32_t)(rest < 0 ? rest + 1000000000 : rest);
}

/* All that a stat shows of an inode, if it is known without Python; as entry_of in answers.py tells it. */
static bool attributes_of(struct router *router, uint64_t ino, struct fuse_attr *attr) {
    struct sc_row row;
    struct sc_attr file;
    if (!router->api->get_row(router->core, ino, &row))
        return false;
    if (!S_ISREG(row.mode))
        file = (struct sc_attr){row.size, 0, row.mtime_ns, row.ctime_ns};
    else if (router->api->get_attr(router->core, ino, &file) < 0)
        return false;
    int64_t ctime_ns = file.ctime_ns > row.ctime_ns ? file.ctime_ns : row.ctime_ns;
    *attr = (struct fuse_attr){
        .ino = ino, .size = file.size, .blocks = file.blocks, .atime = seconds_of(row.atime_ns),
        .mtime = seconds_of(file.mtime_ns), .ctime = seconds_of(ctime_ns), .atimensec = rest_of(row.atime_ns),
        .mtimensec = rest_of(file.mtime_ns), .ctimensec = rest_of(ctime_ns), .mode = row.mode, .nlink = row.nlink,
        .uid = row.uid, .gid = row.gid, .rdev = row.rdev, .blksize = BLOCK_BYTES,
    };
    return true;
}

static enum outcome do_getattr(struct router *router, const struct fuse_in_header *header, char *reply) {
    struct fuse_attr_out out = {.attr_valid = ATTR_VALID_SECONDS};
    if (!attributes_of(router, header->nodeid, &out.attr))
        return FORWARD;
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return reply_with(router, header->unique, reply, sizeof out);
}

#define TIMES (FATTR_MTIME | FATTR_CTIME)

/* The times of a regular file alone, as the kernel sends them when it writes an inode back. */
static enum outcome do_setattr(struct router *router, const struct fuse_in_header *header, const void *body,
                               char *reply) {
    const struct fuse_setattr_in *in = body;
    struct sc_row row;
    if ((in->valid & ~(uint32_t)FATTR_FH) != TIMES || !router->api->get_row(router->core, header->nodeid, &row) ||
        !S_ISREG(row.mode))
        return FORWARD;
    int64_t mtime_ns = (int64_t)in->mtime * 1000000000 + in->mtimensec;
    int64_t ctime_ns = (int64_t)in->ctime * 1000000000 + in->ctimensec;
    if (router->api->set_times(router->core, header->nodeid, &mtime_ns, ctime_ns))
        return FORWARD;
    return do_getattr(router, header, reply); /* to set them twice does no harm */
}

/* -- which is which */

static size_t least_length(uint32_t opcode) {
    switch (opcode) {
    case FUSE_READ: return sizeof(struct fuse_read_in);
    case FUSE_WRITE: return sizeof(struct fuse_write_in);
    case FUSE_FSYNC: return sizeof(struct fuse_fsync_in);
    case FUSE_FALLOCATE: return sizeof(struct fuse_fallocate_in);
    case FUSE_LSEEK: return sizeof(struct fuse_lseek_in);
    case FUSE_COPY_FILE_RANGE:
    case OP_COPY_FILE_RANGE_64: return sizeof(struct fuse_copy_file_range_in);
    case FUSE_OPEN: return sizeof(struct fuse_open_in);
    case FUSE_RELEASE: return sizeof(struct fuse_release_in);
    case FUSE_SETATTR: return sizeof(struct fuse_setattr_in);
    default: return 0;
    }
}

/* While nothing may change, of what may_change: what pyfuse3 does not know is refused here, the rest by Python. */
static enum outcome refuse(struct router *router, const struct fuse_in_header *header) {
    switch (header->opcode) {
    case FUSE_FALLOCATE:
    case FUSE_COPY_FILE_RANGE:
    case OP_COPY_FILE_RANGE_64: return reply_error(router, header->unique, -EROFS);
    default: return FORWARD;
    }
}

static bool may_change(uint32_t opcode) {
    return opcode == FUSE_WRITE || opcode == FUSE_OPEN || opcode == FUSE_SETATTR || opcode == FUSE_FALLOCATE ||
           opcode == FUSE_COPY_FILE_RANGE || opcode == OP_COPY_FILE_RANGE_64;
}

static bool pyfuse3_knows(uint32_t opcode) {
    return opcode != FUSE_FALLOCATE && opcode != FUSE_LSEEK && opcode != FUSE_COPY_FILE_RANGE &&
           opcode != OP_COPY_FILE_RANGE_64;
}

enum outcome answer(struct router *router, char *request, size_t length, char *room, enum manner manner) {
    struct fuse_in_header *header = (void *)request;
    void *body = header + 1;
    bool patient = manner == PATIENT;
    if (length < sizeof *header + least_length(header->opcode))
        return FORWARD;
    if (atomic_load(&router->paused) && !patient)
        return pyfuse3_knows(header->opcode) ? FORWARD : LATER;
    if (atomic_load(&router->refusing) && may_change(header->opcode))
        return refuse(router, header);
    switch (header->opcode) {
    case FUSE_LSEEK: return do_lseek(router, header, body, room, patient);
    case FUSE_COPY_FILE_RANGE:
    case OP_COPY_FILE_RANGE_64: return do_copy(router, header, body, room, patient);
    case FUSE_FLUSH: return reply_error(router, header->unique, -ENOSYS);
    }
    if ((header->opcode == FUSE_WRITE || header->opcode == FUSE_FSYNC) && atomic_load(&router->slowed))
        return FORWARD;
    if (header->nodeid & VIRTUAL_NODE)
        return header->opcode == FUSE_FALLOCATE ? reply_error(router, header->unique, -EOPNOTSUPP) : FORWARD;
    switch (header->opcode) {
    case FUSE_READ: return do_read(router, header, body, room);
    case FUSE_WRITE: return do_write(router, header, body, room, manner);
    case FUSE_FSYNC: return do_fsync(router, header, body);
    case FUSE_FALLOCATE: return do_fallocate(router, header, body, patient);
    case FUSE_OPEN: return do_open(router, header, body, room);
    case FUSE_RELEASE: return do_release(router, header, body);
    case FUSE_SETATTR: return do_setattr(router, header, body, room);
    case FUSE_GETATTR: return do_getattr(router, header, room);
    case FUSE_GETXATTR: return do_getxattr(router, header);
    case FUSE_OPENDIR: return do_opendir(router, header, room);
    case FUSE_RELEASEDIR: return reply_error(router, header->unique, 0);
    case FUSE_FSYNCDIR: return do_fsyncdir(router, header);
    default: return FORWARD;
    }
}
