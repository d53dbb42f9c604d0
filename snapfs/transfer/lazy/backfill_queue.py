"""The objects that a backfill still needs, in the order of their numbers, and where each chunk belongs.

It owns one file, which no other part reads, nor a later life: it is made anew, never synced, and removed at the end. So
the list costs disk and no memory, however large the snapshot is.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from snapfs.base.blocks import Disk, Ino, Number
from snapfs.store.objects.format import Pointer


class Leaf(NamedTuple):
    """An object, and where it belongs if it is a chunk of a file (else `chunk` is -1)."""

    pointer: Pointer
    ino: Ino
    chunk: int


class BackfillQueue:
    """The queue of one backfill. One thread at a time. `close` it."""

    def __init__(self, path: str, disk: Disk) -> None:
        with contextlib.suppress(FileNotFoundError):
            disk.unlink("backfill:leftover", path)
        self._path, self._disk = path, disk
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE needed (number INTEGER PRIMARY KEY, proof BLOB)")
        self._db.execute(
            "CREATE TABLE place (number INTEGER, ino INTEGER, chunk INTEGER, PRIMARY KEY (number, ino, chunk))"
            " WITHOUT ROWID"
        )

    def add(self, pointers: Iterator[Pointer]) -> None:
        """Add objects. One that is known with its content hash keeps it."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO needed VALUES (?, ?) ON CONFLICT DO UPDATE SET proof = excluded.proof WHERE proof = x''",
            ((pointer.number - (1 << 63), pointer.content_hash) for pointer in pointers),
        )
        self._db.execute("COMMIT")

    def add_places(self, leaves: Iterator[Leaf]) -> None:
        """Add the places of chunks."""
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
        """The next `count` objects above this number."""
        rows = self._db.execute(
            "SELECT number, proof FROM needed WHERE number > ? ORDER BY number LIMIT ?", (number - (1 << 63), count)
        )
        return [Pointer(Number(found + (1 << 63)), content_hash) for found, content_hash in rows]

    def close(self) -> None:
        self._db.close()
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("backfill:done", self._path)
