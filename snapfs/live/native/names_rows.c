/* The rows that changes of names consist of: the twin of the steps in snapfs/live/writer/namespace_writer.py. */
#define _GNU_SOURCE
#include "content.h"

#include <sqlite3.h>
#include <sys/stat.h>
#include <time.h>

int64_t names_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now); /* kernel_clock.py */
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* -- rows */

int64_t names_insert_entry(sc_core *core, uint64_t parent, struct sc_name name, uint64_t ino)
{
    struct names_writer *writer = &core->writer;
    sqlite3_stmt *statement = names_statement(writer, CHANGE_INSERT_ENTRY);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)parent);
    sqlite3_bind_blob(statement, 2, name.bytes, (int)name.length, SQLITE_STATIC);
    sqlite3_bind_int64(statement, 3, (sqlite3_int64)ino);
    sqlite3_bind_int64(statement, 4, (sqlite3_int64)writer->state.next_cookie++);
    int64_t result = names_run(statement);
    return result ? result : names_touch_name(core, parent, name.bytes, name.length);
}

int64_t names_delete_entry(sc_core *core, uint64_t parent, struct sc_name name)
{
    sqlite3_stmt *statement = names_statement(&core->writer, CHANGE_DELETE_ENTRY);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)parent);
    sqlite3_bind_blob(statement, 2, name.bytes, (int)name.length, SQLITE_STATIC);
    int64_t result = names_run(statement);
    return result ? result : names_touch_name(core, parent, name.bytes, name.length);
}

/* The links, ctime and parent of an inode, as they are in `row`. */
int64_t names_update_links(sc_core *core, const struct sc_inode *row)
{
    sqlite3_stmt *statement = names_statement(&core->writer, CHANGE_UPDATE_LINKS);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)row->ino);
    sqlite3_bind_int64(statement, 2, row->nlink);
    sqlite3_bind_int64(statement, 3, row->ctime_ns);
    sqlite3_bind_int64(statement, 4, (sqlite3_int64)row->parent);
    int64_t result = names_run(statement);
    return result ? result : names_stage(core, row, true);
}

/* The times of a directory whose names changed, and `links` more or fewer subdirectories. */
int64_t names_update_parent(sc_core *core, struct sc_inode *directory, int64_t now_ns, int links)
{
    directory->nlink += (uint32_t)links;
    directory->mtime_ns = directory->ctime_ns = now_ns;
    sqlite3_stmt *statement = names_statement(&core->writer, CHANGE_UPDATE_PARENT);
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)directory->ino);
    sqlite3_bind_int64(statement, 2, directory->nlink);
    sqlite3_bind_int64(statement, 3, now_ns);
    int64_t result = names_run(statement);
    return result ? result : names_stage(core, directory, false);
}

/* One name less; a directory that loses its name is gone at once, with both of its links. */
int64_t names_lose_link(sc_core *core, struct sc_inode *row, int64_t now_ns)
{
    struct names_writer *writer = &core->writer;
    bool is_directory = S_ISDIR(row->mode);
    row->nlink = is_directory ? 0 : row->nlink - 1;
    row->parent = 0;
    row->ctime_ns = now_ns;
    if (!row->nlink && S_ISREG(row->mode) && row->ino >= writer->state.files_first)
        writer->files_made--;
    else if (!row->nlink && S_ISREG(row->mode) && row->ino >= writer->state.files_oldest)
        writer->files_made_before--;
    return names_update_links(core, row);
}

/* Room for what `names_lost` notes, so that it cannot fail; and what the kernel must not keep. Before the commit. */
int64_t names_make_room(sc_core *core, const struct sc_inode *row)
{
    struct names_writer *writer = &core->writer;
    pthread_mutex_lock(&writer->lists_lock);
    bool room = map_put(&writer->known_orphans, row->ino) && names_list_reserve(&writer->orphans, 1) &&
                names_list_reserve(&writer->replaced, 2);
    pthread_mutex_unlock(&writer->lists_lock);
    losing_links_note(core, row);
    return room ? 0 : SC_NEED(SC_NEED_PYTHON);
}

/* After the commit: the inode has lost a name, maybe its last; `moved` is what took it, or 0. */
void names_lost(sc_core *core, const struct sc_inode *row, uint64_t moved)
{
    struct names_writer *writer = &core->writer;
    pthread_mutex_lock(&writer->lists_lock);
    if (row->nlink)
        map_remove(&writer->known_orphans, row->ino);
    else
        names_list_add(&writer->orphans, row->ino);
    if (!row->nlink && moved && S_ISREG(row->mode)) {
        names_list_add(&writer->replaced, moved);
        names_list_add(&writer->replaced, row->ino);
    }
    pthread_mutex_unlock(&writer->lists_lock);
}

/* Commit, or roll back after a failure. */
int64_t names_finish(sc_core *core, int64_t result)
{
    if (!result)
        return names_commit(core);
    names_roll_back(core);
    return result;
}

/* 0 and a directory in which names can be made; -ENOENT for one that was removed. */
int64_t names_living_directory(sc_core *core, uint64_t ino, struct sc_inode *row)
{
    int64_t result = names_directory(core, &core->writer.look, ino, row);
    return result ? result : row->nlink ? 0 : -ENOENT;
}

int64_t names_must_be_empty(sc_core *core, uint64_t directory)
{
    int64_t empty = names_is_empty(&core->writer, directory);
    return empty < 0 ? empty : empty ? 0 : -ENOTEMPTY;
}
