/* Which directories have a handle through which the kernel fills and reads its cache of their names.
 *
 * The kernel keeps the names of a directory from one listing to the next, as long as nothing changes in it
 * (FOPEN_CACHE_DIR). A listing that begins after a change has them read anew, also under another handle that is in
 * the middle of its own: that one looks for its place in the new cache, and where the place is gone and the last page
 * just full, takes that for the end (`fuse_readdir_cached` of the kernel). A handle that is alone never finds its
 * place gone. So one handle of a directory at a time gets the cache; another one that is opened meanwhile is served by
 * us, and sees the same names.
 *
 * Invariants:
 * 1. A slot holds the directory of one open handle that has HANDLE_CACHED, or 0. What finds its slot taken, by the same
 *    directory or another, goes without.
 * 2. Under an adopted mount there may be handles of an earlier daemon: no handle gets the cache (`caches_listings`).
 * 3. The kernel's pages stay at each opening but where they may name another directory than the one that is above now:
 *    nothing has changed in a directory that was moved, and ".." in its pages is the old one. They are dropped when a
 *    handle gets the cache, so under no other one. A directory that `parents` does not have may have been moved.
 */
#include "router.h"

#define PARENT_BITS 29 /* next to the 35 of a directory's number; one below a larger number is not kept */

static size_t slot_of(uint64_t ino) { return (size_t)(ino * 0x9e3779b97f4a7c15ull >> 52) & (CACHED_INODES - 1); }

/* Whether the handle that is being opened gets the cache. */
bool cached_listings_begin(struct router *router, uint64_t directory)
{
    uint_fast64_t none = 0;
    return atomic_load_explicit(&router->caches_listings, memory_order_relaxed) &&
           atomic_compare_exchange_strong(&router->listed[slot_of(directory)], &none, directory);
}

/* Whether the pages of a directory may stay, whose handle gets the cache: its parent is the one that it had then. */
bool cached_listings_keep(struct router *router, uint64_t directory, uint64_t parent)
{
    size_t slot = (size_t)(directory * 0x9e3779b97f4a7c15ull >> 48) & (LISTED_PARENTS - 1);
    uint_fast64_t both = parent >> PARENT_BITS ? 0 : directory << PARENT_BITS | parent;
    return atomic_exchange(&router->parents[slot], both) == both && both;
}

/* A handle that has the cache is closed. Again, or of an earlier daemon: nothing. */
void cached_listings_end(struct router *router, uint64_t directory)
{
    uint_fast64_t was = directory;
    atomic_compare_exchange_strong(&router->listed[slot_of(directory)], &was, 0);
}
