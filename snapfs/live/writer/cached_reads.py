"""Reads of the namespace, with the inodes that were read last in memory.

They use the writing connection; while others change rows as well, only within a turn, and nothing that is read is kept:
it may be older than what others have committed meanwhile (outside_reads.py). What they have in memory of an inode is
taken instead: it is as new, and also there when the host is gone. A query that fails raises OSError. What
is read and cached is passed to the watcher (namespace_writer.py, invariant 6).
"""

from __future__ import annotations

import errno
import sqlite3
import stat
from typing import Any

from snapfs.base.blocks import Ino
from snapfs.base.errors import CorruptionError
from snapfs.live.database.namespace_rows import Inode, NotLoadedError, error
from snapfs.live.database.schema import os_error
from snapfs.live.writer.change_watcher import ChangeWatcher
from snapfs.live.writer.outside_reads import OutsideReads
from snapfs.live.writer.turn import Turn, WriterNumbers

CACHED_INODES = 16384

SELECT_INODE = (
    "SELECT ino, mode, uid, gid, rdev, nlink, atime_ns, mtime_ns, ctime_ns, target, parent FROM inode WHERE ino = ?"
)
SELECT_REGULAR = f"SELECT ino FROM inode WHERE (mode & {0o170000}) = {stat.S_IFREG} ORDER BY ino"


class CachedReads(WriterNumbers):
    """For the thread of the writer; `row` and `rows` for any while others change rows as well."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self.db, self.path = db, path
        self.turn = Turn(self)
        self.watcher: ChangeWatcher | None = None
        self.cache: dict[int, Inode] = {}
        self.outside: OutsideReads | None = None
        """Not None while others change rows as well."""
        self.lazy: bool = self.must("SELECT count(*) FROM (SELECT 1 FROM unloaded LIMIT 1)")[0] > 0
        """Whether there are directories whose names are still only in the store."""
        self.loaded: set[int] = set()  # directories that were found to be loaded

    def watch(self, watcher: ChangeWatcher) -> None:
        """Pass `watcher` what is read and what changes from now on."""
        watcher.set_lazy(self.lazy)
        self.watcher = watcher

    def look_for_unloaded(self) -> None:
        """Directories were loaded, or became unloaded: find out whether there are any of the latter."""
        self._set_lazy(self.row("SELECT 1 FROM unloaded LIMIT 1") is not None)

    def become_lazy(self) -> None:
        """A directory is about to become unloaded, by the present change."""
        self._set_lazy(True)

    def _set_lazy(self, lazy: bool) -> None:
        self.lazy = lazy
        if self.watcher is not None:
            self.watcher.set_lazy(lazy)

    def row(self, sql: str, values: tuple[object, ...] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, an OSError if it fails."""
        outside = self.outside
        try:
            if outside is not None and not self.turn.is_ours:
                return outside.row(sql, values)
            found: tuple[Any, ...] | None = self.db.execute(sql, values).fetchone()
        except sqlite3.Error as failure:
            raise os_error(failure, self.path) from failure
        return found

    def rows(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query, an OSError if it fails."""
        outside = self.outside
        try:
            if outside is not None and not self.turn.is_ours:
                return outside.rows(sql, values)
            return self.db.execute(sql, values).fetchall()
        except sqlite3.Error as failure:
            raise os_error(failure, self.path) from failure

    def inode(self, ino: int) -> Inode:
        """The attributes of `ino`; ESTALE if there is none."""
        found = self.cache.get(ino)
        if found is None:
            shared = self.turn.shared
            row = (shared.cached_inode(ino) if shared is not None else None) or self.row(SELECT_INODE, (ino,))
            if row is None:
                raise error(errno.ESTALE)
            found = Inode(*row)
            if self.outside is None:
                self.remember(found)
        return found

    def must(self, sql: str, values: tuple[object, ...] = ()) -> tuple[Any, ...]:
        """The first row of a query that has one in every namespace; `sqlite3.Error` if it fails."""
        row: tuple[Any, ...] | None = self.db.execute(sql, values).fetchone()
        if row is None:
            raise CorruptionError("the namespace", self.path, "a counter is missing")
        return row

    def directory(self, ino: int) -> Inode:
        """The attributes of the directory `ino`; ENOTDIR, ESTALE."""
        found = self.inode(ino)
        if not found.is_directory:
            raise error(errno.ENOTDIR)
        return found

    def living_directory(self, ino: int) -> Inode:
        """As `directory`, and ENOENT for one that was removed: nothing can be made in it. NotLoadedError."""
        found = self.directory(ino)
        if not found.nlink:
            raise error(errno.ENOENT)
        if self.lazy:
            self.must_be_loaded(ino)
        return found

    def must_be_loaded(self, directory: int) -> None:
        """NotLoadedError if its names are still only in the store."""
        if not self.lazy or directory in self.loaded:
            return
        row = self.row("SELECT listing FROM unloaded WHERE ino = ?", (directory,))
        if row is not None:
            raise NotLoadedError(Ino(directory), row[0])
        if len(self.loaded) >= CACHED_INODES:
            self.loaded.clear()
        self.loaded.add(directory)

    def entry(self, parent: int, name: bytes) -> Ino:
        """The inode number under `name`; ENOENT, NotLoadedError."""
        if self.lazy:
            self.must_be_loaded(parent)
        row = self.row("SELECT ino FROM entry WHERE parent = ? AND name = ?", (parent, name))
        if row is None:
            raise error(errno.ENOENT)
        return Ino(row[0])

    def is_empty(self, directory: int) -> bool:
        self.must_be_loaded(directory)
        return self.row("SELECT 1 FROM entry WHERE parent = ? LIMIT 1", (directory,)) is None

    def remember(self, inode: Inode) -> None:
        """Keep a row as it is now: within a turn, or while nobody else changes rows."""
        cache = self.cache
        if self.outside is None:
            if len(cache) >= CACHED_INODES:
                del cache[next(iter(cache))]
            cache[inode.ino] = inode
        if self.watcher is not None:
            self.watcher.cache_inode(inode)

    def forget_inode(self, ino: int) -> None:
        self.cache.pop(ino, None)
        if self.watcher is not None:
            self.watcher.drop_inode(ino)
