/* Changes of names that need no Python (snapfs/live/native/names_writer.h): the twins of `create`, `mknod`, `mkdir`,
 * `symlink`, `link`, `unlink`, `rmdir` and `rename` in snapfs/fuse/handlers and snapfs/fuse/session/operations.py.
 *
 * Invariants:
 * 1. A request that was sent before is Python's, which knows whether it was carried out (reply_cache.py).
 * 2. Nothing is made, renamed or removed under `.snapfs`, or in its place: Python refuses that.
 */
#include "answer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define RESENT (1ull << 63)
#define PERMISSIONS 07777u

static const char VIRTUAL_NAME[] = ".snapfs";

/* The name that begins at `*at`, which is moved behind it; no name, and false, if it is Python's to answer. */
static bool take_name(const struct fuse_in_header *header, uint64_t parent, const char **at, struct sc_name *name)
{
    const char *end = (const char *)header + header->len;
    size_t room = (size_t)(end - *at), length = strnlen(*at, room);
    *name = (struct sc_name){*at, length};
    if (length == room || !length || memchr(*at, '/', length) || !strcmp(*at, ".") || !strcmp(*at, "..") ||
        (parent == ROOT_INO && !strcmp(*at, VIRTUAL_NAME)) || parent & VIRTUAL_NODE)
        return false;
    *at += length + 1;
    return true;
}

static enum outcome answer_done(struct router *router, uint64_t unique, int64_t result)
{
    return SC_IS_NEED(result) ? FORWARD : answer_error(router, unique, result);
}

/* -- making */

static enum outcome answer_create(struct router *router, const struct fuse_in_header *header, struct sc_birth *birth,
                                  const struct fuse_create_in *in, char *reply)
{
    struct sc_stat made;
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out = {0};
    bool writing = (in->flags & O_ACCMODE) != O_RDONLY;
    birth->mode = S_IFREG | (in->mode & PERMISSIONS);
    birth->umask = in->umask;
    int64_t result = router->api->create(router->core, birth, header->unique, &made);
    if (SC_IS_NEED(result) || result == -EEXIST)
        return FORWARD; /* one that exists is opened, unless O_EXCL is set */
    if (!result)
        result = router->api->open(router->core, made.inode.ino, writing);
    if (result)
        return answer_error(router, header->unique, SC_IS_NEED(result) ? -EIO : result);
    answer_fill_entry(&out.entry, &made);
    out.open.fh = answer_handle(header, made.inode.ino, in->flags);
    out.open.open_flags = FOPEN_KEEP_CACHE;
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

static enum outcome answer_birth(struct router *router, const struct fuse_in_header *header, struct sc_birth *birth,
                                 char *reply)
{
    struct sc_stat made;
    struct fuse_entry_out out;
    int64_t result = router->api->create(router->core, birth, header->unique, &made);
    if (result)
        return answer_done(router, header->unique, result);
    answer_fill_entry(&out, &made);
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

static enum outcome answer_make(struct router *router, const struct fuse_in_header *header, const char *body,
                                char *reply)
{
    struct sc_birth birth = {.parent = header->nodeid, .uid = header->uid, .gid = header->gid};
    const struct fuse_create_in *create = (const void *)body;
    const struct fuse_mknod_in *mknod = (const void *)body;
    const struct fuse_mkdir_in *mkdir = (const void *)body;
    switch (header->opcode) {
    case FUSE_CREATE: body += sizeof *create; break;
    case FUSE_MKNOD:
        body += sizeof *mknod;
        birth.mode = mknod->mode;
        birth.rdev = mknod->rdev;
        birth.umask = mknod->umask;
        break;
    case FUSE_MKDIR:
        body += sizeof *mkdir;
        birth.mode = S_IFDIR | (mkdir->mode & PERMISSIONS);
        birth.umask = mkdir->umask;
        break;
    default: birth.mode = S_IFLNK | 0777; break;
    }
    if (!take_name(header, header->nodeid, &body, &birth.name))
        return FORWARD;
    if (header->opcode == FUSE_SYMLINK) {
        size_t room = (size_t)((const char *)header + header->len - body);
        birth.target = (struct sc_name){body, strnlen(body, room)};
        if (birth.target.length == room)
            return FORWARD;
    }
    return header->opcode == FUSE_CREATE ? answer_create(router, header, &birth, create, reply)
                                         : answer_birth(router, header, &birth, reply);
}

static enum outcome answer_link(struct router *router, const struct fuse_in_header *header, const char *body,
                                char *reply)
{
    const struct fuse_link_in *in = (const void *)body;
    struct fuse_entry_out out;
    struct sc_stat found;
    struct sc_name name;
    body += sizeof *in;
    if (!take_name(header, header->nodeid, &body, &name) || in->oldnodeid & VIRTUAL_NODE)
        return FORWARD;
    int64_t result = router->api->link(router->core, in->oldnodeid, header->nodeid, name, header->unique, &found);
    if (result)
        return answer_done(router, header->unique, result);
    answer_fill_entry(&out, &found);
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

/* -- removing and renaming */

static enum outcome answer_remove(struct router *router, const struct fuse_in_header *header, const char *body)
{
    struct sc_name name;
    bool is_directory = header->opcode == FUSE_RMDIR;
    if (!take_name(header, header->nodeid, &body, &name))
        return FORWARD;
    return answer_done(router, header->unique,
                       router->api->remove(router->core, header->nodeid, name, is_directory, header->unique));
}

static enum outcome answer_rename(struct router *router, const struct fuse_in_header *header, const char *body)
{
    const struct fuse_rename2_in *in = (const void *)body; /* RENAME has its first field alone */
    struct sc_name name, new_name;
    bool has_flags = header->opcode == FUSE_RENAME2;
    uint32_t flags = has_flags ? in->flags : 0;
    uint64_t new_parent = in->newdir;
    body += has_flags ? sizeof *in : sizeof(struct fuse_rename_in);
    if (!take_name(header, header->nodeid, &body, &name) || !take_name(header, new_parent, &body, &new_name))
        return FORWARD;
    return answer_done(
        router, header->unique,
        router->api->rename(router->core, header->nodeid, name, new_parent, new_name, flags, header->unique));
}

enum outcome answer_change(struct router *router, const struct fuse_in_header *header, const char *body, char *reply)
{
    if (header->unique & RESENT || header->nodeid & VIRTUAL_NODE)
        return FORWARD;
    switch (header->opcode) {
    case FUSE_CREATE:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK: return answer_make(router, header, body, reply);
    case FUSE_LINK: return answer_link(router, header, body, reply);
    case FUSE_UNLINK:
    case FUSE_RMDIR: return answer_remove(router, header, body);
    case FUSE_RENAME:
    case FUSE_RENAME2: return answer_rename(router, header, body);
    default: return FORWARD;
    }
}

/* What the kernel forgets matters of an inode that has lost its last name (pending_deletes.py); there is no reply. */
enum outcome answer_forget(struct router *router, const struct fuse_in_header *header, const char *body)
{
    const struct fuse_batch_forget_in *batch = (const void *)body;
    const struct fuse_forget_one *ones = (const void *)(batch + 1);
    size_t most = (header->len - sizeof *header - sizeof *batch) / sizeof *ones;
    if (header->opcode == FUSE_FORGET)
        return router->api->may_be_orphan(router->core, header->nodeid) ? FORWARD : ANSWERED;
    for (size_t i = 0; i < batch->count && i < most; i++)
        if (router->api->may_be_orphan(router->core, ones[i].nodeid))
            return FORWARD;
    return ANSWERED;
}
