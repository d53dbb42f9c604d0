"""Extended attributes of any inode, of any type. POSIX ACLs are attributes like the others here.

A write of a file makes some kernels ask for an attribute that nearly no file has: which inodes have none at all
is remembered, in bounded memory.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from snapfs.blocks import Ino
from snapfs.live.records import NAME_MAX, error
from snapfs.live.writer import Writer

XATTR_CREATE = 1
XATTR_REPLACE = 2
VALUE_MAX = 65536
REMEMBERED_BARE = 65536


class Xattrs:
    """Values are bytes, names too, with their namespace prefix ("user.")."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._bare: set[int] = set()

    def forget(self) -> None:
        self._bare.clear()

    def forget_one(self, ino: Ino) -> None:
        self._bare.discard(ino)
        if self._writer.watcher is not None:
            self._writer.watcher.is_bare(ino, False)

    def get(self, ino: Ino, name: bytes) -> bytes:
        """ENODATA if there is none."""
        if ino in self._bare:
            raise error(errno.ENODATA)
        value = self._find(ino, name)
        if value is None:
            self._note_bare(ino)
            raise error(errno.ENODATA)
        return value

    def list(self, ino: Ino) -> list[bytes]:
        """Names, sorted; ESTALE without such an inode."""
        if ino in self._bare:
            return []
        rows = self._writer.rows("SELECT name FROM xattr WHERE ino = ? ORDER BY name", (ino,))
        return [name for (name,) in rows]

    def set(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """EEXIST with XATTR_CREATE, ENODATA with XATTR_REPLACE; ERANGE, E2BIG for lengths the kernel refuses."""
        if not 0 < len(name) <= NAME_MAX:
            raise error(errno.ERANGE)
        if len(value) > VALUE_MAX:
            raise error(errno.E2BIG)
        inode = self._writer.inode(ino)
        if flags:
            exists = self._find(ino, name) is not None
            if flags & XATTR_CREATE and exists:
                raise error(errno.EEXIST)
            if flags & XATTR_REPLACE and not exists:
                raise error(errno.ENODATA)
        with self._writer.change:
            self._writer.db.execute("INSERT OR REPLACE INTO xattr VALUES (?,?,?)", (ino, name, value))
            self._writer.update_inode(inode._replace(ctime_ns=self._writer.clock()))
            self._writer.note(0)
        self.forget_one(ino)

    def put_new(self, ino: Ino, xattrs: Iterable[tuple[bytes, bytes]]) -> None:
        """Those that an inode is made with; within the change that makes it."""
        rows = [(ino, name, value) for name, value in xattrs]
        if rows:
            self._writer.db.executemany("INSERT INTO xattr VALUES (?,?,?)", rows)
        else:
            self._is_bare(ino)

    def remove(self, ino: Ino, name: bytes) -> None:
        """ENODATA if there is none."""
        inode = self._writer.inode(ino)
        with self._writer.change:
            gone = self._writer.db.execute("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, name)).rowcount
            if not gone:
                raise error(errno.ENODATA)
            self._writer.update_inode(inode._replace(ctime_ns=self._writer.clock()))
            self._writer.note(0)

    def _find(self, ino: Ino, name: bytes) -> bytes | None:
        row = self._writer.row("SELECT value FROM xattr WHERE ino = ? AND name = ?", (ino, name))
        return None if row is None else row[0]

    def _note_bare(self, ino: Ino) -> None:
        if self._writer.row("SELECT 1 FROM xattr WHERE ino = ? LIMIT 1", (ino,)) is None:
            self._is_bare(ino)

    def _is_bare(self, ino: Ino) -> None:
        if len(self._bare) >= REMEMBERED_BARE:
            self._bare.clear()
        self._bare.add(ino)
        if self._writer.watcher is not None:
            self._writer.watcher.is_bare(ino, True)
