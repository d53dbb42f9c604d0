/* Changes of ranges that carry no bytes from the caller: fallocate and copy_file_range; and SEEK_DATA, SEEK_HOLE.
 *
 * The twin of snapfs/live/content/ranges.py. The steps are those of a write (files.c), with two savings: what is a hole
 * already needs no preserving and does not become dirty by being zeroed, and what only reserves room changes no bytes.
 *
 * After a failure the host may have changed the size, as when the disk fills up half-way: so it is read again. The
 * marks were made before, for all of the range.
 */
#define _GNU_SOURCE
#include "content.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_AT_ONCE (64ull << 20)
#define BUFFER_BYTES (256u << 10)
#define ZERO_KINDS (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)

static void update_size(sc_core *core, struct change *change)
{
    struct stat found;
    if (!fstat(change->fd, &found))
        size_limit_resize(core, change->state, (uint64_t)found.st_size);
}

/* Preserve and mark what has data in [offset, end). */
static int preserve_data(sc_core *core, struct change *change, uint64_t offset, uint64_t end)
{
    while (offset < end) {
        off_t from = lseek(change->fd, (off_t)offset, SEEK_DATA);
        off_t to = from < 0 || (uint64_t)from >= end ? -1 : lseek(change->fd, from, SEEK_HOLE);
        if (from < 0 && errno != ENXIO)
            return -errno;
        if (to < 0)
            return 0;
        uint64_t stop = min_u64((uint64_t)to, end);
        int result = change_preserve(change, (uint64_t)from, stop - (uint64_t)from);
        if (!result)
            result = change_mark(core, change, (uint64_t)from, stop - (uint64_t)from);
        if (result)
            return result;
        offset = stop;
    }
    return 0;
}

static int reserve(int fd, int mode, uint64_t offset, uint64_t length)
{
    int result;
    do
        result = fallocate(fd, mode, (off_t)offset, (off_t)length);
    while (result && errno == EINTR);
    return result ? -errno : 0;
}

/* A host that cannot zero a range can punch it, and reserve it again. */
static int zero_range(int fd, int mode, uint64_t offset, uint64_t length)
{
    int result = reserve(fd, mode, offset, length);
    if (result != -EOPNOTSUPP || !(mode & FALLOC_FL_ZERO_RANGE))
        return result;
    result = reserve(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    return result ? result : reserve(fd, mode & FALLOC_FL_KEEP_SIZE, offset, length);
}

int64_t file_fallocate(sc_core *core, uint64_t ino, uint32_t mode, uint64_t offset, uint64_t length)
{
    struct change change;
    bool keeps_size = mode & FALLOC_FL_KEEP_SIZE;
    if (!length)
        return -EINVAL;
    if (mode & ~(uint32_t)(ZERO_KINDS | FALLOC_FL_KEEP_SIZE) || (mode & ZERO_KINDS) == ZERO_KINDS)
        return -EOPNOTSUPP;
    if (mode & FALLOC_FL_PUNCH_HOLE && !keeps_size)
        return -EOPNOTSUPP;
    if (offset > core->max_bytes || length > core->max_bytes - offset)
        return -EFBIG;
    int64_t result = change_begin(core, ino, &change);
    if (result)
        return result;
    uint64_t size = atomic_load(&change.state->size);
    if (!(mode & FALLOC_FL_PUNCH_HOLE) && !size_limit_allows(core, change.state, offset + length))
        result = -EDQUOT;
    if (!result && mode & ZERO_KINDS)
        result = preserve_data(core, &change, offset, min_u64(offset + length, size));
    if (!result && !keeps_size && offset + length > size)
        result = change_mark_growth(core, &change, offset + length);
    if (!result)
        result = change_stamp(core, &change);
    if (!result) {
        result = zero_range(change.fd, (int)mode, offset, length);
        update_size(core, &change);
    }
    change_end(core, &change);
    return result;
}

int64_t file_lseek(sc_core *core, uint64_t ino, uint64_t offset, int whence)
{
    struct sc_lent lent;
    if (whence != SEEK_DATA && whence != SEEK_HOLE)
        return -EINVAL;
    if (offset > MAX_OFFSET)
        return -ENXIO;
    int64_t result = content_api.lend(core, ino, &lent);
    if (result)
        return result;
    off_t found = lseek(lent.fd, (off_t)offset, whence);
    result = found < 0 ? -errno : found;
    content_api.give_back(core, &lent);
    return result;
}

/* -- copies */

static int64_t copy_by_hand(int from, uint64_t in_offset, int to, uint64_t out_offset, uint64_t length)
{
    char *buffer = malloc(BUFFER_BYTES);
    int64_t done = 0, result = buffer ? 0 : -ENOMEM;
    while (!result && (uint64_t)done < length) {
        uint64_t at = (uint64_t)done;
        ssize_t step = pread(from, buffer, min_u64(BUFFER_BYTES, length - at), (off_t)(in_offset + at));
        if (step <= 0) {
            result = step < 0 ? -errno : 0;
            break;
        }
        result = disk_pwrite_all(to, buffer, (size_t)step, out_offset + at);
        done += result ? 0 : step;
    }
    free(buffer);
    return done ? done : result;
}

static int64_t copy(int from, uint64_t in_offset, int to, uint64_t out_offset, uint64_t length)
{
    uint64_t done = 0;
    while (done < length) {
        loff_t in = (loff_t)(in_offset + done), out = (loff_t)(out_offset + done);
        ssize_t step = copy_file_range(from, &in, to, &out, length - done, 0);
        if (step > 0) {
            done += (uint64_t)step;
            continue;
        }
        bool cannot = step < 0 && (errno == EXDEV || errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL);
        if (cannot && !done)
            return copy_by_hand(from, in_offset, to, out_offset, length);
        return done ? (int64_t)done : step < 0 ? -errno : 0;
    }
    return (int64_t)done;
}

static int64_t copy_into(sc_core *core, struct change *change, int from, uint64_t in_offset, uint64_t out_offset,
                         uint64_t length)
{
    struct stat source;
    if (fstat(from, &source))
        return -errno;
    if (in_offset >= (uint64_t)source.st_size)
        return 0;
    length = min_u64(length, (uint64_t)source.st_size - in_offset);
    int64_t result = size_limit_allows(core, change->state, out_offset + length) ? 0 : -EDQUOT;
    if (!result)
        result = change_preserve(change, out_offset, length);
    if (!result)
        result = change_mark(core, change, out_offset, length);
    if (!result)
        result = change_stamp(core, change);
    if (!result) {
        result = copy(from, in_offset, change->fd, out_offset, length);
        if (result > 0)
            atomic_fetch_add_explicit(&core->written, (uint64_t)result, memory_order_relaxed);
        update_size(core, change);
    }
    return result;
}

int64_t file_copy_range(sc_core *core, uint64_t in, uint64_t in_offset, uint64_t out, uint64_t out_offset,
                        uint64_t length, uint64_t *need_ino)
{
    struct sc_lent lent;
    struct change change;
    length = min_u64(length, COPY_AT_ONCE);
    if (in_offset > MAX_OFFSET || length > MAX_OFFSET - in_offset || out_offset >= core->max_bytes)
        return -EFBIG;
    length = min_u64(length, core->max_bytes - out_offset);
    if (in == out && in_offset < out_offset + length && out_offset < in_offset + length)
        return length ? -EINVAL : 0;
    *need_ino = in;
    int64_t result = content_api.lend(core, in, &lent);
    if (result)
        return result;
    *need_ino = out;
    result = change_begin(core, out, &change);
    if (!result) {
        result = length ? copy_into(core, &change, lent.fd, in_offset, out_offset, length) : 0;
        change_end(core, &change);
    }
    content_api.give_back(core, &lent);
    return result;
}
