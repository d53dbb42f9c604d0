"""Where the objects that were fetched are: their file and place, by number, in an SQLite database.

Owns store/fetched/index.db.

Invariants:
1. The index may be behind the files or ahead of them (a record is checked when it is read), never wrong in another way.
2. One that is damaged is thrown away, since what it lists can be fetched again.

The caller serialises all calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from snapfs.base.blocks import Disk, Number

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS object (number INTEGER PRIMARY KEY, file INTEGER NOT NULL, place INTEGER NOT NULL,"
    " stored INTEGER NOT NULL)"
)
_BATCH: Final = 1000


class FetchedIndex:
    """The index of one folder. OSError: ENOSPC for a full disk, else EIO."""

    def __init__(self, folder: str, disk: Disk, *, readonly: bool) -> None:
        self._folder = folder
        self._db = _open(os.path.join(folder, "index.db"), disk, readonly)

    def totals(self) -> tuple[int, int]:
        """How many objects are listed, and the bytes of their payloads."""
        count, stored_bytes = self._db.execute("SELECT count(*), coalesce(sum(stored), 0) FROM object").fetchone()
        return count, stored_bytes

    def find(self, number: Number) -> tuple[int, int] | None:
        """(file, place) of the object, None if it is not listed."""
        with self._as_oserror():
            found: tuple[int, int] | None = self._db.execute(
                "SELECT file, place FROM object WHERE number = ?", (_signed(number),)
            ).fetchone()
            return found

    def put(self, file: int, rows: list[tuple[Number, int, int]]) -> None:
        """List objects of one file: (number, place, bytes of the payload)."""
        with self._as_oserror(), self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO object VALUES (?,?,?,?)",
                [(_signed(number), file, place, stored) for number, place, stored in rows],
            )

    def forget(self, number: Number) -> None:
        with self._as_oserror(), self._db:
            self._db.execute("DELETE FROM object WHERE number = ?", (_signed(number),))

    def between(self, first: int, last: int) -> list[Number]:
        """The numbers of [first, last] that are listed, ascending."""
        if first < 1 << 63 <= last:
            return [*self.between(first, (1 << 63) - 1), *self.between(1 << 63, last)]
        return self._numbers(
            "SELECT number FROM object WHERE number BETWEEN ? AND ? ORDER BY number", _signed(first), _signed(last)
        )

    def batch_after(self, number: Number | None) -> list[Number]:
        """The next numbers in the order of the index; [] at its end. None: from the beginning."""
        if number is None:
            return self._numbers(f"SELECT number FROM object ORDER BY number LIMIT {_BATCH}")
        return self._numbers(
            f"SELECT number FROM object WHERE number > ? ORDER BY number LIMIT {_BATCH}", _signed(number)
        )

    def _numbers(self, query: str, *values: int) -> list[Number]:
        with self._as_oserror():
            return [Number(number & (1 << 64) - 1) for (number,) in self._db.execute(query, values).fetchall()]

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _as_oserror(self) -> Iterator[None]:
        """SQLite's failures as what the rest of the store knows: ENOSPC for a full disk, else EIO."""
        try:
            yield
        except sqlite3.Error as error:
            full = _code(error) == sqlite3.SQLITE_FULL
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), self._folder) from None


def _open(path: str, disk: Disk, readonly: bool) -> sqlite3.Connection:
    if readonly:
        return _connect_readonly(path)
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if _code(error) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return _in_memory()  # a full disk, mostly: this life has to do without, and the next one finds it again
        for name in (path, f"{path}-wal", f"{path}-shm"):
            with contextlib.suppress(FileNotFoundError):
                disk.unlink("fetched:index", name)
        return _connect(path)


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(_SCHEMA)
        db.commit()
    except BaseException:
        db.close()
        raise
    return db


def _connect_readonly(path: str) -> sqlite3.Connection:
    """The index as it is, or an empty one where it cannot be read from here."""
    db = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=10.0, check_same_thread=False)
    try:
        db.execute("SELECT 1 FROM object LIMIT 1").fetchone()
    except sqlite3.Error:
        db.close()
        return _in_memory()
    return db


def _in_memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.execute(_SCHEMA)
    return db


def _code(error: sqlite3.Error) -> int:
    """The primary result code, 0 where Python has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _signed(number: int) -> int:
    """SQLite's integers have a sign; generations below 32,768 never need it."""
    return number - (1 << 64) if number >> 63 else number
