/* The lead: at most one thread looks for the next request without sleeping, while all others stay asleep.
 *
 * Between two requests of an application lie some 10 to 50 us. To sleep that long costs more than the wait: a wake-up is
 * 5 to 50 us, most where the sleeper's core has gone idle. So who has just dealt with a request looks again for a moment,
 * if it can have the lead. The leader takes the device out of the epoll instance, so that a request wakes nobody else, and
 * puts it back before it deals with what it found, so that the next one does.
 *
 * The thread of trio takes the lead as well, when it has nothing to do: of a stream of requests that are pyfuse3's it
 * reads each itself, and answers what comes between and hardly waits. What may wait for a disk it gives to the others by
 * `handed_over`.
 *
 * Invariants:
 * 1. The device is in the epoll instance whenever nobody leads; putting it back tells of requests that came meanwhile.
 * 2. A look follows a request, lasts `spin_ns`, and is given up for a while where it was in vain too often, so that an
 *    idle mount sleeps; or at once where it took far longer, for then others want the core.
 */
#define _GNU_SOURCE
#include "router.h"

#include <sys/epoll.h>
#include <time.h>

#define PATIENCE 8 /* looks in vain, in excess of the others, after which it pauses */
#define PAUSE 64   /* chances let pass */

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* By DEL and ADD: an entry without EPOLLIN is woken all the same, as a request's wake-up names no events. */
bool lead_take(struct router *router) {
    if (!router->spin_ns || atomic_exchange(&router->led, true))
        return false;
    epoll_ctl(router->epoll, EPOLL_CTL_DEL, router->device, NULL);
    return true;
}

void lead_give(struct router *router) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = router->device};
    epoll_ctl(router->epoll, EPOLL_CTL_ADD, router->device, &event);
    atomic_store(&router->led, false);
}

bool luck_lets(struct luck *luck) {
    if (!luck->pause)
        return true;
    luck->pause--;
    return false;
}

void luck_note(struct luck *luck, bool found, bool crowded) {
    if (crowded)
        *luck = (struct luck){.pause = PAUSE};
    else if (found && luck->vain)
        luck->vain--;
    else if (!found && ++luck->vain >= PATIENCE)
        *luck = (struct luck){.pause = PAUSE};
}
