"""The names and attributes as they were at a cut: a read transaction on a connection of its own.

Invariants:
1. Nothing that is committed after the cut is visible here, however long this lives.
2. What `changed()` gives includes everything that differs from the last sealed snapshot.
3. Before the first change is given, everything visible here is durable. A snapshot may thus never be
   newer than the live tree that a power cut leaves.

One thread at a time. While this is open the WAL cannot start over, so it should not live longer than needed.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterator
from functools import cached_property
from heapq import merge
from itertools import groupby
from typing import ParamSpec, TypeVar

from snapfs.base.blocks import Epoch, Ino
from snapfs.base.errors import CorruptionError
from snapfs.live.database.namespace_rows import AbsentFile, Inode
from snapfs.live.database.schema import os_error, primary_code
from snapfs.live.database.wal import Wal
from snapfs.live.writer.cached_reads import SELECT_INODE, SELECT_REGULAR

P = ParamSpec("P")
T = TypeVar("T")


class FrozenNamespace:
    """Made by `Namespace.cut`. A failing database is an OSError, a damaged one a CorruptionError."""

    def __init__(
        self, db: sqlite3.Connection, epoch: Epoch, wal: Wal, give_back: Callable[[sqlite3.Connection], None]
    ) -> None:
        self.epoch = epoch
        self._wal = wal
        self._give_back = give_back
        self._open: sqlite3.Connection | None = db
        self._cursors: set[sqlite3.Cursor] = set()
        db.execute("BEGIN")
        (self._sealed,) = db.execute("SELECT value FROM meta WHERE key = 'sealed'").fetchone()

    def changed(self) -> Iterator[tuple[Ino, list[bytes]]]:
        """Everything touched since the last sealed epoch, ascending: inode, and its changed names if a directory."""
        for ino in self.changed_inodes():
            yield ino, list(self.changed_names(ino))

    def changed_inodes(self) -> Iterator[Ino]:
        """Numbers of all inodes that may differ from the last snapshot, ascending.

        Also right against the snapshot of an epoch whose `mark_sealed` was lost: what changed since has its rows.
        """
        self._wal.sync()
        which, epoch = self._unsealed
        touched = self._rows(f"SELECT DISTINCT ino FROM touched WHERE {which} ORDER BY ino", (epoch,))
        new = self._rows("SELECT ino FROM inode WHERE ino >= ? AND nlink > 0 ORDER BY ino", (self.first_new,))
        return (Ino(ino) for (ino,), _ in groupby(merge(touched, new)))

    def all_inodes(self) -> Iterator[Ino]:
        """Numbers of everything that has a name, ascending."""
        return (Ino(ino) for (ino,) in self._rows("SELECT ino FROM inode WHERE nlink > 0 ORDER BY ino", ()))

    def regular_inodes(self) -> Iterator[Ino]:
        """Numbers of all regular files, those without a name included, ascending."""
        return (Ino(ino) for (ino,) in self._rows(SELECT_REGULAR, ()))

    def changed_names(self, directory: Ino) -> Iterator[bytes]:
        """Names of `directory` that may differ from the last snapshot, sorted; of a new directory all it has."""
        which, epoch = self._unsealed
        names = self._rows(
            f"SELECT DISTINCT name FROM touched WHERE {which} AND ino = ? AND name > x'' ORDER BY name",
            (epoch, directory),
        )
        if directory >= self.first_new:
            held = self._rows("SELECT name FROM entry WHERE parent = ? ORDER BY name", (directory,))
            names = (row for row, _ in groupby(merge(names, held)))
        return (name for (name,) in names)

    @cached_property
    def _unsealed(self) -> tuple[str, int]:
        """A condition for the rows of `touched`: mostly those of one epoch, which are in the order we need."""
        ends = "SELECT (SELECT min(epoch) FROM touched WHERE epoch > ?1), (SELECT max(epoch) FROM touched)"
        low, high = next(self._rows(ends, (self._sealed,)))
        if low is None or low == high:
            return "epoch = ?", low or 0
        return "epoch IN (SELECT epoch FROM epochs WHERE epoch > ?)", self._sealed

    @cached_property
    def first_new(self) -> Ino:
        """All inode numbers from here on are unknown to the last snapshot."""
        row = self._row("SELECT first_ino FROM epochs WHERE epoch > ? ORDER BY epoch LIMIT 1", (self._sealed,))
        assert row is not None
        return Ino(row[0])

    @property
    def next_ino(self) -> Ino:
        """Above the number of every inode that there is."""
        row = self._row("SELECT max(ino) FROM inode", ())
        assert row is not None
        return Ino(row[0] + 1)

    def inode(self, ino: Ino) -> Inode | None:
        """Attributes of `ino`; None if it does not exist or has no name any more."""
        row = self._row(SELECT_INODE, (ino,))
        found = None if row is None else Inode(*row)
        return found if found is not None and found.nlink else None

    def xattrs(self, ino: Ino) -> tuple[tuple[bytes, bytes], ...]:
        """All (name, value) of `ino`, sorted by name."""
        return tuple(self._rows("SELECT name, value FROM xattr WHERE ino = ? ORDER BY name", (ino,)))

    def absent(self, ino: Ino) -> AbsentFile | None:
        """Where the bytes of `ino` are, if they were still only in the store at the cut."""
        row = self._row("SELECT size, mtime_ns, ctime_ns, origin FROM absent WHERE ino = ?", (ino,))
        return None if row is None else AbsentFile(*row)

    def entry(self, parent: Ino, name: bytes) -> tuple[Ino, int] | None:
        """(inode number, mode) under `name`."""
        row = self._row(
            "SELECT ino, mode FROM entry JOIN inode USING (ino) WHERE entry.parent = ? AND name = ?", (parent, name)
        )
        return None if row is None else (Ino(row[0]), row[1])

    def entries(self, parent: Ino) -> Iterator[tuple[bytes, Ino, int]]:
        """(name, inode number, mode) of everything in `parent`, sorted by name."""
        return self._rows(
            "SELECT name, ino, mode FROM entry JOIN inode USING (ino) WHERE entry.parent = ? ORDER BY name", (parent,)
        )

    def directories(self, parent: Ino) -> Iterator[tuple[bytes, Ino]]:
        """(name, inode number) of every directory in `parent`."""
        of_directories = f"(mode & {0o170000}) = {stat.S_IFDIR}"
        return self._rows(
            f"SELECT name, ino FROM entry JOIN inode USING (ino) WHERE entry.parent = ? AND {of_directories}", (parent,)
        )

    @cached_property
    def has_unloaded(self) -> bool:
        """Whether there are directories whose names are still only in the store."""
        return self._row("SELECT 1 FROM unloaded LIMIT 1", ()) is not None

    def is_unloaded(self, directory: Ino) -> bool:
        """Whether the names of the directory are still only in the store."""
        return self.has_unloaded and self._row("SELECT 1 FROM unloaded WHERE ino = ?", (directory,)) is not None

    def close(self) -> None:
        """End the read transaction; a second time does nothing.

        A query that was not read to its end, as a failed seal leaves it, would keep the transaction open, and the
        next cut made with this connection would show this one's names.
        """
        if self._open is not None:
            db, self._open = self._open, None
            for cursor in list(self._cursors):
                cursor.close()
            self._give_back(db)

    def _row(self, sql: str, values: tuple[object, ...]) -> tuple | None:  # type: ignore[type-arg]
        return next(self._rows(sql, values), None)

    def _rows(self, sql: str, values: tuple[object, ...]) -> Iterator[tuple]:  # type: ignore[type-arg]
        assert self._open is not None, "the frozen namespace is closed"
        try:
            cursor = self._open.execute(sql, values)
            self._cursors.add(cursor)
            try:
                while (row := cursor.fetchone()) is not None:
                    yield row
            finally:
                self._cursors.discard(cursor)
        except sqlite3.Error as failure:
            if primary_code(failure) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise CorruptionError("the namespace", self._wal.path, str(failure)) from failure
            raise os_error(failure, self._wal.path) from failure
