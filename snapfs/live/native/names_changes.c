/* Making, linking and removing names: the twin of snapfs/live/namespace/name_changes.py and of what name_operations.py
 * does around it, with the same errors. Renames are in names_rename.c.
 */
#define _GNU_SOURCE
#include "content.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>

static const char DEFAULT_ACL[] = "system.posix_acl_default";

static void note_left_over(sc_core *core, uint64_t ino)
{
    pthread_mutex_lock(&core->writer.lists_lock);
    names_list_add(&core->writer.left_over, ino);
    pthread_mutex_unlock(&core->writer.lists_lock);
}

/* -- making */

/* The empty backing file of a new inode, and what Python must know of it, before the row is made. It is in the list
 * once it is there: a sync of the folder that came before counts only for what was in the list by then. */
static int64_t make_file(sc_core *core, uint64_t ino, int64_t now_ns)
{
    struct names_writer *writer = &core->writer;
    struct open_file *opened;
    struct timespec now = {now_ns / 1000000000, now_ns % 1000000000};
    pthread_mutex_lock(&writer->lists_lock);
    bool room = names_list_reserve(&writer->made, 1) && names_list_reserve(&writer->left_over, 1);
    pthread_mutex_unlock(&writer->lists_lock);
    pthread_mutex_lock(&core->names_lock);
    room = room && map_put(&core->unsynced_names, ino);
    pthread_mutex_unlock(&core->names_lock);
    if (!room)
        return SC_NEED(SC_NEED_PYTHON);
    flush_marks_begin(core->flush_marks, ino, false);
    int failed = descriptors_open(core->descriptors, ino, O_CREAT | O_TRUNC, &opened);
    if (!failed) {
        pthread_mutex_lock(&writer->lists_lock);
        names_list_add(&writer->made, ino);
        pthread_mutex_unlock(&writer->lists_lock);
        failed = futimens(opened->fd, (struct timespec[]){now, now});
        descriptors_release(core->descriptors, opened);
    }
    flush_marks_end(core->flush_marks, ino);
    return failed ? SC_NEED(SC_NEED_PYTHON) : 0;
}

static int64_t insert_inode(sc_core *core, const struct sc_inode *row, const struct sc_birth *birth)
{
    struct names_writer *writer = &core->writer;
    sqlite3_stmt *statement = names_statement(writer, CHANGE_INSERT_INODE);
    const uint64_t numbers[] = {
        row->ino, row->mode, row->uid, row->gid, row->rdev, row->nlink, (uint64_t)row->ctime_ns};
    for (int i = 0; i < 7; i++)
        sqlite3_bind_int64(statement, i + 1, (sqlite3_int64)numbers[i]);
    sqlite3_bind_blob(statement, 8, birth->target.length ? birth->target.bytes : "", (int)birth->target.length,
                      SQLITE_STATIC);
    sqlite3_bind_int64(statement, 9, (sqlite3_int64)row->parent);
    writer->inodes_made++;
    writer->files_made += S_ISREG(row->mode);
    int64_t result = names_run(statement);
    return result ? result : names_stage(core, row, true);
}

/* The row of the new inode, of the numbers of the present change. */
static struct sc_inode row_of(struct names_writer *writer, const struct sc_birth *birth,
                              const struct sc_inode *directory, int64_t now_ns)
{
    bool is_directory = S_ISDIR(birth->mode);
    struct sc_inode row = {
        .ino = writer->state.next_ino++,
        .size = birth->target.length,
        .atime_ns = now_ns,
        .mtime_ns = now_ns,
        .ctime_ns = now_ns,
        .mode = birth->mode,
        .nlink = is_directory ? 2 : 1,
        .uid = birth->uid,
        .gid = birth->gid,
        .rdev = S_ISREG(birth->mode) ? 0 : birth->rdev,
        .parent = is_directory ? directory->ino : 0,
    };
    if (directory->mode & S_ISGID) {
        row.gid = directory->gid;
        row.mode |= is_directory ? S_ISGID : 0;
    }
    return row;
}

/* 0, or -EEXIST. */
static int64_t must_be_free(sc_core *core, uint64_t parent, struct sc_name name)
{
    struct sc_inode there;
    int64_t result = names_entry(&core->writer.look, parent, name, &there);
    return result == -ENOENT ? 0 : result ? result : -EEXIST;
}

static int64_t create(sc_core *core, const struct sc_birth *birth, uint64_t unique, struct sc_stat *made)
{
    struct sc_inode directory;
    struct names_writer *writer = &core->writer;
    bool is_directory = S_ISDIR(birth->mode);
    int64_t result = names_living_directory(core, birth->parent, &directory);
    if (!result)
        result = must_be_free(core, birth->parent, birth->name);
    if (!result && is_directory && directory.nlink >= LINKS_MAX)
        result = -EMLINK;
    if (!result)
        result = names_begin_change(core);
    if (result)
        return result;
    int64_t now_ns = names_now_ns();
    struct sc_inode row = row_of(writer, birth, &directory, now_ns);
    result = S_ISREG(row.mode) ? make_file(core, row.ino, now_ns) : 0;
    if (!result)
        result = names_insert_entry(core, birth->parent, birth->name, row.ino);
    if (!result)
        result = insert_inode(core, &row, birth);
    if (!result)
        result = names_update_parent(core, &directory, now_ns, is_directory);
    if (!result)
        result = names_note(core, unique, row.ino);
    result = names_finish(core, result);
    if (!result)
        attr_cache_put_no_xattrs(&core->attr_cache, row.ino);
    else if (S_ISREG(row.mode))
        note_left_over(core, row.ino);
    *made = (struct sc_stat){row, {row.size, 0, now_ns, now_ns}, false};
    return result;
}

/* Whether what is made in a directory inherits no ACL: then the umask counts. */
static int64_t has_no_default_acl(sc_core *core, uint64_t directory)
{
    char none[1];
    return names_getxattr(core, directory, DEFAULT_ACL, sizeof DEFAULT_ACL - 1, none, 0) == -ENODATA
               ? 0
               : SC_NEED(SC_NEED_PYTHON);
}

int64_t names_create(sc_core *core, const struct sc_birth *birth, uint64_t unique, struct sc_stat *made)
{
    if (!atomic_load(&core->writer.is_shared))
        return SC_NEED(SC_NEED_PYTHON);
    if (birth->name.length > NAME_BYTES || birth->target.length > TARGET_BYTES)
        return -ENAMETOOLONG;
    if (size_limit_is_reached(core))
        return SC_NEED(SC_NEED_PYTHON); /* the name may exist, which is another error, or to be opened */
    struct sc_birth masked = *birth;
    int64_t result = S_ISLNK(birth->mode) ? 0 : has_no_default_acl(core, birth->parent);
    masked.mode &= ~(birth->umask & 0777);
    if (!result)
        result = names_take_turn(core);
    if (result)
        return result;
    result = create(core, &masked, unique, made);
    names_end_turn(core);
    return result;
}

/* -- one more name */

/* What can be linked, with the row and the attributes that it will have. */
static int64_t find_linked(sc_core *core, uint64_t ino, int64_t now_ns, struct sc_stat *found)
{
    struct sc_inode row = {0};
    int64_t result = names_inode(core, &core->writer.look, ino, &row);
    if (!result && S_ISDIR(row.mode))
        result = -EPERM;
    if (!result && !row.nlink) /* Python knows whether it was made without a name */
        result = SC_NEED(SC_NEED_PYTHON);
    if (!result && row.nlink >= LINKS_MAX)
        result = -EMLINK;
    row.nlink++;
    row.ctime_ns = now_ns;
    return result ? result : attributes_of(core, &row, found);
}

static int64_t add_link(sc_core *core, uint64_t ino, uint64_t parent, struct sc_name name, uint64_t unique,
                        struct sc_stat *found)
{
    struct sc_inode directory;
    int64_t now_ns = names_now_ns();
    int64_t result = names_living_directory(core, parent, &directory);
    if (!result)
        result = find_linked(core, ino, now_ns, found);
    if (!result)
        result = must_be_free(core, parent, name);
    if (!result)
        result = names_begin_change(core);
    if (result)
        return result;
    result = names_insert_entry(core, parent, name, ino);
    if (!result)
        result = names_update_links(core, &found->inode);
    if (!result)
        result = names_update_parent(core, &directory, now_ns, 0);
    if (!result)
        result = names_note(core, unique, ino);
    return names_finish(core, result);
}

int64_t names_link(sc_core *core, uint64_t ino, uint64_t parent, struct sc_name name, uint64_t unique,
                   struct sc_stat *found)
{
    if (name.length > NAME_BYTES)
        return -ENAMETOOLONG;
    int64_t result = names_take_turn(core);
    if (result)
        return result;
    result = add_link(core, ino, parent, name, unique, found);
    names_end_turn(core);
    return result;
}

/* -- one name less */

static int64_t find_removed(sc_core *core, uint64_t parent, struct sc_name name, bool is_directory,
                            struct sc_inode *directory, struct sc_inode *row)
{
    struct sc_inode same;
    struct names_reader *look = &core->writer.look;
    int64_t result = names_directory(core, look, parent, directory);
    if (!result)
        result = names_entry(look, parent, name, row);
    if (!result && S_ISDIR(row->mode) != is_directory)
        result = is_directory ? -ENOTDIR : -EISDIR;
    if (!result && is_directory)
        result = names_directory(core, look, row->ino, &same);
    return result || !is_directory ? result : names_must_be_empty(core, row->ino);
}

static int64_t remove_name(sc_core *core, uint64_t parent, struct sc_name name, bool is_directory, uint64_t unique)
{
    struct sc_inode directory, row;
    int64_t result = find_removed(core, parent, name, is_directory, &directory, &row);
    if (!result)
        result = names_make_room(core, &row);
    if (!result)
        result = names_begin_change(core);
    if (result)
        return result;
    int64_t now_ns = names_now_ns();
    result = names_delete_entry(core, parent, name);
    if (!result)
        result = names_lose_link(core, &row, now_ns);
    if (!result)
        result = names_update_parent(core, &directory, now_ns, -is_directory);
    if (!result)
        result = names_note(core, unique, 0);
    result = names_finish(core, result);
    if (!result)
        names_lost(core, &row, 0);
    return result;
}

int64_t names_remove(sc_core *core, uint64_t parent, struct sc_name name, bool is_directory, uint64_t unique)
{
    if (name.length > NAME_BYTES)
        return -ENAMETOOLONG;
    int64_t result = names_take_turn(core);
    if (result)
        return result;
    result = remove_name(core, parent, name, is_directory, unique);
    names_end_turn(core);
    return result;
}
