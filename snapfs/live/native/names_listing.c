/* Listings: the twin of `_list` in snapfs/fuse/handlers/name_handlers.py, whose offsets these are.
 *
 * An offset has a cookie, and above it a tag of the newest cookie that the listing may reach: so one ends with the newest
 * name that there was when it began, and needs no memory of ours. Here that bound is the newest cookie in the directory;
 * Python takes that of all names. Either reads the other's offsets.
 */
#include "content.h"

#include <sqlite3.h>

#define COOKIE_BITS 36
#define BOUNDS ((INT64_C(1) << 27) - 1)
#define NO_BOUND INT64_MAX
#define SELF_COOKIE 1
#define PARENT_COOKIE 2
#define COOKIE_COLUMN 11 /* behind those of the inode */

struct range {
    int64_t after, bound;
    uint64_t tag;
};

static uint64_t tag_of(int64_t bound)
{
    return bound >> COOKIE_BITS ? 0 : (uint64_t)(bound % BOUNDS + 1) << COOKIE_BITS;
}

/* `newest` is at least the newest cookie that was given out. */
static struct range range_of(uint64_t offset, int64_t newest)
{
    int64_t tag = (int64_t)(offset >> COOKIE_BITS), cookie = (int64_t)(offset & ((UINT64_C(1) << COOKIE_BITS) - 1));
    if (newest >> COOKIE_BITS || !tag)
        return (struct range){(int64_t)offset, NO_BOUND, tag_of(NO_BOUND)};
    int64_t bound = newest - (newest - (tag - 1)) % BOUNDS;
    return (struct range){cookie, bound, tag_of(bound)};
}

static int64_t number(struct names_reader *reader, enum names_query query, uint64_t argument, int64_t *value)
{
    sqlite3_stmt *statement = names_begin(reader, query, argument);
    int64_t found = statement ? names_step(statement) : 0;
    if (found > 0)
        *value = sqlite3_column_int64(statement, 0); /* NULL, of no rows, is 0 */
    names_end(statement);
    return found > 0 ? 0 : SC_NEED(SC_NEED_PYTHON);
}

/* Where a listing begins or goes on. */
static int64_t find_range(struct names_reader *reader, uint64_t directory, uint64_t offset, struct range *range)
{
    int64_t newest = 0, last = 0;
    int64_t result = number(reader, QUERY_NEWEST, 0, &newest);
    if (!result && !offset)
        result = number(reader, QUERY_LAST, directory, &last);
    if (!result && !offset)
        *range = (struct range){0, last, newest >> COOKIE_BITS ? 0 : tag_of(last)};
    else if (!result)
        *range = range_of(offset, newest);
    return result;
}

/* What takes the entries of one listing; `full`: it took no more. */
struct taker {
    sc_add_entry *add;
    void *context;
    struct range range;
    bool full;
};

static int64_t give(sc_core *core, struct taker *to, const struct sc_inode *row, struct sc_name name, int64_t cookie)
{
    struct sc_stat found;
    int64_t result = attributes_of(core, row, &found);
    if (!result)
        to->full = !to->add(to->context, name, (uint64_t)cookie | to->range.tag, &found);
    return result;
}

static int64_t list_dots(sc_core *core, struct names_reader *reader, const struct sc_inode *directory, struct taker *to)
{
    struct sc_inode parent;
    if (to->range.after >= PARENT_COOKIE)
        return 0;
    int64_t result = directory->nlink ? names_inode(core, reader, directory->parent, &parent) : -ENOENT;
    if (!result && to->range.after < SELF_COOKIE)
        result = give(core, to, directory, (struct sc_name){".", 1}, SELF_COOKIE);
    if (!result && !to->full)
        result = give(core, to, &parent, (struct sc_name){"..", 2}, PARENT_COOKIE);
    return result;
}

static int64_t list_names(sc_core *core, sqlite3_stmt *statement, struct taker *to)
{
    struct sc_inode row;
    int64_t result = 0;
    while (!to->full && !result && (result = names_step(statement)) > 0) {
        int64_t cookie = sqlite3_column_int64(statement, COOKIE_COLUMN);
        const char *name = sqlite3_column_blob(statement, COOKIE_COLUMN + 1);
        size_t length = (size_t)sqlite3_column_bytes(statement, COOKIE_COLUMN + 1);
        names_row(statement, &row);
        if (cookie > to->range.bound)
            return 0;
        result = give(core, to, &row, (struct sc_name){name, length}, cookie);
    }
    return result;
}

static int64_t list(sc_core *core, struct names_reader *reader, uint64_t directory, uint64_t offset, struct taker *to)
{
    struct sc_inode row;
    int64_t result = names_directory(core, reader, directory, &row);
    if (!result)
        result = find_range(reader, directory, offset, &to->range);
    if (!result)
        result = list_dots(core, reader, &row, to);
    if (result || to->full)
        return result;
    sqlite3_stmt *statement = names_begin(reader, QUERY_LIST, directory);
    result = statement && sqlite3_bind_int64(statement, 2, to->range.after) == SQLITE_OK
                 ? list_names(core, statement, to)
                 : SC_NEED(SC_NEED_PYTHON);
    names_end(statement);
    return result;
}

/* Give the entries behind `offset` to `add` until it takes no more. What it took before an error counts. */
int64_t names_list(sc_core *core, uint64_t directory, uint64_t offset, sc_add_entry *add, void *context)
{
    struct taker to = {.add = add, .context = context};
    struct names_reader *reader = atomic_load(&core->closed) ? NULL : names_reader_take(&core->readers);
    if (!reader)
        return SC_NEED(SC_NEED_PYTHON);
    int64_t result = list(core, reader, directory, offset, &to);
    names_reader_give(&core->readers, reader);
    return result;
}
