/* The bytes of a file: the twin of `read` and `write` in snapfs/live/content/content.py. A write is a change
 * (change.c).
 *
 * Of a file that is partly present what is here is read, and overwritten, as of any other (states.c, invariant 3).
 *
 * A read takes no lock of the file: like a local filesystem's it may see part of a write that is under way.
 */
#define _GNU_SOURCE
#include "content.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t write_bytes(int fd, const void *buffer, size_t length, uint64_t offset)
{
#ifdef SNAPFS_TEST
    if (atomic_load_explicit(&test_write_error, memory_order_relaxed))
        return -atomic_load(&test_write_error);
#endif
    ssize_t done;
    do
        done = pwrite(fd, buffer, length, (off_t)offset);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done;
}

/* Of a file whose last few writes were followed by a flush (`eager`), the next ones will be, too: their way to the disk
 * is begun at once, while the kernel gets the reply to the write and sends the flush. What is begun in vain would have
 * been written some seconds later. No matter for safety: the host may write at any time. */
#define FEW_WRITES 8

static void note_write(FileState *state, int fd, uint64_t offset, uint64_t length)
{
    unsigned before = atomic_load_explicit(&state->unsynced, memory_order_relaxed);
    if (before < FEW_WRITES)
        atomic_store_explicit(&state->unsynced, (unsigned char)(before + 1), memory_order_relaxed);
    if (before < FEW_WRITES && atomic_load_explicit(&state->eager, memory_order_relaxed))
        sync_file_range(fd, (off_t)offset, (off_t)length, SYNC_FILE_RANGE_WRITE); /* the flush reports failures */
}

void file_note_flush(FileState *state)
{
    unsigned before = atomic_exchange_explicit(&state->unsynced, 0, memory_order_relaxed);
    atomic_store_explicit(&state->eager, before > 0 && before < FEW_WRITES, memory_order_relaxed);
}

int64_t file_write(sc_core *core, uint64_t ino, uint64_t offset, const void *buffer, size_t length, bool taken)
{
    struct change change;
    if (offset > core->max_bytes)
        return -EFBIG;
    bool beyond = length > core->max_bytes - offset; /* then what fits is written, and the rest refused */
    length = beyond ? core->max_bytes - offset : length;
    int64_t result = change_begin_overwrite(core, ino, offset, length, &change);
    if (result)
        return result;
    if (length && !taken && !size_limit_allows(core, change.state, offset + length))
        result = -EDQUOT;
    if (length && !result) {
        result = change_preserve(&change, offset, length);
        if (!result)
            result = change_mark(core, &change, offset, length);
        if (!result)
            result = change_stamp(core, &change);
        if (!result) {
            result = write_bytes(change.fd, buffer, length, offset);
        }
        if (result > 0 && offset + (uint64_t)result > atomic_load(&change.state->size))
            size_limit_resize(core, change.state, offset + (uint64_t)result);
        if (result > 0)
            note_write(change.state, change.fd, offset, (uint64_t)result);
        if (result > 0)
            atomic_fetch_add_explicit(&core->written, (uint64_t)result, memory_order_relaxed);
    }
    change_end(core, &change);
    return beyond && result >= 0 ? -EFBIG : result;
}

/* Open a file of which these bytes are here, for reading; `length` 0: all of it is. */
static int64_t acquire_range(sc_core *core, uint64_t ino, uint64_t offset, uint64_t length, struct open_file **opened)
{
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_CLOSED);
    FileState *state = core_pin(core, ino);
    if (!state)
        return SC_NEED(SC_NEED_LOAD);
    bool here = length ? state_has(state, offset, length) : !atomic_load(&state->is_absent);
    int64_t result =
        !here ? SC_NEED(SC_NEED_PYTHON) : lost_file_error(descriptors_acquire(core->descriptors, ino, opened));
    core_unpin(state);
    return result;
}

int64_t file_acquire(sc_core *core, uint64_t ino, struct open_file **opened)
{
    return acquire_range(core, ino, 0, 0, opened);
}

int64_t file_read(sc_core *core, uint64_t ino, uint64_t offset, void *buffer, size_t length)
{
    struct open_file *opened;
    if (offset > MAX_OFFSET || !length)
        return 0;
    int64_t result = acquire_range(core, ino, offset, length, &opened);
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

/* The times are not looked at: where a filesystem has fine-grained ones (6.13), each look makes the next write dirty
 * the inode, and moves the clock that the kernel stamps our own inodes with. */
int64_t file_get_attr(sc_core *core, uint64_t ino, struct sc_attr *attr)
{
    struct open_file *opened;
    struct statx found;
    int64_t result = file_acquire(core, ino, &opened);
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
