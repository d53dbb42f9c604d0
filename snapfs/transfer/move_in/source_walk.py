"""Walks a directory that may change meanwhile, without following a link or leaving its filesystem.

Invariants:
1. A directory is open only while its names are read: neither depth nor the length of a path counts.
2. Every directory that is read is the one that its name was found to mean: one that was replaced meanwhile counts as
   gone, and the next pass finds what is there now.
3. What is on another filesystem is never entered; `elsewhere` has its path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)


@dataclass(slots=True)
class FoundDirectory:
    """A directory with its names. `fd` is open until the next one is asked for; `path` is relative, of the root b""."""

    path: bytes
    fd: int
    own: os.stat_result
    entries: list[tuple[bytes, os.stat_result]]


@dataclass(slots=True)
class SourceWalk:
    """One walk. `root` is an open directory and stays the caller's. OSError of what may not be read, with its path."""

    root: int
    gone: int = 0
    """Names that went while they were looked at."""
    elsewhere: list[bytes] = field(default_factory=list)

    def directories(self) -> Iterator[FoundDirectory]:
        """Each directory once, a parent before what is in it."""
        own = os.fstat(self.root)
        waiting = [(b"", own.st_ino)]
        while waiting:
            path, ino = waiting.pop()
            fd = self._opened(path, ino)
            if fd < 0:
                continue
            try:
                found = FoundDirectory(path, fd, os.fstat(fd), self._entries(path, fd, own.st_dev))
                waiting += [
                    (_join(path, name), each.st_ino)
                    for name, each in reversed(found.entries)
                    if stat.S_ISDIR(each.st_mode) and each.st_dev == own.st_dev
                ]
                yield found
            finally:
                os.close(fd)

    def _opened(self, path: bytes, ino: int) -> int:
        """The directory, or -1 if it is not there any more."""
        try:
            fd = self._open(path)
        except OSError as failure:
            if failure.errno not in _GONE:
                raise OSError(failure.errno, failure.strerror, os.fsdecode(path or b".")) from None
            self.gone += 1
            return -1
        if os.fstat(fd).st_ino == ino:
            return fd
        os.close(fd)
        self.gone += 1
        return -1

    def _open(self, path: bytes) -> int:
        """Open it without a new access time, where we may."""
        try:
            return open_below(self.root, path, DIRECTORY | os.O_NOATIME)
        except PermissionError:
            return open_below(self.root, path, DIRECTORY)

    def _entries(self, path: bytes, fd: int, device: int) -> list[tuple[bytes, os.stat_result]]:
        found: list[tuple[bytes, os.stat_result]] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    self.gone += 1
                    continue
                name = os.fsencode(entry.name)
                if facts.st_dev != device:
                    self.elsewhere.append(_join(path, name))
                found.append((name, facts))
        return found


def open_below(root: int, path: bytes, flags: int) -> int:
    """Open `path` below the directory `root`, of whatever length. OSError."""
    try:
        return os.open(path or b".", flags, dir_fd=root)
    except OSError as failure:
        if failure.errno != errno.ENAMETOOLONG:
            raise
    here = os.dup(root)
    try:
        *above, name = path.split(b"/")
        for each in above:
            inner = os.open(each, DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
        return os.open(name, flags, dir_fd=here)
    finally:
        os.close(here)


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
