/* What the router knows of inodes, so that it need not ask Python for each request.
 *
 * Plain inodes have neither setuid nor setgid in a way that a write takes away. Python says which (files.py keeps the same
 * set), in the thread in which modes change and before the change is answered.
 *
 * Invariant: a slot holds one inode; another one that needs it takes it. To know less costs a question, never a wrong
 * answer.
 */
#include "router.h"

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
}
