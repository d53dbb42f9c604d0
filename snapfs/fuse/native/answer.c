/* Which requests are answered here, from the live tree by its C interface (content_api.h), and which go to pyfuse3.
 *
 * A file is found by the request's node id, which is its inode number; a node with bit 63 is virtual, and pyfuse3's. So
 * no state of an open file is needed. OPEN and RELEASE are counted all the same (a rollback must know the writers);
 * NO_OPEN_SUPPORT would hold for all of the mount, and `.snapfs/control` has handles of its own.
 *
 * Invariants:
 * 1. `answer_request` answers, or has changed nothing and returns where the request belongs.
 * 2. What pyfuse3 does not know (FALLOCATE, LSEEK, COPY_FILE_RANGE) is never forwarded: after ENOSYS the kernel sends
 *    no more of that kind. FLUSH is ENOSYS on purpose: close(2) has nothing to do.
 * 3. A thread that reads the device does not wait for bytes that are far away: the blocking worker does.
 * 4. setuid and setgid go before the bytes change, wherever HANDLE_KILLPRIV_V2 leaves it to us: at a write that is so
 *    marked, and at a fallocate or copy by any user but root, which the protocol does not mark.
 * 5. A short write is an error: of pages written back the kernel would take the rest for written.
 * 6. While a file is refused writes (`answer_refuses`), the reply to a stat, an open or a write-back of it comes after a
 *    notice that its attributes are no longer so: then write(2) requests them, with its handle, before it takes a byte.
 */
#include "answer.h"

#include <errno.h>
#include <string.h>

#define MAX_TRIES 1000 /* a cut may come between two; so many cannot */

enum outcome answer_reply(struct router *router, uint64_t unique, char *reply, size_t data)
{
    struct fuse_out_header header = {.len = (uint32_t)(REPLY_HEADER + data), .unique = unique};
    memcpy(reply, &header, sizeof header);
    device_reply(router, reply, REPLY_HEADER + data);
    return ANSWERED;
}

enum outcome answer_error(struct router *router, uint64_t unique, int64_t error)
{
    device_error(router, unique, (int)error);
    return ANSWERED;
}

/* After a call that gave `*result`: true if it is to be tried again; else `*result` is final. */
bool answer_try_again(struct router *router, uint64_t ino, int64_t *result, int *tries)
{
    if (!SC_IS_NEED(*result))
        return false;
    if (SC_KIND(*result) == SC_NEED_CLOSED || ++*tries > MAX_TRIES) {
        *result = -EIO;
        return false;
    }
    int64_t done = upcall_run_for(router, SC_KIND(*result), ino);
    *result = done < 0 ? done : 0;
    return done >= 0;
}

/* The reply to a request about the host's files that failed. Python is notified before the application gets it: what
 * the host failed to sync may be lost, and must not be relied on. Other errors than the host's are not reported. */
enum outcome answer_failure(struct router *router, uint64_t unique, enum act act, int64_t error)
{
    bool is_the_hosts = error == -EIO || error == -EROFS || error == -EUCLEAN || error == -EBADMSG ||
                        error == -ENODEV || error == -ENXIO || error == -ESHUTDOWN;
    if (is_the_hosts || (act == ACT_SYNC && error < 0)) {
        const uint64_t all[UPCALL_ARGUMENTS] = {(uint64_t)act, (uint64_t)-error};
        upcall_run(router, UPCALL_FAILED, all);
    }
    return answer_error(router, unique, error);
}

/* Whether a write(2) of the file is refused, for the limit of size is passed (live/native/size_limit.c): then have the
 * kernel request the file's attributes before it takes one. No other call than write(2) requests them with a handle that
 * is open for writing: fstat(2) sends none, and of a size alone (SEEK_END, a read at the end) the kernel is sure. */
bool answer_refuses(struct router *router, uint64_t ino)
{
    if (router->api->refuses_writes(router->core, ino) <= 0)
        return false;
    written_inodes_forget(router, ino);
    return true;
}

/* -- by opcode */

static size_t min_length(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_READ: return sizeof(struct fuse_read_in);
    case FUSE_WRITE: return sizeof(struct fuse_write_in);
    case FUSE_FSYNC: return sizeof(struct fuse_fsync_in);
    case FUSE_FALLOCATE: return sizeof(struct fuse_fallocate_in);
    case FUSE_LSEEK: return sizeof(struct fuse_lseek_in);
    case FUSE_COPY_FILE_RANGE:
    case OP_COPY_FILE_RANGE_64: return sizeof(struct fuse_copy_file_range_in);
    case FUSE_OPEN: return sizeof(struct fuse_open_in);
    case FUSE_GETATTR: return sizeof(struct fuse_getattr_in);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR: return sizeof(struct fuse_release_in);
    case FUSE_SETATTR: return sizeof(struct fuse_setattr_in);
    case FUSE_CREATE: return sizeof(struct fuse_create_in);
    case FUSE_MKNOD: return sizeof(struct fuse_mknod_in);
    case FUSE_MKDIR: return sizeof(struct fuse_mkdir_in);
    case FUSE_LINK: return sizeof(struct fuse_link_in);
    case FUSE_RENAME: return sizeof(struct fuse_rename_in);
    case FUSE_RENAME2: return sizeof(struct fuse_rename2_in);
    case FUSE_FORGET: return sizeof(struct fuse_forget_in);
    case FUSE_BATCH_FORGET: return sizeof(struct fuse_batch_forget_in);
    case FUSE_READDIR:
    case FUSE_READDIRPLUS: return sizeof(struct fuse_read_in);
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR: return sizeof(struct fuse_getxattr_in);
    default: return 0;
    }
}

/* While nothing may change, of what may_change: what pyfuse3 does not know is refused here, the rest by Python. */
static enum outcome refuse(struct router *router, const struct fuse_in_header *header)
{
    switch (header->opcode) {
    case FUSE_FALLOCATE:
    case FUSE_COPY_FILE_RANGE:
    case OP_COPY_FILE_RANGE_64: return answer_error(router, header->unique, -EROFS);
    default: return FORWARD;
    }
}

static bool changes_names(uint32_t opcode)
{
    return opcode == FUSE_CREATE || opcode == FUSE_MKNOD || opcode == FUSE_MKDIR || opcode == FUSE_SYMLINK ||
           opcode == FUSE_LINK || opcode == FUSE_UNLINK || opcode == FUSE_RMDIR || opcode == FUSE_RENAME ||
           opcode == FUSE_RENAME2;
}

static bool may_change(uint32_t opcode)
{
    return changes_names(opcode) || opcode == FUSE_WRITE || opcode == FUSE_OPEN || opcode == FUSE_SETATTR ||
           opcode == FUSE_FALLOCATE || opcode == FUSE_COPY_FILE_RANGE || opcode == OP_COPY_FILE_RANGE_64;
}

static bool pyfuse3_knows(uint32_t opcode)
{
    return opcode != FUSE_FALLOCATE && opcode != FUSE_LSEEK && opcode != FUSE_COPY_FILE_RANGE &&
           opcode != OP_COPY_FILE_RANGE_64;
}

/* The length of the name that begins `at` bytes into the body; SIZE_MAX if it does not end within the request. */
static size_t name_length(const struct fuse_in_header *header, const char *body, size_t at)
{
    size_t room = header->len - sizeof *header - at, length = strnlen(body + at, room);
    return length < room ? length : SIZE_MAX;
}

/* Looks at the live tree's names and attributes. */
static enum outcome answer_look(struct router *router, const struct fuse_in_header *header, const char *body,
                                char *reply)
{
    size_t at = header->opcode == FUSE_GETXATTR ? sizeof(struct fuse_getxattr_in) : 0;
    bool has_name = header->opcode == FUSE_LOOKUP || header->opcode == FUSE_GETXATTR;
    size_t length = has_name ? name_length(header, body, at) : 0;
    if (length == SIZE_MAX)
        return FORWARD;
    switch (header->opcode) {
    case FUSE_LOOKUP: return answer_lookup(router, header, body, length, reply);
    case FUSE_GETXATTR: return answer_getxattr(router, header, body, body + at, length, reply);
    case FUSE_LISTXATTR: return answer_listxattr(router, header, body, reply);
    case FUSE_GETATTR: return answer_getattr(router, header, body, reply);
    case FUSE_READLINK: return answer_readlink(router, header, reply);
    case FUSE_READDIR:
    case FUSE_READDIRPLUS: return answer_list(router, header, body, reply);
    case FUSE_STATFS: return answer_statfs(router, header, reply);
    default: return FORWARD;
    }
}

enum outcome answer_request(struct router *router, char *request, size_t length, char *reply, enum waiting waiting)
{
    struct fuse_in_header *header = (void *)request;
    void *body = header + 1;
    bool may_block = waiting == WAITS_FOR_NETWORK;
    if (length < sizeof *header + min_length(header->opcode))
        return FORWARD;
    if (header->opcode == FUSE_RELEASEDIR && !(header->nodeid & VIRTUAL_NODE))
        return answer_releasedir(router, header, body); /* also while nothing else is answered: it looks at no name */
    if (atomic_load(&router->paused) && !may_block)
        return pyfuse3_knows(header->opcode) ? FORWARD : DEFER;
    if (atomic_load(&router->read_only) && may_change(header->opcode))
        return refuse(router, header);
    if (changes_names(header->opcode))
        return answer_change(router, header, body, reply);
    switch (header->opcode) {
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET: return answer_forget(router, header, body);
    case FUSE_LSEEK: return answer_lseek(router, header, body, reply, may_block);
    case FUSE_COPY_FILE_RANGE:
    case OP_COPY_FILE_RANGE_64: return answer_copy(router, header, body, reply, may_block);
    case FUSE_FLUSH: return answer_error(router, header->unique, -ENOSYS);
    }
    if ((header->opcode == FUSE_WRITE || header->opcode == FUSE_FSYNC) && atomic_load(&router->throttled))
        return FORWARD;
    if (header->nodeid & VIRTUAL_NODE)
        return header->opcode == FUSE_FALLOCATE ? answer_error(router, header->unique, -EOPNOTSUPP) : FORWARD;
    switch (header->opcode) {
    case FUSE_READ: return answer_read(router, header, body, reply);
    case FUSE_WRITE: return answer_write(router, header, body, reply, waiting);
    case FUSE_FSYNC: return answer_fsync(router, header, body);
    case FUSE_FALLOCATE: return answer_fallocate(router, header, body, may_block);
    case FUSE_OPEN: return answer_open(router, header, body, reply);
    case FUSE_RELEASE: return answer_release(router, header, body);
    case FUSE_SETATTR: return answer_setattr(router, header, body, reply, waiting);
    case FUSE_OPENDIR: return answer_opendir(router, header, reply);
    case FUSE_FSYNCDIR: return answer_fsyncdir(router, header);
    default: return answer_look(router, header, body, reply);
    }
}
