"""Looks at rows outside a turn, where others change names as well (turn.py): a reading connection of their own.

On the writing connection a look by one thread keeps the view of the whole connection where it is until that look has
ended. A turn that another thread takes meanwhile would then see rows as they were before the last change of C: it would
decide by them, and its transaction would fail, or undo that change.

Invariants:
1. While others change names, the writing connection is used by the thread that has the turn alone.
2. One look at a time, each of which sees all that was committed before it began.

The lock is a leaf; nothing but the database is waited for with it.
"""

from __future__ import annotations

import threading
from typing import Any

from snapfs.live.database.schema import connect


class OutsideReads:
    """Any thread."""

    def __init__(self, path: str) -> None:
        """`sqlite3.Error` if it cannot be opened."""
        self._lock = threading.Lock()
        self._db = connect(path)
        try:
            self._db.execute("SELECT count(*) FROM meta").fetchone()
        except BaseException:
            self._db.close()
            raise

    def rows(self, sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """All rows of a query. `sqlite3.Error`."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        """The first row of a query. `sqlite3.Error`."""
        with self._lock:
            cursor = self._db.execute(sql, values)
            try:
                found: tuple[Any, ...] | None = cursor.fetchone()
            finally:
                cursor.close()
        return found

    def close(self) -> None:
        """Nothing is looked at any more."""
        with self._lock:
            self._db.close()
