/* rename(2), with RENAME_NOREPLACE or without: the twin of snapfs/live/namespace/renames.py, which has the rules. Exchanges
 * and whiteouts are Python's.
 */
#include "content.h"

#include <sqlite3.h>
#include <sys/stat.h>

#define NOREPLACE 1

/* What a rename is about: two directories (maybe one), what moves, and what it replaces if `there.ino`. */
struct move {
    uint64_t parent, new_parent;
    struct sc_name name, new_name;
    struct sc_inode old_dir, new_dir, moved, there;
};

/* -EINVAL if the directory that moves is `directory` or above it. */
static int64_t refuse_loop(sc_core *core, const struct sc_inode *moved, const struct sc_inode *directory)
{
    struct sc_inode above = *directory;
    int64_t result = 0;
    while (S_ISDIR(moved->mode) && !result && above.ino != SC_ROOT_INO) {
        if (above.ino == moved->ino)
            return -EINVAL;
        result = names_inode(core, &core->writer.look, above.parent, &above);
    }
    return result;
}

static int64_t check_replace(sc_core *core, const struct move *move)
{
    struct sc_inode same;
    bool moves_directory = S_ISDIR(move->moved.mode), on_directory = S_ISDIR(move->there.mode);
    if (moves_directory != on_directory)
        return moves_directory ? -ENOTDIR : -EISDIR;
    if (!on_directory)
        return 0;
    int64_t result = names_directory(core, &core->writer.look, move->there.ino, &same);
    return result ? result : names_must_be_empty(core, move->there.ino);
}

/* 1 if there is nothing to do: both are names of one inode. */
static int64_t look(sc_core *core, struct move *move, uint32_t flags)
{
    struct names_reader *reader = &core->writer.look;
    int64_t result = names_living_directory(core, move->parent, &move->old_dir);
    if (!result)
        result = names_living_directory(core, move->new_parent, &move->new_dir);
    if (!result)
        result = names_entry(reader, move->parent, move->name, &move->moved);
    if (result)
        return result;
    result = names_entry(reader, move->new_parent, move->new_name, &move->there);
    if (result == -ENOENT)
        move->there = (struct sc_inode){0};
    else if (result)
        return result;
    if (move->there.ino && flags & NOREPLACE)
        return -EEXIST;
    if (move->there.ino == move->moved.ino)
        return 1;
    result = refuse_loop(core, &move->moved, &move->new_dir);
    return result || !move->there.ino ? result : check_replace(core, move);
}

/* The bytes of a file that takes another one's name are durable before that is (replace_queue.py). While a flush of the log
 * is under way Python makes them so at once. */
static int64_t depend_on(sc_core *core, uint64_t ino)
{
    struct names_writer *writer = &core->writer;
    pthread_mutex_lock(&writer->lists_lock);
    bool done = !writer->flushes && names_list_reserve(&writer->depends, 1) && names_list_add(&writer->depends, ino);
    pthread_mutex_unlock(&writer->lists_lock);
    return done ? 0 : SC_NEED(SC_NEED_PYTHON);
}

static int64_t run_with_new_name(sc_core *core, enum names_change change, const struct move *move)
{
    sqlite3_stmt *statement = names_statement(&core->writer, change);
    const bool points = change == CHANGE_POINT_ENTRY;
    const struct sc_name *name = points ? &move->new_name : &move->name;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)(points ? move->new_parent : move->parent));
    sqlite3_bind_blob(statement, 2, name->bytes, (int)name->length, SQLITE_STATIC);
    if (points)
        sqlite3_bind_int64(statement, 3, (sqlite3_int64)move->moved.ino);
    else
        sqlite3_bind_blob(statement, 3, move->new_name.bytes, (int)move->new_name.length, SQLITE_STATIC);
    int64_t result = names_run(statement);
    if (!result && !points)
        result = names_touch_name(core, move->parent, move->name.bytes, move->name.length);
    return result ? result : names_touch_name(core, move->new_parent, move->new_name.bytes, move->new_name.length);
}

static int64_t move_entry(sc_core *core, const struct move *move)
{
    if (!move->there.ino && move->parent == move->new_parent)
        return run_with_new_name(core, CHANGE_RENAME_ENTRY, move);
    int64_t result = names_delete_entry(core, move->parent, move->name);
    if (result)
        return result;
    return move->there.ino ? run_with_new_name(core, CHANGE_POINT_ENTRY, move)
                           : names_insert_entry(core, move->new_parent, move->new_name, move->moved.ino);
}

static int64_t change_rows(sc_core *core, struct move *move, int came, int lost)
{
    int64_t now_ns = names_now_ns();
    move->moved.ctime_ns = now_ns;
    move->moved.parent = S_ISDIR(move->moved.mode) ? move->new_parent : 0;
    int64_t result = names_update_links(core, &move->moved);
    if (!result && move->there.ino)
        result = names_lose_link(core, &move->there, now_ns);
    if (!result)
        result = names_update_parent(core, &move->new_dir, now_ns, came - lost);
    if (!result && move->parent != move->new_parent)
        result = names_update_parent(core, &move->old_dir, now_ns, -came);
    return result;
}

static int64_t carry_out(sc_core *core, struct move *move, uint64_t unique)
{
    int lost = move->there.ino && S_ISDIR(move->there.mode);
    int came = S_ISDIR(move->moved.mode) && move->parent != move->new_parent;
    if (came > lost && move->new_dir.nlink >= LINKS_MAX)
        return -EMLINK;
    int64_t result = move->there.ino ? names_make_room(core, &move->there) : 0;
    if (!result && move->there.ino && S_ISREG(move->moved.mode))
        result = depend_on(core, move->moved.ino);
    if (!result)
        result = names_begin_change(core);
    if (result)
        return result;
    result = move_entry(core, move);
    if (!result)
        result = change_rows(core, move, came, lost);
    if (!result)
        result = names_note(core, unique, 0);
    result = names_finish(core, result);
    if (!result && move->there.ino)
        names_lost(core, &move->there, move->moved.ino);
    return result;
}

int64_t names_rename(sc_core *core, uint64_t parent, struct sc_name name, uint64_t new_parent, struct sc_name new_name,
                     uint32_t flags, uint64_t unique)
{
    struct move move = {parent, new_parent, name, new_name, {0}, {0}, {0}, {0}};
    if (name.length > NAME_BYTES || new_name.length > NAME_BYTES)
        return -ENAMETOOLONG;
    if (flags & ~(uint32_t)NOREPLACE)
        return SC_NEED(SC_NEED_PYTHON);
    int64_t result = names_take_turn(core);
    if (result)
        return result;
    result = look(core, &move, flags);
    if (!result)
        result = carry_out(core, &move, unique);
    names_end_turn(core);
    return result > 0 ? 0 : result;
}
