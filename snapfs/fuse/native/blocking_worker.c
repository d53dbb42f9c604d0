/* One thread for requests that can wait for a network, or for the thread of trio, and that pyfuse3 cannot take over
 * (all others are forwarded to it): one at a time, in the order in which they were deferred.
 *
 * While the router is paused none is begun.
 */
#include "router.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void blocking_worker_defer(struct router *router, const char *request, size_t length)
{
    struct iovec whole = {(void *)(uintptr_t)request, length};
    pthread_mutex_lock(&router->deferred_lock);
    bool deferred = queue_append(&router->deferred, &whole, 1);
    pthread_cond_signal(&router->deferred_added);
    pthread_mutex_unlock(&router->deferred_lock);
    if (!deferred)
        device_error(router, ((const struct fuse_in_header *)(const void *)request)->unique, -ENOMEM);
}

void *blocking_worker_main(void *argument)
{
    struct router *router = argument;
    char reply[256]; /* replies that wait are short */
    pthread_mutex_lock(&router->deferred_lock);
    while (!atomic_load(&router->stopping)) {
        struct message *first = atomic_load(&router->paused) ? NULL : queue_take(&router->deferred);
        if (!first) {
            pthread_cond_wait(&router->deferred_added, &router->deferred_lock);
            continue;
        }
        atomic_store(&router->blocking_worker_busy, true);
        pthread_mutex_unlock(&router->deferred_lock);
        answer_request(router, first->bytes, first->length, reply, WAITS_FOR_NETWORK);
        free(first);
        pthread_mutex_lock(&router->deferred_lock);
        atomic_store(&router->blocking_worker_busy, false);
    }
    pthread_mutex_unlock(&router->deferred_lock);
    return NULL;
}
