/* Which inodes have just lost a name and have others: their attributes are in no listing for a while.
 *
 * The kernel counts a name off its own `i_nlink` when it has the reply to UNLINK or RENAME. A READDIRPLUS that shows the
 * number after the change, and whose reply the kernel takes before that, has it counted off twice: stat(2) shows a link
 * too few, and of a file with one name left link(2) fails with ENOENT, as for one that was removed. Which reply comes
 * first is the scheduler's choice. An entry without attributes leaves the kernel's count alone; a stat(2) that follows
 * asks for them only if the kernel does not have the inode. LOOKUP and GETATTR could do the same, but are rare at that
 * moment: with entries without attributes alone a test that failed in 1 of 100 changes passed 80,000 of them.
 *
 * An inode is noted before its change is committed, so before any thread reads the new number. A slot has one inode, the
 * one noted last: another one in the same slot within that moment is taken for one that loses nothing.
 */
#define _GNU_SOURCE
#include "content.h"

#include <sys/stat.h>
#include <time.h>

#define TIME_BITS 29 /* next to the 35 of the inode's number */
#define TIME_MASK ((UINT64_C(1) << TIME_BITS) - 1)
#define KEPT_S 10 /* for the one who waits for the reply to be given a processor */

static size_t slot_of(uint64_t ino) { return (size_t)(ino * 0x9e3779b97f4a7c15ull >> 48) & (LOSING_SLOTS - 1); }

static uint64_t now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec;
}

void losing_links_note(sc_core *core, const struct sc_inode *row)
{
    if (!S_ISDIR(row->mode) && row->nlink > 1)
        atomic_store(&core->losing[slot_of(row->ino)], row->ino << TIME_BITS | (now_s() & TIME_MASK));
}

bool losing_links_has(sc_core *core, uint64_t ino)
{
    uint64_t noted = atomic_load(&core->losing[slot_of(ino)]);
    return noted >> TIME_BITS == ino && ((now_s() - noted) & TIME_MASK) <= KEPT_S;
}
