/* Blocks kept back for the cut that is being sealed: the twin of `SlotFile` and `Frozen` in
 * snapfs/live/content/preserve.py, whose invariants hold here.
 *
 * What became of a chunk is one number in `Frozen.chunks`, changed under the latch:
 *
 *   bits 0-15   the blocks of it that are kept; its slot is meant only if there are any
 *   bit 16      CONSUMED: the sealer has read it, nothing of it needs keeping any more
 *   bit 17      LOST: a block of it could not be kept, with the errno in bits 18-27
 *   bits 28-63  the number of its slot
 *
 * A kept block is written to its slot before its bit is set. A file of slots that is closed keeps nothing: a writer
 * that comes too late, after the cut is finished, notes a loss that is never read. Where there is no memory for the
 * note, `spoiled` makes every later read fail.
 */
#include "content.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "preserve.h"

/* -- the slots */

int slot_file_claim(SlotFile *self, uint64_t *slot)
{
    pthread_rwlock_wrlock(&self->lock);
    if (self->fd < 0 && !self->closed)
        self->fd = open(self->file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int result = self->fd < 0 ? (self->closed ? -EBADF : -errno) : 0;
    if (!result)
        *slot = atomic_fetch_add(&self->slots, 1);
    pthread_rwlock_unlock(&self->lock);
    return result;
}

static bool is_zero(const unsigned char *data, size_t length)
{
    return !length || (!data[0] && !memcmp(data, data + 1, length - 1));
}

/* Zeros stay a hole. */
int slot_file_write(SlotFile *self, const void *data, size_t length, uint64_t offset)
{
    if (is_zero(data, length))
        return 0;
    pthread_rwlock_rdlock(&self->lock);
    int result = self->fd < 0 ? -EBADF : disk_pwrite(&self->disk, "preserve:block", self->fd, data, length, offset);
    pthread_rwlock_unlock(&self->lock);
    return result;
}

/* Bytes that were never written are zeros. */
int slot_file_read(SlotFile *self, unsigned char *data, size_t length, uint64_t offset)
{
    size_t done = 0;
    ssize_t step = 1;
    pthread_rwlock_rdlock(&self->lock);
    while (done < length && step > 0) {
        step = pread(self->fd, data + done, length - done, (off_t)(offset + done));
        done += step > 0 ? (size_t)step : 0;
    }
    int result = step < 0 ? -errno : 0;
    pthread_rwlock_unlock(&self->lock);
    memset(data + done, 0, length - done);
    return result;
}

/* -- the writer's side */

bool frozen_covers(const Frozen *self, uint64_t chunk)
{
    return dirty_covers(&self->dirty->map, chunk) || (self->inherited && dirty_covers(&self->inherited->map, chunk));
}

/* Copy the blocks of `mask` from the live file to the slot. */
static int copy_blocks(Frozen *self, int fd, uint64_t chunk, uint64_t slot, uint32_t mask)
{
    unsigned char buffer[CHUNK_SIZE];
    int result = 0;
    for (unsigned low = 0, count; mask >> low && !result; low += count) {
        low += (unsigned)__builtin_ctz(mask >> low);
        count = (unsigned)__builtin_ctz(~(mask >> low));
        size_t length = (size_t)count << BLOCK_SHIFT;
        uint64_t within = (uint64_t)low << BLOCK_SHIFT;
        ssize_t found = pread(fd, buffer, length, (off_t)((chunk << CHUNK_SHIFT) + within));
        result =
            found < 0 ? -errno : slot_file_write(self->slots, buffer, (size_t)found, (slot << CHUNK_SHIFT) + within);
    }
    return result;
}

/* With the latch held. */
static int preserve_chunk(Frozen *self, int fd, uint64_t chunk, uint32_t mask)
{
    uint64_t *state = map_put(&self->chunks, chunk);
    if (!state) {
        atomic_store(&self->spoiled, true);
        return 0;
    }
    uint32_t missing = mask & ~(uint32_t)KEPT(*state);
    if (*state & (CONSUMED | LOST) || !missing)
        return 0;
    uint64_t slot = SLOT(*state);
    int result = KEPT(*state) ? 0 : slot_file_claim(self->slots, &slot);
    if (!result)
        result = copy_blocks(self, fd, chunk, slot, missing);
    if (result && result != RAISED)
        *state |= LOST | (uint64_t)-result << ERRNO_SHIFT;
    if (!result)
        *state = KEPT(*state) | missing | slot << SLOT_SHIFT;
    if (!*state)
        map_remove(&self->chunks, chunk);
    return result == RAISED ? RAISED : 0;
}

int frozen_preserve(Frozen *self, int fd, uint64_t offset, uint64_t length)
{
    if (offset >= self->size || !length || atomic_load(&self->detached) || atomic_load(&self->slots->closed))
        return 0;
    length = min_u64(length, self->size - offset);
    int result = 0;
    uint64_t last = (offset + length - 1) >> CHUNK_SHIFT;
    for (uint64_t chunk = offset >> CHUNK_SHIFT; chunk <= last && !result; chunk++) {
        if (!frozen_covers(self, chunk))
            continue;
        pthread_mutex_lock(&self->latch);
        if (!atomic_load(&self->detached))
            result = preserve_chunk(self, fd, chunk, mask_in(chunk, offset, length));
        pthread_mutex_unlock(&self->latch);
    }
    return result;
}

uint64_t frozen_pending(Frozen *self, uint64_t offset, uint64_t limit)
{
    if (atomic_load(&self->detached) || offset >= self->size)
        return 0;
    uint64_t first = offset >> CHUNK_SHIFT, end = chunks_of(self->size), count = 0;
    uint64_t floor = min_u64(self->dirty->map.floor, self->inherited ? self->inherited->map.floor : end);
    struct map *below[] = {&self->dirty->map.masks, self->inherited ? &self->inherited->map.masks : NULL};
    pthread_mutex_lock(&self->latch);
    for (int n = 0; n < 2 && below[n]; n++)
        MAP_EACH(below[n], i) {
            uint64_t chunk = MAP_KEY(below[n], i), *state = map_find(&self->chunks, chunk);
            bool counted = n && map_find(below[0], chunk);
            count += chunk >= first && chunk < floor && !counted && !(state && *state & CONSUMED);
        }
    uint64_t above = end > max_u64(first, floor) ? end - max_u64(first, floor) : 0;
    MAP_EACH(&self->chunks, i)
        above -= above && MAP_KEY(&self->chunks, i) >= max_u64(first, floor) && MAP_VALUE(&self->chunks, i) & CONSUMED;
    pthread_mutex_unlock(&self->latch);
    return min_u64(count + above, limit);
}

/* -- the sealer's side */

int frozen_overlay(Frozen *self, unsigned char *data, size_t length, uint64_t state)
{
    uint32_t mask = (uint32_t)KEPT(state);
    int result = 0;
    for (unsigned low = 0, count; mask >> low && !result; low += count) {
        low += (unsigned)__builtin_ctz(mask >> low);
        count = (unsigned)__builtin_ctz(~(mask >> low));
        size_t start = (size_t)low << BLOCK_SHIFT, end = min_u64(start + ((size_t)count << BLOCK_SHIFT), length);
        if (start < end)
            result = slot_file_read(self->slots, data + start, end - start, (SLOT(state) << CHUNK_SHIFT) + start);
    }
    return result;
}

/* Read the chunk from `fd` first and look for what was kept after. -ESTALE if `path` is not the file's any more. */
int frozen_consume(Frozen *self, int fd, PyObject *path, uint64_t chunk, unsigned char *data, size_t length)
{
    size_t done = 0;
    ssize_t step = 1;
    while (done < length && step > 0) {
        step = pread(fd, data + done, length - done, (off_t)((chunk << CHUNK_SHIFT) + done));
        done += step > 0 ? (size_t)step : 0;
    }
    if (step < 0)
        return -errno;
    memset(data + done, 0, length - done);
    pthread_mutex_lock(&self->latch);
    uint64_t *state = map_put(&self->chunks, chunk), was = state ? *state : 0;
    int result = !state || atomic_load(&self->spoiled) ? -ENOMEM : was & LOST ? -LOST_ERRNO(was) : 0;
    bool moved = !result && self->path != path;
    if (!result && !moved)
        *state |= CONSUMED;
    if (state && !*state)
        map_remove(&self->chunks, chunk);
    pthread_mutex_unlock(&self->latch);
    if (moved)
        return -ESTALE;
    return result ? result : frozen_overlay(self, data, length, was);
}
