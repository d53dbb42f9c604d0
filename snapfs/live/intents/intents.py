"""The write-intent log: which files and blocks may be dirty after a crash.

Owns live/intents/: one file per epoch, ``<sequence as 16 hex>.log``, of fixed records after a header. Times of a
record: BLOCKS and FLOOR are written with write(2) before the first change of those blocks in an epoch, which is enough
when only the process dies. LIST is made durable (`list_file`) before the first change of a file that the last snapshot
has, because the kernel may write the data back at any time from then on.

Invariants:
1. A file that differs on the disk, in any order the disk may have chosen, from the last snapshot is in a durable LIST
   record of a log that still exists, or its inode number is at or above the `new_from` of one (it is new).
2. Bytes of a log below `durable` are on the disk, and so is its name once `durable` > 0.
3. A record is written at `end`, which moves only after the write succeeded: a failed or short append leaves
   nothing that counts, and the next one overwrites it.
4. A log goes (`retire`) only when its epoch is in a snapshot AND each of its files is durable as of that
   snapshot or is listed in a later log, and the later log's header is durable.
5. A log whose last record is CLEAN was closed with all data on the disk: exact on any boot.

After a crash the logs are united (recover_tree.py). `boot_id` is the token of this life of the host's filesystem
(host_life.py; a boot id in logs of earlier versions). A log of this life has the exact blocks, or nothing if it has a
SEALED record; a log of another one lists files to compare in full, SEALED or not: the snapshot may hold bytes
that the power cut took back.

How many records each log has is counted in the mark (intents_mark.py), from `begin_mark` on: a log that was cut off
between two records, or is gone, is found by that.

A crash within `retire` leaves logs that list too much. A torn or missing header is a log that was never made durable,
so no change relied on it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable

from snapfs.base.blocks import Disk, Epoch, Ino
from snapfs.live.database.reserve import reserve
from snapfs.live.intents.intent_log import Log, LogFile, MakeFile
from snapfs.live.intents.intent_records import IntentKind, record
from snapfs.live.intents.intents_mark import IntentsMark

LOG_ROOM_BYTES = 64 << 10
"""Room for the first records of each log: on a full disk what is overwritten in place must still be noted."""


class Intents:
    """The logs that exist, oldest first; the last is the current epoch's.

    `append` is for the thread that owns the live tree; `list_file` and `retire` are for any. `latch` is the content's:
    `is_listed` is called, and logs come and go, with it held.
    """

    def __init__(
        self, folder: str, disk: Disk, boot_id: str, latch: threading.Lock, make_file: MakeFile = LogFile,
        *, sequence: int = 0, mark: IntentsMark | None = None,
    ) -> None:  # fmt: skip
        """`sequence`: that of the newest log so far."""
        self.folder, self.disk, self.boot_id, self.latch = folder, disk, boot_id, latch
        self._make_file = make_file
        self._spare: tuple[str, int] | None = None
        self.logs: list[Log] = []
        self.watched: list[Ino] | None = None
        self.sequence, self.mark = sequence, mark

    def begin_mark(self) -> None:
        """Count records in `mark`. The one log that there is has, durably, all that is known."""
        (log,) = self.logs
        if self.mark is not None:
            self.mark.begin(self.boot_id)
            log.claim(self.mark)

    # -- the current log

    @property
    def current(self) -> Log:
        return self.logs[-1]

    def is_listed(self, ino: Ino) -> bool:
        """Whether invariant 1 allows `ino` to change now. With the latch held."""
        return ino >= self.logs[0].new_from or any(ino in log.listed for log in self.logs)

    def may_change(self, ino: Ino) -> bool:
        """As `is_listed`, for a file that changes at once if so: `retire` will keep it listed."""
        listed = self.is_listed(ino)
        if listed and self.watched is not None:
            self.watched.append(ino)
        return listed

    def append(self, *records: bytes) -> None:
        self.current.append(b"".join(records))

    def list_file(self, ino: Ino) -> None:
        """Let `ino` change from now on: durable when this returns. Blocks for a flush, shared among callers."""
        self._list([ino], IntentKind.LIST)

    def list_whole(self, inos: list[Ino]) -> None:
        """As `list_file`, and have them compared in full."""
        self._list(inos, IntentKind.LIST, IntentKind.WHOLE)

    def _list(self, inos: list[Ino], *kinds: IntentKind) -> None:
        """A log that retired while we were waiting lists nothing any more: then once more, in the current one."""
        records = b"".join(record(kind, ino) for ino in inos for kind in kinds)
        while True:
            log = self.current
            try:
                log.append(records)
                log.flush()
            except OSError:
                if not log.closed:
                    raise
            with self.latch:
                if not log.closed:
                    log.listed.update(inos)
                    return

    def new_log(self, epoch: Epoch, new_from: Ino) -> Log:
        """Make the file of the next log. It is used only once it is in `logs`."""
        with self.latch:
            spare, self._spare = self._spare, None
        path, fd = spare or self._new_file()
        mark = self.mark
        log = Log(self.disk, path, fd, self.boot_id, epoch, new_from, self._make_file, marked=mark is not None)
        if mark is not None and mark.begun:
            log.claim(mark)
        return log

    def _new_file(self) -> tuple[str, int]:
        with self.latch:
            self.sequence += 1
            path = os.path.join(self.folder, f"{self.sequence:016x}.log")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        reserve(fd, LOG_ROOM_BYTES)
        return path, fd

    def make_spare(self) -> None:
        """Have the file of the next log at hand: to make it takes 25 of the 150 us of a cut. One caller at a time.

        Empty it means nothing to recovery. Where it cannot be made, the cut tries, and reports why.
        """
        if self._spare is None:
            with contextlib.suppress(OSError):
                made = self._new_file()
                with self.latch:
                    self._spare = made

    def discard(self, log: Log) -> None:
        """Undo `new_log`."""
        log.remove("intents:discard")

    # -- the end of an epoch

    def suspects(self) -> tuple[set[Ino], Ino]:
        """All files whose bytes may not be durable: those listed, and those with numbers from the second value on."""
        with self.latch:
            return set[Ino]().union(*(log.listed for log in self.logs)), self.logs[0].new_from

    def mark_sealed(self, epoch: Epoch) -> None:
        """Note that all up to `epoch` is in a snapshot: the logs can retire."""
        for log in self.logs[:-1]:
            if log.epoch <= epoch and not log.sealed:
                log.sealed = True
                with contextlib.suppress(OSError):  # the record only saves work after a kill
                    log.append(record(IntentKind.SEALED))

    def retirable(self) -> list[Log]:
        """The oldest logs, as far as they are sealed."""
        return list(itertools.takewhile(lambda log: log.sealed, self.logs[:-1]))

    def retire(
        self, old: list[Log], is_hot: Callable[[Ino], bool], dirty: Callable[[], Iterable[Ino]], settle: Settle
    ) -> None:
        """Remove logs whose epochs are in a snapshot, the oldest ones of all. One caller at a time, any thread.

        Files that are hot or in `dirty()` (all that changed since) are listed again in the current log; `settle`
        makes the others durable. A file whose change is allowed meanwhile by a listing that goes is `watched`: from
        before `dirty` is called, so that none is missed by both.
        """
        with self.latch:
            self.watched = []
            known = set[Ino]().union(*(log.listed for log in old))
        try:
            successor, upto = self.current, self.logs[len(old)].new_from
            hot = {ino for ino in known if is_hot(ino)}
            hot.update(ino for ino in dirty() if ino < upto)
            self._list_all(successor, hot)
            settle(known - hot, old[0].new_from, upto)
        except BaseException:
            self.watched = None
            raise
        with self.latch:
            del self.logs[: len(old)]
            late = [ino for ino in self.watched if not self.is_listed(ino)]
            self.watched = None
        try:
            self._list_all(successor, late)
        except OSError:
            with self.latch:
                self.logs[:0] = old
            raise
        for log in old:
            log.remove("intents:retire")

    def _list_all(self, log: Log, inos: Iterable[Ino]) -> None:
        wanted = list(inos)
        if wanted:
            log.append(b"".join(record(IntentKind.LIST, ino) for ino in wanted), "intents:relist")
        log.flush()
        with self.latch:
            log.listed.update(wanted)

    # -- the end of a life

    def close(self, clean: bool) -> None:
        """Close the files; `clean`: all data is on the disk."""
        for log in self.logs:
            if clean:
                log.append(record(IntentKind.CLEAN), "intents:clean")
                log.flush()
            log.close()
            log.release_slot()
        self.logs = []
        if self.mark is not None:
            self.mark.close()
        if self._spare is not None:
            path, fd = self._spare
            os.close(fd)
            self.disk.unlink("intents:spare", path)

    def check_invariants(self) -> None:
        assert self.logs
        epochs = [log.epoch for log in self.logs]
        assert epochs == sorted(epochs), epochs
        for log in self.logs:
            assert 0 <= log.durable <= log.end
            assert not log.listed or log.durable


Settle = Callable[[set[Ino], Ino, Ino], None]
"""settle(files, new_from, upto): make these files, and those with numbers in [new_from, upto), durable."""
