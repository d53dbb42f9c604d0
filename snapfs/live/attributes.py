"""The attributes of an inode as stat(2) shows them: the row of the namespace joined with the backing file.

Size and blocks of a regular file are those of its backing file, and so is its mtime. Its ctime is the later of the
row's and of the file's. Everything else is the row's.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.backing_files import stat_backing
from snapfs.live.backing.host_health import READ
from snapfs.live.content.content import Content
from snapfs.live.database.namespace_rows import Inode
from snapfs.live.namespace.namespace import Namespace


class Attr(NamedTuple):
    """Times in ns since the epoch, `blocks512` in units of 512 bytes."""

    ino: Ino
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    blocks512: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class AttributeReader:
    """For the owner thread of the live tree."""

    def __init__(self, names: Namespace, content: Content, backing: Backing) -> None:
        self._names, self._content, self._backing = names, content, backing

    def of(self, inode: Inode) -> Attr:
        """The attributes of the inode that this row describes."""
        ino, mode, uid, gid, rdev, nlink, atime_ns, mtime_ns, ctime_ns = inode[:9]
        if not stat.S_ISREG(mode):
            size = len(inode.target)
            return Attr(ino, mode, uid, gid, rdev, nlink, size, 0, atime_ns, mtime_ns, ctime_ns)
        size, mtime_ns, file_ctime_ns, blocks = self.of_file(ino)
        return Attr(ino, mode, uid, gid, rdev, nlink, size, blocks, atime_ns, mtime_ns, max(ctime_ns, file_ctime_ns))

    def of_file(self, ino: Ino) -> tuple[int, int, int, int]:
        """(size, mtime_ns, ctime_ns, 512-byte blocks) of a regular file. Loads no state. A lost file shows as empty."""
        known = self._content.attributes(ino)
        if known is not None:
            return known
        state = self._content.states.get(ino)
        try:
            with self._backing.health.watching(READ):
                size, mtime_ns, ctime_ns, blocks = stat_backing(self._backing.path(ino))
        except FileNotFoundError:
            absent = self._names.absent(ino)
            return (absent.size, absent.mtime_ns, absent.ctime_ns, -(-absent.size // 512)) if absent else (0, 0, 0, 0)
        if state is None:
            return size, mtime_ns, ctime_ns, blocks
        return state.size, state.mtime_ns, state.ctime_ns, blocks
