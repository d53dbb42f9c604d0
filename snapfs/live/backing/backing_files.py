"""What a backing file itself has on record: its size, its times, and which of its bytes are data.

A file's atime holds its ctime; its mtime is the host's after a write, and what was given after utimensat(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator


def stat_backing(path: str) -> tuple[int, int, int, int]:
    """(size, mtime_ns, ctime_ns, 512-byte blocks) of a backing file. OSError."""
    found = os.stat(path)
    assert stat.S_ISREG(found.st_mode), path
    return found.st_size, reported_mtime(found), found.st_atime_ns, found.st_blocks


def is_stamped(found: os.stat_result) -> bool:
    """Whether a backing file's mtime is the host's, of a write after its times were set.

    A write gives mtime and ctime one value, and so do truncate and fallocate; utimensat(2) leaves mtime as given.
    """
    return found.st_mtime_ns == found.st_ctime_ns


def reported_mtime(found: os.stat_result) -> int:
    """The mtime that was last reported of a backing file, but for one that recovery must take from the intent log.

    The kernel sets both times of a file that is written to one value, so the ctime, which no write of the host changes,
    gives both. Where they differ, the log has a note (file_times.py), and recovery has set it on the file.
    """
    return found.st_atime_ns if is_stamped(found) else found.st_mtime_ns


def set_file_times(fd: int, mtime_ns: int, ctime_ns: int) -> int:
    """Set both times of a backing file; returns the ctime, which is the mtime if else that would look like a stamp."""
    os.utime(fd, ns=(ctime_ns, mtime_ns))
    if mtime_ns != ctime_ns and is_stamped(os.fstat(fd)):  # the mtime is this very tick of the host's clock
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        return mtime_ns
    return ctime_ns


def allocated_bytes(path: str) -> int:
    """What a file takes of the disk, 0 if it is gone, or its disk is."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_blocks * 512
    return 0


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(from, to) of all data of a file in [start, end), ascending, in bytes. It may be truncated meanwhile."""
    while start < end:
        try:
            begin = os.lseek(fd, start, os.SEEK_DATA)
            if begin >= end:
                return
            start = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as failure:
            if failure.errno != errno.ENXIO:
                raise
            return
        yield begin, min(start, end)
