/* Which blocks of one file changed in one epoch: the twin of snapfs/live/intents/dirty_map.py, whose invariants hold
 * here.
 *
 * A map is a mask of 16 blocks by chunk: 16 bytes for each dirty chunk at a load of 3/8 to 3/4, and none in a map that
 * is clean or whole. Pure data: a map is marked with its file's lock held, and a map that was handed to a Frozen is
 * marked no more.
 */
#include "content.h"

#include <stdlib.h>

void dirty_init(struct dirty *dirty) { *dirty = (struct dirty){.floor = NO_FLOOR}; }

void dirty_free(struct dirty *dirty) { map_clear(&dirty->masks); }

bool dirty_covers(const struct dirty *dirty, uint64_t chunk)
{
    return chunk >= dirty->floor || map_find(&dirty->masks, chunk);
}

bool dirty_is_clean(const struct dirty *dirty) { return !dirty->masks.count && dirty->floor == NO_FLOOR; }

bool dirty_has(const struct dirty *dirty, uint64_t offset, uint64_t length)
{
    uint64_t last = min_u64((offset + length - 1) >> CHUNK_SHIFT, dirty->floor - 1);
    if (!dirty->floor)
        return true;
    for (uint64_t chunk = offset >> CHUNK_SHIFT; chunk <= last; chunk++) {
        uint64_t *mask = map_find(&dirty->masks, chunk);
        if (!mask || mask_in(chunk, offset, length) & ~*mask)
            return false;
    }
    return true;
}

int64_t dirty_mark(struct dirty *dirty, uint64_t offset, uint64_t length)
{
    size_t before = dirty->masks.count;
    if (!length || !dirty->floor)
        return 0;
    uint64_t last = min_u64((offset + length - 1) >> CHUNK_SHIFT, dirty->floor - 1);
    for (uint64_t chunk = offset >> CHUNK_SHIFT; chunk <= last; chunk++) {
        uint64_t *mask = map_put(&dirty->masks, chunk);
        if (!mask)
            return -ENOMEM;
        *mask |= mask_in(chunk, offset, length);
    }
    return (int64_t)(dirty->masks.count - before);
}

void dirty_lower(struct dirty *dirty, uint64_t floor, uint64_t reach)
{
    dirty->floor = min_u64(dirty->floor, floor);
    dirty->reach = max_u64(dirty->reach, reach);
}

void dirty_mark_whole(struct dirty *dirty)
{
    dirty->whole = true;
    dirty->floor = 0;
    map_clear(&dirty->masks);
}

int dirty_join(struct dirty *dirty, const struct dirty *other)
{
    if (other->whole)
        dirty_mark_whole(dirty);
    dirty_lower(dirty, other->floor, other->reach);
    MAP_EACH(&other->masks, i) {
        uint64_t *mask = map_put(&dirty->masks, MAP_KEY(&other->masks, i));
        if (!mask)
            return -ENOMEM;
        *mask |= MAP_VALUE(&other->masks, i);
    }
    return 0;
}

static int ascending(const void *one, const void *two)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)two;
    return (a > b) - (a < b);
}

uint64_t *dirty_sorted(const struct dirty *dirty, size_t *count)
{
    uint64_t *chunks = malloc((dirty->masks.count + 1) * sizeof *chunks);
    *count = 0;
    if (!chunks)
        return NULL;
    MAP_EACH(&dirty->masks, i)
        if (MAP_KEY(&dirty->masks, i) < dirty->floor)
            chunks[(*count)++] = MAP_KEY(&dirty->masks, i);
    qsort(chunks, *count, sizeof *chunks, ascending);
    return chunks;
}

struct growth dirty_growth(const struct dirty *dirty, uint64_t size, uint64_t new_size)
{
    struct growth growth = {.floor = chunks_of(size)};
    (void)new_size;
    if (!(size & (CHUNK_SIZE - 1)))
        return growth;
    uint64_t end = growth.floor << CHUNK_SHIFT;
    if (dirty_covers(dirty, growth.floor - 1) && dirty_has(dirty, size - 1, end - size + 1))
        return growth;
    growth.first = (size - 1) >> BLOCK_SHIFT;
    growth.count = growth.floor * CHUNK_BLOCKS - growth.first;
    return growth;
}
