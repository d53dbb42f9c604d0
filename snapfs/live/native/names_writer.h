/* Changes of names in C: one connection of its own to the namespace's database, and the state that the writer keeps in
 * memory next to it (snapfs/live/writer/namespace_writer.py, whose invariants hold here as well).
 *
 * Invariants:
 * 1. There is one *turn*. The one that has it, a thread of C or Python's writer (turn.py), makes changes and owns `state`;
 *    Python is given the numbers as it takes the turn, and gives them back with it. No other reads or writes them.
 * 2. A change is one transaction, from the first look at a row that it depends on to its commit under one turn. It is in
 *    the log, in the mark and in the caches before the turn ends, and then it is answered.
 * 3. What a change leaves to be done by Python (orphans, backing files whose names are not durable, files that took
 *    another one's name) is in a list before the change is answered; Python takes the lists over before it looks at
 *    what they are about.
 * 4. A file's backing file exists before its row is committed. If the row cannot be made, it is in `left_over`.
 * 5. SC_NEED_PYTHON: nothing was changed, and Python makes the change. So it is for all that is rare: a request that was
 *    sent before, default ACLs, exchanges and whiteouts, a long log, an error of SQLite or the host.
 *
 * A thread with the turn never waits for the GIL.
 */
#ifndef SNAPFS_NAMES_WRITER_H
#define SNAPFS_NAMES_WRITER_H

#include "names.h"
#include "names_turn.h"

struct wal_position {
    uint32_t salt1, salt2, frames;
};

struct wal_mark {
    pthread_mutex_t lock;
    unsigned char *slots;       /* of the mark's file */
    const unsigned char *index; /* of the wal-index */
    uint64_t turn;
    unsigned char boot[16];
    struct wal_position committed, synced;
};

/* What the writer keeps in memory next to the database. In this order it is handed over to Python and back. */
struct names_state {
    uint64_t next_ino, reserved_ino, next_cookie, reserved_cookie;
    uint64_t epoch, first_ino, sealed, serial;
    int64_t inode_count;
    uint64_t files_first, files_oldest; /* new_files.py */
    int64_t files_since, files_before;
};
#define STATE_NUMBERS (sizeof(struct names_state) / sizeof(uint64_t))

enum names_change {
    CHANGE_BEGIN,
    CHANGE_COMMIT,
    CHANGE_ROLLBACK,
    CHANGE_RESERVE_INOS,
    CHANGE_RESERVE_COOKIES,
    CHANGE_INSERT_ENTRY,
    CHANGE_INSERT_INODE,
    CHANGE_UPDATE_PARENT,
    CHANGE_UPDATE_LINKS,
    CHANGE_DELETE_ENTRY,
    CHANGE_POINT_ENTRY,
    CHANGE_RENAME_ENTRY,
    CHANGE_TOUCH,
    CHANGE_NOTE,
    CHANGE_IS_EMPTY,
    CHANGE_PURGE_UPTO,
    CHANGE_PURGE,
    CHANGES
};

struct names_list {
    uint64_t *numbers;
    size_t count, capacity;
};

#define MAX_STAGED 4

struct names_writer {
    struct names_turn turn;
    atomic_bool is_shared; /* Python and C take turns; stored with the turn, which guards all that follows up to
                            * `lists_lock` */
    struct names_reader look; /* of the same connection: looks within a turn */
    sqlite3_stmt *statements[CHANGES];
    struct names_state state;
    struct map touched; /* inodes with a row in `touched` in this epoch, some of them */
    unsigned until_purge;
    bool purging;
    struct sc_inode staged[MAX_STAGED]; /* rows that the transaction changed */
    unsigned staged_count;
    int64_t inodes_made, files_made, files_made_before; /* by the transaction */
    struct wal_mark mark;
    Py_buffer slots_lent, index_lent; /* of Python: what `mark` points to */
    atomic_ullong committed; /* transactions; stored with the turn */
    pthread_mutex_t lists_lock; /* guards what follows */
    struct names_list orphans, made, replaced, depends, left_over;
    struct map known_orphans; /* all inodes that have lost their last name and still have a row */
    unsigned flushes; /* of the log, under way: see replace_queue.py */
};

/* names_writer.c */
void names_writer_init(struct names_writer *);
void names_writer_free(struct names_writer *);
int names_writer_open(struct names_writer *, const char *path); /* 0 or -errno */
void names_writer_close(struct names_writer *); /* with the turn */
int64_t names_take_turn(sc_core *); /* 0, or SC_NEED_PYTHON: then it was not taken */
void names_end_turn(sc_core *);
int64_t names_begin_change(sc_core *);
int64_t names_commit(sc_core *);
void names_roll_back(sc_core *);
sqlite3_stmt *names_statement(struct names_writer *, enum names_change);
int64_t names_run(sqlite3_stmt *); /* 0 or SC_NEED_PYTHON */
int64_t names_stage(sc_core *, const struct sc_inode *, bool touch);
int64_t names_touch_name(sc_core *, uint64_t parent, const char *name, size_t length);
int64_t names_note(sc_core *, uint64_t unique, uint64_t value);
bool names_list_reserve(struct names_list *, size_t more); /* with `lists_lock` held, as the next; or no memory */
bool names_list_add(struct names_list *, uint64_t number);
int64_t names_may_be_orphan(sc_core *, uint64_t ino);
int64_t names_is_empty(struct names_writer *, uint64_t directory); /* 1, 0, SC_NEED_PYTHON */

/* wal_mark.c */
struct wal_position wal_mark_position(const struct wal_mark *);
void wal_mark_committed(struct wal_mark *);
void wal_mark_synced(struct wal_mark *, struct wal_position);

/* names_rows.c: within a change, but for what is noted of its end */
int64_t names_now_ns(void);
int64_t names_insert_entry(sc_core *, uint64_t parent, struct sc_name, uint64_t ino);
int64_t names_delete_entry(sc_core *, uint64_t parent, struct sc_name);
int64_t names_update_links(sc_core *, const struct sc_inode *);
int64_t names_update_parent(sc_core *, struct sc_inode *directory, int64_t now_ns, int links);
int64_t names_lose_link(sc_core *, struct sc_inode *, int64_t now_ns);
int64_t names_make_room(sc_core *, const struct sc_inode *);
void names_lost(sc_core *, const struct sc_inode *, uint64_t moved);
int64_t names_finish(sc_core *, int64_t result);
int64_t names_living_directory(sc_core *, uint64_t ino, struct sc_inode *);
int64_t names_must_be_empty(sc_core *, uint64_t directory);

/* names_changes.c, names_rename.c */
int64_t names_create(sc_core *, const struct sc_birth *, uint64_t unique, struct sc_stat *);
int64_t names_link(sc_core *, uint64_t ino, uint64_t parent, struct sc_name, uint64_t unique, struct sc_stat *);
int64_t names_remove(sc_core *, uint64_t parent, struct sc_name, bool directory, uint64_t unique);
int64_t names_rename(sc_core *, uint64_t parent, struct sc_name, uint64_t new_parent, struct sc_name new_name,
                     uint32_t flags, uint64_t unique);

#endif
