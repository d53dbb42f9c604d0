/* Looks at inodes and names: the twin of snapfs/live/namespace/namespace_lookup.py, with the same errors.
 *
 * A row that was read goes into the attribute cache only if no row was passed to that meanwhile (attr_cache_offer): it
 * could be older than the one that is there.
 */
#include "content.h"

#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>

/* The row of an inode, in the first columns of a statement (INODE_COLUMNS). */
void names_row(sqlite3_stmt *statement, struct sc_inode *row)
{
    *row = (struct sc_inode){
        .ino = (uint64_t)sqlite3_column_int64(statement, 0),
        .mode = (uint32_t)sqlite3_column_int64(statement, 1),
        .uid = (uint32_t)sqlite3_column_int64(statement, 2),
        .gid = (uint32_t)sqlite3_column_int64(statement, 3),
        .rdev = (uint32_t)sqlite3_column_int64(statement, 4),
        .nlink = (uint32_t)sqlite3_column_int64(statement, 5),
        .atime_ns = sqlite3_column_int64(statement, 6),
        .mtime_ns = sqlite3_column_int64(statement, 7),
        .ctime_ns = sqlite3_column_int64(statement, 8),
        .size = (uint64_t)sqlite3_column_int64(statement, 9),
        .parent = (uint64_t)sqlite3_column_int64(statement, 10),
    };
}

static int64_t read_inode(struct names_reader *reader, uint64_t ino, struct sc_inode *row)
{
    sqlite3_stmt *statement = names_begin(reader, QUERY_INODE, ino);
    int64_t found = statement ? names_step(statement) : SC_NEED(SC_NEED_PYTHON);
    if (found > 0)
        names_row(statement, row);
    names_end(statement);
    return found > 0 ? 0 : found ? found : -ESTALE;
}

/* 0 and the row of an inode; -ESTALE if there is none. */
int64_t names_inode(sc_core *core, struct names_reader *reader, uint64_t ino, struct sc_inode *row)
{
    if (attr_cache_find(&core->attr_cache, ino, row))
        return 0;
    uint64_t generation = attr_cache_generation(&core->attr_cache);
    int64_t result = read_inode(reader, ino, row);
    if (!result)
        attr_cache_offer(&core->attr_cache, row, generation);
    return result;
}

int64_t names_find_inode(sc_core *core, uint64_t ino, struct sc_inode *row)
{
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_CLOSED);
    if (attr_cache_find(&core->attr_cache, ino, row))
        return 0;
    struct names_reader *reader = names_reader_take(&core->readers);
    if (!reader)
        return SC_NEED(SC_NEED_PYTHON);
    int64_t result = names_inode(core, reader, ino, row);
    names_reader_give(&core->readers, reader);
    return result;
}

int64_t names_stat(sc_core *core, uint64_t ino, struct sc_stat *found)
{
    struct sc_inode row;
    int64_t result = names_find_inode(core, ino, &row);
    return result ? result : attributes_of(core, &row, found);
}

/* 0 if the names of a directory are here; this look comes before the one at the names. */
static int64_t must_be_loaded(sc_core *core, struct names_reader *reader, uint64_t directory)
{
    if (!atomic_load(&core->readers.lazy))
        return 0;
    sqlite3_stmt *statement = names_begin(reader, QUERY_UNLOADED, directory);
    int64_t found = statement ? names_step(statement) : SC_NEED(SC_NEED_PYTHON);
    names_end(statement);
    return found ? SC_NEED(SC_NEED_PYTHON) : 0;
}

/* 0, -ENOTDIR, -ESTALE, or the directory's names are not here. */
int64_t names_directory(sc_core *core, struct names_reader *reader, uint64_t ino, struct sc_inode *row)
{
    int64_t result = names_inode(core, reader, ino, row);
    if (!result && !S_ISDIR(row->mode))
        result = -ENOTDIR;
    return result ? result : must_be_loaded(core, reader, ino);
}

int64_t names_entry(struct names_reader *reader, uint64_t parent, struct sc_name name, struct sc_inode *row)
{
    sqlite3_stmt *statement = names_begin(reader, QUERY_LOOKUP, parent);
    int64_t found = SC_NEED(SC_NEED_PYTHON);
    if (statement && sqlite3_bind_blob(statement, 2, name.bytes, (int)name.length, SQLITE_STATIC) == SQLITE_OK)
        found = names_step(statement);
    if (found > 0)
        names_row(statement, row);
    if (found > 0 && !row->ino) /* a name of no inode: damage */
        found = SC_NEED(SC_NEED_PYTHON);
    names_end(statement);
    return found > 0 ? 0 : found ? found : -ENOENT;
}

int64_t names_lookup(sc_core *core, uint64_t parent, const char *name, size_t length, struct sc_stat *found)
{
    struct sc_inode directory, row;
    if (length > NAME_BYTES)
        return -ENAMETOOLONG;
    struct names_reader *reader = atomic_load(&core->closed) ? NULL : names_reader_take(&core->readers);
    if (!reader)
        return SC_NEED(SC_NEED_PYTHON);
    int64_t result = names_directory(core, reader, parent, &directory);
    uint64_t generation = attr_cache_generation(&core->attr_cache);
    if (!result)
        result = names_entry(reader, parent, (struct sc_name){name, length}, &row);
    if (!result)
        attr_cache_offer(&core->attr_cache, &row, generation);
    names_reader_give(&core->readers, reader);
    return result ? result : attributes_of(core, &row, found);
}

/* The directory that ".." means; -ENOENT for one that was removed. */
int64_t names_parent_of(sc_core *core, uint64_t directory, uint64_t *parent)
{
    struct sc_inode row;
    struct names_reader *reader = atomic_load(&core->closed) ? NULL : names_reader_take(&core->readers);
    if (!reader)
        return SC_NEED(SC_NEED_PYTHON);
    int64_t result = names_directory(core, reader, directory, &row);
    names_reader_give(&core->readers, reader);
    *parent = row.parent;
    return !result && !row.nlink ? -ENOENT : result;
}

/* The length of a column, of which as much as fits is copied. */
int64_t names_copy(sqlite3_stmt *statement, int column, char *buffer, size_t size)
{
    const void *value = sqlite3_column_blob(statement, column);
    size_t length = (size_t)sqlite3_column_bytes(statement, column);
    if (value) /* an empty one has no address */
        memcpy(buffer, value, min_u64(length, size));
    return (int64_t)length;
}

/* The length of the target of a symlink, of which as much as fits is copied. -EINVAL for any other inode. */
int64_t names_readlink(sc_core *core, uint64_t ino, char *target, size_t size)
{
    struct names_reader *reader = atomic_load(&core->closed) ? NULL : names_reader_take(&core->readers);
    sqlite3_stmt *statement = reader ? names_begin(reader, QUERY_TARGET, ino) : NULL;
    int64_t result = statement ? names_step(statement) : SC_NEED(SC_NEED_PYTHON);
    if (!result)
        result = -ESTALE;
    else if (result > 0 && !S_ISLNK((uint32_t)sqlite3_column_int64(statement, 0)))
        result = -EINVAL;
    else if (result > 0)
        result = names_copy(statement, 1, target, size);
    names_end(statement);
    if (reader)
        names_reader_give(&core->readers, reader);
    return result;
}
