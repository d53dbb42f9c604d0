"""The rows of the namespace as the rest of snapfs sees them, and the limits they obey.

Invariants:
1. An inode number is positive and below ``INO_LIMIT``, so that browsing nodes can carry it in 35 bits.
2. Times are nanoseconds since 1970 in UTC and fit a signed 64-bit number; what the live tree takes is in limits.py.
3. `Inode.parent` is the directory that holds a directory, itself for the root, and 0 for all else and for
   directories that were removed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from snapfs.base.blocks import Ino
from snapfs.base.limits import NAME_MAX

INO_LIMIT = 1 << 35
COOKIE_LIMIT = 1 << 62
FIRST_COOKIE = 16
"""Smaller cookies are free for "." and ".."."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


class Inode(NamedTuple):
    """All attributes but size and bytes of a regular file, which are its backing file's."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: bytes = b""
    parent: Ino = Ino(0)

    @property
    def is_directory(self) -> bool:
        return (self.mode & 0o170000) == stat.S_IFDIR


class Entry(NamedTuple):
    cookie: int
    name: bytes
    inode: Inode


class AbsentFile(NamedTuple):
    """A regular file whose bytes are still only in the store; `origin` is the store's own name for its content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    origin: bytes

    @property
    def can_change(self) -> bool:
        """Nothing of it is here."""
        return False


class LoadedEntry(NamedTuple):
    """A name of a directory that was only in the store, with everything about its inode.

    `absent` of a regular file, `listing` of a directory: where the rest of it is, in the store's own words.
    """

    name: bytes
    inode: Inode
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    absent: AbsentFile | None = None
    listing: bytes | None = None


class NotLoadedError(OSError):
    """The names of this directory are still only in the store: load them, and try again. Nothing has happened."""

    def __init__(self, ino: Ino, listing: bytes) -> None:
        super().__init__(errno.EIO, "the names of this directory have not been loaded yet")
        self.ino, self.listing = ino, listing


def error(number: int, what: object = None) -> OSError:
    """An `OSError` with the errno `number`."""
    return OSError(number, os.strerror(number), what) if what is not None else OSError(number, os.strerror(number))


def check_name(name: bytes) -> None:
    """Raise ENAMETOOLONG, or EINVAL for what can be no name at all."""
    if len(name) > NAME_MAX:
        raise error(errno.ENAMETOOLONG)
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL)
