"""A bounded cache of open files, so that the descriptor limit never bounds the number of files.

Invariants:
1. At most `limit` descriptors are open here, and as many more as threads hold pinned ones at the same time.
2. A pinned descriptor is not closed; one that is dropped while pinned is closed when its last pin goes.
3. `get` gives a descriptor that stays open until the same thread calls `get` again: only the owner thread
   calls `get`, and only `get` makes room. All other threads use `borrow`, which adds nothing to the cache.
4. A cache that several threads fill is used through `lend` alone.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC


class Opened:
    __slots__ = ("dropped", "fd", "path", "pins")

    def __init__(self, fd: int, path: str = "") -> None:
        self.fd, self.path = fd, path
        self.pins = 0
        self.dropped = False


class Descriptors:
    """Open files by key. OSErrors are those of open(2)."""

    def __init__(self, path_of: Callable[[int], str], limit: int) -> None:
        self.path_of = path_of
        self.limit = max(limit, 1)
        self._open: OrderedDict[int, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: int) -> int:
        """A descriptor for the owner thread (invariant 3)."""
        found = self._open.get(key)
        if found is not None:
            self._open.move_to_end(key)
            return found.fd
        return self._put(key, open_backing)

    def create(self, key: int) -> int:
        """As `get`, for a file that does not exist or belongs to no inode: it is empty then."""
        return self._put(key, lambda path: os.open(path, OPEN_FLAGS | os.O_CREAT | os.O_TRUNC | os.O_NOATIME, 0o600))

    def _put(self, key: int, open_file: Callable[[str], int]) -> int:
        self._shrink(self.limit - 1)
        path = self.path_of(key)
        fd = _open_with_room(open_file, path, lambda: self._shrink(len(self._open) // 2))
        with self._lock:
            self._open[key] = Opened(fd)
        return fd

    def unpin(self) -> None:
        """What `get` gave last is not used any more. For the owner thread; the native twin pins it until then."""

    @contextmanager
    def borrow(self, key: int) -> Iterator[int]:
        """A descriptor for any thread, while in the ``with``."""
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                found.pins += 1
        if found is None:
            found = Opened(open_backing(self.path_of(key)))
            found.pins, found.dropped = 1, True
        try:
            yield found.fd
        finally:
            self._unpin(found)

    @contextmanager
    def lend(self, key: int) -> Iterator[Opened]:
        """As `borrow`, and what is opened stays for the next one."""
        with self._lock:
            found = self._open.get(key)
            if found is None:
                path = self.path_of(key)
                fd = _open_with_room(open_backing, path, lambda: self._evict(len(self._open) // 2))
                found = self._open[key] = Opened(fd, path)
            else:
                self._open.move_to_end(key)
            found.pins += 1
        self._shrink(self.limit)
        try:
            yield found
        finally:
            self._unpin(found)

    def drop(self, key: int) -> None:
        """Close the descriptor of `key`, whose path means another file from now on, or none."""
        with self._lock:
            found = self._open.pop(key, None)
            if found is not None:
                self._close_or_doom(found)

    def close(self) -> None:
        self._shrink(0)

    def _unpin(self, found: Opened) -> None:
        with self._lock:
            found.pins -= 1
            if found.dropped and not found.pins:
                os.close(found.fd)

    def _shrink(self, size: int) -> None:
        with self._lock:
            self._evict(size)

    def _evict(self, size: int) -> None:
        """Under the lock."""
        while len(self._open) > size:
            _, oldest = self._open.popitem(last=False)
            self._close_or_doom(oldest)

    def _close_or_doom(self, found: Opened) -> None:
        if found.pins:
            found.dropped = True
        else:
            os.close(found.fd)


def _open_with_room(open_file: Callable[[str], int], path: str, make_room: Callable[[], None]) -> int:
    """Open; where the process or the host has no descriptor left, make room and open once more."""
    try:
        return open_file(path)
    except OSError as failure:
        if failure.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    make_room()
    return open_file(path)


def open_backing(path: str) -> int:
    """Open an existing backing file for reading and writing, its access time (our ctime) left alone."""
    try:
        return os.open(path, OPEN_FLAGS | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is for the file's owner
        return os.open(path, OPEN_FLAGS)
