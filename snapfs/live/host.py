"""What the host filesystem is known to do beyond what POSIX promises, where that saves flushes of the device.

Known of ext4 alone, from its source (fs/ext4/fsync.c, namei.c of 5.4 to 6.18); of any other nothing is assumed.

1. A sync of a file makes the name it was created under durable too. With a journal, inode and name are made in one
   transaction, which a sync of the inode commits (`i_sync_tid` and `i_datasync_tid` are set as it is made). Without
   one, `ext4_sync_parent` writes the folders of a file that is new. It is not so of a name that came by rename.

2. A sync of any file, once it returns without an error, has flushed the device after it was called: the journal's
   commit does, or else `ext4_sync_file` itself (`needs_barrier`). So blocks of another file of the filesystem, whose
   writing was complete before that call, are durable by it, if nothing but the blocks themselves must be: they were
   overwritten in place. That is so where the file's blocks were allocated, filled and synced before, and data does not
   go through the journal (data=journal, chattr +j), which is looked at here. ext4 copies no block when it writes;
   e4defrag may move a file's blocks, and is not to be run over a live volume.

On a filesystem mounted with nobarrier nobody's sync flushes, as everywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

_FS_IOC_GETFLAGS, _JOURNAL_DATA = 0x80086601, 0x4000


def is_ext4(path: str) -> bool:
    """Whether what lies at `path` is in an ext4 filesystem, by its driver of that name."""
    return _options(os.stat(path).st_dev) is not None


def overwrites_in_place(fd: int) -> bool:
    """Whether 2. holds of an open file, as far as it is not the file's own affair."""
    options = _options(os.fstat(fd).st_dev)
    if options is None or "data=journal" in options:
        return False
    with contextlib.suppress(OSError):
        flags = struct.unpack("=l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(struct.calcsize("=l"))))[0]
        return not flags & _JOURNAL_DATA
    return False


def _options(device: int) -> set[str] | None:
    """All options that an ext4 filesystem is mounted with, the defaults too; None if it is another one."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            mounts = [line.split() for line in lines]
        kinds = {fields[fields.index("-") + 1] for fields in mounts if fields[2] == number}
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{number}"))
        with open(f"/proc/fs/ext4/{name}/options", encoding="ascii") as lines:
            return set(lines.read().split()) if kinds == {"ext4"} else None
    return None
