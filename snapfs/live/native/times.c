/* Times of a file, and its durability: the twin of `set_times` in snapfs/live/content/file_times.py and of `sync` in
 * content.py there.
 *
 * The host's access time carries our ctime. Where mtime and ctime of the host's file are equal, the host stamped it
 * with a write (backing_files.py); times that would look so by chance are stored as one.
 */
#define _GNU_SOURCE
#include "content.h"

#include <sys/stat.h>
#include <time.h>

static struct timespec timespec_of(int64_t ns)
{
    int64_t rest = ns % 1000000000;
    return (struct timespec){.tv_sec = ns / 1000000000 - (rest < 0), .tv_nsec = rest < 0 ? rest + 1000000000 : rest};
}

/* With the file's lock held. The host's access time carries our ctime. */
static int64_t apply_times_locked(sc_core *core, FileState *state, int fd)
{
    struct timespec times[] = {timespec_of(atomic_load(&state->ctime_ns)), timespec_of(atomic_load(&state->mtime_ns))};
    if (futimens(fd, times))
        return -errno;
    if (atomic_load(&state->mtime_ns) != atomic_load(&state->ctime_ns)) {
        struct stat found;
        if (fstat(fd, &found))
            return -errno;
        if (found.st_mtim.tv_sec == found.st_ctim.tv_sec && found.st_mtim.tv_nsec == found.st_ctim.tv_nsec) {
            times[0] = times[1]; /* this very tick of the host's clock: it would look like a stamp (backing_files.py) */
            if (futimens(fd, times))
                return -errno;
            atomic_store(&state->ctime_ns, atomic_load(&state->mtime_ns));
        }
    }
    atomic_store(&state->wrote, false);
    core_set_pending(core, state, false);
    return 1;
}

int64_t file_apply_times(sc_core *core, FileState *state, int fd)
{
    pthread_mutex_lock(&state->lock);
    int64_t result = 0;
    if (atomic_load(&state->times_pending) || atomic_load(&state->wrote)) {
        flush_marks_begin(core->flush_marks, state->ino, atomic_load(&state->is_absent));
        result = apply_times_locked(core, state, fd);
        flush_marks_end(core->flush_marks, state->ino);
    }
    pthread_mutex_unlock(&state->lock);
    return result;
}

/* Whether the time of the backing file, which the host set at the write, is too far from the one that the kernel gave
 * the file. It lies between that and now. Setting it dirties the host's inode, which costs its flush one write more. */
#define NEAR_NS 20000000

static bool times_need_applying(FileState *state)
{
    struct timespec now;
    if (atomic_load(&state->times_pending) || !atomic_load(&state->wrote))
        return atomic_load(&state->times_pending);
    if (atomic_load(&state->mtime_ns) != atomic_load(&state->ctime_ns)) /* else the file would not show which was set */
        return true;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    int64_t since_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - atomic_load(&state->mtime_ns);
    return since_ns < -NEAR_NS || since_ns > NEAR_NS;
}

static int64_t clamp_time(const sc_core *core, int64_t ns)
{
    return ns < core->time_min_ns ? core->time_min_ns : ns > core->time_max_ns ? core->time_max_ns : ns;
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
        intents_pack_record(record, KIND_TIMES, ino, 0, 0);
        result = core_append(core, record, sizeof record);
    }
    if (!result) {
        if (mtime_ns)
            atomic_store(&state->mtime_ns, clamp_time(core, *mtime_ns));
        atomic_store(&state->ctime_ns, clamp_time(core, ctime_ns));
        core_set_pending(core, state, true);
        result = apply_times_locked(core, state, change.fd);
    }
    change_end(core, &change);
    return result < 0 ? result : 0;
}

/* Bring the times to the backing file, if they must be durable and are not there. */
static int64_t apply_times_for_sync(sc_core *core, uint64_t ino)
{
    struct open_file *opened;
    FileState *state = core_pin(core, ino);
    int64_t result = 0;
    if (state && times_need_applying(state)) {
        result = file_acquire(core, ino, &opened);
        if (!result) {
            result = file_apply_times(core, state, opened->fd);
            descriptors_release(core->descriptors, opened);
        }
    }
    if (state)
        core_unpin(state);
    return result < 0 ? result : 0;
}

/* Flush the file. The number is taken before it is opened: another file may take its place (`replace` in backing.py). */
static int64_t flush(sc_core *core, uint64_t ino, int datasync)
{
    struct open_file *opened;
    uint64_t begun = flush_marks_begin_sync(core->flush_marks);
    int64_t result = file_acquire(core, ino, &opened);
    if (result)
        return result;
    result = disk_sync(&core->disk, "backing:sync", opened->fd, !datasync);
    descriptors_release(core->descriptors, opened);
    if (result)
        flush_marks_fail(core->flush_marks);
    else
        flush_marks_end_sync(core->flush_marks, ino, begun, datasync);
    return result;
}

/* Whether bytes, size and times are durable already: then the file need not be here, nor in memory. */
static bool is_durable(sc_core *core, uint64_t ino, int datasync)
{
    FileState *state = core_pin(core, ino);
    bool durable =
        flush_marks_is_clean(core->flush_marks, ino, datasync) && !(state && !datasync && times_need_applying(state));
    if (state) {
        file_note_flush(state);
        core_unpin(state);
    }
    return durable;
}

/* The flush is done with no lock held: a write that comes meanwhile is not waited for, nor made durable. The same holds
 * for names that change after they were checked. */
int64_t file_fsync(sc_core *core, uint64_t ino, int datasync)
{
    struct open_file *opened;
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_CLOSED);
    bool needs_names = core_needs_names(core, ino);
    if (!needs_names && is_durable(core, ino, datasync))
        return 0;
    int64_t result = file_acquire(core, ino, &opened);
    if (result)
        return result;
    descriptors_release(core->descriptors, opened);
    if (needs_names)
        return SC_NEED(SC_NEED_NAMES);
    if (!datasync)
        result = apply_times_for_sync(core, ino);
    return result ? result : flush(core, ino, datasync);
}
