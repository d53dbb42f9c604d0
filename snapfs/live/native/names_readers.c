/* Reading connections to the namespace's database, for the threads of the router; names.h has the invariants.
 *
 * A thread takes a connection for one request and gives it back. As many are opened as are in use at the same time.
 * `names_readers.lock` is a leaf.
 */
#define _GNU_SOURCE
#include "content.h"

#include <dlfcn.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CACHE_KIB "2048"
#define INODE_COLUMNS                                                                                      \
    " i.ino, i.mode, i.uid, i.gid, i.rdev, i.nlink, i.atime_ns, i.mtime_ns, i.ctime_ns, length(i.target)," \
    " i.parent "

static const char *const SQL[QUERIES] = {
    [QUERY_INODE] = "SELECT" INODE_COLUMNS "FROM inode AS i WHERE i.ino = ?1",
    [QUERY_LOOKUP] = "SELECT" INODE_COLUMNS "FROM entry AS e LEFT JOIN inode AS i ON i.ino = e.ino"
                     " WHERE e.parent = ?1 AND e.name = ?2",
    [QUERY_UNLOADED] = "SELECT 1 FROM unloaded WHERE ino = ?1",
    [QUERY_LIST] = "SELECT" INODE_COLUMNS ", e.cookie, e.name FROM entry AS e INDEXED BY listing"
                   " CROSS JOIN inode AS i ON i.ino = e.ino WHERE e.parent = ?1 AND e.cookie > ?2 ORDER BY e.cookie",
    [QUERY_NEWEST] = "SELECT value FROM meta WHERE key = 'next_cookie'",
    [QUERY_LAST] = "SELECT max(cookie) FROM entry INDEXED BY listing WHERE parent = ?1",
    [QUERY_TARGET] = "SELECT mode, target FROM inode WHERE ino = ?1",
    [QUERY_ABSENT] = "SELECT size, mtime_ns, ctime_ns FROM absent WHERE ino = ?1",
    [QUERY_XATTR] = "SELECT value FROM xattr WHERE ino = ?1 AND name = ?2",
    [QUERY_XATTRS] = "SELECT name FROM xattr WHERE ino = ?1 ORDER BY name",
};

/* Whether Python's module uses the copy of SQLite that is linked here. */
static bool is_pythons_sqlite(const char *sqlite_module)
{
    void *module = dlopen(sqlite_module, RTLD_LAZY | RTLD_NOLOAD);
    void *theirs = module ? dlsym(module, "sqlite3_open_v2") : NULL;
    if (module)
        dlclose(module);
    return theirs && theirs == (void *)(uintptr_t)sqlite3_open_v2;
}

static void close_reader(struct names_reader *reader)
{
    if (!reader)
        return;
    for (int i = 0; i < QUERIES; i++)
        sqlite3_finalize(reader->statements[i]);
    sqlite3_close(reader->db);
    free(reader);
}

static struct names_reader *open_reader(const char *path)
{
    struct names_reader *reader = calloc(1, sizeof *reader);
    if (!reader)
        return NULL;
    int flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(path, &reader->db, flags, NULL) == SQLITE_OK &&
        sqlite3_exec(reader->db, "PRAGMA cache_size=-" CACHE_KIB, NULL, NULL, NULL) == SQLITE_OK)
        return reader;
    close_reader(reader);
    return NULL;
}

void names_readers_init(struct names_readers *readers)
{
    pthread_mutex_init(&readers->lock, NULL);
    atomic_init(&readers->lazy, true);
}

void names_readers_free(struct names_readers *readers)
{
    free(readers->path);
    free(readers->live_dir);
    pthread_mutex_destroy(&readers->lock);
}

/* 1 if names can be read here, 0 if only Python can. */
int names_readers_open(struct names_readers *readers, const char *path, const char *live_dir, const char *sqlite_module)
{
    if (readers->path || !is_pythons_sqlite(sqlite_module))
        return 0;
    struct names_reader *first = open_reader(path);
    readers->path = first ? strdup(path) : NULL;
    readers->live_dir = first ? strdup(live_dir) : NULL;
    if (!readers->path || !readers->live_dir) {
        close_reader(first);
        return 0;
    }
    pthread_mutex_lock(&readers->lock);
    readers->idle = first;
    readers->is_open = true;
    pthread_mutex_unlock(&readers->lock);
    return 1;
}

void names_readers_close(struct names_readers *readers)
{
    unsigned busy;
    do {
        pthread_mutex_lock(&readers->lock);
        readers->is_open = false;
        struct names_reader *idle = readers->idle;
        readers->idle = NULL;
        busy = readers->busy;
        pthread_mutex_unlock(&readers->lock);
        while (idle) {
            struct names_reader *next = idle->next;
            close_reader(idle);
            idle = next;
        }
        if (busy)
            usleep(100);
    } while (busy);
}

struct names_reader *names_reader_take(struct names_readers *readers)
{
    pthread_mutex_lock(&readers->lock);
    bool is_open = readers->is_open;
    struct names_reader *reader = is_open ? readers->idle : NULL;
    if (reader)
        readers->idle = reader->next;
    readers->busy += is_open;
    pthread_mutex_unlock(&readers->lock);
    if (reader || !is_open)
        return reader;
    reader = open_reader(readers->path);
    if (!reader)
        names_reader_give(readers, NULL);
    return reader;
}

void names_reader_give(struct names_readers *readers, struct names_reader *reader)
{
    pthread_mutex_lock(&readers->lock);
    if (reader) {
        reader->next = readers->idle;
        readers->idle = reader;
    }
    readers->busy--;
    pthread_mutex_unlock(&readers->lock);
}

sqlite3_stmt *names_begin(struct names_reader *reader, enum names_query query, uint64_t first)
{
    sqlite3_stmt **at = &reader->statements[query];
    if (!*at && sqlite3_prepare_v3(reader->db, SQL[query], -1, SQLITE_PREPARE_PERSISTENT, at, NULL) != SQLITE_OK)
        return NULL;
    bool takes_none = !sqlite3_bind_parameter_count(*at);
    return takes_none || sqlite3_bind_int64(*at, 1, (sqlite3_int64)first) == SQLITE_OK ? *at : NULL;
}

int64_t names_step(sqlite3_stmt *statement)
{
    int code = sqlite3_step(statement);
    return code == SQLITE_ROW ? 1 : code == SQLITE_DONE ? 0 : SC_NEED(SC_NEED_PYTHON);
}

/* Ends its look at the database, too. */
void names_end(sqlite3_stmt *statement)
{
    if (statement)
        sqlite3_reset(statement);
}
