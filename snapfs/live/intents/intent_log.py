"""One file of the write-intent log: records are appended with write(2), and made durable by flushes that are shared.

Invariants (numbers as in intents.py):
2. Bytes below `durable` are on the disk, and so is the file's name once `durable` > 0.
3. A record is written at `end`, which moves only after the write succeeded: a failed or short append leaves
   nothing that counts, and the next one overwrites it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from snapfs.base.blocks import Disk, Epoch, Ino
from snapfs.live.intents.intent_records import HEADER_SIZE, RECORD_SIZE, pack_header
from snapfs.live.intents.intents_mark import IntentsMark, word


class LogFile:
    """The tail of one log: `append` from any thread. The native data path has its own (native/intents.c)."""

    def __init__(self, fd: int, disk: Disk) -> None:
        self.fd, self.disk, self.end = fd, disk, 0
        self._lock = threading.Lock()
        self._slot: memoryview | None = None
        self._sequence = 0

    @property
    def count(self) -> int:
        return (self.end - HEADER_SIZE) // RECORD_SIZE

    def note_in(self, slot: memoryview, sequence: int) -> None:
        """Count the records in this slot of the mark, from now on."""
        with self._lock:
            self._slot, self._sequence = slot, sequence
            slot[1] = word(sequence, self.count)

    def append(self, records: bytes, label: str = "intents:append") -> None:
        """Write `records`; they outlive the process when this returns. OSError leaves the log as it was."""
        with self._lock:
            if self.fd < 0:
                raise OSError(errno.EBADF, "the log is closed")
            self.disk.pwrite(label, self.fd, records, self.end)
            self.end += len(records)
            if self._slot is not None:
                self._slot[1] = word(self._sequence, self.count)

    def close(self) -> None:
        with self._lock:
            os.close(self.fd)
            self.fd, self._slot = -1, None


MakeFile = Callable[[int, Disk], LogFile]


class Log:
    """One file of the log. `append` and `flush` from any thread."""

    def __init__(
        self, disk: Disk, path: str, fd: int, boot_id: str, epoch: Epoch, new_from: Ino,
        make_file: MakeFile = LogFile, marked: bool = False,
    ) -> None:  # fmt: skip
        """`fd` is the empty file at `path`, which goes if this fails."""
        self.disk, self.path, self.epoch, self.new_from = disk, path, epoch, new_from
        self.listed: set[Ino] = set()
        self.sealed = False
        self.durable = 0
        self.closed = False
        self._flushing = threading.Lock()
        self.file = make_file(fd, disk)
        self.append = self.file.append
        self._slot: memoryview | None = None
        try:
            self.append(pack_header(boot_id, epoch, new_from, marked=marked), "intents:header")
        except BaseException:
            self.file.close()
            disk.unlink("intents:undo", path)
            raise

    @property
    def fd(self) -> int:
        return self.file.fd

    @property
    def end(self) -> int:
        """Bytes that count."""
        return self.file.end

    def claim(self, mark: IntentsMark) -> None:
        """Have the records counted in the mark."""
        sequence = int(os.path.basename(self.path).partition(".")[0], 16)
        self._slot = mark.claim(sequence, 0)
        if self._slot is not None:
            self.file.note_in(self._slot, sequence)

    def flush(self) -> None:
        """Make all that was appended before the call durable; callers that wait share one flush."""
        wanted = self.end
        with self._flushing:
            if self.durable >= wanted or self.closed:  # then nothing in it counts any more
                return
            reached = self.end
            self.disk.fdatasync("intents:sync", self.fd)
            if not self.durable:
                self.disk.sync_dir("intents:name", os.path.dirname(self.path))
            self.durable = reached

    def close(self) -> None:
        with self._flushing:
            self.closed = True
            self.file.close()

    def remove(self, label: str) -> None:
        """Close and unlink the file, after its slot in the mark is free."""
        self.close()
        if self._slot is not None:
            self._slot[1] = 0
        self.release_slot()
        self.disk.unlink(label, self.path)

    def release_slot(self) -> None:
        """Release the slot, which keeps the mark mapped; its count stays."""
        if self._slot is not None:
            self._slot.release()
            self._slot = None
