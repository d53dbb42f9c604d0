"""Extended attributes of any inode, of any type. POSIX ACLs are attributes like the others here.

A write of a file makes some kernels request an attribute that nearly no file has: the inodes that have none at all
are cached, in bounded memory.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from snapfs.base.blocks import Ino
from snapfs.base.limits import NAME_MAX, XATTR_BYTES, XATTR_VALUE_MAX, XATTRS_MAX
from snapfs.live.database.namespace_rows import Inode, error
from snapfs.live.writer.namespace_writer import NamespaceWriter

XATTR_CREATE = 1
XATTR_REPLACE = 2
NO_XATTR_CACHE_SIZE = 65536


class Xattrs:
    """Values are bytes, names too, with their namespace prefix ("user.")."""

    def __init__(self, writer: NamespaceWriter) -> None:
        self._writer = writer
        self._no_xattr_cache: set[int] = set()

    def forget(self) -> None:
        self._no_xattr_cache.clear()

    def forget_one(self, ino: Ino) -> None:
        self._no_xattr_cache.discard(ino)
        if self._writer.watcher is not None:
            self._writer.watcher.set_no_xattrs(ino, False)

    def get(self, ino: Ino, name: bytes) -> bytes:
        """ENODATA if there is none."""
        if ino in self._no_xattr_cache:
            raise error(errno.ENODATA)
        value = self._find(ino, name)
        if value is None:
            self._check_no_xattrs(ino)
            raise error(errno.ENODATA)
        return value

    def list(self, ino: Ino) -> list[bytes]:
        """Names, sorted; ESTALE without such an inode."""
        if ino in self._no_xattr_cache:
            return []
        rows = self._writer.rows("SELECT name FROM xattr WHERE ino = ? ORDER BY name", (ino,))
        return [name for (name,) in rows]

    def set(self, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """EEXIST with XATTR_CREATE, ENODATA with XATTR_REPLACE; ERANGE, E2BIG for lengths the kernel refuses.

        ENOSPC where all of the inode's would be more than a snapshot holds.
        """
        if not 0 < len(name) <= NAME_MAX:
            raise error(errno.ERANGE)
        if len(value) > XATTR_VALUE_MAX:
            raise error(errno.E2BIG)
        inode = self._writer.inode(ino)
        if flags:
            exists = self._find(ino, name) is not None
            if flags & XATTR_CREATE and exists:
                raise error(errno.EEXIST)
            if flags & XATTR_REPLACE and not exists:
                raise error(errno.ENODATA)
        self._refuse_too_much(inode, name, value)
        with self._writer.change:
            self._writer.db.execute("INSERT OR REPLACE INTO xattr VALUES (?,?,?)", (ino, name, value))
            self._writer.update_inode(inode._replace(ctime_ns=self._writer.clock()))
            self._writer.note(0)
        self.forget_one(ino)

    def _refuse_too_much(self, inode: Inode, name: bytes, value: bytes) -> None:
        sql = "SELECT total(length(name) + length(value) + ?) FROM xattr WHERE ino = ? AND name != ?"
        others = self._writer.row(sql, (XATTR_BYTES, inode.ino, name))
        assert others is not None
        target = 2 + len(inode.target)
        if target + int(others[0]) + XATTR_BYTES + len(name) + len(value) > XATTRS_MAX:
            raise error(errno.ENOSPC)

    def put_new(self, ino: Ino, xattrs: Iterable[tuple[bytes, bytes]]) -> None:
        """Those that an inode is made with; within the change that makes it."""
        rows = [(ino, name, value) for name, value in xattrs]
        if rows:
            self._writer.db.executemany("INSERT INTO xattr VALUES (?,?,?)", rows)
        else:
            self._note_no_xattrs(ino)

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

    def _check_no_xattrs(self, ino: Ino) -> None:
        if self._writer.row("SELECT 1 FROM xattr WHERE ino = ? LIMIT 1", (ino,)) is None:
            self._note_no_xattrs(ino)

    def _note_no_xattrs(self, ino: Ino) -> None:
        if len(self._no_xattr_cache) >= NO_XATTR_CACHE_SIZE:
            self._no_xattr_cache.clear()
        self._no_xattr_cache.add(ino)
        if self._writer.watcher is not None:
            self._writer.watcher.set_no_xattrs(ino, True)
