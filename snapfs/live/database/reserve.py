"""Room that is kept on the disk for the namespace alone.

A user who filled the disk must be able to remove names again, which takes room in the WAL (wal.py fills that up in
advance) and, when the WAL is written back, in the database. A file of zeros is the room for that: it is given up
when a checkpoint finds the disk full, and made again when there is plenty.

A daemon that starts on a full disk needs room as well, for a new intent log: it takes some of the file (`give_some`)
before a waiting writer can fill that up, so that the file lasts for many such starts.

A crash leaves the file whole, partly filled or missing; all three are right.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from snapfs.base.blocks import Disk

RESERVE_BYTES = 4 << 20
START_BYTES = 256 << 10
PLENTY_BYTES = 4 * RESERVE_BYTES
"""Free room from which the file is made again, so that it is not made and given up in turns."""


class Reserve:
    """From the checkpointing thread only, and at the start."""

    def __init__(self, path: str, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._kept = False

    def fill(self) -> None:
        """Make the file, if it is not there and the disk has plenty of room. Never an error."""
        if self._kept:
            return
        with suppress(OSError):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._kept = os.fstat(fd).st_size >= RESERVE_BYTES
                room = os.fstatvfs(fd)
                if not self._kept and room.f_bavail * room.f_frsize >= PLENTY_BYTES:
                    os.posix_fallocate(fd, 0, RESERVE_BYTES)
                    self._kept = True
            finally:
                os.close(fd)

    @staticmethod
    def give_some(path: str, *, if_needed: bool) -> bool:
        """Free some of the room that is kept at `path`, before the namespace is opened; whether there was any.

        `if_needed`: only where there is next to none. (SQLite maps what it has not written: no error, but SIGBUS.)
        """
        with suppress(OSError):
            room = os.statvfs(os.path.dirname(path))
            if if_needed and room.f_bavail * room.f_frsize >= START_BYTES:
                return False
            size = os.stat(path).st_size
            os.truncate(path, max(size - START_BYTES, 0))
            return size > 0
        return False

    def give(self) -> bool:
        """Free the room; whether there was any."""
        kept, self._kept = self._kept, False
        with suppress(OSError):
            kept = kept or os.stat(self._path).st_size > 0
            self._disk.unlink("namespace:reserve", self._path)
        return kept


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE = 1


def reserve(fd: int, length: int) -> None:
    """Let the host have room for the first bytes of a file, whose size stays. Where it cannot, nothing happens."""
    _libc.fallocate(fd, _KEEP_SIZE, 0, length)
