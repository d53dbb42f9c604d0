/* READs and WRITEs that are too large for one message go to pyfuse3 in pieces, under their own `unique`, one after the
 * other: each is sent when the one before is answered. The replies are joined into one.
 *
 * Invariants:
 * 1. A split request has one piece on its way, and is taken from the list before it is answered.
 * 2. An error of a piece is one of the whole: of pages that are written back the kernel would take the rest for
 *    written, and of a short read for the end of the file.
 *
 * The list is guarded by `send_lock`.
 */
#include "forward.h"

#include <stdlib.h>
#include <string.h>

void split_free(struct split *split)
{
    free(split->reply);
    free(split);
}

bool split_send_piece(struct router *router, struct split *split)
{
    struct fuse_in_header header;
    memcpy(&header, split->request, sizeof header);
    size_t size = split->total - split->done;
    if (size > router->piece_bytes)
        size = router->piece_bytes;
    struct fuse_read_in read_in;
    struct fuse_write_in write_in;
    struct iovec parts[3] = {{&header, sizeof header}};
    int count = 2;
    if (split->opcode == FUSE_READ) {
        memcpy(&read_in, split->request + sizeof header, sizeof read_in);
        read_in.offset += split->done;
        read_in.size = (uint32_t)size;
        parts[1] = (struct iovec){&read_in, sizeof read_in};
        header.len = READ_HEADER;
    } else {
        memcpy(&write_in, split->request + sizeof header, sizeof write_in);
        write_in.offset += split->done;
        write_in.size = (uint32_t)size;
        parts[1] = (struct iovec){&write_in, sizeof write_in};
        parts[2] = (struct iovec){split->request + WRITE_HEADER + split->done, size};
        count = 3;
        header.len = (uint32_t)(WRITE_HEADER + size);
    }
    return forward_send_parts(router, parts, count);
}

/* Send the first piece of a request that is too large for one message. */
bool split_begin(struct router *router, const char *request, size_t length, uint32_t opcode, size_t total)
{
    struct split *split = calloc(1, sizeof *split + length);
    if (!split)
        return false;
    memcpy(split->request, request, length);
    split->unique = ((const struct fuse_in_header *)(const void *)request)->unique;
    split->opcode = opcode;
    split->total = total;
    split->length = length;
    split->reply = malloc(REPLY_HEADER + (opcode == FUSE_READ ? total : sizeof(struct fuse_write_out)));
    if (!split->reply || !split_send_piece(router, split)) {
        split_free(split);
        return false;
    }
    split->next = router->splits;
    router->splits = split;
    return true;
}

struct split *split_take(struct router *router, uint64_t unique)
{
    for (struct split **at = &router->splits; *at; at = &(*at)->next)
        if ((*at)->unique == unique) {
            struct split *found = *at;
            *at = found->next;
            return found;
        }
    return NULL;
}

/* Whether all pieces of a WRITE were tried, one of which failed. The others are tried all the same: of pages that the
 * kernel took from an application each lost part must be noted (live/content/cached_writes.py). */
static bool finish_failed(struct split *split, const char *reply)
{
    if (split->done < split->total)
        return false;
    memcpy(split->reply, reply, REPLY_HEADER);
    ((struct fuse_out_header *)(void *)split->reply)->error = split->error;
    split->done = 0;
    return true;
}

/* Add a piece's reply. True if the whole is complete, an error of any piece being one of the whole: of pages that are
 * written back the kernel would take the rest for written, and of a short read for the end of the file. */
bool split_add_piece(struct router *router, struct split *split, const char *reply, size_t length)
{
    const struct fuse_out_header *header = (const void *)reply;
    size_t wanted = split->total - split->done, data = length - REPLY_HEADER;
    if (wanted > router->piece_bytes)
        wanted = router->piece_bytes;
    if (header->error && split->opcode == FUSE_WRITE) {
        split->error = split->error ? split->error : header->error;
        split->done += wanted;
        return finish_failed(split, reply);
    }
    if (header->error) {
        memcpy(split->reply, reply, REPLY_HEADER);
        split->done = 0;
        return true;
    }
    memcpy(split->reply, header, REPLY_HEADER);
    if (split->opcode == FUSE_READ) {
        if (data > wanted)
            data = wanted;
        memcpy(split->reply + REPLY_HEADER + split->done, reply + REPLY_HEADER, data);
    } else {
        struct fuse_write_out out = {0};
        memcpy(&out, reply + REPLY_HEADER, data < sizeof out ? data : sizeof out);
        data = out.size < wanted ? out.size : wanted;
    }
    split->done += data;
    if (split->error)
        return finish_failed(split, reply);
    return data < wanted || split->done == split->total;
}

void split_answer(struct router *router, struct split *split)
{
    struct fuse_out_header *header = (void *)split->reply;
    size_t length = REPLY_HEADER;
    if (!header->error && split->opcode == FUSE_WRITE) {
        struct fuse_write_out out = {.size = (uint32_t)split->done};
        memcpy(split->reply + REPLY_HEADER, &out, sizeof out);
        length += sizeof out;
    } else if (!header->error) {
        length += split->done;
    }
    header->len = (uint32_t)length;
    device_reply(router, split->reply, length);
}
