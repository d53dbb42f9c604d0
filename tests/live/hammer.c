/* Threads that change files through the native data path's API, for test_native_threads.py. No Python in here.
 *
 * Each thread owns some slots of 512 bytes in each file and fills one slot after another with (thread, count): a write is
 * one slot, or a run of the thread's slots over several blocks. Before a write the count is put into `begun`, after it into
 * `done`. A snapshot must then have, in every slot, a count between the `done` from before the cut and the `begun` from
 * after it, and nothing of a slot may be from another write.
 *
 * What the API needs of Python is done by `prepare`, a callback that takes the GIL.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "content_api.h"

#define SLOT 512
#define MAX_THREADS 16

struct plan {
    const struct sc_api *api;
    sc_core *core;
    int (*prepare)(uint64_t ino, int kind); /* 0, or an errno */
    uint64_t *inos;
    int files, threads, slots; /* slots of each thread in each file */
    atomic_int stop, failure;
    atomic_ullong operations;
    atomic_ullong *begun, *done; /* by (file, thread, slot) */
};

struct worker {
    struct plan *plan;
    int number;
    unsigned seed;
};

static int64_t insist(struct plan *plan, uint64_t ino, int64_t result)
{
    return SC_IS_NEED(result) ? -plan->prepare(ino, SC_KIND(result)) : result;
}

static int64_t write_slots(struct plan *plan, uint64_t ino, uint64_t offset, const void *data, size_t length)
{
    for (;;) {
        int64_t done = plan->api->write(plan->core, ino, offset, data, length, true);
        if (!SC_IS_NEED(done))
            return done;
        done = insist(plan, ino, done);
        if (done < 0)
            return done;
    }
}

static int64_t sync_file(struct plan *plan, uint64_t ino, int datasync)
{
    int64_t result = plan->api->fsync(plan->core, ino, datasync);
    return insist(plan, ino, result);
}

static int one_write(struct worker *me, uint64_t count)
{
    struct plan *plan = me->plan;
    int file = rand_r(&me->seed) % plan->files, run = rand_r(&me->seed) % 16 ? 1 : plan->slots;
    int slot = run == 1 ? rand_r(&me->seed) % plan->slots : 0;
    size_t at = ((size_t)file * (size_t)plan->threads + (size_t)me->number) * (size_t)plan->slots + (size_t)slot;
    uint64_t *data = malloc((size_t)run * SLOT);
    for (size_t i = 0; i < (size_t)run * SLOT / sizeof *data; i++)
        data[i] = (uint64_t)me->number << 56 | count;
    for (int i = 0; i < run; i++)
        atomic_store(&plan->begun[at + (size_t)i], count);
    uint64_t offset = ((uint64_t)me->number * (uint64_t)plan->slots + (uint64_t)slot) * SLOT;
    int64_t done = write_slots(plan, plan->inos[file], offset, data, (size_t)run * SLOT);
    if (done == (int64_t)run * SLOT)
        for (int i = 0; i < run; i++)
            atomic_store(&plan->done[at + (size_t)i], count);
    free(data);
    return done < 0 ? (int)-done : done == (int64_t)run * SLOT ? 0 : -1;
}

static int one_other(struct worker *me, int kind)
{
    struct plan *plan = me->plan;
    uint64_t ino = plan->inos[rand_r(&me->seed) % plan->files];
    int64_t now = (int64_t)time(NULL) * 1000000000, result = 0;
    struct sc_attr attr;
    char buffer[4096];
    if (kind == 0)
        result = sync_file(plan, ino, rand_r(&me->seed) & 1);
    else if (kind == 1)
        result = insist(plan, ino, plan->api->set_times(plan->core, ino, &now, now));
    else if (kind == 2)
        result = insist(plan, ino, plan->api->get_attr(plan->core, ino, &attr));
    else if (kind == 3)
        result = insist(plan, ino, plan->api->fallocate(plan->core, ino, 1, 0, 1 << 20));
    else
        result =
            insist(plan, ino, plan->api->read(plan->core, ino, (uint64_t)(rand_r(&me->seed) % 100000), buffer, 4096));
    return result < 0 ? (int)-result : 0;
}

static void *work(void *arg)
{
    struct worker *me = arg;
    struct plan *plan = me->plan;
    for (uint64_t count = 1; !atomic_load(&plan->stop); count++) {
        int dice = rand_r(&me->seed) % 200;
        int failure = dice < 5 ? one_other(me, dice) : one_write(me, count);
        if (failure) {
            atomic_store(&plan->failure, failure);
            break;
        }
        atomic_fetch_add(&plan->operations, 1);
    }
    free(me);
    return NULL;
}

static pthread_t running[MAX_THREADS];

struct plan *hammer_start(const struct sc_api *api, sc_core *core, int (*prepare)(uint64_t, int), uint64_t *inos,
                          int files, int threads, int slots)
{
    struct plan *plan = calloc(1, sizeof *plan);
    size_t all = (size_t)files * (size_t)threads * (size_t)slots;
    *plan = (struct plan){
        .api = api, .core = core, .prepare = prepare, .inos = inos, .files = files, .threads = threads, .slots = slots};
    plan->begun = calloc(all, sizeof *plan->begun);
    plan->done = calloc(all, sizeof *plan->done);
    for (int i = 0; i < threads; i++) {
        struct worker *me = malloc(sizeof *me);
        *me = (struct worker){plan, i, (unsigned)i * 7919 + 1};
        pthread_create(&running[i], NULL, work, me);
    }
    return plan;
}

void hammer_look(struct plan *plan, uint64_t *begun, uint64_t *done)
{
    size_t all = (size_t)plan->files * (size_t)plan->threads * (size_t)plan->slots;
    for (size_t i = 0; i < all; i++) {
        if (done)
            done[i] = atomic_load(&plan->done[i]);
        if (begun)
            begun[i] = atomic_load(&plan->begun[i]);
    }
}

int hammer_failure(struct plan *plan) { return atomic_load(&plan->failure); }
uint64_t hammer_operations(struct plan *plan) { return atomic_load(&plan->operations); }

int hammer_stop(struct plan *plan)
{
    atomic_store(&plan->stop, 1);
    for (int i = 0; i < plan->threads; i++)
        pthread_join(running[i], NULL);
    int failure = atomic_load(&plan->failure);
    free(plan->begun);
    free(plan->done);
    free(plan);
    return failure;
}

/* Nanoseconds of each write of `length` bytes over a file of `span` bytes, all in place, with nothing but the API. */
double hammer_measure(const struct sc_api *api, sc_core *core, uint64_t ino, size_t length, uint64_t span, int rounds)
{
    struct timespec from, to;
    char *data = calloc(1, length);
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < rounds; i++)
        if (api->write(core, ino, (uint64_t)i * length % span, data, length, true) != (int64_t)length)
            return -1;
    clock_gettime(CLOCK_MONOTONIC, &to);
    free(data);
    return ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) / rounds;
}
