/* Looks at names, directories and attributes that need no Python: what snapfs/live/native/names.h can answer. What it cannot
 * goes to pyfuse3, whose handlers give the same replies (snapfs/fuse/handlers).
 *
 * Invariants:
 * 1. A reply may be cached by the kernel until it changes the inode or the name itself (replies.py: FOREVER_SECONDS); the
 *    attributes of a file with setuid or setgid not at all (modes.py). A listing has none of a file that has just lost a
 *    name and has others (losing_links.c).
 * 2. The kernel asks for "." to open a file by its handle (open_by_handle_at, NFS), if it does not have the inode. One
 *    without a name is gone then, though its row may still be there: that goes soon (pending_deletes.py).
 * 3. `.snapfs` in the root is Python's: whether there is such a name depends on the session.
 */
#define _GNU_SOURCE
#include "answer.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define BLOCK_BYTES 4096
static const char VIRTUAL_NAME[] = ".snapfs";

static uint64_t seconds_of(int64_t ns) { return (uint64_t)(ns / 1000000000 - (ns % 1000000000 < 0)); }

static uint32_t rest_of(int64_t ns)
{
    int64_t rest = ns % 1000000000;
    return (uint32_t)(rest < 0 ? rest + 1000000000 : rest);
}

/* As entry_of in replies.py. */
static void fill_attr(struct fuse_attr *attr, const struct sc_stat *found)
{
    const struct sc_inode *inode = &found->inode;
    *attr = (struct fuse_attr){
        .ino = inode->ino,
        .size = found->file.size,
        .blocks = found->file.blocks,
        .atime = seconds_of(inode->atime_ns),
        .mtime = seconds_of(found->file.mtime_ns),
        .ctime = seconds_of(found->file.ctime_ns),
        .atimensec = rest_of(inode->atime_ns),
        .mtimensec = rest_of(found->file.mtime_ns),
        .ctimensec = rest_of(found->file.ctime_ns),
        .mode = inode->mode,
        .nlink = inode->nlink,
        .uid = inode->uid,
        .gid = inode->gid,
        .rdev = inode->rdev,
        .blksize = BLOCK_BYTES,
    };
}

/* As may_be_kept in modes.py: the kernel must not cache bits that a write takes away without its knowing. */
static uint64_t valid_seconds(uint32_t mode)
{
    return S_ISREG(mode) && mode & (S_ISUID | S_ISGID) ? 0 : ATTR_VALID_SECONDS;
}

void answer_fill_entry(struct fuse_entry_out *entry, const struct sc_stat *found)
{
    *entry = (struct fuse_entry_out){
        .nodeid = found->inode.ino,
        .entry_valid = ATTR_VALID_SECONDS,
        .attr_valid = valid_seconds(found->inode.mode),
    };
    fill_attr(&entry->attr, found);
}

/* The reply is `found`, the errno -`result`, or Python's. */
static enum outcome answer_entry(struct router *router, uint64_t unique, int64_t result, const struct sc_stat *found,
                                 char *reply)
{
    struct fuse_entry_out out = {.entry_valid = ATTR_VALID_SECONDS}; /* of -ENOENT: the kernel may keep that, too */
    if (SC_IS_NEED(result))
        return FORWARD;
    if (result && result != -ENOENT)
        return answer_error(router, unique, result);
    if (!result)
        answer_fill_entry(&out, found);
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, unique, reply, sizeof out);
}

/* ".." comes from an export of the mount alone. What is missing then is not a name. */
static enum outcome answer_up(struct router *router, const struct fuse_in_header *header, char *reply)
{
    struct sc_stat found;
    uint64_t parent;
    int64_t result = router->api->parent_of(router->core, header->nodeid, &parent);
    if (!result)
        result = router->api->stat(router->core, parent, &found);
    if (result == -ENOENT)
        return answer_error(router, header->unique, result);
    return answer_entry(router, header->unique, result, &found, reply);
}

enum outcome answer_lookup(struct router *router, const struct fuse_in_header *header, const char *name, size_t length,
                           char *reply)
{
    struct sc_stat found;
    bool is_virtual = header->nodeid == ROOT_INO && !strcmp(name, VIRTUAL_NAME);
    if (is_virtual || !length || memchr(name, '/', length))
        return FORWARD;
    if (!strcmp(name, ".."))
        return answer_up(router, header, reply);
    bool by_handle = !strcmp(name, ".");
    int64_t result = by_handle ? router->api->stat(router->core, header->nodeid, &found)
                               : router->api->lookup(router->core, header->nodeid, name, length, &found);
    if (!result && by_handle && !found.inode.nlink)
        result = -ESTALE;
    return answer_entry(router, header->unique, result, &found, reply);
}

enum outcome answer_getattr(struct router *router, const struct fuse_in_header *header, const void *body, char *reply)
{
    const struct fuse_getattr_in *in = body;
    bool writes = in->getattr_flags & FUSE_GETATTR_FH && in->fh & HANDLE_WRITING;
    if (answer_refuses(router, header->nodeid) && writes)
        return answer_error(router, header->unique, -EDQUOT);
    return answer_attributes(router, header, reply);
}

enum outcome answer_attributes(struct router *router, const struct fuse_in_header *header, char *reply)
{
    struct sc_stat found;
    struct fuse_attr_out out = {0};
    int64_t result = router->api->stat(router->core, header->nodeid, &found);
    if (SC_IS_NEED(result))
        return FORWARD;
    if (result)
        return answer_error(router, header->unique, result);
    fill_attr(&out.attr, &found);
    out.attr_valid = valid_seconds(out.attr.mode);
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

enum outcome answer_readlink(struct router *router, const struct fuse_in_header *header, char *reply)
{
    int64_t result =
        router->api->readlink(router->core, header->nodeid, reply + REPLY_HEADER, REQUEST_BYTES - REPLY_HEADER);
    if (SC_IS_NEED(result))
        return FORWARD;
    return result < 0 ? answer_error(router, header->unique, result)
                      : answer_reply(router, header->unique, reply, (size_t)result);
}

/* -- listings */

struct listing {
    char *at;
    size_t used, size;
    bool plus;
};

static bool add_entry(void *context, struct sc_name name, uint64_t offset, const struct sc_stat *found)
{
    struct listing *listing = context;
    size_t before = listing->plus ? sizeof(struct fuse_entry_out) : 0;
    struct fuse_dirent dirent = {found->inode.ino, offset, (uint32_t)name.length, (found->inode.mode & S_IFMT) >> 12};
    size_t bytes = FUSE_DIRENT_ALIGN(before + FUSE_NAME_OFFSET + name.length);
    if (bytes > listing->size - listing->used)
        return false;
    char *at = listing->at + listing->used;
    memset(at, 0, bytes);
    bool is_dot = name.bytes[0] == '.' && (name.length == 1 || (name.length == 2 && name.bytes[1] == '.'));
    if (listing->plus && !is_dot && !found->is_losing) { /* of the dots the kernel takes no attributes */
        struct fuse_entry_out entry;
        answer_fill_entry(&entry, found);
        memcpy(at, &entry, sizeof entry);
    }
    memcpy(at + before, &dirent, FUSE_NAME_OFFSET);
    memcpy(at + before + FUSE_NAME_OFFSET, name.bytes, name.length);
    listing->used += bytes;
    return true;
}

enum outcome answer_list(struct router *router, const struct fuse_in_header *header, const void *body, char *reply)
{
    const struct fuse_read_in *in = body;
    size_t size = in->size < REQUEST_BYTES - REPLY_HEADER ? in->size : REQUEST_BYTES - REPLY_HEADER;
    struct listing listing = {reply + REPLY_HEADER, 0, size, header->opcode == FUSE_READDIRPLUS};
    int64_t result = router->api->list(router->core, header->nodeid, in->offset, add_entry, &listing);
    if (result && listing.used)
        result = 0; /* the next request meets it again */
    if (SC_IS_NEED(result))
        return FORWARD;
    return result ? answer_error(router, header->unique, result)
                  : answer_reply(router, header->unique, reply, listing.used);
}

/* -- extended attributes */

/* The reply with `result` bytes, if there is room for `size`; with their number if none is wanted. */
static enum outcome answer_sized(struct router *router, uint64_t unique, int64_t result, size_t size, char *reply)
{
    if (SC_IS_NEED(result))
        return FORWARD;
    if (result < 0)
        return answer_error(router, unique, result);
    if (size)
        return (size_t)result > size ? answer_error(router, unique, -ERANGE)
                                     : answer_reply(router, unique, reply, (size_t)result);
    struct fuse_getxattr_out out = {.size = (uint32_t)result};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, unique, reply, sizeof out);
}

static size_t room_of(const struct fuse_getxattr_in *in)
{
    return in->size < REQUEST_BYTES - REPLY_HEADER ? in->size : REQUEST_BYTES - REPLY_HEADER;
}

enum outcome answer_getxattr(struct router *router, const struct fuse_in_header *header, const void *body,
                             const char *name, size_t length, char *reply)
{
    size_t size = room_of(body);
    int64_t result = router->api->getxattr(router->core, header->nodeid, name, length, reply + REPLY_HEADER, size);
    return answer_sized(router, header->unique, result, size, reply);
}

/* As in inode_handlers.py: `trusted.` is shown to root alone. */
enum outcome answer_listxattr(struct router *router, const struct fuse_in_header *header, const void *body, char *reply)
{
    size_t size = room_of(body);
    int64_t result = router->api->listxattr(router->core, header->nodeid, !header->uid, reply + REPLY_HEADER, size);
    return answer_sized(router, header->unique, result, size, reply);
}

enum outcome answer_statfs(struct router *router, const struct fuse_in_header *header, char *reply)
{
    struct statvfs host;
    int64_t result = router->api->statfs(router->core, &host);
    if (result)
        return FORWARD;
    struct fuse_statfs_out out = {.st = {
                                      .blocks = host.f_blocks,
                                      .bfree = host.f_bfree,
                                      .bavail = host.f_bavail,
                                      .files = host.f_files,
                                      .ffree = host.f_ffree,
                                      .bsize = (uint32_t)host.f_bsize,
                                      .namelen = (uint32_t)host.f_namemax,
                                      .frsize = (uint32_t)host.f_frsize,
                                  }};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}
