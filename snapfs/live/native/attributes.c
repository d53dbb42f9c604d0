/* What stat(2) shows of an inode: the twin of snapfs/live/attributes.py.
 *
 * Size, mtime and blocks of a regular file are its backing file's, and its ctime is the later of the two. Of a file that
 * is in memory the state has them: the host's times may be later, or not set yet.
 */
#define _GNU_SOURCE
#include "content.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>

#define NS_PER_S INT64_C(1000000000)

static int64_t ns_of(struct statx_timestamp time) { return time.tv_sec * NS_PER_S + time.tv_nsec; }

/* As reported_mtime in backing.py: where the host has stamped the file, the mtime is the ctime, which is its atime. */
static int64_t mtime_of(const struct statx *found)
{
    int64_t mtime_ns = ns_of(found->stx_mtime);
    return mtime_ns == ns_of(found->stx_ctime) ? ns_of(found->stx_atime) : mtime_ns;
}

static bool in_memory(sc_core *core, uint64_t ino, struct sc_attr *attr)
{
    FileState *state = core_pin(core, ino);
    if (!state)
        return false;
    attr->size = atomic_load(&state->size);
    attr->mtime_ns = atomic_load(&state->mtime_ns);
    attr->ctime_ns = atomic_load(&state->ctime_ns);
    core_unpin(state);
    return true;
}

/* Of a file all of whose bytes are in the store. */
static int64_t of_absent(sc_core *core, uint64_t ino, struct sc_attr *attr)
{
    struct names_reader *reader = names_reader_take(&core->readers);
    sqlite3_stmt *statement = reader ? names_begin(reader, QUERY_ABSENT, ino) : NULL;
    int64_t found = statement ? names_step(statement) : 0;
    if (found > 0)
        *attr = (struct sc_attr){.size = (uint64_t)sqlite3_column_int64(statement, 0),
                                 .mtime_ns = sqlite3_column_int64(statement, 1),
                                 .ctime_ns = sqlite3_column_int64(statement, 2)};
    attr->blocks = (attr->size + 511) / 512;
    names_end(statement);
    if (reader)
        names_reader_give(&core->readers, reader);
    return found > 0 ? 0 : SC_NEED(SC_NEED_PYTHON);
}

/* The state is looked for before and after the look at the file: it may come into memory between, and change. The times
 * of a file that is in memory are not looked at (see file_get_attr). */
static int64_t of_file(sc_core *core, uint64_t ino, struct sc_attr *attr)
{
    struct statx found;
    bool known = in_memory(core, ino, attr);
    if (descriptors_stat(core->descriptors, ino, known ? STATX_BLOCKS : STATX_BASIC_STATS, &found))
        return errno == ENOENT ? of_absent(core, ino, attr) : SC_NEED(SC_NEED_PYTHON);
    if (!known)
        *attr = (struct sc_attr){found.stx_size, 0, mtime_of(&found), ns_of(found.stx_atime)};
    in_memory(core, ino, attr);
    attr->blocks = found.stx_blocks;
    return 0;
}

int64_t attributes_of(sc_core *core, const struct sc_inode *row, struct sc_stat *found)
{
    struct sc_attr file = {.size = row->size, .mtime_ns = row->mtime_ns, .ctime_ns = row->ctime_ns};
    int64_t result = S_ISREG(row->mode) ? of_file(core, row->ino, &file) : 0;
    *found = (struct sc_stat){*row, file, losing_links_has(core, row->ino)};
    if (row->ctime_ns > file.ctime_ns)
        found->file.ctime_ns = row->ctime_ns;
    return result;
}
