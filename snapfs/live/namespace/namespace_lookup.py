"""Looks at the namespace: inodes, names, directories. Errors are OSErrors with the errno that Linux gives."""

from __future__ import annotations

import errno

from snapfs.base.blocks import Ino
from snapfs.live.database.namespace_rows import Entry, Inode, check_name, error
from snapfs.live.writer.namespace_writer import NamespaceWriter

LIST = (
    "SELECT cookie, name, i.ino, mode, uid, gid, rdev, nlink, atime_ns, mtime_ns, ctime_ns, target, i.parent"
    " FROM entry AS e INDEXED BY listing CROSS JOIN inode AS i ON i.ino = e.ino"
    " WHERE e.parent = ? AND cookie > ? ORDER BY cookie LIMIT ?"
)


class NamespaceLookup:
    """For the thread of the writer."""

    def __init__(self, writer: NamespaceWriter) -> None:
        self._writer = writer

    def inode(self, ino: Ino) -> Inode:
        """ESTALE if it does not exist; one without links is still found."""
        return self._writer.inode(ino)

    def lookup(self, parent: Ino, name: bytes) -> Inode:
        """ENOENT, ENOTDIR, ENAMETOOLONG."""
        check_name(name)
        self._writer.directory(parent)
        return self._writer.inode(self._writer.entry(parent, name))

    def readdir(self, parent: Ino, after_cookie: int, limit: int) -> list[Entry]:
        """Up to `limit` entries with cookies above `after_cookie`, ascending; without "." and ".."."""
        self._writer.directory(parent)
        self._writer.must_be_loaded(parent)
        return [
            Entry(row[0], row[1], Inode(*row[2:])) for row in self._writer.rows(LIST, (parent, after_cookie, limit))
        ]

    def newest_cookie(self) -> int:
        """The newest cookie that was given out, or will not be."""
        with self._writer.turn:
            return self._writer.cookies.next - 1

    def parent_of(self, directory: Ino) -> Ino:
        """The directory that ".." means; the root's is itself, a removed directory's is ENOENT."""
        found = self._writer.directory(directory)
        if not found.nlink:
            raise error(errno.ENOENT)
        return found.parent

    def path_of(self, directory: Ino) -> bytes:
        """The path of a directory from the root, b"" for the root itself. ENOENT if it was removed."""
        names: list[bytes] = []
        while (parent := self.parent_of(directory)) != directory:
            row = self._writer.row("SELECT name FROM entry WHERE parent = ? AND ino = ?", (parent, directory))
            assert row is not None
            names.append(row[0])
            directory = parent
        return b"/".join(reversed(names))

    def counts(self) -> int:
        """Inodes in the database, orphans included."""
        with self._writer.turn:
            return self._writer.inode_count

    def needs_sync(self, ino: Ino) -> bool:
        """Whether something of this inode (attributes, names of or in it) is committed and not known to be durable."""
        return self._writer.needs_sync(ino)
