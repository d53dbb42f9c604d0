/* The poller: at most one thread looks for the next request without sleeping, while all others stay asleep.
 *
 * Between two requests of an application lie some 10 to 50 us. To sleep that long costs more than the wait: a wake-up
 * is 5 to 50 us, most where the sleeper's core has gone idle. So a thread that has just dealt with a request polls for
 * a moment, if it can claim the role. The poller takes the device out of the epoll instance, so that a request wakes no
 * other thread, and puts it back before it deals with what it found, so that the next request does.
 *
 * The thread of trio claims the role as well, when it has nothing to do: of a stream of requests that are pyfuse3's it
 * reads each itself, and answers what comes between and hardly waits. What may wait for a disk it hands off to the
 * device threads (`handoff`).
 *
 * Invariants:
 * 1. The device is in the epoll instance whenever no thread polls; putting it back reports requests that came
 *    meanwhile.
 * 2. Polling follows a request and lasts `spin_ns`. Its budget: where it was in vain too often it pauses, so that an
 *    idle mount sleeps; it pauses at once where it took far longer than `spin_ns`, for then other threads want the
 *    core.
 */
#define _GNU_SOURCE
#include "router.h"

#include <sys/epoll.h>
#include <time.h>

#define MAX_MISSES 8 /* polls in vain, in excess of the successful ones, after which polling pauses */
#define PAUSED_POLLS 64 /* polls that are skipped then */

uint64_t poller_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* By DEL and ADD: an entry without EPOLLIN is woken all the same, as a request's wake-up names no events. */
bool poller_claim(struct router *router)
{
    if (!router->spin_ns || atomic_exchange(&router->has_poller, true))
        return false;
    epoll_ctl(router->epoll, EPOLL_CTL_DEL, router->device, NULL);
    return true;
}

void poller_release(struct router *router)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = router->device};
    epoll_ctl(router->epoll, EPOLL_CTL_ADD, router->device, &event);
    atomic_store(&router->has_poller, false);
}

bool spin_budget_allows(struct spin_budget *budget)
{
    if (!budget->pause)
        return true;
    budget->pause--;
    return false;
}

void spin_budget_note(struct spin_budget *budget, bool found, bool crowded)
{
    if (crowded)
        *budget = (struct spin_budget){.pause = PAUSED_POLLS};
    else if (found && budget->misses)
        budget->misses--;
    else if (!found && ++budget->misses >= MAX_MISSES)
        *budget = (struct spin_budget){.pause = PAUSED_POLLS};
}
