/* The inside of snapfs.live.content._content: the structures its files share. For callers from outside there is
 * content_api.h.
 *
 * Objects are Python objects, so that the Python code which orchestrates the rare steps (content.py, epochs.py, cut.py)
 * holds and replaces them as it does their Python twins; references are counted with the GIL, always. The hot steps
 * reach them without it; what keeps an object alive meanwhile:
 *
 *   FileState   is pinned (`users`) as it is looked up; it is taken out of the table only while it is not pinned.
 *   DirtyMap, Frozen of a state   are replaced and used with the file's lock held.
 *   LogFile     is pinned as it is looked up; it is closed when no pin is left.
 *   all others  are referenced by the Core, which its user references.
 *
 * Names: `lower_snake` for functions, with the struct or the file they belong to as prefix where other files call them
 * (`dirty_mark`, `core_pin`): called with or without the GIL, which they never take. `Type_method` (`Core_publish`) for
 * methods, fields and slots of Python types alone: called with the GIL, which they release for whatever may wait.
 */
#ifndef SNAPFS_CONTENT_H
#define SNAPFS_CONTENT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "content_api.h"

#define BLOCK_SHIFT 12
#define BLOCK_SIZE (1u << BLOCK_SHIFT)
#define CHUNK_SHIFT 16
#define CHUNK_SIZE (1u << CHUNK_SHIFT)
#define CHUNK_BLOCKS 16u
#define FULL_MASK 0xffffu
#define NO_FLOOR (1ull << 52)
#define MAX_OFFSET ((uint64_t)INT64_MAX)

static inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }
static inline uint64_t chunks_of(uint64_t size) { return (size >> CHUNK_SHIFT) + ((size & (CHUNK_SIZE - 1)) != 0); }

/* Result of a step that left a Python exception (of a test's Disk) to be raised: an errno that no system call gives. */
#define RAISED (-4095)

/* -- map.c: numbers by number */

struct map {
    uint64_t *slots; /* pairs of key and value; NULL while empty */
    size_t count, capacity;
};
#define MAP_FREE UINT64_MAX

uint64_t *map_find(const struct map *, uint64_t key); /* its value; NULL if there is none */
uint64_t *map_put(struct map *, uint64_t key); /* as found, or a new 0; NULL if memory is out */
bool map_remove(struct map *, uint64_t key);
void map_clear(struct map *);
#define MAP_EACH(map, i)                         \
    for (size_t i = 0; i < (map)->capacity; i++) \
        if ((map)->slots[2 * i] != MAP_FREE)
#define MAP_KEY(map, i) ((map)->slots[2 * (i)])
#define MAP_VALUE(map, i) ((map)->slots[2 * (i) + 1])

#include "names_writer.h"

/* -- dirty.c: which blocks of one file changed */

struct dirty {
    struct map masks;
    uint64_t floor, reach;
    bool whole;
};

typedef struct {
    PyObject_HEAD
    struct dirty map;
} DirtyMap;

void dirty_init(struct dirty *);
void dirty_free(struct dirty *);
bool dirty_covers(const struct dirty *, uint64_t chunk);
bool dirty_has(const struct dirty *, uint64_t offset, uint64_t length);
bool dirty_is_clean(const struct dirty *);
int64_t dirty_mark(struct dirty *, uint64_t offset, uint64_t length); /* chunks that are new in it, or -ENOMEM */
void dirty_lower(struct dirty *, uint64_t floor, uint64_t reach);
void dirty_mark_whole(struct dirty *);
int dirty_join(struct dirty *, const struct dirty *); /* 0 or -ENOMEM */
uint64_t *dirty_sorted(const struct dirty *, size_t *count); /* listed chunks ascending; to be freed */

/* What an extension makes dirty of itself: a floor, and `count` blocks from `first` on. */
struct growth {
    uint64_t floor, first, count;
};
struct growth dirty_growth(const struct dirty *, uint64_t size, uint64_t new_size);

/* The mask of the blocks of `chunk` that [offset, offset + length) touches; `length` is not 0. */
static inline uint32_t mask_in(uint64_t chunk, uint64_t offset, uint64_t length)
{
    uint64_t first = offset >> BLOCK_SHIFT, last = (offset + length - 1) >> BLOCK_SHIFT, base = chunk * CHUNK_BLOCKS;
    uint32_t low = first > base ? (uint32_t)(first - base) : 0;
    uint32_t high = last < base + CHUNK_BLOCKS - 1 ? (uint32_t)(last - base) : CHUNK_BLOCKS - 1;
    return (FULL_MASK >> (CHUNK_BLOCKS - 1 - high + low)) << low;
}

/* -- disk.c: durable acts, which a test may want to see */

struct disk {
    PyObject *object; /* a snapfs.base.blocks.Disk */
    atomic_bool hooked; /* it is not the plain one: call it, with the GIL */
};

int disk_init(struct disk *, PyObject *object); /* with the GIL */
void disk_free(struct disk *); /* with the GIL */
void disk_check_hook(struct disk *); /* with the GIL: whether it is plain may have changed */
int disk_pwrite(struct disk *, const char *label, int fd, const void *data, size_t length, uint64_t offset);
int disk_sync(struct disk *, const char *label, int fd, bool times); /* 0, -errno or RAISED, as above */
int64_t disk_pwrite_all(int fd, const void *data, size_t length, uint64_t offset);

/* -- guard.c: locks as Python sees them, and waiting for them */

void guard_lock(pthread_mutex_t *); /* with the GIL, which is released while the lock is waited for */
PyObject *guard_new(PyObject *owner, pthread_mutex_t *);

/* -- intents.c: the tail of an intent log */

enum { KIND_LIST = 1, KIND_BLOCKS = 2, KIND_FLOOR = 3, KIND_WHOLE = 4, KIND_TIMES = 5 };
#define RECORD_SIZE 32

typedef struct {
    PyObject_HEAD
    struct disk disk;
    pthread_mutex_t lock;
    int fd;
    atomic_ullong end;
    atomic_uint users;
    Py_buffer slot; /* two words of the mark (intents_mark.py); the second counts the records. obj is NULL: none */
    uint64_t sequence;
} LogFile;

void intents_pack_record(unsigned char *at, int kind, uint64_t ino, uint64_t a, uint64_t b);
int log_file_append(LogFile *, const char *label, const void *records, size_t length); /* 0, -errno or RAISED */

/* -- preserve.c: blocks kept for the open cut */

typedef struct {
    PyObject_HEAD
    struct disk disk;
    pthread_rwlock_t lock; /* for writing: opening and closing the file */
    char *file;
    int fd;
    atomic_bool closed;
    atomic_ullong slots;
} SlotFile;

typedef struct {
    PyObject_HEAD
    uint64_t ino, size;
    int64_t mtime_ns, ctime_ns;
    DirtyMap *dirty, *inherited; /* inherited may be NULL; neither changes */
    PyObject *path, *scratch; /* changed with the GIL and the latch */
    SlotFile *slots; /* those of scratch */
    pthread_mutex_t latch;
    struct map chunks; /* chunk -> what became of it, see preserve.c */
    atomic_bool detached, spoiled;
    Py_ssize_t readers;
} Frozen;

bool frozen_covers(const Frozen *, uint64_t chunk);
int frozen_preserve(Frozen *, int fd, uint64_t offset, uint64_t length); /* 0 or RAISED */

/* -- descriptors.c: open backing files */

struct open_file {
    struct open_file *newer, *older;
    uint64_t key;
    int fd;
    unsigned pins;
    bool dropped;
};

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
    char *root;
    struct map open; /* key -> struct open_file * */
    struct open_file *newest, *oldest;
    size_t limit;
    uint64_t drops;
    struct open_file *owner_file; /* what `get` gave last */
} Descriptors;

int descriptors_open(Descriptors *, uint64_t key, int flags, struct open_file **); /* with flags: anew */
int descriptors_acquire(Descriptors *, uint64_t key, struct open_file **); /* 0 or -errno */
void descriptors_release(Descriptors *, struct open_file *);
void descriptors_drop(Descriptors *, uint64_t key); /* its path means another file from now on */
void descriptors_shrink(Descriptors *, size_t divisor); /* close all but one in `divisor`; 0: all */
bool descriptors_has_file(Descriptors *, uint64_t key); /* open or not */
struct statx;
int descriptors_stat(Descriptors *, uint64_t key, unsigned mask, struct statx *); /* by its path; errno if it fails */

/* -- states.c: files in memory */

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
    atomic_uint users;
    atomic_bool is_absent, times_pending, wrote, beyond_limit; /* the last: size_limit.c */
    atomic_uchar unsynced, eager; /* see files.c */
    atomic_ullong epoch, size;
    atomic_llong mtime_ns, ctime_ns;
    uint64_t ino;
    DirtyMap *dirty;
    PyObject *inherited; /* DirtyMap or NULL */
    Frozen *frozen;
    PyObject *absent; /* NULL if all of it is here */
    Py_buffer present; /* of a partly present file: a bit for each chunk that is here. obj is NULL: none, or not yet */
    uint64_t present_chunks; /* beyond them all is here */
    atomic_bool knows_present; /* stored after the two above, which do not change then */
} FileState;

bool state_has(FileState *, uint64_t offset, uint64_t length); /* whether these bytes are here */

#define SHARDS 64

struct shard {
    _Alignas(64) pthread_mutex_t lock;
    struct map states; /* ino -> FileState * */
};

/* -- attr_cache.c: inodes of the namespace */

#define ATTR_CACHE_SLOTS 16384 /* a power of two */

struct attr_cache {
    pthread_mutex_t lock;
    struct sc_inode *inodes; /* ino 0: none */
    uint64_t *no_xattrs;
    uint64_t generation; /* of what the namespace passed */
};

int attr_cache_open(struct attr_cache *); /* 0 or -ENOMEM; to be closed in either case */
void attr_cache_close(struct attr_cache *);
bool attr_cache_find(struct attr_cache *, uint64_t ino, struct sc_inode *);
bool attr_cache_has_no_xattrs(struct attr_cache *, uint64_t ino);
uint64_t attr_cache_generation(struct attr_cache *); /* to be taken before a look at the database begins */
void attr_cache_put(struct attr_cache *, const struct sc_inode *); /* by the thread that has the turn of the names */
void attr_cache_drop(struct attr_cache *, uint64_t ino);
void attr_cache_put_no_xattrs(struct attr_cache *, uint64_t ino);
void attr_cache_offer(struct attr_cache *, const struct sc_inode *, uint64_t generation);
void attr_cache_offer_no_xattrs(struct attr_cache *, uint64_t ino, uint64_t generation);

/* -- flush_marks.c: which files have something to flush */

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
    struct map marks; /* ino -> mark */
    uint64_t newest; /* number of the newest mark */
    uint64_t trust_from; /* only a sync of everything that began at or after this number makes them trusted */
    bool trusted, failed;
} FlushMarks;

void flush_marks_begin(FlushMarks *, uint64_t ino, bool held); /* before a change... */
void flush_marks_end(FlushMarks *, uint64_t ino); /* ...and after it */
bool flush_marks_is_clean(FlushMarks *, uint64_t ino, bool datasync);
uint64_t flush_marks_begin_sync(FlushMarks *); /* before the file is opened */
void flush_marks_end_sync(FlushMarks *, uint64_t ino, uint64_t begun, bool datasync);
void flush_marks_fail(FlushMarks *);

/* -- core.c: what the hot steps share */

struct sc_core {
    PyObject_HEAD
    struct shard *shards;
    atomic_ullong epoch, chunks, written; /* `written`: bytes of all changes in this life */
    atomic_llong size_limit, used; /* size_limit.c */
    pthread_mutex_t log_lock; /* guards log */
    LogFile *log;
    Descriptors *descriptors;
    FlushMarks *flush_marks;
    struct disk disk;
    SlotFile *slots; /* of the newest cut: what a test puts over its Disk is looked for, too */
    pthread_mutex_t pending_lock;
    struct map pending; /* ino -> FileState *, of those whose times the backing file does not have yet */
    pthread_mutex_t opens_lock;
    struct map opens; /* ino -> opens in the lower half, those for writing in the upper */
    atomic_bool opens_unknown; /* there may be more */
    pthread_mutex_t names_lock;
    struct map changed; /* ino -> number of the transaction that changed its row or names last */
    struct map unsynced_names; /* inos whose backing file's name may not be durable */
    uint64_t changed_floor;
    uint64_t names_synced, names_newest;
    struct attr_cache attr_cache;
    struct names_readers readers;
    struct names_writer writer;
    atomic_uint_fast64_t losing[LOSING_SLOTS]; /* inode and second */
    uint64_t max_bytes; /* the host's limits (limits.py): of a file's size, and of its times */
    int64_t time_min_ns, time_max_ns;
    atomic_bool closed;
};

FileState *core_pin(sc_core *, uint64_t ino); /* NULL if it is not known */
void core_unpin(FileState *);
int core_append(sc_core *, const void *records, size_t length); /* to the current log */
void core_set_pending(sc_core *, FileState *, bool pending); /* with the file's lock held */

/* -- counts.c: opens, and names that are not durable */

bool core_needs_names(sc_core *, uint64_t ino);
int64_t core_count_open(sc_core *, uint64_t ino, int writing, int step); /* how many opens are left */
bool core_may_be_written(sc_core *, uint64_t ino); /* through a descriptor that is open */

/* The bytes of a known file are lost if its backing file is. */
static inline int64_t lost_file_error(int result) { return result == -ENOENT ? -EIO : result; }

/* -- change.c: one change of one file */

/* A file to be changed: pinned, locked, begun in the current epoch and open. */
struct change {
    FileState *state;
    struct open_file *opened;
    int fd;
};

int64_t change_begin(sc_core *, uint64_t ino, struct change *); /* 0, or the call's result */
int64_t change_begin_overwrite(sc_core *, uint64_t ino, uint64_t offset, uint64_t length, struct change *);
void change_end(sc_core *, struct change *);
int change_preserve(struct change *, uint64_t offset, uint64_t length);
int change_mark(sc_core *, struct change *, uint64_t offset, uint64_t length); /* growth included */
int change_mark_growth(sc_core *, struct change *, uint64_t new_size);
int change_stamp(sc_core *, struct change *); /* before the host's own stamp */

/* -- size_limit.c: the limit of the live tree's size */

void size_limit_resize(sc_core *, FileState *, uint64_t size); /* with the file's lock held */
bool size_limit_allows(sc_core *, FileState *, uint64_t end); /* whether the file may grow so far */
bool size_limit_is_reached(sc_core *); /* then nothing new is made */
int64_t size_limit_refuses(sc_core *, uint64_t ino); /* 1: a write(2) that begins now is to be refused */
void size_limit_show(sc_core *, struct statvfs *host); /* makes the host's room what is left of the limit */

/* -- files.c, times.c, ranges.c: the hot steps */

int64_t file_acquire(sc_core *, uint64_t ino, struct open_file **); /* open a file that is all here, for reading */
int64_t file_read(sc_core *, uint64_t ino, uint64_t offset, void *buffer, size_t length);
void file_note_flush(FileState *);
int64_t file_write(sc_core *, uint64_t ino, uint64_t offset, const void *buffer, size_t length, bool taken);
int64_t file_fsync(sc_core *, uint64_t ino, int datasync);
int64_t file_set_times(sc_core *, uint64_t ino, const int64_t *mtime_ns, int64_t ctime_ns);
int64_t file_apply_times(sc_core *, FileState *, int fd); /* 1 if they were pending; takes the file's lock */
int64_t file_get_attr(sc_core *, uint64_t ino, struct sc_attr *);
int64_t file_fallocate(sc_core *, uint64_t ino, uint32_t mode, uint64_t offset, uint64_t length);
int64_t file_lseek(sc_core *, uint64_t ino, uint64_t offset, int whence);
int64_t file_copy_range(sc_core *, uint64_t in, uint64_t in_offset, uint64_t out, uint64_t out_offset, uint64_t length,
                        uint64_t *need_ino);

extern PyTypeObject DirtyMapType, LogFileType, SlotFileType, FrozenType, DescriptorsType, FileStateType, CoreType,
    FlushMarksType, GuardType;
/* core_methods.c, counts.c, attr_cache.c, names_methods.c, names_sharing.c, size_limit.c */
extern PyMethodDef core_file_methods[], core_count_methods[], core_attr_cache_methods[], core_names_methods[],
    core_sharing_methods[], core_size_limit_methods[];
extern const struct sc_api content_api; /* module.c */

PyObject *content_raise(int64_t result); /* an OSError for a negative errno, or what RAISED left */

#ifdef SNAPFS_TEST /* test_hooks.c */
extern _Atomic int test_write_error; /* what every write to a backing file fails with; 0: nothing */
extern PyMethodDef test_hook_functions[];
#endif

#endif
