/* Which inodes have neither setuid nor setgid in a way that a write takes away, so that a write needs no upcall.
 *
 * Python sets the entries (no_suid_files.py keeps the same set), in the thread in which modes change and before the
 * change is answered.
 *
 * Invariant: a slot holds one inode; another one that needs it takes it. A missing entry costs an upcall, never a wrong
 * answer.
 */
#include "router.h"

static size_t slot_of(uint64_t ino) { return (size_t)(ino * 0x9e3779b97f4a7c15ull >> 52) & (CACHED_INODES - 1); }

bool suid_cache_has_no_suid(struct router *router, uint64_t ino)
{
    return atomic_load_explicit(&router->no_suid[slot_of(ino)], memory_order_acquire) == ino;
}

void suid_cache_set(struct router *router, uint64_t ino, bool no_suid)
{
    uint_fast64_t was = ino;
    if (no_suid)
        atomic_store_explicit(&router->no_suid[slot_of(ino)], ino, memory_order_release);
    else
        atomic_compare_exchange_strong(&router->no_suid[slot_of(ino)], &was, 0);
}

void suid_cache_clear(struct router *router)
{
    for (size_t i = 0; i < CACHED_INODES; i++)
        atomic_store(&router->no_suid[i], 0);
}
