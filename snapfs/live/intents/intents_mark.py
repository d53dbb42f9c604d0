"""How far each intent log reaches: what recovery compares the logs with before they count as whole.

Records after the place where a log was cut off between two of them, and a log that is gone, leave no trace in what
remains: their changes would be missing from the next snapshot. Owns ``live/intents-mark``, a small file
mapped into memory: a header with the life of the host's filesystem (host_life.py) it belongs to, and a slot for
each log with its sequence number and its count of records.

Invariants:
1. In the life that wrote it a log has at least the records that its slot counts: the count is stored after the write,
   and the page cache outlives the process, that of the mark as that of the log. In another life nothing is claimed:
   then the files of a log are compared in full.
2. A count is stored as one word of 8 bytes, with its checksum in the upper half: a kill leaves the old one or the new.
   A word of 0 is a free slot, whatever its sequence number is.
3. A slot is freed before its log is removed, and taken after the log's header was written. A log without one, where the
   mark can be read, is taken as it is.
4. The header of a log has a flag if it has a mark. If such a log is there and the mark cannot be read, nothing is
   known, and all files are compared in full. Logs of an earlier snapfs have no flag.
5. Slots of the last life are freed, and a mark that was damaged made good, only once a durable log of this life has
   all that was found.

A disk that is full may leave no mark: then the logs have no flag.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import threading
import zlib

from snapfs.base.errors import VersionError
from snapfs.live.database.high_water_mark import boot_tag
from snapfs.live.intents.intent_records import ParsedLog, damaged

MAGIC = b"snapINTS"
VERSION = 1
HEADER = struct.Struct("<8sII16s")  # magic, version, zero, life
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = 64
SLOT_BYTES = 16
FILE_BYTES = 16 << 10
SLOTS = (FILE_BYTES - HEADER_BYTES) // SLOT_BYTES
_USED = 1 << 31
_SEQUENCE = struct.Struct("=QI")


def word(sequence: int, count: int) -> int:
    """The second word of a slot; native/intents.c has the same."""
    low = _USED | min(count, _USED - 1)
    return zlib.crc32(_SEQUENCE.pack(sequence, low)) << 32 | low


def path_of(folder: str) -> str:
    """Where the mark of the logs in `folder` is."""
    return f"{folder}-mark"


class IntentsMark:
    """`claim` and `free` from any thread."""

    def __init__(self, path: str) -> None:
        """Have the file mapped, as it is if its size is right. OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size != FILE_BYTES:
                os.truncate(fd, 0)  # what was cut off must not come back as free slots
                os.posix_fallocate(fd, 0, FILE_BYTES)  # a hole that cannot be filled would be the end of the process
            self._map = mmap.mmap(fd, FILE_BYTES)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        self._lock = threading.Lock()
        self.begun = False

    def begin(self, life: str) -> None:
        """Free all slots; from now on logs can claim. Invariant 5 is the caller's."""
        for index in range(HEADER_BYTES // 8 + 1, FILE_BYTES // 8, 2):
            if self._words[index]:
                self._words[index] = 0
        header = _pack_header(life)
        if self._map[:HEADER_BYTES] != header:
            self._map[:HEADER_BYTES] = header
        self.begun = True

    def claim(self, sequence: int, count: int) -> memoryview | None:
        """The two words of a slot for this log, which has `count` records; None if all are taken."""
        with self._lock:
            for index in range(HEADER_BYTES // 8, FILE_BYTES // 8, 2):
                if not self._words[index + 1]:
                    self._words[index] = sequence
                    self._words[index + 1] = word(sequence, count)
                    return self._words[index : index + 2]
        return None

    def close(self) -> None:
        """When all logs have released their slots; one that has not keeps the file mapped."""
        self._words.release()
        with contextlib.suppress(BufferError):
            self._map.close()


def opened(folder: str) -> IntentsMark | None:
    """The mark of the logs in `folder`; None on a disk that is full. OSError."""
    try:
        return IntentsMark(path_of(folder))
    except OSError as failure:
        if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return None


def _pack_header(life: str, version: int = VERSION) -> bytes:
    body = HEADER.pack(MAGIC, version, 0, boot_tag(life))
    return (body + CHECKSUM.pack(zlib.crc32(body))).ljust(HEADER_BYTES, b"\0")


def read_header(path: str, data: bytes) -> bytes | None:
    """The life that a mark belongs to; None if its header does not check out. VersionError."""
    if len(data) < HEADER_BYTES or CHECKSUM.unpack_from(data, HEADER.size) != (zlib.crc32(data[: HEADER.size]),):
        return None
    magic, version, _, life = HEADER.unpack_from(data)
    if magic != MAGIC:
        return None
    if version > VERSION:
        raise VersionError(f"{path} has format {version}; this snapfs reads up to {VERSION}: use a newer snapfs")
    return bytes(life)


def read_claims(path: str, life: str) -> dict[int, int] | None:
    """How many records each log has at least, by sequence; none of another life. None: not known. VersionError."""
    data = b""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        data = file.read()
    tag = read_header(path, data)
    if tag is None or len(data) != FILE_BYTES:
        return None
    claims: dict[int, int] = {}
    for at in range(HEADER_BYTES, FILE_BYTES, SLOT_BYTES):
        sequence, value = struct.unpack_from("=QQ", data, at)
        if value and value != word(sequence, value & _USED - 1):
            return None
        if value:
            claims[sequence] = value & _USED - 1
    return claims if tag == boot_tag(life) else {}


def judge(folder: str, life: str, logs: list[ParsedLog]) -> None:
    """Mark logs as damaged that lack records, or where that is unknown; add those that are gone. VersionError."""
    claims = read_claims(path_of(folder), life)
    if claims is None:
        for log in logs:
            if log.marked and log.boot_id == life:
                damaged(log, f"cannot be compared with {path_of(folder)}, which is damaged or missing")
        return
    by_path = {log.path: log for log in logs}
    for sequence, count in claims.items():
        path = os.path.join(folder, f"{sequence:016x}.log")
        found = by_path.get(path)
        if found is None:
            logs.append(damaged(ParsedLog.unknown(path), "is missing, or its header is"))
        elif found.count < count and not found.damaged:
            damaged(found, f"ends after {found.count} of {count} records")
