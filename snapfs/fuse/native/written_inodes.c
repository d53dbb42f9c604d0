/* Inodes of which the kernel may show an older st_blocks: with the writeback cache it requests that at close(2), and
 * not when it writes pages back. So their attributes are invalidated about each second while they stay open
 * (session.py).
 *
 * Invariant: a slot holds one inode; one that another inode needs is invalidated at once.
 */
#include "router.h"

#include <string.h>

static size_t slot_of(uint64_t ino) { return (size_t)(ino * 0x9e3779b97f4a7c15ull >> 52) & (CACHED_INODES - 1); }

void written_inodes_forget(struct router *router, uint64_t ino)
{
    struct fuse_notify_inval_inode_out about = {.ino = ino, .off = -1}; /* attributes alone: waits for nothing */
    struct fuse_out_header header = {.len = sizeof header + sizeof about, .error = FUSE_NOTIFY_INVAL_INODE};
    char notice[sizeof header + sizeof about];
    memcpy(notice, &header, sizeof header);
    memcpy(notice + sizeof header, &about, sizeof about);
    device_reply(router, notice, sizeof notice);
}

void written_inodes_add(struct router *router, uint64_t ino)
{
    atomic_uint_fast64_t *slot = &router->written[slot_of(ino)];
    if (atomic_load_explicit(slot, memory_order_relaxed) == ino)
        return;
    uint64_t other = atomic_exchange(slot, ino);
    if (other && other != ino)
        written_inodes_forget(router, other);
}

/* The file is open no more: the kernel requests its attributes by itself. */
void written_inodes_remove(struct router *router, uint64_t ino)
{
    uint_fast64_t was = ino;
    atomic_compare_exchange_strong(&router->written[slot_of(ino)], &was, 0);
}

void written_inodes_invalidate(struct router *router)
{
    for (size_t i = 0; i < CACHED_INODES; i++) {
        uint64_t ino = atomic_load_explicit(&router->written[i], memory_order_relaxed);
        if (ino && (ino = atomic_exchange(&router->written[i], 0)))
            written_inodes_forget(router, ino);
    }
}
