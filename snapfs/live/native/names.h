/* The names of the live tree as C reads them: connections of its own to the namespace's database, for reading alone.
 *
 * Invariants:
 * 1. A change is committed before it is answered, and each look here is one statement, which sees all that was committed
 *    before it began. So what is answered here is never older than what was answered before.
 * 2. These connections are of the library that Python's are of (`open_names` checks it), since a second copy of SQLite in
 *    one process would drop the first one's POSIX locks (schema.py, invariant 4). They only read, never write back the
 *    log, and are closed before the writer's.
 * 3. What is not a plain answer is Python's to give: SC_NEED_PYTHON, and nothing has happened. That is so of a directory
 *    whose names are only in the store, of bytes that are, and of whatever SQLite or the host reports as an error.
 */
#ifndef SNAPFS_NAMES_H
#define SNAPFS_NAMES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "content_api.h"

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;

enum names_query {
    QUERY_INODE,
    QUERY_LOOKUP,
    QUERY_UNLOADED,
    QUERY_LIST,
    QUERY_NEWEST,
    QUERY_LAST,
    QUERY_TARGET,
    QUERY_ABSENT,
    QUERY_XATTR,
    QUERY_XATTRS,
    QUERIES
};

#define NAME_BYTES 255
#define TARGET_BYTES 4095 /* TARGET_MAX in limits.py, as LINKS_MAX */
#define LINKS_MAX INT32_MAX

struct names_reader {
    struct names_reader *next;
    sqlite3 *db;
    sqlite3_stmt *statements[QUERIES]; /* prepared at their first use */
};

struct names_readers {
    pthread_mutex_t lock; /* guards idle, busy, is_open */
    struct names_reader *idle; /* the one that was used last comes first: it has pages in memory */
    unsigned busy;
    bool is_open;
    char *path;
    char *live_dir;
    atomic_bool lazy; /* there may be directories whose names are only in the store */
};

/* names_readers.c */
void names_readers_init(struct names_readers *);
void names_readers_free(struct names_readers *);
void names_readers_close(struct names_readers *); /* waits for those in use; without the GIL */
int names_readers_open(struct names_readers *, const char *path, const char *live_dir, const char *sqlite_module);
struct names_reader *names_reader_take(struct names_readers *); /* NULL: there is none to be had */
void names_reader_give(struct names_readers *, struct names_reader *);
sqlite3_stmt *names_begin(struct names_reader *, enum names_query, uint64_t first); /* bound; NULL if it cannot be */
void names_end(sqlite3_stmt *);
int64_t names_step(sqlite3_stmt *); /* 1: there is a row; 0: there is none (any more); SC_NEED_PYTHON */

/* names_lookup.c */
void names_row(sqlite3_stmt *, struct sc_inode *);
int64_t names_copy(sqlite3_stmt *, int column, char *buffer, size_t size);
int64_t names_inode(sc_core *, struct names_reader *, uint64_t ino, struct sc_inode *);
int64_t names_find_inode(sc_core *, uint64_t ino, struct sc_inode *); /* 0, -ESTALE, SC_NEED_PYTHON */
int64_t names_stat(sc_core *, uint64_t ino, struct sc_stat *);
int64_t names_lookup(sc_core *, uint64_t parent, const char *name, size_t length, struct sc_stat *);
int64_t names_parent_of(sc_core *, uint64_t directory, uint64_t *parent);
int64_t names_readlink(sc_core *, uint64_t ino, char *target, size_t size);
int64_t names_entry(struct names_reader *, uint64_t parent, struct sc_name, struct sc_inode *); /* or -ENOENT */
int64_t names_directory(sc_core *, struct names_reader *, uint64_t ino, struct sc_inode *);

/* names_listing.c, names_xattrs.c */
int64_t names_list(sc_core *, uint64_t directory, uint64_t offset, sc_add_entry *add, void *context);
int64_t names_getxattr(sc_core *, uint64_t ino, const char *name, size_t length, char *value, size_t size);
int64_t names_listxattr(sc_core *, uint64_t ino, int with_trusted, char *names, size_t size);

/* losing_links.c */
#define LOSING_SLOTS 1024 /* a power of two */
void losing_links_note(sc_core *, const struct sc_inode *); /* before it loses a name */
bool losing_links_has(sc_core *, uint64_t ino); /* after its row was read */

/* attributes.c */
int64_t attributes_of(sc_core *, const struct sc_inode *, struct sc_stat *);

#endif
