/* A map from 64-bit numbers to 64-bit numbers: open addressing, linear probing, deletion by moving back.
 *
 * Invariants: a capacity is a power of two and at most 3/4 full; from a key's home to its place no slot is free. The
 * key MAP_FREE (all ones) is never used. A shared map is guarded by its owner's lock.
 */
#include "content.h"

#include <stdlib.h>
#include <string.h>

#define SMALLEST 8

static size_t home(uint64_t key, size_t capacity)
{
    return (size_t)((key * 0x9e3779b97f4a7c15ull) >> 32) & (capacity - 1);
}

static uint64_t *place(uint64_t *slots, size_t capacity, uint64_t key)
{
    size_t i = home(key, capacity);
    while (slots[2 * i] != key && slots[2 * i] != MAP_FREE)
        i = (i + 1) & (capacity - 1);
    return slots + 2 * i;
}

uint64_t *map_find(const struct map *map, uint64_t key)
{
    if (!map->count)
        return NULL;
    uint64_t *slot = place(map->slots, map->capacity, key);
    return *slot == key ? slot + 1 : NULL;
}

static bool grow(struct map *map)
{
    size_t capacity = map->capacity ? 2 * map->capacity : SMALLEST;
    uint64_t *slots = malloc(capacity * 2 * sizeof *slots);
    if (!slots)
        return false;
    memset(slots, 0xff, capacity * 2 * sizeof *slots);
    MAP_EACH(map, i)
        memcpy(place(slots, capacity, MAP_KEY(map, i)), map->slots + 2 * i, 2 * sizeof *slots);
    free(map->slots);
    map->slots = slots;
    map->capacity = capacity;
    return true;
}

uint64_t *map_put(struct map *map, uint64_t key)
{
    uint64_t *found = map_find(map, key);
    if (found)
        return found;
    if (4 * (map->count + 1) > 3 * map->capacity && !grow(map))
        return NULL;
    uint64_t *slot = place(map->slots, map->capacity, key);
    slot[0] = key;
    slot[1] = 0;
    map->count++;
    return slot + 1;
}

bool map_remove(struct map *map, uint64_t key)
{
    uint64_t *found = map_find(map, key);
    if (!found)
        return false;
    size_t limit = map->capacity - 1, hole = (size_t)(found - 1 - map->slots) / 2;
    for (size_t i = (hole + 1) & limit; MAP_KEY(map, i) != MAP_FREE; i = (i + 1) & limit) {
        size_t from_home = (i - home(MAP_KEY(map, i), map->capacity)) & limit;
        if (from_home >= ((i - hole) & limit)) { /* its home is at or before the hole */
            memcpy(map->slots + 2 * hole, map->slots + 2 * i, 2 * sizeof *map->slots);
            hole = i;
        }
    }
    MAP_KEY(map, hole) = MAP_FREE;
    if (!--map->count)
        map_clear(map);
    return true;
}

void map_clear(struct map *map)
{
    free(map->slots);
    *map = (struct map){0};
}
