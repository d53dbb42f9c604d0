/* The memory that requests are read into, which is there before the read begins.
 *
 * A read(2) of /dev/fuse into memory that is not there yet has the kernel allocate it, which it refuses in a process
 * that was killed meanwhile (its __get_user_pages). It then ends the request with EIO, for good: it is not sent again. Of an
 * application's request that is an error that it never should see. Of pages that are written back it is a lost write:
 * fsync(2) reports it, but where the kernel drops the pages at once, as after a ftruncate(2), old bytes are read before
 * any fsync. Seen when a daemon was killed while an application truncated and read back.
 *
 * Invariants:
 * 1. A piece of memory is made present before a thread gets it, and locked where that is allowed, lest it is swapped
 *    out. No fork shares it, which would make it copy-on-write: not there, for a write.
 * 2. A piece is in the list or one thread's. A thread that sleeps has none (device.c): there are about as many as
 *    requests that are dealt with at the same time, and on an idle mount one.
 */
#define _GNU_SOURCE
#include "router.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PIECE_BYTES (REQUEST_BYTES + 4096u)
#define DATA_AT 4096u /* the data of a WRITE begin a page */

/* The first bytes of a piece that is in the list. */
struct piece {
    struct piece *next;
};

static struct piece *make(void)
{
    char *memory = mmap(NULL, PIECE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, PIECE_BYTES, MADV_DONTFORK);
    if (mlock(memory, PIECE_BYTES)) /* RLIMIT_MEMLOCK */
        for (size_t at = 0; at < PIECE_BYTES; at += (size_t)sysconf(_SC_PAGESIZE))
            ((volatile char *)memory)[at] = 0;
    return (struct piece *)(void *)memory;
}

static void put(struct router *router, struct piece *piece)
{
    pthread_mutex_lock(&router->memory_lock);
    piece->next = router->memory;
    router->memory = piece;
    pthread_mutex_unlock(&router->memory_lock);
}

static struct piece *take(struct router *router)
{
    pthread_mutex_lock(&router->memory_lock);
    struct piece *piece = router->memory;
    if (piece)
        router->memory = piece->next;
    pthread_mutex_unlock(&router->memory_lock);
    return piece;
}

/* Make the first piece; false if there is no memory for it. */
bool request_memory_open(struct router *router)
{
    struct piece *piece = make();
    if (piece)
        put(router, piece);
    return piece != NULL;
}

/* Let the thread have memory for a request, if it has none. Where none can be had it waits for another thread's. */
void request_memory_take(struct worker *worker)
{
    if (worker->request)
        return;
    struct piece *piece;
    while (!(piece = take(worker->router)) && !(piece = make()))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    worker->request = (char *)piece + DATA_AT - WRITE_HEADER;
}

/* The thread has no request, and may sleep. */
void request_memory_give(struct worker *worker)
{
    if (worker->request)
        put(worker->router, (struct piece *)(void *)(worker->request - (DATA_AT - WRITE_HEADER)));
    worker->request = NULL;
}

/* Free what no thread has, but for `keep` pieces. Any thread. */
void request_memory_trim(struct router *router, int keep)
{
    pthread_mutex_lock(&router->memory_lock);
    struct piece **at = &router->memory;
    while (*at && keep--)
        at = &(*at)->next;
    struct piece *surplus = *at;
    *at = NULL;
    pthread_mutex_unlock(&router->memory_lock);
    while (surplus) {
        struct piece *next = surplus->next;
        munmap(surplus, PIECE_BYTES);
        surplus = next;
    }
}
