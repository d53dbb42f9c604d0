/* What the files that answer requests share: answer.c, answer_bytes.c, answer_ranges.c,
 * answer_names.c, answer_lookups.c, answer_changes.c. */
#ifndef SNAPFS_ANSWER_H
#define SNAPFS_ANSWER_H

#include "router.h"

#define ROOT_INO SC_ROOT_INO

/* As ACTS in snapfs/live/backing/host_health.py. */
enum act { ACT_READ, ACT_WRITE, ACT_SYNC };

/* answer.c */
enum outcome answer_reply(struct router *router, uint64_t unique, char *reply, size_t data);
enum outcome answer_error(struct router *router, uint64_t unique, int64_t error);
enum outcome answer_failure(struct router *router, uint64_t unique, enum act act, int64_t error);
bool answer_refuses(struct router *router, uint64_t ino);
bool answer_try_again(struct router *router, uint64_t ino, int64_t *result, int *tries);

/* Not all bytes are here: Python answers the request as a whole. */
static inline bool answer_needs_python(int64_t result)
{
    return SC_IS_NEED(result) && SC_KIND(result) == SC_NEED_PYTHON;
}

/* answer_bytes.c */
enum outcome answer_read(struct router *router, const struct fuse_in_header *header, const void *body, char *reply);
enum outcome answer_write(struct router *router, struct fuse_in_header *header, void *body, char *reply,
                          enum waiting waiting);
enum outcome answer_fsync(struct router *router, const struct fuse_in_header *header, const void *body);

/* answer_ranges.c */
enum outcome answer_fallocate(struct router *router, const struct fuse_in_header *header, const void *body,
                              bool may_block);
enum outcome answer_lseek(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                          bool may_block);
enum outcome answer_copy(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                         bool may_block);

/* answer_names.c */
enum outcome answer_open(struct router *router, const struct fuse_in_header *header, const void *body, char *reply);
enum outcome answer_release(struct router *router, const struct fuse_in_header *header, const void *body);
enum outcome answer_opendir(struct router *router, const struct fuse_in_header *header, char *reply);
enum outcome answer_releasedir(struct router *router, const struct fuse_in_header *header, const void *body);
enum outcome answer_fsyncdir(struct router *router, const struct fuse_in_header *header);
enum outcome answer_setattr(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                            enum waiting waiting);

/* answer_lookups.c; names end in a zero, which `length` does not count */
enum outcome answer_lookup(struct router *router, const struct fuse_in_header *header, const char *name, size_t length,
                           char *reply);
enum outcome answer_getattr(struct router *router, const struct fuse_in_header *header, const void *body, char *reply);
enum outcome answer_attributes(struct router *router, const struct fuse_in_header *header, char *reply);
enum outcome answer_readlink(struct router *router, const struct fuse_in_header *header, char *reply);
enum outcome answer_list(struct router *router, const struct fuse_in_header *header, const void *body, char *reply);
enum outcome answer_getxattr(struct router *router, const struct fuse_in_header *header, const void *body,
                             const char *name, size_t length, char *reply);
enum outcome answer_listxattr(struct router *router, const struct fuse_in_header *header, const void *body,
                              char *reply);
enum outcome answer_statfs(struct router *router, const struct fuse_in_header *header, char *reply);
void answer_fill_entry(struct fuse_entry_out *entry, const struct sc_stat *found);
uint64_t answer_handle(const struct fuse_in_header *header, uint64_t ino, uint32_t flags);

/* answer_changes.c */
enum outcome answer_change(struct router *router, const struct fuse_in_header *header, const char *body, char *reply);
enum outcome answer_forget(struct router *router, const struct fuse_in_header *header, const char *body);

#endif
