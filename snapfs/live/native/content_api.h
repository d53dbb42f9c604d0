/* The C interface of the live tree: names and attributes to look at, and the bytes of files, without the GIL, from any
 * number of threads.
 *
 * The extension `snapfs.live.content._content` exports one `struct sc_api` in the capsule SC_CAPSULE. A caller needs
 * Python's headers only to import it and to turn the `Core` object of a live tree (`LiveTree.native`, None on the
 * Python path) into an `sc_core *`. It keeps a reference to that object for as long as it calls.
 *
 * Every call returns a number >= 0, a negative errno (-4095..-1), or SC_NEED(kind): nothing was done, Python must act
 * first. The caller, holding no lock of ours, takes the GIL and calls `LiveTree.prepare(ino, kind)`, from any thread;
 * it returns None, or raises an OSError whose errno answers the request. Then the call is tried again, as often as it
 * returns SC_NEED: a cut may come between.
 *
 *   SC_NEED_LOAD    the file is not in memory. A stat, and some dozen microseconds of Python.
 *   SC_NEED_BEGIN   the file has not begun to change in this epoch, or is not listed in the intent log. The same; of an
 *                   old file's first change also a flush.
 *   SC_NEED_PYTHON  the file's bytes (for READ and WRITE: those that are meant) or the directory's names are not all
 *                   here, and Python decides how to fetch them. No `prepare`: the request as a whole goes to Python.
 *                   READ, WRITE and FSYNC are forwarded to pyfuse3, whose handlers can wait for
 *                   a network without a thread of ours. For the others call `LiveTree.fallocate(ino, mode, offset,
 *                   length)`, `.lseek(ino, offset, whence)`, `.copy_range(in, in_offset, out, out_offset, length)`:
 *                   they may wait, so bound the threads that wait in them. All raise OSErrors.
 *   SC_NEED_NAMES   only of `fsync`: the file's name or row is not durable. No `prepare`: `LiveTree.fsync(ino,
 *   datasync)`
 *                   does all of it, with fewer flushes than one after the other would take.
 *   SC_NEED_CLOSED  the tree is closed.
 *
 * FALLOCATE and COPY_FILE_RANGE must never be forwarded to pyfuse3, since it would answer ENOSYS once and for all. They
 * are complete here.
 *
 * Locks: lock_order.h. No caller holds a lock of ours between two calls.
 *
 * A cut has no gate. A change belongs to the epoch that its file is in, which is checked under the file's lock; a cut
 * moves the current epoch on and waits for no thread. A change in flight at that moment goes on in the old epoch, and
 * the sealer, which needs the file's lock to see the file as of the cut, sees it whole. What begins later finds that
 * the file's epoch is over, and begins the file anew. So a long pwrite delays neither a cut nor any other file.
 *
 * The GIL is not taken in any of these calls, unless a test put a `Disk` of its own in place.
 */
#ifndef SNAPFS_CONTENT_API_H
#define SNAPFS_CONTENT_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SC_CAPSULE "snapfs.live.content._content.API"
#define SC_API_VERSION 4

enum sc_need_kind { SC_NEED_LOAD = 1, SC_NEED_BEGIN, SC_NEED_PYTHON, SC_NEED_NAMES, SC_NEED_CLOSED };

#define SC_NEED(kind) (-(int64_t)(65536 + (kind)))
#define SC_IS_NEED(result) ((result) <= -65536)
#define SC_KIND(result) ((int)(-(result) - 65536))

#define SC_ROOT_INO 1

typedef struct sc_core sc_core;
struct statvfs;

struct sc_attr {
    uint64_t size;
    uint64_t blocks; /* of 512 bytes, of the backing file */
    int64_t mtime_ns, ctime_ns;
};

/* An inode of the namespace. Of a regular file size, mtime, blocks and the later ctime are `get_attr`'s. */
struct sc_inode {
    uint64_t ino, size; /* of a symlink, the length of its target; else 0 */
    int64_t atime_ns, mtime_ns, ctime_ns;
    uint32_t mode, nlink, uid, gid, rdev;
    uint64_t parent; /* of a directory, the one that holds it; itself for the root, 0 for one that was removed */
};

/* All that stat(2) shows: what `file` has goes before what the inode has of it. */
struct sc_stat {
    struct sc_inode inode;
    struct sc_attr file;
    bool is_losing; /* it has just lost a name: no listing has its attributes (losing_links.c) */
};

struct sc_name {
    const char *bytes;
    size_t length;
};

/* A new inode: `mode` has its type, `umask` counts where no ACL is inherited, `target` is a symlink's. */
struct sc_birth {
    uint64_t parent;
    struct sc_name name, target;
    uint32_t mode, umask, rdev, uid, gid;
};

/* Takes an entry of a listing; false if there is no room for it. `offset` is where the listing goes on behind it. */
typedef bool sc_add_entry(void *context, struct sc_name name, uint64_t offset, const struct sc_stat *found);

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

    /* The bytes written; fewer only where the disk filled up. The caller has dealt with setuid bits. `taken`: the
     * kernel has taken the bytes from an application, so the limit of size does not refuse them; else -EDQUOT. */
    int64_t (*write)(sc_core *, uint64_t ino, uint64_t offset, const void *buffer, size_t length, bool taken);

    /* Bytes, size, intents and (unless `datasync`) times are durable at 0. Of a file that is known to be durable
     * nothing is needed first, be it here or not. */
    int64_t (*fsync)(sc_core *, uint64_t ino, int datasync);

    /* `mode` as of fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE.
     * 0, or -EOPNOTSUPP for any other. */
    int64_t (*fallocate)(sc_core *, uint64_t ino, uint32_t mode, uint64_t offset, uint64_t length);

    /* SEEK_DATA or SEEK_HOLE: the offset found; -ENXIO at or beyond the end. -ENOSYS where the file may be open for
     * writing: the kernel sends it without writing its dirty pages back (seen on 6.18), and to report a hole where an
     * application just wrote would make copies lose data. After ENOSYS it sends none any more, and takes all files for
     * data to their end, which is never wrong. */
    int64_t (*lseek)(sc_core *, uint64_t ino, uint64_t offset, int whence);

    /* The bytes copied, which may be fewer than requested; 0 at the end of the source. -EINVAL for overlapping ranges
     * of one file. On SC_NEED `*need_ino` is the file that is meant. */
    int64_t (*copy_range)(sc_core *, uint64_t in, uint64_t in_offset, uint64_t out, uint64_t out_offset,
                          uint64_t length, uint64_t *need_ino);

    /* What a SETATTR of times alone does, as the kernel sends it when it writes an inode back. `mtime_ns` may be NULL.
     * */
    int64_t (*set_times)(sc_core *, uint64_t ino, const int64_t *mtime_ns, int64_t ctime_ns);

    /* Size and times as they are, and the blocks in use. */
    int64_t (*get_attr)(sc_core *, uint64_t ino, struct sc_attr *attr);

    /* Count an open or a release. The counts are the tree's own (`LiveTree.open`): mix them freely. A
     * release returns how often the file is still open. */
    int64_t (*open)(sc_core *, uint64_t ino, int writing);
    int64_t (*release)(sc_core *, uint64_t ino, int writing);

    /* Borrow the descriptor for reading; every 0 is given back once, soon, by `give_back`. */
    int64_t (*lend)(sc_core *, uint64_t ino, struct sc_lent *lent);
    void (*give_back)(sc_core *, struct sc_lent *lent);

    /* 1 if the name or row of an inode, or names in it, may not be durable; 0 if they surely are. */
    int64_t (*needs_names)(sc_core *, uint64_t ino);

    /* Looks at names and attributes (names.h): 0 or a length, or the errno that Linux gives. Of these SC_NEED always means
     * that Python answers the request as a whole. */
    int64_t (*find_inode)(sc_core *, uint64_t ino, struct sc_inode *row);
    int64_t (*stat)(sc_core *, uint64_t ino, struct sc_stat *found);
    int64_t (*lookup)(sc_core *, uint64_t parent, const char *name, size_t length, struct sc_stat *found);
    int64_t (*parent_of)(sc_core *, uint64_t directory, uint64_t *parent);

    /* The length of the target, of which as much as fits is copied. */
    int64_t (*readlink)(sc_core *, uint64_t ino, char *target, size_t size);

    /* Entries behind `offset` (0: from the beginning, "." and ".." first) until `add` takes no more. An error may come
     * after some were taken: these count. */
    int64_t (*list)(sc_core *, uint64_t directory, uint64_t offset, sc_add_entry *add, void *context);

    /* The length of the value, or of all names with a zero behind each, of which nothing more than `size` is copied. */
    int64_t (*getxattr)(sc_core *, uint64_t ino, const char *name, size_t length, char *value, size_t size);
    int64_t (*listxattr)(sc_core *, uint64_t ino, int with_trusted, char *names, size_t size);

    /* Changes of names (names_writer.h), each done and answerable at 0. `unique` is the kernel's number of the request, which
     * the change notes with it. SC_NEED means as of a look. */
    int64_t (*create)(sc_core *, const struct sc_birth *, uint64_t unique, struct sc_stat *made);
    int64_t (*link)(sc_core *, uint64_t ino, uint64_t parent, struct sc_name name, uint64_t unique,
                    struct sc_stat *found);
    int64_t (*remove)(sc_core *, uint64_t parent, struct sc_name name, bool is_directory, uint64_t unique);
    int64_t (*rename)(sc_core *, uint64_t parent, struct sc_name name, uint64_t new_parent, struct sc_name new_name,
                      uint32_t flags, uint64_t unique);

    /* 1 if an inode may have lost its last name: then Python must know that the kernel forgets it. */
    int64_t (*may_be_orphan)(sc_core *, uint64_t ino);

    /* Of the host filesystem that has the bytes, or what is left of the limit of size. */
    int64_t (*statfs)(sc_core *, struct statvfs *host);

    /* 1 if a write(2) that begins now is to be refused, for the limit of size is passed; else 0. */
    int64_t (*refuses_writes)(sc_core *, uint64_t ino);
};

#endif
