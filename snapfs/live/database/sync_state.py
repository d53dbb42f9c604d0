"""How far the log is durable, and whether a sync of it failed (wal.py, invariants 1 and 3)."""

from __future__ import annotations

from collections.abc import Callable

from snapfs.live.database.namespace_rows import error


class SyncState:
    """Commits are counted by the one that has the turn of the writer, `synced` is written with the sync lock held."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._committed = 0
        self._shared: tuple[Callable[[], int], Callable[[], int]] | None = None
        self.synced = 0
        self._failed: int | None = None

    def count_commit(self) -> int:
        """One transaction more is committed; returns its number."""
        if self._shared is not None:
            return self._shared[1]()
        self._committed += 1
        return self._committed

    def note_synced(self, reached: int) -> None:
        """The transactions up to this one are durable."""
        self.synced = max(self.synced, reached)

    @property
    def committed(self) -> int:
        """The number of the newest transaction. Any thread."""
        return self._committed if self._shared is None else self._shared[0]()

    def count_elsewhere(self, committed: Callable[[], int] | None, count: Callable[[], int] | None) -> None:
        """Others count transactions as well from now on; None: not any more."""
        self._committed = self.committed
        self._shared = None if committed is None or count is None else (committed, count)

    @property
    def has_failed(self) -> bool:
        return self._failed is not None

    def fail(self, number: int | None) -> None:
        """A sync failed: nothing is known about the WAL's bytes any more."""
        self._failed = number

    def check(self) -> None:
        """OSError with the errno of the sync that failed."""
        if self._failed is not None:
            raise error(self._failed, self._path)
