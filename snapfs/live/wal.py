"""The write-ahead log of the namespace: when it is synced, and how it is kept short.

Owns the sequence numbers of transactions, a descriptor of the WAL file, and the checkpointing connection.

Invariants:
1. `committed` is the number of the newest transaction in the WAL file, `synced` of the newest that is known to be
   durable: synced <= committed.
2. `sync()` returns when everything committed before the call is durable; callers that come while a flush is running
   share the next one.
3. After a failed sync nothing is known about the WAL's bytes (the kernel reports a lost page once): every
   later sync and checkpoint fails with the same errno until the namespace is opened anew.
4. A checkpoint runs only when there is something to write back, or in the writer's own thread. SQLite before 3.51.3
   loses transactions when a checkpoint that finds nothing to do meets a writer that starts the WAL over ("WAL-reset
   bug"). The writer starts it over only when all is written back, and there is one checkpointer.
5. A writer that never pauses would always leave a rest behind, and the WAL would never start over: of a very long
   WAL the writer itself writes back the last few frames, between two transactions.
6. What transactions lean on is durable before they are: `settle_heirs` is called before the WAL is synced. (A file that
   is renamed over another takes the old bytes away: a power cut must not leave the name with neither. A transaction
   that slips in between the two has its turn with the next sync.)
7. `synced` moves by `flushed` only where the transactions lie in the part of the file that was filled and synced
   before: there, on a filesystem that overwrites in place, the flush of the device for another file's sync covers
   them, if they were written out before it (host.py).

A crash loses what `sync()` did not cover, from the end of the WAL only. A crash within a checkpoint leaves pages
half written back that the WAL still holds.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sqlite3
import struct
import threading
from collections.abc import Callable

from snapfs.blocks import Disk
from snapfs.live import host
from snapfs.live.records import error
from snapfs.live.reserve import Reserve
from snapfs.live.schema import PAGE_SIZE, connect, os_error

FRAME_SIZE = PAGE_SIZE + 24
HEADER_BYTES = 32
CHECKPOINT_AT_BYTES = 4 << 20
"""WAL length from which it is written back, which lets it start over at the writer's next pause."""
FORCE_AT_BYTES = 32 << 20
"""WAL length from which the writer writes back the rest: two syncs (0.3 ms, more on a busy disk)."""
RESERVE_BYTES = 8 << 20
"""The WAL file is filled up to this length at once: overwriting costs half of what growing the file costs."""
RESERVE_STEP = 1 << 20
INDEX_FILE_BYTES = 256 << 10
"""SQLite's wal-index for twice the WAL that is ever let grow."""
INDEX_BYTES = 136
"""The head of SQLite's wal-index, in the -shm file."""
SHORT_PASS_FRAMES = 64
"""What may be left to write back while the writer waits."""
PASSES = 4


def reserve_path(path: str) -> str:
    """Where room is kept for the namespace at `path`."""
    return f"{path}-reserve"


class Wal:
    """Sync and checkpoint from any thread; `committed` is written by the writer alone."""

    def __init__(self, path: str, disk: Disk) -> None:
        self.path = path
        self.disk = disk
        self.committed = 0
        self.synced = 0
        self.writer_should_finish = False
        self.settle_heirs: Callable[[], None] = lambda: None
        self._failed: int | None = None
        self._sync_lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._descriptors: list[int] = []
        self._reserve = Reserve(reserve_path(path), disk)
        self._db: sqlite3.Connection | None = None
        self._index: mmap.mmap | None = None
        self._firm_bytes = 0

    def open(self) -> None:
        """After the database was opened and before its first transaction. What this opens, the two closes close."""
        self._db = connect(self.path)
        self._db.execute("SELECT count(*) FROM meta").fetchone()
        for suffix in ("-wal", "-shm"):
            self._descriptors.append(os.open(self.path + suffix, os.O_RDWR | os.O_CLOEXEC))
        with contextlib.suppress(OSError):  # on a full disk a hole in what is mapped would be the end of the process
            os.posix_fallocate(self._descriptors[1], 0, INDEX_FILE_BYTES)
        self._fill_log()
        self._reserve.fill()
        self._index = mmap.mmap(self._descriptors[1], INDEX_BYTES, prot=mmap.PROT_READ)

    def _fill_log(self) -> None:
        """Grow the WAL file with zeros, which SQLite takes for the end of the log. A full disk is no error.

        Only before the first transaction: nobody else may be growing the file.
        """
        fd = self._descriptors[0]
        size = os.fstat(fd).st_size
        try:
            for start in range(size, RESERVE_BYTES, RESERVE_STEP):
                zeros = bytes(min(RESERVE_STEP, RESERVE_BYTES - start))
                self.disk.pwrite("namespace:reserve", fd, zeros, start)
            self.disk.fdatasync("namespace:reserve", fd)
        except OSError as failure:
            if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.disk.truncate("namespace:reserve", fd, size)
        else:
            self._firm_bytes = max(size, RESERVE_BYTES) if host.overwrites_in_place(fd) else 0

    def frames(self) -> int:
        """Frames in use. (Field mxFrame of SQLite's wal-index, https://sqlite.org/walformat.html.)"""
        assert self._index is not None
        return int(struct.unpack_from("=I", self._index, 16)[0])

    def backfilled(self) -> int:
        """Frames already written back to the database (field nBackfill)."""
        assert self._index is not None
        return int(struct.unpack_from("=I", self._index, 96)[0])

    def bytes(self) -> int:
        """Bytes of the WAL that hold transactions."""
        return self.frames() * FRAME_SIZE

    def sync(self) -> None:
        """Make all that is committed durable. OSError (and from then on always) if the disk fails."""
        wanted = self.committed
        if self.synced >= wanted and self._failed is None:
            return
        with self._sync_lock:
            self._check()
            if self.synced >= wanted:
                return
            reached = self.committed
            self.settle_heirs()
            try:
                self.disk.fdatasync("namespace:wal", self._descriptors[0])
            except OSError as failure:
                self._failed = failure.errno
                raise
            self.synced = reached

    def write_out(self) -> int:
        """Write out what is committed, so that a sync of any file of the filesystem that begins later makes it durable.

        Returns what to tell `flushed` then; 0 where only `sync` will do. OSError as `sync`. Any thread.
        """
        with self._sync_lock:
            self._check()
            reached = self.committed
            if self.bytes() + HEADER_BYTES > self._firm_bytes:
                return 0
            self.settle_heirs()
            try:
                self.disk.write_out("namespace:write_out", self._descriptors[0])
            except OSError as failure:
                self._failed = failure.errno
                raise
            return reached

    def flushed(self, reached: int) -> None:
        """A file was synced, without an error, after `write_out` returned this."""
        with self._sync_lock:
            self.synced = max(self.synced, reached)

    def _check(self) -> None:
        if self._failed is not None:
            raise error(self._failed, self.path)

    def checkpoint(self) -> None:
        """Where the WAL is long, write it back to the database, so that it can start over. Never waits for a reader."""
        if self.bytes() < CHECKPOINT_AT_BYTES or self.writer_should_finish:
            return
        with self._checkpoint_lock:
            self.sync()
            for _ in range(PASSES):
                if self._rest() > 0:
                    self._pass_with_reserve()
            self._reserve.fill()
            self.writer_should_finish = self.bytes() >= FORCE_AT_BYTES and self._rest() <= SHORT_PASS_FRAMES

    def finish(self) -> None:
        """The writer's own last pass between two transactions, when it is asked for by `writer_should_finish`."""
        self.writer_should_finish = False
        if self._checkpoint_lock.acquire(blocking=False):
            try:
                if self._failed is None and self._rest() <= SHORT_PASS_FRAMES:
                    self.settle_heirs()
                    self._pass()
            except OSError:
                pass  # what was committed stays so; the next checkpoint tells of it in its own thread
            finally:
                self._checkpoint_lock.release()

    def _rest(self) -> int:
        """Frames that are not written back yet; 0 or less if there are none (this order: invariant 4)."""
        backfilled = self.backfilled()
        return self.frames() - backfilled

    def _pass_with_reserve(self) -> None:
        """One passive checkpoint; where the disk has no room for it, with the room that was kept for that."""
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
                self._failed = errno.EIO
            raise os_error(failure, self.path) from failure

    def close_connection(self) -> None:
        if self._db is not None:
            self._db.close()

    def close_files(self) -> None:
        """Close the descriptors: only after every connection of this process is closed (schema.py, invariant 4)."""
        if self._index is not None:
            self._index.close()
        for fd in self._descriptors:
            os.close(fd)
