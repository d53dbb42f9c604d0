/* What the native data path offers to C callers: the bytes of files, without the GIL, from any number of threads.
 *
 * The extension `snapfs.live._content` exports one `struct sc_api` in the capsule SC_CAPSULE. A caller needs Python's
 * headers only to import it and to turn the `Core` object of a live tree (`LiveTree.native`, None on the Python path)
 * into an `sc_core *`. It keeps a reference to that object for as long as it calls.
 *
 * Every call returns a number >= 0, a negative errno (-4095..-1), or SC_NEED(kind): nothing was done, Python must act first. The caller, holding no lock of ours, takes the GIL and calls
 * `LiveTree.prepare(ino, kind)`, from whatever thread; it returns None, or raises an OSError whose errno answers the
 * request. Then the call is tried again, as often as it asks: a cut may come between.
 *
 *   SC_NEED_LOAD    the file is not known in memory. A stat, and some dozen microseconds of Python.
 *   SC_NEED_BEGIN   the file has not begun to change in this epoch, or is not listed in the intent log. The same; of an
 *                   old file's first change also a flush.
 *   SC_NEED_PYTHON  the file's bytes are not all here, and how to bring them in is Python's to say. No `prepare`: the
 *                   request as a whole goes to Python. READ, WRITE and FSYNC are forwarded to pyfuse3, whose handlers
 *                   can wait for a network without a thread of ours. For the others call `LiveTree.fallocate(ino, mode,
 *                   offset, length)`, `.lseek(ino, offset, whence)`, `.copy_range(in, in_offset, out, out_offset,
 *                   length)`: they may wait, so bound the threads that wait in them. All raise OSErrors.
 *   SC_NEED_NAMES   only of `fsync`: the file's name or row is not durable. No `prepare`: `LiveTree.fsync(ino, datasync)` does
 *                   all of it, with fewer flushes than one after the other would take.
 *   SC_NEED_CLOSED  the tree is closed.
 *
 * What must never be forwarded to pyfuse3, since it would answer ENOSYS once and for all: FALLOCATE and COPY_FILE_RANGE.
 * They are complete here.
 *
 * Locks, in this order; a thread that waits for one of them, or sleeps, with the GIL in its hands is a defect:
 *
 *   1. the file's lock (one per known file; every change of the file holds it, from its epoch check to its last step)
 *   2. Content.latch (Python's tables: taken by Python alone, and never held while waiting for a file's lock)
 *   3. Frozen.latch
 *   4. Scratch's lock
 *   5. a log's append lock
 *   leaves, held for no system call: the table's shards, the descriptor cache, the epoch's word.
 *
 * There is no gate. A change belongs to the epoch that its file is in, which is looked at under the file's lock; a cut
 * moves the current epoch on and waits for nobody. A change in flight at that moment goes on in the old epoch, and the
 * sealer, which needs the file's lock to see the file as of the cut, sees it whole. What begins later finds
 * that the file's epoch is over, and begins the file anew. So a long pwrite delays neither a cut nor any other file.
 *
 * The GIL is not taken in any of these calls, unless a test put a `Disk` of its own in place.
 */
#ifndef SNAPFS_CONTENT_API_H
#define SNAPFS_CONTENT_API_H

#include <stddef.h>
#include <stdint.h>

#define SC_CAPSULE "snapfs.live._content.API"
#define SC_API_VERSION 2

enum sc_need_kind { SC_NEED_LOAD = 1, SC_NEED_BEGIN, SC_NEED_PYTHON, SC_NEED_NAMES, SC_NEED_CLOSED };

#define SC_NEED(kind) (-(int64_t)(65536 + (kind)))
#define SC_IS_NEED(result) ((result) <= -65536)
#define SC_KIND(result) ((int)(-(result) - 65536))

typedef struct sc_core sc_core;

struct sc_attr {
    uint64_t size;
    uint64_t blocks; /* of 512 bytes, of the backing file */
    int64_t mtime_ns, ctime_ns;
};

/* What the namespace says of an inode. Of a regular file size, mtime, blocks and the later ctime are `get_attr`'s. */
struct sc_row {
    uint64_t ino, size; /* of a symlink, the length of its target; else 0 */
    int64_t atime_ns, mtime_ns, ctime_ns;
    uint32_t mode, nlink, uid, gid, rdev;
};

/* A backing file that stays open until it is given back, for splice(2) and the like. For reading only. */
struct sc_lent {
    int fd;
    void *pin;
};

struct sc_api {
    uint32_t version; /* SC_API_VERSION */
    uint32_t bytes;   /* of this struct: later fields are there if it is long enough */

    /* With the GIL: the core behind a `Core` object, NULL and an exception if it is none. No reference is taken. */
    sc_core *(*core_of)(void *py_object);

    /* Up to `length` bytes; fewer only at the end of the file. */
    int64_t (*read)(sc_core *, uint64_t ino, uint64_t offset, void *buffer, size_t length);

    /* The bytes written; fewer only where the disk filled up. The caller has dealt with setuid bits. */
    int64_t (*write)(sc_core *, uint64_t ino, uint64_t offset, const void *buffer, size_t length);

    /* Bytes, size, intents and (unless `datasync`) times are durable at 0. */
    int64_t (*fsync)(sc_core *, uint64_t ino, int datasync);

    /* `mode` as of fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE.
     * 0, or -EOPNOTSUPP for any other. */
    int64_t (*fallocate)(sc_core *, uint64_t ino, uint32_t mode, uint64_t offset, uint64_t length);

    /* SEEK_DATA or SEEK_HOLE: the offset found; -ENXIO at or beyond the end. -ENOSYS where the file may be open for
     * writing: the kernel asks without writing its dirty pages back (seen on 6.18), and to tell of a hole where an
     * application just wrote would make copies lose data. After ENOSYS it asks no more, and takes all files for data to
     * their end, which is never wrong. */
    int64_t (*lseek)(sc_core *, uint64_t ino, uint64_t offset, int whence);

    /* The bytes copied, which may be fewer than asked for; 0 at the end of the source. -EINVAL for overlapping ranges
     * of one file. On SC_NEED it is in `*needy` which of the two files is meant. */
    int64_t (*copy_range)(sc_core *, uint64_t in, uint64_t in_offset, uint64_t out, uint64_t out_offset,
                          uint64_t length, uint64_t *needy);

    /* What a SETATTR of times alone does, as the kernel sends it when it writes an inode back. `mtime_ns` may be NULL. */
    int64_t (*set_times)(sc_core *, uint64_t ino, const int64_t *mtime_ns, int64_t ctime_ns);

    /* Size and times as they are, and the blocks in use. */
    int64_t (*get_attr)(sc_core *, uint64_t ino, struct sc_attr *attr);

    /* Count an open or a release. The counts are the tree's own (`LiveTree.open`): mix them freely. */
    int64_t (*open)(sc_core *, uint64_t ino, int writing);
    int64_t (*release)(sc_core *, uint64_t ino, int writing);

    /* Borrow the descriptor for reading; every 0 is given back once, soon, by `give_back`. */
    int64_t (*lend)(sc_core *, uint64_t ino, struct sc_lent *lent);
    void (*give_back)(sc_core *, struct sc_lent *lent);

    /* 1 if the name or row of an inode, or names in it, may not be durable; 0 if they surely are. */
    int64_t (*needs_names)(sc_core *, uint64_t ino);

    /* 1 and the row of an inode as the namespace would tell it now; 0 if it is not known here. */
    int64_t (*get_row)(sc_core *, uint64_t ino, struct sc_row *row);

    /* 1 if an inode has no extended attribute; 0 if it may have some. */
    int64_t (*is_bare)(sc_core *, uint64_t ino);
};

#endif
