/* FALLOCATE, LSEEK and COPY_FILE_RANGE, which pyfuse3 does not know: what must wait goes to the blocking worker. */
#include "answer.h"

#include <errno.h>
#include <string.h>

/* Whether the privileges of a file are gone, or were none. Calls Python if it is not cached. */
static int64_t clear_suid(struct router *router, uint64_t ino)
{
    return suid_cache_has_no_suid(router, ino) ? 0 : upcall_run_for(router, UPCALL_CLEAR_SUID, ino);
}

enum outcome answer_fallocate(struct router *router, const struct fuse_in_header *header, const void *body,
                              bool may_block)
{
    const struct fuse_fallocate_in *in = body;
    int64_t result = header->uid ? clear_suid(router, header->nodeid) : 0;
    int tries = 0;
    while (result >= 0) {
        result = router->api->fallocate(router->core, header->nodeid, in->mode, in->offset, in->length);
        if (answer_needs_python(result) && !may_block)
            return DEFER;
        if (answer_needs_python(result)) {
            const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->mode, in->offset, in->length};
            result = upcall_run(router, UPCALL_FALLOCATE, all);
        }
        if (!answer_try_again(router, header->nodeid, &result, &tries))
            break;
    }
    return answer_failure(router, header->unique, ACT_WRITE, result < 0 ? result : 0);
}

enum outcome answer_lseek(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                          bool may_block)
{
    const struct fuse_lseek_in *in = body;
    int64_t result;
    int tries = 0;
    const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->offset, in->whence};
    if (header->nodeid & VIRTUAL_NODE) {
        if (!may_block)
            return DEFER;
        result = upcall_run(router, UPCALL_LSEEK, all);
    } else {
        do {
            result = router->api->lseek(router->core, header->nodeid, in->offset, (int)in->whence);
            /* ENOSYS: it may be open for writing, and the kernel hold pages that it has not written back. The answer
             * must not be ENOSYS, after which the kernel sends no LSEEK any more, for any file of the mount. */
            bool up = answer_needs_python(result) || result == -ENOSYS;
            if (up && !may_block)
                return DEFER;
            if (up)
                result = upcall_run(router, UPCALL_LSEEK, all);
        } while (answer_try_again(router, header->nodeid, &result, &tries));
    }
    if (result < 0)
        return answer_error(router, header->unique, result);
    struct fuse_lseek_out out = {.offset = (uint64_t)result};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}

enum outcome answer_copy(struct router *router, const struct fuse_in_header *header, const void *body, char *reply,
                         bool may_block)
{
    const struct fuse_copy_file_range_in *in = body;
    if ((header->nodeid | in->nodeid_out) & VIRTUAL_NODE)
        return answer_error(router, header->unique, -EXDEV); /* then the kernel reads and writes */
    int64_t result = header->uid ? clear_suid(router, in->nodeid_out) : 0;
    uint64_t need_ino = header->nodeid;
    int tries = 0;
    while (result >= 0) {
        result = router->api->copy_range(router->core, header->nodeid, in->off_in, in->nodeid_out, in->off_out, in->len,
                                         &need_ino);
        if (answer_needs_python(result) && !may_block)
            return DEFER;
        if (answer_needs_python(result)) {
            const uint64_t all[UPCALL_ARGUMENTS] = {header->nodeid, in->off_in, in->nodeid_out, in->off_out, in->len};
            result = upcall_run(router, UPCALL_COPY, all);
        }
        if (!answer_try_again(router, need_ino, &result, &tries))
            break;
    }
    if (result < 0)
        return answer_failure(router, header->unique, ACT_WRITE, result);
    if (header->opcode == OP_COPY_FILE_RANGE_64) {
        uint64_t copied = (uint64_t)result;
        memcpy(reply + REPLY_HEADER, &copied, sizeof copied);
        return answer_reply(router, header->unique, reply, sizeof copied);
    }
    struct fuse_write_out out = {.size = (uint32_t)result};
    memcpy(reply + REPLY_HEADER, &out, sizeof out);
    return answer_reply(router, header->unique, reply, sizeof out);
}
