/* The hot steps of one file's changes: the twin of `write`, `read`, `sync` and `set_times` in snapfs/live/content.py, whose
 * order of steps holds here: begin, preserve, intent, mark, change, size.
 *
 * A change has its file pinned and locked from the check of its epoch to its last step. It belongs to the epoch that the
 * file is in then, whatever cuts come meanwhile: a cut's sealer looks at the file under the same lock, so it sees all
 * of the change, and before a change of the next epoch can happen, Python has begun the file anew, under that lock too.
 *
 * Why no gate: the cut is one store to `epoch`. Of two changes A and B where B was asked for after A was answered, a
 * snapshot with B has A: if B's file was of the old epoch when B looked, the cut had not been when A was answered. A
 * change that is under way during the cut may be on either side, as with any crash.
 *
 * A read takes no lock of the file: like a local filesystem's it may see part of a write that is under way.
 */
#define _GNU_SOURCE
#include "content.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

_Atomic int broken_writes;

static int64_t missing(int result)
{
    return result == -ENOENT ? -EIO : result; /* the bytes of a known file are lost */
}

/* -- one change */

int64_t change_begin(sc_core *core, uint64_t ino, struct change *change)
{
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_CLOSED);
    FileState *state = change->state = core_pin(core, ino);
    if (!state)
        return SC_NEED(SC_NEED_BEGIN);
    pthread_mutex_lock(&state->lock);
    int64_t result = 0;
    if (atomic_load(&state->is_absent))
        result = SC_NEED(SC_NEED_PYTHON);
    else if (atomic_load(&state->epoch) != atomic_load(&core->epoch))
        result = SC_NEED(SC_NEED_BEGIN);
    else
        result = missing(descriptors_acquire(core->descriptors, ino, &change->opened));
    if (!result) {
        change->fd = change->opened->fd;
        return 0;
    }
    pthread_mutex_unlock(&state->lock);
    core_unpin(state);
    return result;
}

void change_end(sc_core *core, struct change *change)
{
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
        record_pack(end, KIND_FLOOR, state->ino, growth.floor, 0);
        end += RECORD_SIZE;
    }
    if (growth.count) {
        record_pack(end, KIND_BLOCKS, state->ino, growth.first, growth.count);
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
    record_pack(record, KIND_BLOCKS, state->ino, first, last - first + 1);
    int result = core_append(core, record, sizeof record);
    if (result)
        return result;
    int64_t more = dirty_mark(&state->dirty->map, offset, length);
    if (more > 0)
        atomic_fetch_add_explicit(&core->chunks, (uint64_t)more, memory_order_relaxed);
    return more < 0 ? (int)more : 0;
}

/* -- bytes */

static int64_t write_bytes(int fd, const void *buffer, size_t length, uint64_t offset)
{
    if (atomic_load_explicit(&broken_writes, memory_order_relaxed))
        return -atomic_load(&broken_writes);
    ssize_t done;
    do
        done = pwrite(fd, buffer, length, (off_t)offset);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done;
}

/* Of a file whose last few writes were followed by a flush (`eager`), the next ones will be, too: their way to the disk is
 * begun at once, while the kernel is told of the write and asks for the flush. What is begun in vain would have been
 * written some seconds later. No matter for safety: the host may write at any time. */
#define FEW_WRITES 8

static void note_write(FileState *state, int fd, uint64_t offset, uint64_t length)
{
    unsigned before = atomic_load_explicit(&state->unsynced, memory_order_relaxed);
    if (before < FEW_WRITES)
        atomic_store_explicit(&state->unsynced, (unsigned char)(before + 1), memory_order_relaxed);
    if (before < FEW_WRITES && atomic_load_explicit(&state->eager, memory_order_relaxed))
        sync_file_range(fd, (off_t)offset, (off_t)length, SYNC_FILE_RANGE_WRITE); /* the flush tells of failures */
}

static void note_flush(FileState *state)
{
    unsigned before = atomic_exchange_explicit(&state->unsynced, 0, memory_order_relaxed);
    atomic_store_explicit(&state->eager, before > 0 && before < FEW_WRITES, memory_order_relaxed);
}

int64_t file_write(sc_core *core, uint64_t ino, uint64_t offset, const void *buffer, size_t length)
{
    struct change change;
    if (offset > MAX_OFFSET || length > MAX_OFFSET - offset)
        return -EFBIG;
    int64_t result = change_begin(core, ino, &change);
    if (result)
        return result;
    if (length) {
        result = change_preserve(&change, offset, length);
        if (!result)
            result = change_mark(core, &change, offset, length);
        if (!result) {
            atomic_store_explicit(&change.state->wrote, true, memory_order_relaxed);
            result = write_bytes(change.fd, buffer, length, offset);
        }
        if (result > 0 && offset + (uint64_t)result > atomic_load(&change.state->size))
            atomic_store(&change.state->size, offset + (uint64_t)result);
        if (result > 0)
            note_write(change.state, change.fd, offset, (uint64_t)result);
    }
    change_end(core, &change);
    return result;
}

/* Open a file that is all here, for reading. */
int64_t file_reach(sc_core *core, uint64_t ino, struct opened **opened)
{
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_CLOSED);
    FileState *state = core_pin(core, ino);
    if (!state)
        return SC_NEED(SC_NEED_LOAD);
    bool absent = atomic_load(&state->is_absent);
    int64_t result = absent ? SC_NEED(SC_NEED_PYTHON) : missing(descriptors_acquire(core->descriptors, ino, opened));
    core_unpin(state);
    return result;
}

int64_t file_read(sc_core *core, uint64_t ino, uint64_t offset, void *buffer, size_t length)
{
    struct opened *opened;
    if (offset > MAX_OFFSET)
        return 0;
    int64_t result = file_reach(core, ino, &opened);
    if (result)
        return result;
    size_t done = 0;
    ssize_t step = 1;
    while (done < length && step > 0) {
        step = pread(opened->fd, (char *)buffer + done, length - done, (off_t)(offset + done));
        if (step < 0 && errno == EINTR)
            step = 1;
        else if (step > 0)
            done += (size_t)step;
    }
    result = step < 0 ? -errno : (int64_t)done;
    descriptors_release(core->descriptors, opened);
    return result;
}

/* The times are not looked at: where a filesystem has fine-grained ones (6.13), each look makes the next write dirty the
 * inode, and moves the clock that the kernel stamps our own inodes with. */
int64_t file_get_attr(sc_core *core, uint64_t ino, struct sc_attr *attr)
{
    struct opened *opened;
    struct statx found;
    int64_t result = file_reach(core, ino, &opened);
    if (result)
        return result;
    FileState *state = core_pin(core, ino);
    if (!state)
        result = SC_NEED(SC_NEED_LOAD);
    else if (statx(opened->fd, "", AT_EMPTY_PATH, STATX_BLOCKS, &found))
        result = -errno;
    else
        *attr = (struct sc_attr){atomic_load(&state->size), found.stx_blocks, atomic_load(&state->mtime_ns),
                                 atomic_load(&state->ctime_ns)};
    if (state)
        core_unpin(state);
    descriptors_release(core->descriptors, opened);
    return result;
}

/* -- times and durability */

static struct timespec timespec_of(int64_t ns)
{
    int64_t rest = ns % 1000000000;
    return (struct timespec){.tv_sec = ns / 1000000000 - (rest < 0), .tv_nsec = rest < 0 ? rest + 1000000000 : rest};
}

/* With the file's lock held. The host's access time carries our ctime. */
static int64_t bring_times(sc_core *core, FileState *state, int fd)
{
    struct timespec times[] = {timespec_of(atomic_load(&state->ctime_ns)), timespec_of(atomic_load(&state->mtime_ns))};
    if (futimens(fd, times))
        return -errno;
    atomic_store(&state->wrote, false);
    core_set_pending(core, state, false);
    return 1;
}

int64_t file_apply_times(sc_core *core, FileState *state, int fd)
{
    pthread_mutex_lock(&state->lock);
    bool astray = atomic_load(&state->times_pending) || atomic_load(&state->wrote);
    int64_t result = astray ? bring_times(core, state, fd) : 0;
    pthread_mutex_unlock(&state->lock);
    return result;
}

/* Whether the backing file's time, which the host set as it was written, will not do for the one that the kernel gave the
 * file. It lies between that and now. To set it dirties the host's inode, and a flush of that is a write more. */
#define NEAR_NS 20000000

static bool times_are_astray(FileState *state)
{
    struct timespec now;
    if (atomic_load(&state->times_pending) || !atomic_load(&state->wrote))
        return atomic_load(&state->times_pending);
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    int64_t since_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - atomic_load(&state->mtime_ns);
    return since_ns < -NEAR_NS || since_ns > NEAR_NS;
}

int64_t file_set_times(sc_core *core, uint64_t ino, const int64_t *mtime_ns, int64_t ctime_ns)
{
    struct change change;
    unsigned char record[RECORD_SIZE];
    int64_t result = change_begin(core, ino, &change);
    if (result)
        return result;
    FileState *state = change.state;
    if (dirty_is_clean(&state->dirty->map)) {
        record_pack(record, KIND_TIMES, ino, 0, 0);
        result = core_append(core, record, sizeof record);
    }
    if (!result) {
        if (mtime_ns)
            atomic_store(&state->mtime_ns, *mtime_ns);
        atomic_store(&state->ctime_ns, ctime_ns);
        core_set_pending(core, state, true);
        result = bring_times(core, state, change.fd);
    }
    change_end(core, &change);
    return result < 0 ? result : 0;
}

/* The flush is done with no lock held: who writes meanwhile is not waited for, nor made durable. The same of names: those
 * that change from the first look on. */
int64_t file_fsync(sc_core *core, uint64_t ino, int datasync)
{
    struct opened *opened;
    int64_t result = file_reach(core, ino, &opened);
    if (result)
        return result;
    if (core_needs_names(core, ino)) {
        descriptors_release(core->descriptors, opened);
        return SC_NEED(SC_NEED_NAMES);
    }
    FileState *state = core_pin(core, ino);
    if (state) {
        note_flush(state);
        result = !datasync && times_are_astray(state) ? file_apply_times(core, state, opened->fd) : 0;
        core_unpin(state);
    }
    if (result >= 0)
        result = disk_sync(&core->disk, "backing:sync", opened->fd, !datasync);
    descriptors_release(core->descriptors, opened);
    return result;
}
