"""What the host filesystem is known to do beyond what POSIX promises, where that saves flushes of the device.

Known of ext4 alone, from its source (fs/ext4/fsync.c, namei.c of 5.4 to 6.18); of any other nothing is assumed.

1. A sync of a file makes the name it was created under durable too. With a journal, inode and name are made in one
   transaction, which a sync of the inode commits (`i_sync_tid` and `i_datasync_tid` are set as it is made). Without
   one, `ext4_sync_parent` writes the folders of a file that is new. It is not so of a name that came by rename.

2. A sync of any file, once it returns without an error, has flushed the device after it was called: the journal's
   commit does, or else `ext4_sync_file` itself (`needs_barrier`). So blocks of another file of the filesystem, whose
   writing was complete before that call, are durable by it, if nothing but the blocks themselves must be: they were
   overwritten in place. That is so where the file's blocks were allocated, filled and synced before, and data does not
   go through the journal (data=journal, chattr +j), which is checked here. ext4 copies no block when it writes;
   e4defrag may move a file's blocks, and is not to be run over a live volume.

What its files hold at most is not assumed but tried (`probe_limits`).

On a filesystem mounted with nobarrier no sync flushes the device.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from snapfs.base import mountinfo
from snapfs.base.limits import SIZE_MAX, TIME_MAX_NS, TIME_MIN_NS, HostLimits

_FS_IOC_GETFLAGS, _JOURNAL_DATA = 0x80086601, 0x4000


def boot_id() -> str:
    """The id of this run of the machine, which the page cache does not outlive."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def is_ext4(path: str) -> bool:
    """Whether what lies at `path` is in an ext4 filesystem, by its driver of that name."""
    return _options(os.stat(path).st_dev) is not None


def probe_limits(folder: str) -> HostLimits:
    """What a file in `folder` holds; what cannot be tried, as on a full disk, is left to the host to refuse."""
    path = os.path.join(folder, "limits")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError:
        return HostLimits()
    try:
        os.unlink(path)
        with contextlib.suppress(OSError):
            return HostLimits(_max_bytes(fd), _stored_time(fd, TIME_MIN_NS), _stored_time(fd, TIME_MAX_NS))
        return HostLimits()
    finally:
        os.close(fd)


def _max_bytes(fd: int) -> int:
    """The largest size that the empty file takes, found by bisection: no block is allocated."""
    fits, too_large = 0, SIZE_MAX + 1
    while too_large - fits > 1:
        size = SIZE_MAX if too_large > SIZE_MAX else (fits + too_large) // 2
        try:
            os.ftruncate(fd, size)
            fits = size
        except OSError as failure:
            if failure.errno not in (errno.EFBIG, errno.EINVAL):
                raise
            too_large = size
    return fits


def _stored_time(fd: int, time_ns: int) -> int:
    os.utime(fd, ns=(time_ns, time_ns))
    return os.fstat(fd).st_mtime_ns


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
        kinds = {mount.kind for mount in mountinfo.mounts() if mount.device == device}
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{number}"))
        with open(f"/proc/fs/ext4/{name}/options", encoding="ascii") as lines:
            return set(lines.read().split()) if kinds == {"ext4"} else None
    return None
