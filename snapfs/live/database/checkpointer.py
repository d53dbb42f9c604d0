"""Writes the log back to the database, so that it starts over and stays short (wal.py, invariants 4 and 5).

A crash within a checkpoint leaves pages half written back that the WAL still holds.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable

from snapfs.live.database.changed_pages import ChangedPages
from snapfs.live.database.high_water_mark import HighWaterMark
from snapfs.live.database.replace_queue import ReplaceQueue
from snapfs.live.database.reserve import Reserve
from snapfs.live.database.schema import connect, os_error
from snapfs.live.database.sync_state import SyncState
from snapfs.live.database.wal_files import WalFiles

CHECKPOINT_AT_BYTES = 4 << 20
"""WAL length from which it is written back, which lets it start over at the writer's next pause."""
FORCE_AT_BYTES = 32 << 20
"""WAL length from which the writer writes back the rest: two syncs (0.3 ms, more on a busy disk)."""
SHORT_PASS_FRAMES = 64
"""Frames that may be left to write back while the writer waits."""
PASSES = 4


class Checkpointer:
    """`checkpoint` from any thread, `finish` from the writer's."""

    def __init__(
        self, path: str, files: WalFiles, pages: ChangedPages, mark: HighWaterMark, reserve: Reserve,
        queue: ReplaceQueue, state: SyncState, sync: Callable[[], None],
    ) -> None:  # fmt: skip
        """`sync` makes all that is committed durable."""
        self._path, self._files, self._pages, self._mark = path, files, pages, mark
        self._reserve, self._queue, self._state, self._sync = reserve, queue, state, sync
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self.writer_should_finish = False

    def open(self) -> None:
        """Open the connection. `sqlite3.Error`."""
        self._db = connect(self._path)
        self._db.execute("SELECT count(*) FROM meta").fetchone()

    def checkpoint(self) -> None:
        """Where the WAL is long, write it back to the database, so that it can start over. Never waits for a reader."""
        if self.writer_should_finish or (self._files.bytes() < CHECKPOINT_AT_BYTES and self._pages.is_valid):
            return
        with self._lock:
            if self._files.bytes() < CHECKPOINT_AT_BYTES:  # after the writer's own pass, or a life that was killed
                self._pages.begin()
                self._pages.end()
                return
            self._sync()
            self._mark.lower()
            self._pages.begin()
            for _ in range(PASSES):
                if self._files.rest() > 0:
                    with self._queue.settled():  # SQLite syncs the log, and so what was committed since
                        self._pages.note_pages(self._pass_with_reserve)
            self.writer_should_finish = (
                self._files.bytes() >= FORCE_AT_BYTES and self._files.rest() <= SHORT_PASS_FRAMES
            )
            self._reserve.fill()
            if not self.writer_should_finish:
                self._pages.end()
                self._mark.raise_again()

    def postpone(self) -> None:
        """Leave the writer's own pass to a later checkpoint: not within a cut."""
        self.writer_should_finish = False

    def finish(self) -> None:
        """The writer's own last pass between two transactions, where `writer_should_finish`."""
        self.writer_should_finish = False
        if self._lock.acquire(blocking=False):
            try:
                if not self._state.has_failed and self._files.rest() <= SHORT_PASS_FRAMES:
                    with self._queue.settled():
                        self._pages.note_pages(self._pass)
            except OSError:
                pass  # what was committed stays so; the next checkpoint reports it in its own thread
            finally:
                self._mark.raise_again()
                self._lock.release()

    def _pass_with_reserve(self) -> None:
        """One passive checkpoint; where the disk has no room for it, with the room of the reserve."""
        try:
            self._pass()
        except OSError as failure:
            if failure.errno != errno.ENOSPC or not self._reserve.give():
                raise
            self._pass()

    def _pass(self) -> None:
        """One passive checkpoint."""
        assert self._db is not None
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as failure:
            if getattr(failure, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
                self._state.fail(errno.EIO)
            raise os_error(failure, self._path) from failure

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
