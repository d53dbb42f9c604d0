"""The write-ahead log of the namespace: when it is synced. (How it is kept short: checkpointer.py.)

Owns the sequence numbers of transactions, and the parts that watch the log's files.

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
6. The files that transactions depend on are durable before them (replace_queue.py).
7. `synced` moves by `flushed` only where the transactions lie in the part of the file that was filled and synced
   before: there, on a filesystem that overwrites in place, the flush of the device for another file's sync covers
   them, if they were written out before it (host_filesystem.py).
8. A commit is noted in the high-water mark before it is answered, a sync after it is done; before frames are written
   back to be overwritten, the mark withdraws what it claims of other boots (high_water_mark.py).

A crash loses what `sync()` did not cover, from the end of the WAL only.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from snapfs.base.blocks import Disk, Ino
from snapfs.live.backing import host_filesystem
from snapfs.live.database.changed_pages import ChangedPages
from snapfs.live.database.checkpointer import Checkpointer
from snapfs.live.database.high_water_mark import HighWaterMark, LogVerdict, Position, SharedMark
from snapfs.live.database.namespace_paths import damaged_path, log_path, mark_path, reserve_path
from snapfs.live.database.replace_queue import ReplaceQueue, SharedDepends
from snapfs.live.database.reserve import Reserve
from snapfs.live.database.sync_state import SyncState
from snapfs.live.database.wal_files import HEADER_BYTES, WalFiles

RESERVE_BYTES = 8 << 20
"""The WAL file is filled up to this length at once: overwriting costs half of what growing the file costs."""
RESERVE_STEP = 1 << 20


class SharedLog(SharedMark, SharedDepends, Protocol):
    """Others who commit transactions to the same log."""

    def share_names(
        self, path: str, mark: memoryview, index: memoryview, boot: bytes, turn: int, committed: int,
        numbers: tuple[int, ...], /,
    ) -> bool: ...  # fmt: skip

    def count_commit(self) -> int: ...

    def committed(self) -> int: ...


class Wal:
    """Sync and checkpoint from any thread; commits are noted by the writer's thread alone."""

    def __init__(self, path: str, disk: Disk, boot_id: str) -> None:
        self.path, self.disk = path, disk
        self.state, self.queue, self.files = SyncState(path), ReplaceQueue(), WalFiles(path)
        self.mark = HighWaterMark(mark_path(path), disk, boot_id)
        self.pages = ChangedPages(path, disk, self.files)
        self._reserve = Reserve(reserve_path(path), disk)
        self.checkpoints = Checkpointer(
            path, self.files, self.pages, self.mark, self._reserve, self.queue, self.state, self.sync
        )
        self._sync_lock = threading.Lock()
        self._firm_bytes = 0
        self._written_out = 0, Position(), 0

    @property
    def committed(self) -> int:
        """The number of the newest transaction."""
        return self.state.committed

    @property
    def synced(self) -> int:
        """The number of the newest transaction that is known to be durable."""
        return self.state.synced

    # -- opening

    def look(self) -> bool:
        """Once SQLite has read the log, before anything is written: whether it has what it should (high_water_mark.py).

        If not, a copy of it is kept: closing the database would write back what it has, and remove it.
        """
        log, copy = log_path(self.path), damaged_path(self.path)
        if os.path.exists(log):
            self.files.open()
        self.mark.judge(log, self.files.frames() if self.files.is_open else 0)
        if self.mark.found is not LogVerdict.CUT_SHORT:
            return True
        if os.path.exists(log) and not os.path.exists(copy):
            with open(log, "rb") as file:
                self.disk.replace_file("namespace:damaged", copy, file.read())
        return False

    def open(self) -> None:
        """After the database was opened and before its first transaction. What this opens, the two closes close."""
        self.checkpoints.open()
        self.files.open()
        self.pages.open()
        self._fill_log()
        self._reserve.fill()

    def _fill_log(self) -> None:
        """Grow the WAL file with zeros, which SQLite takes for the end of the log. A full disk is no error.

        Only before the first transaction: no one else may be growing the file.
        """
        fd = self.files.log_fd
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
            self._firm_bytes = max(size, RESERVE_BYTES) if host_filesystem.overwrites_in_place(fd) else 0

    def start_mark(self) -> None:
        """From now on the mark claims how far the log reaches. In the writer's thread, between two transactions."""
        self.mark.begin(self.files.position())

    # -- commits

    def note_commit(self) -> None:
        """A transaction is in the log, and not answered yet. In the writer's thread."""
        self.mark.committed(self.files.position())

    def count_commit(self) -> int:
        """The noted transaction counts as committed from now on; returns its number. In the writer's thread."""
        return self.state.count_commit()

    def bytes(self) -> int:
        """Bytes of the WAL that hold transactions."""
        return self.files.bytes()

    # -- ordering (replace_queue.py)

    def depend_on(self, inos: Iterable[Ino], *, soon: bool = False) -> None:
        """The caller's next transaction must not be durable before the bytes of these files are. Any thread."""
        self.queue.depend_on(inos, soon=soon)

    def settled(self) -> AbstractContextManager[None]:
        """For whatever makes the log durable by another way than `sync`. Any thread."""
        return self.queue.settled()

    # -- making durable

    def sync(self) -> None:
        """Make all that is committed durable. OSError (and from then on always) if the disk fails."""
        wanted = self.committed
        if self.synced >= wanted and not self.state.has_failed:
            return
        with self._sync_lock:
            self.state.check()
            if self.synced >= wanted:
                return
            reached, position, lowered = self.committed, self.mark.reached, self.mark.lowered
            self._flush(self.disk.fdatasync, "namespace:wal")
            self.state.note_synced(reached)
            self._claim(position, lowered)

    def write_out(self) -> int:
        """Write out what is committed, so that a sync of any file of the filesystem that begins later makes it durable.

        Returns what to pass to `flushed` then; 0 where only `sync` will do. OSError as `sync`. Any thread.
        """
        with self._sync_lock:
            self.state.check()
            reached, position, lowered = self.committed, self.mark.reached, self.mark.lowered
            if self.bytes() + HEADER_BYTES > self._firm_bytes:
                return 0
            self._flush(self.disk.write_out, "namespace:write_out")
            self._written_out = reached, position, lowered
            return reached

    def _flush(self, flush: Callable[[str, int], None], label: str) -> None:
        with self.settled():
            try:
                flush(label, self.files.log_fd)
            except OSError as failure:
                self.state.fail(failure.errno)
                raise

    def flushed(self, reached: int) -> None:
        """A file was synced, without an error, after `write_out` returned this."""
        with self._sync_lock:
            self.state.note_synced(reached)
            if self._written_out[0] == reached:
                self._claim(*self._written_out[1:])

    def _claim(self, position: Position, lowered: int) -> None:
        """What was flushed may be claimed, as far as the database does not have it (high_water_mark.py)."""
        if position.frames > self.files.backfilled():
            self.mark.synced(position, lowered)

    # -- others who commit as well (turn.py)

    def share(self, shared: SharedLog, numbers: tuple[int, ...]) -> bool:
        """Let others commit transactions; false if they cannot. `numbers`: those of the writer."""
        lent = self.mark.lend()
        if lent is None:
            return False
        slots, tag, turn = lent
        index = memoryview(self.files.index)
        if not shared.share_names(self.path, memoryview(slots), index, tag, turn, self.committed, numbers):
            return False
        self.state.count_elsewhere(shared.committed, shared.count_commit)
        self.mark.share(shared)
        self.queue.share(shared)
        return True

    def before_sharing_ends(self, shared: SharedLog) -> None:
        """With the turn of the writer: no other transaction comes."""
        self.state.count_elsewhere(None, None)
        self.mark.before_sharing_ends()
        self.queue.share(None)

    def sharing_ended(self, turn: int) -> None:
        """Others have given back what they were lent; `turn` was the last of the mark."""
        self.mark.sharing_ended(turn)

    # -- closing

    def close_files(self) -> None:
        """Close the descriptors: only after every connection of this process is closed (schema.py, invariant 4)."""
        self.mark.close()
        self.pages.close()
        self.files.close()
