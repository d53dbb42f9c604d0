/* Looks at extended attributes: the twin of `get` and `list` in snapfs/live/namespace/xattrs.py.
 *
 * Of an inode that has none at all the cache knows that, if nothing was passed to it meanwhile.
 */
#include "content.h"

#include <sqlite3.h>
#include <string.h>

static const char TRUSTED[] = "trusted.";

static int64_t find_value(struct names_reader *reader, uint64_t ino, const char *name, size_t length, char *value,
                          size_t size)
{
    sqlite3_stmt *statement = names_begin(reader, QUERY_XATTR, ino);
    int64_t result = SC_NEED(SC_NEED_PYTHON);
    if (statement && sqlite3_bind_blob(statement, 2, name, (int)length, SQLITE_STATIC) == SQLITE_OK)
        result = names_step(statement);
    result = result > 0 ? names_copy(statement, 0, value, size) : result ? result : -ENODATA;
    names_end(statement);
    return result;
}

static bool has_none(struct names_reader *reader, uint64_t ino)
{
    sqlite3_stmt *statement = names_begin(reader, QUERY_XATTRS, ino);
    bool none = statement && !names_step(statement);
    names_end(statement);
    return none;
}

/* The length of a value, of which as much as fits is copied; -ENODATA. */
int64_t names_getxattr(sc_core *core, uint64_t ino, const char *name, size_t length, char *value, size_t size)
{
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_PYTHON);
    if (attr_cache_has_no_xattrs(&core->attr_cache, ino))
        return -ENODATA;
    struct names_reader *reader = names_reader_take(&core->readers);
    if (!reader)
        return SC_NEED(SC_NEED_PYTHON);
    uint64_t generation = attr_cache_generation(&core->attr_cache);
    int64_t result = find_value(reader, ino, name, length, value, size);
    if (result == -ENODATA && has_none(reader, ino))
        attr_cache_offer_no_xattrs(&core->attr_cache, ino, generation);
    names_reader_give(&core->readers, reader);
    return result;
}

static int64_t copy_names(sqlite3_stmt *statement, int with_trusted, char *names, size_t size)
{
    size_t total = 0;
    int64_t found = SC_NEED(SC_NEED_PYTHON);
    while (statement && (found = names_step(statement)) > 0) {
        const char *name = sqlite3_column_blob(statement, 0);
        size_t length = (size_t)sqlite3_column_bytes(statement, 0);
        if (!name || (!with_trusted && length >= sizeof TRUSTED - 1 && !memcmp(name, TRUSTED, sizeof TRUSTED - 1)))
            continue;
        if (total + length + 1 <= size) {
            memcpy(names + total, name, length);
            names[total + length] = '\0';
        }
        total += length + 1;
    }
    return found ? found : (int64_t)total;
}

/* The length of all names, sorted, each with a zero behind it; copied if all of them fit. */
int64_t names_listxattr(sc_core *core, uint64_t ino, int with_trusted, char *names, size_t size)
{
    if (atomic_load(&core->closed))
        return SC_NEED(SC_NEED_PYTHON);
    if (attr_cache_has_no_xattrs(&core->attr_cache, ino))
        return 0;
    struct names_reader *reader = names_reader_take(&core->readers);
    if (!reader)
        return SC_NEED(SC_NEED_PYTHON);
    sqlite3_stmt *statement = names_begin(reader, QUERY_XATTRS, ino);
    int64_t result = copy_names(statement, with_trusted, names, size);
    names_end(statement);
    names_reader_give(&core->readers, reader);
    return result;
}
