"""The records of the write-intent log, byte for byte, and what one log contains.

A log is a header and fixed records. What they mean, and when each is written: intents.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from snapfs.base.blocks import Epoch, Ino
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.live.intents.dirty_map import NO_FLOOR, DirtyMap

MAGIC = b"SNAPINT\0"
VERSION = 1
HEADER = struct.Struct("<8sI36sQQ")  # magic, version, boot id, epoch, new_from
RECORD = struct.Struct("<QQQI")  # inode, a, b, kind
CHECKSUM = struct.Struct("<I")
HEADER_SIZE = 128
MARKED = b"MARK"
"""After the header's checksum: how far this log reaches is in the mark (intents_mark.py). Earlier versions wrote 0."""
UNSIGNED = (1 << 64) - 1
RECORD_SIZE = RECORD.size + CHECKSUM.size


class IntentKind(IntEnum):
    LIST = 1  # this file may differ
    BLOCKS = 2  # a = first block, b = count
    FLOOR = 3  # a = floor, b = reach (see dirty_map.py)
    WHOLE = 4  # compare in full
    TIMES = 5  # the times changed; a = mtime, b = ctime if those are noted (else 0)
    SEALED = 6  # this log's epoch is in a snapshot
    CLEAN = 7  # closed in order, all data on the disk


def record(kind: IntentKind, ino: int = 0, a: int = 0, b: int = 0) -> bytes:
    body = RECORD.pack(ino, a, b, kind)
    return body + CHECKSUM.pack(zlib.crc32(body))


def note_of_times(ino: int, mtime_ns: int, ctime_ns: int) -> bytes:
    """The times of a file that the host will stamp. They are never both 0: equal ones need no note."""
    return record(IntentKind.TIMES, ino, mtime_ns & UNSIGNED, ctime_ns & UNSIGNED)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def records_of(ino: Ino, dirty: DirtyMap) -> Iterator[bytes]:
    """The records from which recovery rebuilds `dirty`."""
    yield record(IntentKind.LIST, ino)
    if dirty.is_clean():
        yield record(IntentKind.TIMES, ino)
    if dirty.whole:
        yield record(IntentKind.WHOLE, ino)
    if dirty.floor < NO_FLOOR:
        yield record(IntentKind.FLOOR, ino, dirty.floor, dirty.reach)
    for first, count in dirty.runs():
        yield record(IntentKind.BLOCKS, ino, first, count)


@dataclass(slots=True)
class ParsedLog:
    """The content of one log."""

    path: str
    boot_id: str
    epoch: Epoch
    new_from: Ino
    sealed: bool = False
    clean: bool = False
    files: dict[Ino, DirtyMap] = field(default_factory=dict)
    timed: set[Ino] = field(default_factory=set)
    noted_times: dict[Ino, tuple[int, int]] = field(default_factory=dict)
    """The last (mtime, ctime) noted of each file, in ns: true for as long as the backing file has that ctime."""
    damaged: bool = False
    """Records that do not check out are followed by others, or are whole: their content is lost. The log counts as one
    of an unknown life that lists every file, so that all are compared in full."""
    why: str = "is damaged"
    count: int = 0
    marked: bool = False

    @classmethod
    def unknown(cls, path: str) -> ParsedLog:
        """Of a log of which not even the header can be read."""
        return cls(path, "", Epoch(0), Ino(0))

    def changed(self) -> Iterator[tuple[Ino, DirtyMap]]:
        """The files that changed, not just may."""
        return ((ino, dirty) for ino, dirty in self.files.items() if ino in self.timed or not dirty.is_clean())

    def add(self, kind: IntentKind, ino: Ino, a: int, b: int) -> None:
        self.clean = kind is IntentKind.CLEAN
        if kind is IntentKind.SEALED:
            self.sealed = True
        if kind in (IntentKind.SEALED, IntentKind.CLEAN):
            return
        dirty = self.files.setdefault(ino, DirtyMap())
        if kind is IntentKind.BLOCKS:
            dirty.mark_blocks(a, b)
        elif kind is IntentKind.FLOOR:
            dirty.lower(a, b)
        elif kind is IntentKind.WHOLE:
            dirty.mark_whole()
        elif kind is IntentKind.TIMES:
            self.timed.add(ino)
            if a or b:
                self.noted_times[ino] = _signed(a), _signed(b)


def read_log(path: str) -> ParsedLog | None:
    """Read a log up to its first record that is not whole; None if it has no header yet. OSError, VersionError.

    A kill cuts an append short, and a power cut what was not synced: both leave a part of a record at the end. A
    whole record that does not check out is damage; one of zeros is of a host that went down, which kept the length of
    the file and lost the bytes. Either way all files are compared in full.
    """
    with open(path, "rb", buffering=1 << 20) as file:
        header = file.read(HEADER_SIZE)
        log = read_header(path, header)
        if log is None:
            return damaged(ParsedLog.unknown(path)) if file.read(RECORD_SIZE).strip(b"\0") else None
        while len(row := file.read(RECORD_SIZE)) == RECORD_SIZE:
            body, (checksum,) = row[: RECORD.size], CHECKSUM.unpack_from(row, RECORD.size)
            ino, a, b, kind = RECORD.unpack(body)
            if zlib.crc32(body) != checksum or (not ino and kind < IntentKind.SEALED):
                return damaged(log) if row.strip(b"\0") else damaged(log, "has lost records")
            if kind > max(IntentKind):
                raise CorruptionError("a write intent", path, f"its kind {kind} is unknown")
            log.add(IntentKind(kind), Ino(ino), a, b)
            log.count += 1
    return damaged(log) if log.damaged else log


def damaged(log: ParsedLog, why: str = "is damaged") -> ParsedLog:
    """Have all files compared in full, whatever is in the log."""
    log.why = why
    log.damaged, log.boot_id, log.new_from = True, "", Ino(0)
    log.sealed = log.clean = False
    return log


def pack_header(boot_id: str, epoch: Epoch, new_from: Ino, version: int = VERSION, marked: bool = False) -> bytes:
    body = HEADER.pack(MAGIC, version, boot_id.encode("ascii"), epoch, new_from)
    return (body + CHECKSUM.pack(zlib.crc32(body)) + (MARKED if marked else b"")).ljust(HEADER_SIZE, b"\0")


def read_header(path: str, header: bytes) -> ParsedLog | None:
    """An empty log with this header; None if it does not check out. VersionError."""
    if len(header) < HEADER_SIZE or CHECKSUM.unpack_from(header, HEADER.size) != (zlib.crc32(header[: HEADER.size]),):
        return None
    magic, version, boot_id, epoch, new_from = HEADER.unpack_from(header)
    if magic != MAGIC:
        return None
    if version > VERSION:
        raise VersionError(f"{path} has intent format {version}; this snapfs reads up to {VERSION}: use a newer snapfs")
    log = ParsedLog(path, boot_id.rstrip(b"\0").decode("ascii"), Epoch(epoch), Ino(new_from))
    mark = header[HEADER.size + CHECKSUM.size :][: len(MARKED)]
    log.marked = mark == MARKED
    return log if log.marked or not mark.strip(b"\0") else damaged(log)
