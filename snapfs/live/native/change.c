/* One change of one file: the twin of `begin`, `preserve`, `expect_stamp` and the marking in
 * snapfs/live/content/content.py, whose order of steps holds here: begin, preserve, intent, mark, change, size.
 *
 * A change has its file pinned and locked from the check of its epoch to its last step. It belongs to the epoch that
 * the file is in then, whatever cuts come meanwhile: a cut's sealer looks at the file under the same lock, so it sees
 * all of the change, and before a change of the next epoch can happen, Python has begun the file anew, under that lock
 * too.
 *
 * The file has a flush mark from before the change on (flush_marks.c).
 *
 * A cut needs no gate: it is one store to `epoch`. Of two changes A and B, where B was requested after A was answered,
 * a snapshot with B has A: if B's file was of the old epoch when B looked, the cut had not been when A was answered. A
 * change that is under way during the cut may be on either side, as with any crash.
 */
#include "content.h"

/* `overwrites`: of a file that is partly present, bytes that are here, none of them beyond its end. */
static int64_t begin(sc_core *core, uint64_t ino, bool overwrites, uint64_t offset, uint64_t length,
                     struct change *change)
{
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_CLOSED);
    FileState *state = change->state = core_pin(core, ino);
    if (!state)
        return SC_NEED(SC_NEED_BEGIN);
    pthread_mutex_lock(&state->lock);
    int64_t result = 0;
    bool fits = overwrites && offset + length <= atomic_load(&state->size) && state_has(state, offset, length);
    if (atomic_load(&state->is_absent) && !fits)
        result = SC_NEED(SC_NEED_PYTHON);
    else if (atomic_load(&state->epoch) != atomic_load(&core->epoch))
        result = SC_NEED(SC_NEED_BEGIN);
    else
        result = lost_file_error(descriptors_acquire(core->descriptors, ino, &change->opened));
    if (!result) {
        change->fd = change->opened->fd;
        flush_marks_begin(core->flush_marks, ino, atomic_load(&state->is_absent));
        return 0;
    }
    pthread_mutex_unlock(&state->lock);
    core_unpin(state);
    return result;
}

int64_t change_begin(sc_core *core, uint64_t ino, struct change *change)
{
    return begin(core, ino, false, 0, 0, change);
}

int64_t change_begin_overwrite(sc_core *core, uint64_t ino, uint64_t offset, uint64_t length, struct change *change)
{
    return begin(core, ino, true, offset, length, change);
}

void change_end(sc_core *core, struct change *change)
{
    flush_marks_end(core->flush_marks, change->state->ino);
    descriptors_release(core->descriptors, change->opened);
    pthread_mutex_unlock(&change->state->lock);
    core_unpin(change->state);
}

int change_preserve(struct change *change, uint64_t offset, uint64_t length)
{
    Frozen *frozen = change->state->frozen;
    return frozen ? frozen_preserve(frozen, change->fd, offset, length) : 0;
}

int change_mark_growth(sc_core *core, struct change *change, uint64_t new_size)
{
    FileState *state = change->state;
    struct dirty *dirty = &state->dirty->map;
    unsigned char records[2 * RECORD_SIZE], *end = records;
    struct growth growth = dirty_growth(dirty, atomic_load(&state->size), new_size);
    if (growth.floor < dirty->floor) {
        intents_pack_record(end, KIND_FLOOR, state->ino, growth.floor, 0);
        end += RECORD_SIZE;
    }
    if (growth.count) {
        intents_pack_record(end, KIND_BLOCKS, state->ino, growth.first, growth.count);
        end += RECORD_SIZE;
    }
    int result = end > records ? core_append(core, records, (size_t)(end - records)) : 0;
    if (result)
        return result;
    dirty_lower(dirty, growth.floor, 0);
    int64_t more = dirty_mark(dirty, growth.first << BLOCK_SHIFT, growth.count << BLOCK_SHIFT);
    if (more > 0)
        atomic_fetch_add_explicit(&core->chunks, (uint64_t)more, memory_order_relaxed);
    return more < 0 ? (int)more : 0;
}

int change_mark(sc_core *core, struct change *change, uint64_t offset, uint64_t length)
{
    FileState *state = change->state;
    unsigned char record[RECORD_SIZE];
    if (offset + length > atomic_load(&state->size)) {
        int result = change_mark_growth(core, change, offset + length);
        if (result)
            return result;
    }
    if (dirty_has(&state->dirty->map, offset, length))
        return 0;
    uint64_t first = offset >> BLOCK_SHIFT, last = (offset + length - 1) >> BLOCK_SHIFT;
    intents_pack_record(record, KIND_BLOCKS, state->ino, first, last - first + 1);
    int result = core_append(core, record, sizeof record);
    if (result)
        return result;
    int64_t more = dirty_mark(&state->dirty->map, offset, length);
    if (more > 0)
        atomic_fetch_add_explicit(&core->chunks, (uint64_t)more, memory_order_relaxed);
    return more < 0 ? (int)more : 0;
}

/* Before the host stamps a write of its own: note the times that only its file has (file_times.py, `expect_stamp`). */
int change_stamp(sc_core *core, struct change *change)
{
    FileState *state = change->state;
    unsigned char record[RECORD_SIZE];
    if (atomic_load_explicit(&state->wrote, memory_order_relaxed))
        return 0;
    int64_t mtime_ns = atomic_load(&state->mtime_ns), ctime_ns = atomic_load(&state->ctime_ns);
    if (mtime_ns != ctime_ns) {
        intents_pack_record(record, KIND_TIMES, state->ino, (uint64_t)mtime_ns, (uint64_t)ctime_ns);
        int result = core_append(core, record, sizeof record);
        if (result)
            return result;
    }
    atomic_store_explicit(&state->wrote, true, memory_order_relaxed);
    return 0;
}
