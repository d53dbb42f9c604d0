/* The inside of snapfs.live._content: the structures its files share. For callers from outside there is content_api.h.
 *
 * Objects are Python objects, so that the Python code which orchestrates the rare steps (content.py, epochs.py, cut.py)
 * holds and replaces them as it does their Python twins; references are counted with the GIL, always. The hot steps
 * reach them without it, and are safe from their going away like this:
 *
 *   FileState   is pinned (`users`) as it is looked up; who takes it out of the table waits for the pins.
 *   DirtyMap, Frozen of a state   are replaced by who holds the file's lock, and used by who holds it.
 *   LogFile     is pinned as it is looked up; its closing waits for the pins.
 *   all others  are held by the Core, whose user holds the Core.
 *
 * Names: a function `x_y` on the struct x is called without or with the GIL, and never takes it; `X_y` is a method for
 * Python, called with the GIL, which it releases for whatever may wait.
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

static inline uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t most(uint64_t a, uint64_t b) { return a > b ? a : b; }
static inline uint64_t chunks_of(uint64_t size) { return (size >> CHUNK_SHIFT) + ((size & (CHUNK_SIZE - 1)) != 0); }

/* Result of a step that left a Python exception (of a test's Disk) to be raised: an errno that no system call gives. */
#define RAISED (-4095)

/* -- map.c: numbers by number */

struct map {
    uint64_t *slots; /* pairs of key and value; NULL while empty */
    size_t count, capacity;
};
#define MAP_FREE UINT64_MAX

uint64_t *map_find(const struct map *, uint64_t key);     /* its value; NULL if there is none */
uint64_t *map_put(struct map *, uint64_t key);            /* as found, or a new 0; NULL if memory is out */
bool map_remove(struct map *, uint64_t key);
void map_clear(struct map *);
#define MAP_EACH(map, i) for (size_t i = 0; i < (map)->capacity; i++) if ((map)->slots[2 * i] != MAP_FREE)
#define MAP_KEY(map, i) ((map)->slots[2 * (i)])
#define MAP_VALUE(map, i) ((map)->slots[2 * (i) + 1])

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
int dirty_join(struct dirty *, const struct dirty *);                 /* 0 or -ENOMEM */
uint64_t *dirty_sorted(const struct dirty *, size_t *count);          /* listed chunks ascending; to be freed */

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
    PyObject *object;   /* a snapfs.blocks.Disk */
    atomic_bool hooked; /* it is not the plain one: ask it, with the GIL */
};

int disk_init(struct disk *, PyObject *object);  /* with the GIL */
void disk_free(struct disk *);                   /* with the GIL */
void disk_look(struct disk *);                   /* with the GIL: whether it is plain may have changed */
int disk_pwrite(struct disk *, const char *label, int fd, const void *data, size_t length, uint64_t offset);
int disk_sync(struct disk *, const char *label, int fd, bool times); /* 0, -errno or RAISED, as above */
int64_t pwrite_all(int fd, const void *data, size_t length, uint64_t offset);

/* -- guard.c: locks as Python sees them, and waiting for them */

void lock_without_gil(pthread_mutex_t *); /* with the GIL, which is let go where the lock must be waited for */
PyObject *guard_of(PyObject *owner, pthread_mutex_t *);

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
} LogFile;

void record_pack(unsigned char *at, int kind, uint64_t ino, uint64_t a, uint64_t b);
int log_append(LogFile *, const char *label, const void *records, size_t length); /* 0, -errno or RAISED */

/* -- preserve.c: blocks kept for the unsealed cut */

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
    PyObject *path, *scratch;    /* changed with the GIL and the latch */
    SlotFile *slots;             /* those of scratch */
    pthread_mutex_t latch;
    struct map chunks; /* chunk -> what became of it, see preserve.c */
    atomic_bool stolen, spoiled;
    Py_ssize_t readers;
} Frozen;

bool frozen_covers(const Frozen *, uint64_t chunk);
int frozen_preserve(Frozen *, int fd, uint64_t offset, uint64_t length); /* 0 or RAISED */

/* -- descriptors.c: open backing files */

struct opened {
    struct opened *newer, *older;
    uint64_t key;
    int fd;
    unsigned pins;
    bool dropped;
};

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
    char *root;
    struct map open; /* key -> struct opened * */
    struct opened *newest, *oldest;
    size_t limit;
    uint64_t drops;
    struct opened *owners; /* what `get` gave last */
} Descriptors;

int descriptors_acquire(Descriptors *, uint64_t key, struct opened **); /* 0 or -errno */
void descriptors_release(Descriptors *, struct opened *);
bool descriptors_has_file(Descriptors *, uint64_t key); /* open or not */

/* -- states.c: files in memory */

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
    atomic_uint users;
    atomic_bool is_absent, times_pending, wrote;
    atomic_uchar unsynced, eager; /* see files.c */
    atomic_ullong epoch, size;
    atomic_llong mtime_ns, ctime_ns;
    uint64_t ino;
    DirtyMap *dirty;
    PyObject *inherited; /* DirtyMap or NULL */
    Frozen *frozen;
    PyObject *absent; /* NULL if all of it is here */
} FileState;

#define SHARDS 64

struct shard {
    _Alignas(64) pthread_mutex_t lock;
    struct map states; /* ino -> FileState * */
};

/* -- rows.c: what the namespace says of inodes */

#define ROWS 16384 /* a power of two */

struct rows {
    pthread_mutex_t lock;
    struct sc_row *known; /* ino 0: none */
    uint64_t *bare;
};

int rows_open(struct rows *); /* 0 or -ENOMEM; to be closed in either case */
void rows_close(struct rows *);
bool rows_find(struct rows *, uint64_t ino, struct sc_row *);
bool rows_is_bare(struct rows *, uint64_t ino);

/* -- core.c: what the hot steps share */

struct sc_core {
    PyObject_HEAD
    struct shard *shards;
    atomic_ullong epoch, chunks;
    pthread_mutex_t word; /* guards log */
    LogFile *log;
    Descriptors *descriptors;
    struct disk disk;
    SlotFile *slots; /* of the newest cut: what a test puts over its Disk is looked for, too */
    pthread_mutex_t pending_lock;
    struct map pending; /* ino -> FileState *, of those whose times the backing file does not have yet */
    pthread_mutex_t opens_lock;
    struct map opens; /* ino -> opens in the lower half, those for writing in the upper */
    atomic_bool opens_unknown; /* there may be more */
    pthread_mutex_t names_lock;
    struct map changed; /* ino -> number of the transaction that changed its row or names last */
    struct map fresh;   /* inos whose backing file's name may not be durable */
    uint64_t changed_floor;
    uint64_t names_synced, names_newest;
    struct rows rows;
    atomic_bool closed;
};

FileState *core_pin(sc_core *, uint64_t ino); /* NULL if it is not known */
void core_unpin(FileState *);
int core_append(sc_core *, const void *records, size_t length); /* to the current log */
void core_set_pending(sc_core *, FileState *, bool pending); /* with the file's lock held */

/* -- counts.c: opens, and names that are not durable */

bool core_needs_names(sc_core *, uint64_t ino);
int64_t core_count_open(sc_core *, uint64_t ino, int writing, int step); /* how many opens are left */
bool core_may_be_written(sc_core *, uint64_t ino);                       /* through a descriptor that is open */

/* -- files.c, ranges.c: the hot steps */

/* A file to be changed: pinned, locked, begun in the current epoch and open. */
struct change {
    FileState *state;
    struct opened *opened;
    int fd;
};

int64_t change_begin(sc_core *, uint64_t ino, struct change *); /* 0, or the call's result */
void change_end(sc_core *, struct change *);
int change_preserve(struct change *, uint64_t offset, uint64_t length);
int change_mark(sc_core *, struct change *, uint64_t offset, uint64_t length); /* growth included */
int change_mark_growth(sc_core *, struct change *, uint64_t new_size);

int64_t file_reach(sc_core *, uint64_t ino, struct opened **); /* open a file that is all here, for reading */
int64_t file_read(sc_core *, uint64_t ino, uint64_t offset, void *buffer, size_t length);
int64_t file_write(sc_core *, uint64_t ino, uint64_t offset, const void *buffer, size_t length);
int64_t file_fsync(sc_core *, uint64_t ino, int datasync);
int64_t file_set_times(sc_core *, uint64_t ino, const int64_t *mtime_ns, int64_t ctime_ns);
int64_t file_apply_times(sc_core *, FileState *, int fd); /* 1 if they were pending; takes the file's lock */
int64_t file_get_attr(sc_core *, uint64_t ino, struct sc_attr *);
int64_t file_fallocate(sc_core *, uint64_t ino, uint32_t mode, uint64_t offset, uint64_t length);
int64_t file_lseek(sc_core *, uint64_t ino, uint64_t offset, int whence);
int64_t file_copy_range(sc_core *, uint64_t in, uint64_t in_offset, uint64_t out, uint64_t out_offset, uint64_t length,
                        uint64_t *needy);

extern PyTypeObject DirtyMapType, LogFileType, SlotFileType, FrozenType, DescriptorsType, FileStateType, CoreType, GuardType;
extern PyMethodDef core_file_methods[], core_count_methods[], core_row_methods[]; /* methods.c, counts.c, rows.c */
extern const struct sc_api content_api;  /* module.c */

PyObject *raise_result(int64_t result); /* an OSError for a negative errno, or what RAISED left */
extern _Atomic int broken_writes; /* of a test: the errno that every write to a backing file gives; 0: none */

#endif
