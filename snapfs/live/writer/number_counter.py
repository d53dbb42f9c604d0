"""Numbers that are never given out twice, not even after a crash: of inodes, and the cookies of names.

Invariant: numbers are given out below a limit that is in the database, raised in steps of `RESERVE`: a crash skips
numbers and never repeats one.
"""

from __future__ import annotations

import errno
import sqlite3
from contextlib import AbstractContextManager

from snapfs.live.database.namespace_rows import error

RESERVE = 1000


class NumberCounter:
    """For the thread of the writer."""

    def __init__(
        self, db: sqlite3.Connection, change: AbstractContextManager[None], key: str, first: int, limit: int
    ) -> None:
        """`first` is the value of `key` in the database, `change` the writer's transaction."""
        self._db, self._change, self._key, self._limit = db, change, key, limit
        self.next = self._reserved = first

    def take(self) -> int:
        """The next number. ENOSPC when they run out."""
        if self.next >= self._reserved:
            if self.next >= self._limit:
                raise error(errno.ENOSPC)
            self.reserve(self.next + RESERVE)
        number = self.next
        self.next += 1
        return number

    def reserve(self, upto: int) -> None:
        """Promise in the database, in this transaction or one of its own, to give out nothing at or above `upto`."""
        upto = min(upto, self._limit)
        if self._db.in_transaction:
            self._store(upto)
        else:
            with self._change:
                self._store(upto)
        self._reserved = upto

    def skip(self, count: int) -> None:
        """Never give out the next `count` numbers. A transaction."""
        self.next += count
        self.reserve(self.next)

    def raise_to(self, next_number: int) -> None:
        """Give out no number below this. Within a change."""
        if next_number > self.next:
            self.next = next_number
            self.reserve(next_number)

    def numbers(self) -> tuple[int, int]:
        """The next number, and the limit that is in the database."""
        return self.next, self._reserved

    def adopt(self, next_number: int, reserved: int) -> None:
        """Others gave out numbers below `next_number`."""
        self.next, self._reserved = next_number, reserved

    def rolled_back(self) -> None:
        """What was reserved within the transaction is not in the database."""
        self._reserved = self.next

    def give_back(self) -> None:
        """At the end, within a change: numbers that were reserved and not given out."""
        self._store(self.next)

    def _store(self, upto: int) -> None:
        self._db.execute("UPDATE meta SET value = ? WHERE key = ?", (upto, self._key))
