"""The records of the write-intent log, byte for byte, and the story that one log tells.

A log is a header and fixed records. What they mean, and when each is written, is said in intents.py.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from snapfs.blocks import Epoch, Ino
from snapfs.errors import CorruptionError, VersionError
from snapfs.live.dirty import NO_FLOOR, DirtyMap

MAGIC = b"SNAPINT\0"
VERSION = 1
HEADER = struct.Struct("<8sI36sQQ")  # magic, version, boot id, epoch, new_from
RECORD = struct.Struct("<QQQI")  # inode, a, b, kind
CHECKSUM = struct.Struct("<I")
HEADER_SIZE = 128
RECORD_SIZE = RECORD.size + CHECKSUM.size


class Kind(IntEnum):
    LIST = 1  # this file may differ
    BLOCKS = 2  # a = first block, b = count
    FLOOR = 3  # a = floor, b = reach (see dirty.py)
    WHOLE = 4  # compare in full
    TIMES = 5  # the times changed
    SEALED = 6  # this log's epoch is in a snapshot
    CLEAN = 7  # closed in order, all data on the disk


def record(kind: Kind, ino: int = 0, a: int = 0, b: int = 0) -> bytes:
    body = RECORD.pack(ino, a, b, kind)
    return body + CHECKSUM.pack(zlib.crc32(body))


def records_of(ino: Ino, dirty: DirtyMap) -> Iterator[bytes]:
    """The records that bring `dirty` back."""
    yield record(Kind.LIST, ino)
    if dirty.is_clean():
        yield record(Kind.TIMES, ino)
    if dirty.whole:
        yield record(Kind.WHOLE, ino)
    if dirty.floor < NO_FLOOR:
        yield record(Kind.FLOOR, ino, dirty.floor, dirty.reach)
    for first, count in dirty.runs():
        yield record(Kind.BLOCKS, ino, first, count)


@dataclass(slots=True)
class Story:
    """What one log says."""

    path: str
    boot_id: str
    epoch: Epoch
    new_from: Ino
    sealed: bool = False
    clean: bool = False
    files: dict[Ino, DirtyMap] = field(default_factory=dict)
    timed: set[Ino] = field(default_factory=set)

    def changed(self) -> Iterator[tuple[Ino, DirtyMap]]:
        """The files that changed, not just may."""
        return ((ino, dirty) for ino, dirty in self.files.items() if ino in self.timed or not dirty.is_clean())

    def add(self, kind: Kind, ino: Ino, a: int, b: int) -> None:
        self.clean = kind is Kind.CLEAN
        if kind is Kind.SEALED:
            self.sealed = True
        if kind in (Kind.SEALED, Kind.CLEAN):
            return
        dirty = self.files.setdefault(ino, DirtyMap())
        if kind is Kind.BLOCKS:
            dirty.mark_blocks(a, b)
        elif kind is Kind.FLOOR:
            dirty.lower(a, b)
        elif kind is Kind.WHOLE:
            dirty.mark_whole()
        elif kind is Kind.TIMES:
            self.timed.add(ino)


def read_log(path: str) -> Story | None:
    """Read a log up to its first record that is not whole; None if its header is not. OSError, VersionError."""
    with open(path, "rb", buffering=1 << 20) as file:
        header = file.read(HEADER_SIZE)
        story = _read_header(path, header)
        while story is not None and len(row := file.read(RECORD_SIZE)) == RECORD_SIZE:
            body, (checksum,) = row[: RECORD.size], CHECKSUM.unpack_from(row, RECORD.size)
            ino, a, b, kind = RECORD.unpack(body)
            if zlib.crc32(body) != checksum or (not ino and kind < Kind.SEALED):
                break
            if kind > max(Kind):
                raise CorruptionError("a write intent", path, f"its kind {kind} is unknown")
            story.add(Kind(kind), Ino(ino), a, b)
    return story


def pack_header(boot_id: str, epoch: Epoch, new_from: Ino, version: int = VERSION) -> bytes:
    body = HEADER.pack(MAGIC, version, boot_id.encode("ascii"), epoch, new_from)
    return (body + CHECKSUM.pack(zlib.crc32(body))).ljust(HEADER_SIZE, b"\0")


def _read_header(path: str, header: bytes) -> Story | None:
    if len(header) < HEADER_SIZE or CHECKSUM.unpack_from(header, HEADER.size) != (zlib.crc32(header[: HEADER.size]),):
        return None
    magic, version, boot_id, epoch, new_from = HEADER.unpack_from(header)
    if magic != MAGIC:
        return None
    if version > VERSION:
        raise VersionError(f"{path} has intent format {version}; this snapfs reads up to {VERSION}: use a newer snapfs")
    return Story(path, boot_id.rstrip(b"\0").decode("ascii"), Epoch(epoch), Ino(new_from))
