/* What the router knows of inodes, so that it need not ask Python for each request.
 *
 * Plain inodes have neither setuid nor setgid in a way that a write takes away. Python says which (files.py keeps the same
 * set), in the thread in which modes change and before the change is answered.
 *
 * Attributes are overheard: when pyfuse3 answers a SETATTR of times, its reply has them all. They are good for as long as
 * no request was forwarded that could change a name or an attribute: `changes` counts those, when they are forwarded, and
 * any reply but one with such attributes, for what it answers may have been on its way when they were made.
 *
 * Invariants:
 * 1. A slot holds one inode; another one that needs it takes it. To know less costs a question, never a wrong answer.
 * 2. `known[i].as_of == changes` means: as Python would answer now, but for size, times and blocks.
 */
#include "router.h"

#include <string.h>

static size_t slot_of(uint64_t ino) { return (size_t)(ino * 0x9e3779b97f4a7c15ull >> 52) & (KNOWN_INODES - 1); }

bool known_plain(struct router *router, uint64_t ino) {
    return atomic_load_explicit(&router->plain[slot_of(ino)], memory_order_acquire) == ino;
}

void know_plain(struct router *router, uint64_t ino, bool plain) {
    uint_fast64_t was = ino;
    if (plain)
        atomic_store_explicit(&router->plain[slot_of(ino)], ino, memory_order_release);
    else
        atomic_compare_exchange_strong(&router->plain[slot_of(ino)], &was, 0);
}

void forget_plain(struct router *router) {
    for (size_t i = 0; i < KNOWN_INODES; i++)
        atomic_store(&router->plain[i], 0);
    atomic_fetch_add(&router->changes, 1);
}

bool known_attributes(struct router *router, uint64_t ino, struct fuse_attr *attr) {
    struct known_attr *known = &router->known[slot_of(ino)];
    pthread_mutex_lock(&router->knowing);
    bool good = known->ino == ino && known->as_of == atomic_load(&router->changes);
    if (good)
        *attr = known->attr;
    pthread_mutex_unlock(&router->knowing);
    return good;
}

/* Whether the request leaves all names, and attributes but size and times, as they are. */
static bool changes_nothing(const struct fuse_in_header *header, const void *body) {
    switch (header->opcode) {
    case FUSE_LOOKUP: case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_GETATTR: case FUSE_READLINK: case FUSE_OPEN:
    case FUSE_READ: case FUSE_STATFS: case FUSE_RELEASE: case FUSE_FSYNC: case FUSE_GETXATTR: case FUSE_LISTXATTR:
    case FUSE_FLUSH: case FUSE_OPENDIR: case FUSE_READDIR: case FUSE_READDIRPLUS: case FUSE_RELEASEDIR:
    case FUSE_FSYNCDIR: case FUSE_ACCESS:
        return true;
    case FUSE_WRITE: /* by somebody who may take privileges away */
        return !(((const struct fuse_write_in *)body)->fh & HANDLE_UNPRIVILEGED);
    case FUSE_SETATTR:
        return !(((const struct fuse_setattr_in *)body)->valid & ~(uint32_t)(FATTR_FH | FATTR_MTIME | FATTR_CTIME));
    default:
        return false;
    }
}

void note_forwarded(struct router *router, const struct fuse_in_header *header, const void *body) {
    if (!changes_nothing(header, body))
        atomic_fetch_add(&router->changes, 1);
    else if (header->opcode == FUSE_SETATTR && !(header->nodeid & VIRTUAL_NODE)) {
        size_t at = (size_t)(header->unique / 2) % (sizeof router->asked / sizeof router->asked[0]);
        pthread_mutex_lock(&router->knowing);
        router->asked[at].unique = header->unique;
        router->asked[at].ino = header->nodeid;
        router->asked[at].as_of = atomic_load(&router->changes);
        pthread_mutex_unlock(&router->knowing);
    }
}

void note_reply(struct router *router, const char *reply, size_t length) {
    const struct fuse_out_header *header = (const void *)reply;
    bool fits = !header->error && length == sizeof *header + sizeof(struct fuse_attr_out);
    size_t at = (size_t)(header->unique / 2) % (sizeof router->asked / sizeof router->asked[0]);
    pthread_mutex_lock(&router->knowing);
    if (router->asked[at].unique != header->unique || !fits) {
        atomic_fetch_add(&router->changes, 1);
    } else {
        struct known_attr *known = &router->known[slot_of(router->asked[at].ino)];
        const struct fuse_attr_out *out = (const void *)(header + 1);
        *known = (struct known_attr){router->asked[at].ino, router->asked[at].as_of, out->attr};
        router->asked[at].unique = 0;
    }
    pthread_mutex_unlock(&router->knowing);
}
