"""What has still to be brought of a snapshot: objects in the order of their numbers, and where each chunk belongs.

Owns one file, which means nothing to anybody else nor to a later life: it is made anew, never synced, and goes with who
made it. So the list costs disk and no memory, however large the snapshot is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from snapfs.blocks import Ino, Number
from snapfs.store.format import Pointer


class Leaf(NamedTuple):
    """An object, and where it belongs if it is a chunk of a file (else `chunk` is -1)."""

    pointer: Pointer
    ino: Ino
    chunk: int


class Needed:
    """Used by one thread at a time."""

    def __init__(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE needed (number INTEGER PRIMARY KEY, proof BLOB)")
        self._db.execute(
            "CREATE TABLE place (number INTEGER, ino INTEGER, chunk INTEGER, PRIMARY KEY (number, ino, chunk))"
            " WITHOUT ROWID"
        )

    def add(self, pointers: Iterator[Pointer]) -> None:
        """One that is known with its proof stays so."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO needed VALUES (?, ?) ON CONFLICT DO UPDATE SET proof = excluded.proof WHERE proof = x''",
            ((pointer.number - (1 << 63), pointer.proof) for pointer in pointers),
        )
        self._db.execute("COMMIT")

    def add_places(self, leaves: Iterator[Leaf]) -> None:
        self._db.execute("BEGIN")
        rows = ((leaf.pointer.number - (1 << 63), leaf.ino, leaf.chunk) for leaf in leaves)
        self._db.executemany("INSERT OR IGNORE INTO place VALUES (?, ?, ?)", rows)
        self._db.execute("COMMIT")

    def places(self, first: Number, last: Number) -> list[tuple[Ino, int, Number]]:
        """The places (inode, chunk, number) of these objects, by inode."""
        rows = self._db.execute(
            "SELECT ino, chunk, number FROM place WHERE number BETWEEN ? AND ? ORDER BY ino, chunk",
            (first - (1 << 63), last - (1 << 63)),
        )
        return [(Ino(ino), chunk, Number(number + (1 << 63))) for ino, chunk, number in rows]

    def after(self, number: Number, count: int) -> list[Pointer]:
        """The next `count` above this number."""
        rows = self._db.execute(
            "SELECT number, proof FROM needed WHERE number > ? ORDER BY number LIMIT ?", (number - (1 << 63), count)
        )
        return [Pointer(Number(found + (1 << 63)), proof) for found, proof in rows]

    def close(self) -> None:
        self._db.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
