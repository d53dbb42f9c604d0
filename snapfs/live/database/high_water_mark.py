"""The high-water mark of the namespace's log: what recovery compares the log with before it counts as whole.

SQLite takes the first frame of its WAL that does not check out for the end of the log, as it must after a power cut. So
one flipped bit makes transactions vanish that were answered, and files of which the rows are gone look like strays.
Owns ``namespace.db-mark``, a small file mapped into memory, in which the writer notes how far the log reaches.

    committed   salts and frames of the log when the last transaction was committed, before it was answered
    synced      the same of the last flush of the log that returned, as far as those frames are not in the database yet

Invariants:
1. On the boot that wrote it the log has at least `committed`: the page cache outlives the process, the mark's as the
   log's. A log that was started over has the next salt (SQLite adds one), and all before it is in the database.
2. On any other boot it has at least `synced`, which is written after the flush. Before frames may be overwritten, that
   is before a checkpoint, `lower` takes the claim back durably; none is made again before the checkpoint is over.
3. There are two copies, written in turns, each with a checksum: one that is torn or damaged leaves the other, which
   claims a transaction less. Where neither checks out nothing is claimed, as by a snapfs that knew no mark.
4. The mark is CLOSED only while the database alone has everything; ENDING claims nothing, while that is being done.

A kill between a commit and its mark leaves a log that has more than is claimed, by one that was not answered.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import struct
import sys
import threading
import zlib
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

from snapfs.base.blocks import Disk
from snapfs.base.errors import VersionError

MAGIC = b"snapMARK"
VERSION = 1
SLOT = struct.Struct("<8sHHQ16s3I3I")  # magic, version, state, turn, boot tag, committed, synced
CHECKSUM = struct.Struct("<I")
SLOT_BYTES = 512
FILE_BYTES = 2 * SLOT_BYTES
WAL_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoints, two salts, checksum
_SALT_MASK, _HALF = (1 << 32) - 1, 1 << 31


class MarkState(IntEnum):
    OPEN = 1
    ENDING = 2
    CLOSED = 3


class LogVerdict(Enum):
    """The result of comparing a log with its mark."""

    WHOLE = "whole"
    UNKNOWN = "unknown"  # nothing was claimed
    CUT_SHORT = "cut short"  # it lacks what was answered


class Position(NamedTuple):
    """So many frames of the log with these salts."""

    salt1: int = 0
    salt2: int = 0
    frames: int = 0


@dataclass(frozen=True, slots=True)
class MarkClaim:
    state: MarkState
    turn: int
    boot: bytes
    committed: Position
    synced: Position


def boot_tag(boot_id: str) -> bytes:
    return hashlib.blake2b(boot_id.encode(), digest_size=16).digest()


class SharedMark(Protocol):
    """Others who commit transactions, and write the mark with each."""

    def mark_committed(self) -> None: ...

    def mark_synced(self, salt1: int, salt2: int, frames: int, /) -> None: ...

    def mark_reached(self) -> tuple[int, int, int]: ...


class HighWaterMark:
    """`committed` for the writer's thread, `synced` for any; the rest before or after all other threads."""

    def __init__(self, path: str, disk: Disk, boot_id: str) -> None:
        self.path, self._disk, self._tag = path, disk, boot_tag(boot_id)
        self._lock = threading.Lock()
        self._map: mmap.mmap | None = None
        self._turn = 0
        self._committed = self._synced = Position()
        self._claiming, self.lowered = True, 0
        self._shared: SharedMark | None = None
        self.found = LogVerdict.UNKNOWN

    # -- looking back

    def judge(self, wal_path: str, frames: int) -> None:
        """Find whether the log, so many frames for SQLite, has what was claimed. VersionError, OSError."""
        self.found = self._judge(wal_path, frames)

    def _judge(self, wal_path: str, frames: int) -> LogVerdict:
        claim = read_claim(self.path)
        if claim is None or claim.state is MarkState.ENDING:
            return LogVerdict.UNKNOWN
        if claim.state is MarkState.CLOSED:
            return LogVerdict.WHOLE if not frames else LogVerdict.UNKNOWN
        wanted = claim.committed if claim.boot == self._tag else claim.synced
        if not wanted.frames:
            return LogVerdict.WHOLE if claim.boot == self._tag else LogVerdict.UNKNOWN
        salts = wal_salts(wal_path)
        if salts == (wanted.salt1, wanted.salt2):
            return LogVerdict.WHOLE if frames >= wanted.frames else LogVerdict.CUT_SHORT
        began_anew = salts is not None and 0 < (salts[0] - wanted.salt1 & _SALT_MASK) < _HALF
        return LogVerdict.WHOLE if began_anew else LogVerdict.CUT_SHORT

    # -- keeping

    def begin(self, reached: Position) -> None:
        """From now on claims hold; `reached` is in the log. A disk that is full may leave nothing claimed: no error."""
        try:
            self._open()
        except OSError as failure:
            if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._forget()
            return
        self.found = LogVerdict.WHOLE
        self._committed, self._synced = reached, Position()
        for _ in range(2):
            self._write(MarkState.OPEN)

    def _open(self) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, FILE_BYTES)  # a hole that cannot be filled would be the end of the process
            self._map = mmap.mmap(fd, FILE_BYTES)
        finally:
            os.close(fd)
        claim = read_claim(self.path)
        self._turn = claim.turn if claim is not None else 0

    @property
    def reached(self) -> Position:
        """The end of the log at the last commit. Any thread."""
        return self._committed if self._shared is None else Position(*self._shared.mark_reached())

    def committed(self, reached: Position) -> None:
        """A transaction is in the log, and not answered yet."""
        with self._lock:
            self._committed = reached
            if self._shared is not None:
                self._shared.mark_committed()
            else:
                self._write(MarkState.OPEN)

    def lend(self) -> tuple[mmap.mmap, bytes, int] | None:
        """What others need to write it: the mapping, the boot's tag, the last turn. None where nothing is claimed."""
        return None if self._map is None or sys.byteorder != "little" else (self._map, self._tag, self._turn)

    def share(self, shared: SharedMark) -> None:
        """Others write it as well from now on, with each transaction of theirs."""
        self._shared = shared

    def before_sharing_ends(self) -> None:
        """With the turn of the writer: no other transaction comes."""
        self._committed = self.reached

    def sharing_ended(self, turn: int) -> None:
        """Others do not write it any more; `turn` was their last."""
        with self._lock:
            self._shared, self._turn = None, turn

    def synced(self, reached: Position, lowered: int) -> None:
        """The log was flushed up to there; `lowered` is what the attribute was before the flush began."""
        with self._lock:
            if self._claiming and lowered == self.lowered and reached != self._synced:
                self._synced = reached
                self._write(MarkState.OPEN)

    def lower(self) -> None:
        """A checkpoint begins: claim nothing of other boots, durably, until `raise_again`. OSError."""
        with self._lock:
            self._claiming, self._synced, self.lowered = False, Position(), self.lowered + 1
            for _ in range(2):
                self._write(MarkState.OPEN)
        self._sync()

    def raise_again(self) -> None:
        """The checkpoint is over, and the next will call `lower` before it begins."""
        with self._lock:
            self._claiming = True

    def end(self) -> None:
        """The log is about to be written back, and to go. OSError.

        What was found to be cut short stays so until `begin`, and what is unknown stays that.
        """
        if self.found is LogVerdict.CUT_SHORT or (self._map is None and not os.path.exists(self.path)):
            return
        if self._map is None:
            self._open()
        self._record(MarkState.ENDING)

    def closed(self) -> None:
        """The database has everything, and there is no log. OSError."""
        if self.found is LogVerdict.WHOLE:
            self._committed = self._synced = Position()
            self._record(MarkState.CLOSED)

    def _record(self, state: MarkState) -> None:
        with self._lock:
            for _ in range(2):
                self._write(state)
        self._sync()

    def _write(self, state: MarkState) -> None:
        if self._map is None:
            return
        if self._shared is not None:
            assert state is MarkState.OPEN, "it ends when nobody shares it any more"
            self._shared.mark_synced(*self._synced)
            return
        self._turn += 1
        one, two = self._committed, self._synced
        packed = SLOT.pack(
            MAGIC, VERSION, state, self._turn, self._tag,
            one.salt1, one.salt2, one.frames, two.salt1, two.salt2, two.frames,
        )  # fmt: skip
        at = (self._turn & 1) * SLOT_BYTES
        self._map[at : at + SLOT.size + CHECKSUM.size] = packed + CHECKSUM.pack(zlib.crc32(packed))

    def _sync(self) -> None:
        if self._map is not None:
            self._map.flush()
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._disk.fdatasync("namespace:mark", fd)
            finally:
                os.close(fd)

    def _forget(self) -> None:
        """Where there is no room for a new mark there must be no old one that speaks of other logs."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("namespace:mark", self.path)

    def close(self) -> None:
        """Close the file as it is."""
        if self._map is not None:
            self._map.close()
            self._map = None


def read_claim(path: str) -> MarkClaim | None:
    """The newest claim that checks out; None if there is none. VersionError, OSError."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES)
    except FileNotFoundError:
        return None
    claims = [claim for at in (0, SLOT_BYTES) if (claim := _read_slot(path, data[at : at + SLOT_BYTES])) is not None]
    return max(claims, key=lambda claim: claim.turn, default=None)


def _read_slot(path: str, slot: bytes) -> MarkClaim | None:
    if len(slot) < SLOT.size + CHECKSUM.size:
        return None
    magic, version, state, turn, boot, *numbers = SLOT.unpack_from(slot)
    if CHECKSUM.unpack_from(slot, SLOT.size) != (zlib.crc32(slot[: SLOT.size]),) or magic != MAGIC:
        return None
    if version > VERSION:
        raise VersionError(f"{path} has format {version}; this snapfs reads up to {VERSION}: use a newer one")
    return MarkClaim(MarkState(state), turn, boot, Position(*numbers[:3]), Position(*numbers[3:]))


def wal_salts(path: str) -> tuple[int, int] | None:
    """The salts in the header of SQLite's log, None where it is missing or does not check out."""
    try:
        with open(path, "rb") as file:
            header = file.read(WAL_HEADER.size)
    except FileNotFoundError:
        return None
    if len(header) < WAL_HEADER.size:
        return None
    magic, *_ = fields = WAL_HEADER.unpack(header)
    if magic & ~1 != 0x377F0682:
        return None
    words = struct.unpack(">6I" if magic & 1 else "<6I", header[:24])
    one = two = 0
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = one + first + two & _SALT_MASK
        two = two + second + one & _SALT_MASK
    return (fields[4], fields[5]) if (one, two) == tuple(fields[6:]) else None
