"""Pages whose write(2) has returned to the application, and that the kernel now writes back.

A full disk can be reported to the application by an fsync alone. So either the write succeeds, or all sides see at once
that it did not:

1. *Room is kept* for such pages in live/room, which nothing else gets: where the host reports that it is full, a piece
   of that file is freed, and the write is tried again. The kernel holds no more dirty pages of a FUSE mount than its
   `max_ratio` allows (1 % of the dirty threshold), which is how long the file is, up to a small part of the disk.
2. What still cannot be written is *lost*: the kernel forgets its pages, and the file gets the size that the kernel
   believes in, with a hole (as on a local filesystem whose delayed allocation fails). Live file, snapshot and remount
   are equal. The loss is counted: the next snapshot with a flush fails with the reason (snapshotter.py).

To let write(2) itself fail was considered: the kernel requests a file's attributes (GETATTR with FUSE_GETATTR_FH)
before it takes a write, if they are not cached, and passes an error on. But the request does not show whether the write
overwrites in place, which a full disk must not refuse: a database would fail at a write into room that it allocated.
(A limit of size refuses in this way the writes of files that have passed it; native/size_limit.c.)

Invariants:
1. A loss changes the size as a change of its own does: marked dirty first. Where not even the intent of it can be
   written, the host's life is withdrawn: the next daemon compares the file in full.
2. Room that was given up is kept again when there is plenty of it, and not before the kernel has dropped the pages of
   each loss (lost_writes.py). A loss gives up all of it. So a daemon that adopts a mount and finds nothing in live/room
   knows that the kernel may have pages that were never stored; if it finds any room, the kernel has none.

A crash leaves live/room shorter or missing; both are right.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress

MOST_BYTES = 64 << 20
PART_OF_DISK = 64
"""The room that is kept is at most this part of the host's filesystem..."""
PLENTY = 4
"""...and is kept again when so many times of it are free."""
PIECE_BYTES = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)


class CachedRoom:
    """The file live/room. Any thread."""

    def __init__(self, live_dir: str) -> None:
        self._path = os.path.join(live_dir, "room")
        self._lock = threading.Lock()
        self.lost_writes = 0
        """How many writes of pages that had been taken failed for good."""
        self.lost_errno = 0
        """Why the last of them did."""

    def note_loss(self, number: int) -> int:
        """A write failed for good, with this errno; how many have."""
        self.lost_writes += 1
        self.lost_errno = number
        return self.lost_writes

    @property
    def bytes(self) -> int:
        """What is kept."""
        with suppress(OSError):
            return os.stat(self._path).st_size
        return 0

    @property
    def is_given_up(self) -> bool:
        """Whether nothing is kept: all was given up, or there never was plenty of room."""
        return not self.bytes

    def keep(self) -> None:
        """Make the file as long as it is to be, if the disk has plenty of room. Never an error; waits for the disk."""
        with self._lock, suppress(OSError):
            room = os.statvfs(os.path.dirname(self._path))
            wanted = min(MOST_BYTES, kernel_bytes(), room.f_blocks * room.f_frsize // PART_OF_DISK)
            if self.bytes < wanted and room.f_bavail * room.f_frsize >= PLENTY * wanted:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, wanted)
                finally:
                    os.close(fd)

    def give(self, length: int) -> bool:
        """Give up room for `length` bytes, and what their blocks need to be found; whether there was any."""
        with self._lock, suppress(OSError):
            size = os.stat(self._path).st_size
            os.truncate(self._path, max(size - length - PIECE_BYTES, 0))
            return size > 0
        return False

    def give_all(self) -> None:
        """Give up all room: a write was lost (invariant 2)."""
        with self._lock, suppress(OSError):
            os.truncate(self._path, 0)


def kernel_bytes() -> int:
    """What the kernel holds at most of dirty pages of a FUSE mount, a quarter added."""
    with suppress(OSError, ValueError, StopIteration), open("/proc/vmstat", encoding="ascii") as lines:
        pages = next(int(line.split()[1]) for line in lines if line.startswith("nr_dirty_threshold "))
        return pages * os.sysconf("SC_PAGE_SIZE") // 100 * 5 // 4
    return MOST_BYTES
