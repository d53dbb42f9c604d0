"""Reading connections of the namespace's database, kept ready so that a cut need not open one.

A spare has the schema in memory, so that its next transaction begins at once.
"""

from __future__ import annotations

import sqlite3
from collections import deque

from snapfs.live.database.schema import connect

SPARE_READERS = 2


class ReaderPool:
    """`lend` for the thread of the writer; `new` and `take_back` for any."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._spares: deque[sqlite3.Connection] = deque()
        self._lent: set[int] = set()

    def fill(self) -> None:
        """`sqlite3.Error`, OSError."""
        self._spares.extend(self.new() for _ in range(SPARE_READERS))

    def new(self) -> sqlite3.Connection:
        """A connection of the caller's, to be closed."""
        db = connect(self._path)
        db.execute("SELECT value FROM meta WHERE key = 'sealed'").fetchone()
        return db

    def get(self) -> sqlite3.Connection:
        """A spare, or a new one; it counts as lent from `lend` on."""
        return self._spares.popleft() if self._spares else self.new()

    def lend(self, db: sqlite3.Connection) -> None:
        """A frozen namespace reads from it until `take_back`."""
        self._lent.add(id(db))

    def take_back(self, db: sqlite3.Connection) -> None:
        """End a reader's transaction and keep it ready for a later cut."""
        self._lent.discard(id(db))
        db.execute("ROLLBACK")
        if len(self._spares) >= SPARE_READERS:
            db.close()
            return
        db.execute("PRAGMA shrink_memory")
        self._spares.append(db)

    @property
    def has_lent(self) -> bool:
        return bool(self._lent)

    def close(self) -> None:
        """The spares."""
        while self._spares:
            self._spares.pop().close()
