"""The write-ahead log of the namespace: when it is synced, and how it is kept short.

Owns the sequence numbers of transactions, a descriptor of the WAL file, and the checkpointing connection.

Invariants:
1. `begun` is the number of the newest transaction begun, `committed` of the newest that is in the WAL file,
   `synced` of the newest known durable: synced <= committed <= begun.
2. `sync()` returns when everything committed before the call is durable; callers that come while a flush is running
   share the next one.
3. After a failed sync nothing is known about the WAL's bytes (the kernel reports a lost page once): every
   later sync and checkpoint fails with the same errno until the namespace is opened anew.
4. A checkpoint runs only when a transaction that *began* after the last checkpoint *ended* has been
   committed. SQLite before 3.51.3 loses transactions when a checkpoint that finds nothing to do meets a writer
   that starts the WAL over ("WAL-reset bug"); after such a transaction the WAL has something to do, and
   stays so until this one checkpointer has done it.
5. Only the last, short pass of a checkpoint excludes the writer (the gate): without it a busy writer would
   always leave a rest behind and the WAL would never start over.

A crash loses what `sync()` did not cover, from the end of the WAL only. A crash within a checkpoint leaves pages
half written back that the WAL still holds.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import struct
import threading

from snapfs.blocks import Disk
from snapfs.live.records import error
from snapfs.live.schema import PAGE_SIZE, connect, os_error

FRAME_SIZE = PAGE_SIZE + 24
CHECKPOINT_AT_BYTES = 4 << 20
"""WAL length from which a checkpoint tries to let the WAL start over."""
RESERVE_BYTES = 8 << 20
"""The WAL file is filled up to this length at once: overwriting costs half of what growing the file costs."""
SHORT_PASS_FRAMES = 64
"""What may be left to write back while the writer waits."""
PASSES = 4


class Wal:
    """Sync and checkpoint from any thread; `begun` and `committed` are written by the writer alone."""

    def __init__(self, path: str, disk: Disk) -> None:
        self.path = path
        self.disk = disk
        self.begun = 0
        self.committed = 0
        self.synced = 0
        self.gate = threading.RLock()
        self.checkpointed_at = 0
        self._failed: int | None = None
        self._sync_lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._db = connect(path)
        self._db.execute("SELECT count(*) FROM meta").fetchone()
        self._fd = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        self._index_fd = os.open(f"{path}-shm", os.O_RDWR | os.O_CLOEXEC)
        self._index = mmap.mmap(self._index_fd, 136, prot=mmap.PROT_READ)

    def frames(self) -> int:
        """Frames in use. (Field mxFrame of SQLite's wal-index, https://sqlite.org/walformat.html.)"""
        return int(struct.unpack_from("=I", self._index, 16)[0])

    def backfilled(self) -> int:
        """Frames already written back to the database (field nBackfill)."""
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
            try:
                self.disk.fdatasync("namespace:wal", self._fd)
            except OSError as failure:
                self._failed = failure.errno
                raise
            self.synced = reached

    def _check(self) -> None:
        if self._failed is not None:
            raise error(self._failed, self.path)

    def checkpoint(self) -> None:
        """Write committed pages back to the database, so that the WAL can start over. Never waits for a reader."""
        with self._checkpoint_lock:
            self._check()
            for _ in range(PASSES):
                if not self._has_work():
                    return
                rest = self._pass()
                if rest <= SHORT_PASS_FRAMES:
                    break
            if self.bytes() >= CHECKPOINT_AT_BYTES and self._has_work():
                self.sync()
                with self.gate:
                    self._pass()

    def _has_work(self) -> bool:
        return self.committed > self.checkpointed_at

    def _pass(self) -> int:
        """One passive checkpoint; returns the frames that are left."""
        try:
            _busy, frames, done = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as failure:
            raise os_error(failure, self.path) from failure
        finally:
            self.checkpointed_at = self.begun
        return int(frames - done)

    def close_connection(self) -> None:
        self._db.close()

    def close_files(self) -> None:
        """Close the descriptors: only after every connection of this process is closed (schema.py, invariant 4)."""
        self._index.close()
        os.close(self._index_fd)
        os.close(self._fd)
