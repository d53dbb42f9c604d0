/* What the three files of the way to pyfuse3 share: forward.c, split.c, replies.c. Called with `send_lock` held. */
#ifndef SNAPFS_FORWARD_H
#define SNAPFS_FORWARD_H

#include "router.h"

#include <sys/uio.h>

struct split {
    struct split *next;
    uint64_t unique;
    uint32_t opcode;
    size_t done, total; /* bytes of data, answered and requested */
    size_t length;      /* of the request */
    int32_t error;      /* of a WRITE: the first that a piece met */
    char *reply;        /* of a READ: the header and the data so far */
    char request[];
};

/* forward.c */
bool forward_send_parts(struct router *router, struct iovec *parts, int count);
bool forward_send_waiting(struct router *router);

/* split.c */
bool split_begin(struct router *router, const char *request, size_t length, uint32_t opcode, size_t total);
bool split_send_piece(struct router *router, struct split *split);
struct split *split_take(struct router *router, uint64_t unique);
bool split_add_piece(struct router *router, struct split *split, const char *reply, size_t length);
void split_answer(struct router *router, struct split *split); /* without the lock: the split was taken */
void split_free(struct split *split);

#endif
