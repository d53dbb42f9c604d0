/* The turn, the transaction of a change, and what becomes true with it; names_writer.h has the invariants.
 *
 * The steps of a change, all in one turn:
 *
 * 1. Looks at rows. What the cache has of an inode is the row, since every change passes through it within its turn.
 * 2. BEGIN, the changes, the rows of `touched` and of the request's answer, COMMIT (write(2) to the log, not synced).
 * 3. The mark, the cache, and what is not durable; then the number of the transaction counts.
 *
 * A kill before the COMMIT leaves nothing but a stray backing file; after it, a change that is answered when the request
 * is sent again.
 */
#define _GNU_SOURCE
#include "content.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define BUSY_MS 10000 /* BUSY_TIMEOUT_S in schema.py */
#define REMEMBERED_TOUCHED 4096
#define REMEMBERED_CHANGES 100000
#define PURGE_EVERY 64
#define PURGE_ROWS "255" /* PURGE_ROWS in epoch_rows.py, less one */
#define ANSWER_SLOTS 8192 /* SLOTS in reply_cache.py */
#define RESERVE 1000 /* as in number_counter.py */
#define INO_LIMIT (UINT64_C(1) << 35)
#define COOKIE_LIMIT (UINT64_C(1) << 62)
#define RESENT (UINT64_C(1) << 63)
#define LONG_LOG_FRAMES ((32u << 20) / 2072) /* FORCE_AT_BYTES in checkpointer.py */
#define MAX_LIST 1000000

static const char *const SQL[CHANGES] = {
    [CHANGE_BEGIN] = "BEGIN IMMEDIATE",
    [CHANGE_COMMIT] = "COMMIT",
    [CHANGE_ROLLBACK] = "ROLLBACK",
    [CHANGE_RESERVE_INOS] = "UPDATE meta SET value = ?1 WHERE key = 'next_ino'",
    [CHANGE_RESERVE_COOKIES] = "UPDATE meta SET value = ?1 WHERE key = 'next_cookie'",
    [CHANGE_INSERT_ENTRY] = "INSERT INTO entry VALUES (?1,?2,?3,?4)",
    [CHANGE_INSERT_INODE] = "INSERT INTO inode VALUES (?1,?2,?3,?4,?5,?6,?7,?7,?7,?8,?9)",
    [CHANGE_UPDATE_PARENT] = "UPDATE inode SET nlink=?2, mtime_ns=?3, ctime_ns=?3 WHERE ino=?1",
    [CHANGE_UPDATE_LINKS] = "UPDATE inode SET nlink=?2, ctime_ns=?3, parent=?4 WHERE ino=?1",
    [CHANGE_DELETE_ENTRY] = "DELETE FROM entry WHERE parent = ?1 AND name = ?2",
    [CHANGE_POINT_ENTRY] = "UPDATE entry SET ino = ?3 WHERE parent = ?1 AND name = ?2",
    [CHANGE_RENAME_ENTRY] = "UPDATE entry SET name = ?3 WHERE parent = ?1 AND name = ?2",
    [CHANGE_TOUCH] = "INSERT OR IGNORE INTO touched VALUES (?1,?2,?3)",
    [CHANGE_NOTE] = "INSERT OR REPLACE INTO answer VALUES (?1,?2,?3,?4)",
    [CHANGE_IS_EMPTY] = "SELECT 1 FROM entry WHERE parent = ?1 LIMIT 1",
    [CHANGE_PURGE_UPTO] = "SELECT epoch, ino, name FROM touched WHERE epoch <= ?1 ORDER BY epoch, ino, name"
                          " LIMIT 1 OFFSET " PURGE_ROWS,
    [CHANGE_PURGE] = "DELETE FROM touched WHERE (epoch, ino, name) <= (?1,?2,?3)",
};

/* -- the connection */

void names_writer_init(struct names_writer *writer)
{
    names_turn_init(&writer->turn);
    pthread_mutex_init(&writer->lists_lock, NULL);
    pthread_mutex_init(&writer->mark.lock, NULL);
}

void names_writer_close(struct names_writer *writer)
{
    for (int i = 0; i < CHANGES; i++)
        sqlite3_finalize(writer->statements[i]);
    for (int i = 0; i < QUERIES; i++)
        sqlite3_finalize(writer->look.statements[i]);
    memset(writer->statements, 0, sizeof writer->statements);
    sqlite3_close(writer->look.db);
    writer->look = (struct names_reader){0};
    atomic_store(&writer->is_shared, false);
}

void names_writer_free(struct names_writer *writer)
{
    names_writer_close(writer);
    struct names_list *lists[] = {&writer->orphans, &writer->made, &writer->replaced, &writer->depends,
                                  &writer->left_over};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        free(lists[i]->numbers);
    map_clear(&writer->touched);
    map_clear(&writer->known_orphans);
}

int names_writer_open(struct names_writer *writer, const char *path)
{
    sqlite3 **db = &writer->look.db;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX;
    const char *pragmas = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-8192";
    if (sqlite3_open_v2(path, db, flags, NULL) != SQLITE_OK || sqlite3_busy_timeout(*db, BUSY_MS) != SQLITE_OK ||
        sqlite3_exec(*db, pragmas, NULL, NULL, NULL) != SQLITE_OK) {
        names_writer_close(writer);
        return -EIO;
    }
    for (int i = 0; i < CHANGES; i++)
        if (sqlite3_prepare_v3(*db, SQL[i], -1, SQLITE_PREPARE_PERSISTENT, &writer->statements[i], NULL) != SQLITE_OK) {
            names_writer_close(writer);
            return -EIO;
        }
    writer->purging = true;
    return 0;
}

/* -- the turn */

int64_t names_take_turn(sc_core *core)
{
    struct names_writer *writer = &core->writer;
    names_turn_take(&writer->turn, TURN_OF_C);
    bool is_long = writer->is_shared && wal_mark_position(&writer->mark).frames >= LONG_LOG_FRAMES;
    if (writer->is_shared && !is_long && !atomic_load(&core->closed))
        return 0;
    names_turn_end(&writer->turn); /* Python's changes shorten a long log */
    return SC_NEED(SC_NEED_PYTHON);
}

void names_end_turn(sc_core *core) { names_turn_end(&core->writer.turn); }

/* -- statements */

/* To be bound anew, from the first on. */
sqlite3_stmt *names_statement(struct names_writer *writer, enum names_change change)
{
    return writer->statements[change];
}

int64_t names_run(sqlite3_stmt *statement)
{
    int code = sqlite3_step(statement);
    sqlite3_reset(statement);
    return code == SQLITE_DONE ? 0 : SC_NEED(SC_NEED_PYTHON);
}

static int64_t reserve(struct names_writer *writer, enum names_change which, uint64_t next, uint64_t *reserved,
                       uint64_t limit)
{
    uint64_t upto = min_u64(next + RESERVE, limit);
    if (next + 2 <= *reserved)
        return 0;
    if (next + 2 > limit)
        return SC_NEED(SC_NEED_PYTHON);
    sqlite3_stmt *statement = names_statement(writer, which);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)upto);
    int64_t result = names_run(statement);
    if (!result)
        *reserved = upto;
    return result;
}

/* Begin the transaction of a change. There are two numbers of each kind for it, reserved in a transaction of their own:
 * a backing file is made under a number that no later life gives out. */
int64_t names_begin_change(sc_core *core)
{
    struct names_writer *writer = &core->writer;
    struct names_state *state = &writer->state;
    bool needs = state->next_ino + 2 > state->reserved_ino || state->next_cookie + 2 > state->reserved_cookie;
    writer->staged_count = 0;
    writer->inodes_made = writer->files_made = writer->files_made_before = 0;
    int64_t result = names_run(names_statement(writer, CHANGE_BEGIN));
    if (result || !needs)
        return result;
    uint64_t inos = state->reserved_ino, cookies = state->reserved_cookie;
    result = reserve(writer, CHANGE_RESERVE_INOS, state->next_ino, &state->reserved_ino, INO_LIMIT);
    if (!result)
        result = reserve(writer, CHANGE_RESERVE_COOKIES, state->next_cookie, &state->reserved_cookie, COOKIE_LIMIT);
    if (!result)
        result = names_commit(core);
    else
        names_roll_back(core);
    if (result) {
        state->reserved_ino = inos;
        state->reserved_cookie = cookies;
        return result;
    }
    return names_run(names_statement(writer, CHANGE_BEGIN));
}

void names_roll_back(sc_core *core)
{
    struct names_writer *writer = &core->writer;
    for (unsigned i = 0; i < writer->staged_count; i++)
        attr_cache_drop(&core->attr_cache, writer->staged[i].ino);
    writer->staged_count = 0;
    map_clear(&writer->touched);
    writer->purging = true;
    if (!sqlite3_get_autocommit(writer->look.db))
        names_run(names_statement(writer, CHANGE_ROLLBACK));
}

/* -- within a change: what changed in this epoch */

static int64_t touch(struct names_writer *writer, uint64_t ino, const char *name, size_t length)
{
    sqlite3_stmt *statement = names_statement(writer, CHANGE_TOUCH);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)writer->state.epoch);
    sqlite3_bind_int64(statement, 2, (sqlite3_int64)ino);
    sqlite3_bind_blob(statement, 3, name, (int)length, SQLITE_STATIC);
    return names_run(statement);
}

static int64_t touch_inode(struct names_writer *writer, uint64_t ino)
{
    if (ino >= writer->state.first_ino || map_find(&writer->touched, ino))
        return 0;
    int64_t result = touch(writer, ino, "", 0);
    if (writer->touched.count >= REMEMBERED_TOUCHED)
        map_clear(&writer->touched);
    if (!result)
        map_put(&writer->touched, ino);
    return result;
}

int64_t names_touch_name(sc_core *core, uint64_t parent, const char *name, size_t length)
{
    return parent >= core->writer.state.first_ino ? 0 : touch(&core->writer, parent, name, length);
}

/* The transaction changes this row; of a directory whose names changed the row of the name in `touched` stands for it. */
int64_t names_stage(sc_core *core, const struct sc_inode *row, bool touch)
{
    struct names_writer *writer = &core->writer;
    for (unsigned i = 0; i < writer->staged_count; i++)
        if (writer->staged[i].ino == row->ino) {
            writer->staged[i] = *row;
            return touch ? touch_inode(writer, row->ino) : 0;
        }
    if (writer->staged_count == MAX_STAGED)
        return SC_NEED(SC_NEED_PYTHON);
    writer->staged[writer->staged_count++] = *row;
    return touch ? touch_inode(writer, row->ino) : 0;
}

int64_t names_note(sc_core *core, uint64_t unique, uint64_t value)
{
    struct names_writer *writer = &core->writer;
    sqlite3_stmt *statement = names_statement(writer, CHANGE_NOTE);
    uint64_t serial = ++writer->state.serial;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)(serial % ANSWER_SLOTS));
    sqlite3_bind_int64(statement, 2, (sqlite3_int64)serial);
    sqlite3_bind_int64(statement, 3, (sqlite3_int64)(unique & ~RESENT));
    sqlite3_bind_int64(statement, 4, (sqlite3_int64)value);
    return names_run(statement);
}

int64_t names_is_empty(struct names_writer *writer, uint64_t directory)
{
    sqlite3_stmt *statement = names_statement(writer, CHANGE_IS_EMPTY);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)directory);
    int64_t found = names_step(statement);
    sqlite3_reset(statement);
    return found < 0 ? found : !found;
}

/* -- the end of a change */

/* Some rows of sealed epochs go, as in epoch_rows.py. */
static int64_t purge_some(struct names_writer *writer)
{
    if (!writer->purging || writer->until_purge-- > 1)
        return 0;
    writer->until_purge = PURGE_EVERY;
    sqlite3_stmt *upto = names_statement(writer, CHANGE_PURGE_UPTO), *purge = names_statement(writer, CHANGE_PURGE);
    sqlite3_bind_int64(upto, 1, (sqlite3_int64)writer->state.sealed);
    int64_t found = names_step(upto);
    if (found > 0) {
        for (int i = 0; i < 3; i++)
            sqlite3_bind_value(purge, i + 1, sqlite3_column_value(upto, i));
    } else if (!found) {
        sqlite3_bind_int64(purge, 1, (sqlite3_int64)writer->state.sealed + 1);
        sqlite3_bind_int64(purge, 2, -1);
        sqlite3_bind_blob(purge, 3, "", 0, SQLITE_STATIC);
        writer->purging = false;
    }
    sqlite3_reset(upto);
    return found < 0 ? found : names_run(purge);
}

/* Rows that may not be durable, until the log is synced up to this transaction. */
static void mark_unsynced(sc_core *core, uint64_t number)
{
    struct names_writer *writer = &core->writer;
    pthread_mutex_lock(&core->names_lock);
    for (unsigned i = 0; i < writer->staged_count; i++) {
        bool room = core->changed.count < REMEMBERED_CHANGES;
        uint64_t *at = room ? map_put(&core->changed, writer->staged[i].ino) : NULL;
        *(at ? at : &core->changed_floor) = number;
    }
    core->names_newest = max_u64(core->names_newest, number);
    pthread_mutex_unlock(&core->names_lock);
}

/* 0: the change is true, and in all that memory has; else it was rolled back. */
int64_t names_commit(sc_core *core)
{
    struct names_writer *writer = &core->writer;
    int64_t result = purge_some(writer);
    if (!result)
        result = names_run(names_statement(writer, CHANGE_COMMIT));
    if (result) {
        names_roll_back(core);
        return result;
    }
    uint64_t number = atomic_load(&writer->committed) + 1;
    wal_mark_committed(&writer->mark);
    for (unsigned i = 0; i < writer->staged_count; i++)
        attr_cache_put(&core->attr_cache, &writer->staged[i]);
    mark_unsynced(core, number);
    writer->state.inode_count += writer->inodes_made;
    writer->state.files_since += writer->files_made;
    writer->state.files_before += writer->files_made_before;
    atomic_store(&writer->committed, number);
    writer->staged_count = 0;
    return 0;
}

/* -- what is left for Python */

bool names_list_reserve(struct names_list *list, size_t more)
{
    if (list->count + more <= list->capacity)
        return true;
    size_t capacity = list->capacity ? 2 * list->capacity : 64;
    uint64_t *numbers = list->count > MAX_LIST ? NULL : realloc(list->numbers, capacity * sizeof *numbers);
    if (!numbers)
        return false;
    list->numbers = numbers;
    list->capacity = capacity;
    return true;
}

bool names_list_add(struct names_list *list, uint64_t number)
{
    if (!names_list_reserve(list, 1))
        return false;
    list->numbers[list->count++] = number;
    return true;
}

int64_t names_may_be_orphan(sc_core *core, uint64_t ino)
{
    struct names_writer *writer = &core->writer;
    pthread_mutex_lock(&writer->lists_lock);
    bool may_be = map_find(&writer->known_orphans, ino);
    pthread_mutex_unlock(&writer->lists_lock);
    return may_be;
}
