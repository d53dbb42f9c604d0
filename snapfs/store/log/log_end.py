"""snapshots.end: how far snapshots.log went, so that a log that has lost its end is not taken for a shorter one.

END (96 bytes), little-endian
    0  magic     8  b"snapLEND"
    8  version   2  1
   10  reserved  6  zero
   16  size      8  of the log in bytes, the newline of its last line included
   24  lines     8
   32  first    32  SHA-256 of the first line: which log it is
   64  head     24  the first 24 bytes of the SHA-256 of the last line
   88  checksum  8  XXH3-64 of 0..87

Invariants:
1. It is written in place, after the line is durable, and never synced: after a power cut it is behind, never ahead.
2. It only witnesses. One that is missing, torn or damaged proves nothing, and takes nothing from a log that is whole;
   the next append writes it anew. A failure to write it is passed over.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Final, NamedTuple

import xxhash

from snapfs.base.blocks import Disk
from snapfs.base.errors import VersionError

VERSION: Final = 1
HEAD_BYTES: Final = 24
_MAGIC: Final = b"snapLEND"
_END: Final = struct.Struct("<8sH6xQQ32s24s")
_SUM: Final = struct.Struct("<Q")
_BYTES: Final = _END.size + _SUM.size


class LogEnd(NamedTuple):
    """`first` and `head`: as in the file."""

    size: int
    lines: int
    first: bytes
    head: bytes


def path_of(log_path: str) -> str:
    return f"{log_path.removesuffix('.log')}.end"


def read(log_path: str) -> LogEnd | None:
    """What is witnessed of this log, None if nothing is. Raises VersionError."""
    path = path_of(log_path)
    try:
        with open(path, "rb") as file:
            data = file.read(_BYTES)
    except OSError:
        return None
    if len(data) < _BYTES or xxhash.xxh3_64_intdigest(data[: _END.size]) != _SUM.unpack_from(data, _END.size)[0]:
        return None
    magic, version, size, lines, first, head = _END.unpack_from(data)
    if magic != _MAGIC:
        return None
    if version > VERSION:
        words = f"{path} has format version {version}; this snapfs reads up to {VERSION}: use a newer snapfs"
        raise VersionError(words)
    return LogEnd(size, lines, first, head)


def write(log_path: str, end: LogEnd, disk: Disk) -> None:
    """Not durable. Never raises."""
    packed = _END.pack(_MAGIC, VERSION, *end)
    with contextlib.suppress(OSError):
        fd = os.open(path_of(log_path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            disk.pwrite("log:end", fd, packed + _SUM.pack(xxhash.xxh3_64_intdigest(packed)), 0)
        finally:
            os.close(fd)


def remove(log_path: str, disk: Disk) -> None:
    """Before the log is replaced by another one. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink("log:end", path_of(log_path))
