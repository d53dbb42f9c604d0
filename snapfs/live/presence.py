"""Which chunks of a partly present file are here: what makes a huge absent file writable at once.

Owns live/presence/: ``<inode as hex>`` exists exactly while the backing file of that inode is incomplete. Its bytes:

    HEADER  magic, version, chunks, boot id, checksum of it all
    TIMES   while chunks are put in: the times that the host's clock is overwriting (else zero)
    SEEN    one bit a chunk: its bytes are in the backing file, as far as this run of the machine goes
    SURE    one bit a chunk: they are there after a power cut, too

The order of steps, for a chunk that arrives or is overwritten whole: bytes, then its SEEN bit. When the file is synced:
the SEEN bits are noted, the bytes are flushed, those bits become SURE, and that is flushed.

Invariants:
1. A chunk without its bit is a hole of the backing file that stands for the chunk of the origin; it is never read as
   zeros. What a bit is missing for is fetched once more, which does no harm: nothing newer was promised there.
2. SEEN bits are believed on the boot that set them (the page cache outlives the process), SURE bits always.
3. Bits are only ever added. Chunks beyond the origin's end, or beyond an end that a truncate set, count as present.
4. `lock` is held while bytes and SEEN bit of a chunk change together: what arrives late never overwrites what is newer.

A crash between any two steps leaves a chunk without its bit.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib

from snapfs.blocks import CHUNK_SIZE, Disk, chunk_count
from snapfs.errors import CorruptionError, VersionError
from snapfs.live.backing import data_ranges
from snapfs.live.records import AbsentFile

MAGIC = b"snapPRES"
VERSION = 1
HEADER = struct.Struct("<8sHxxIQ36s")  # magic, version, checksum of the rest, chunks, boot id
TIMES = struct.Struct("<Qqq")  # 1 or 0, ctime, mtime
TIMES_AT = 256
BITS_AT = 4096
_NOT_FULL = re.compile(rb"[^\xff]")


class Presence:
    """One partly present file, in the place of its `AbsentFile`. All methods from any thread."""

    can_change = True
    """Its bytes can be changed where `lacking` finds nothing."""

    def __init__(self, path: str, absent: AbsentFile, disk: Disk, boot_id: str) -> None:
        self.path, self.absent, self._disk = path, absent, disk
        self.chunks = chunk_count(absent.size)
        self.lock = threading.Lock()
        self._width = -(-self.chunks // 8)
        self._boot_id = boot_id.encode("ascii").ljust(36, b"\0")
        self._seen = bytearray(self._width)
        self._sure = 0
        self._missing = self.chunks
        self.interrupted_times: tuple[int, int] | None = None

    @classmethod
    def create(cls, path: str, absent: AbsentFile, disk: Disk, boot_id: str) -> Presence:
        """Nothing is present yet; durable when this returns."""
        made = cls(path, absent, disk, boot_id)
        fd = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            made._write_header(fd)
            disk.truncate("presence:bits", fd, BITS_AT + 2 * made._width)
            disk.fsync("presence:create", fd)
        finally:
            os.close(fd)
        disk.rename("presence:name", f"{path}.new", path)
        disk.sync_dir("presence:folder", os.path.dirname(path))
        return made

    @classmethod
    def load(cls, path: str, absent: AbsentFile, disk: Disk, boot_id: str) -> Presence:
        """What the last life knew, as far as it can be believed. CorruptionError, VersionError, OSError."""
        made = cls(path, absent, disk, boot_id)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            same_boot = made._check_header(fd)
            seen = os.pread(fd, made._width, BITS_AT).ljust(made._width, b"\0")
            sure = os.pread(fd, made._width, BITS_AT + made._width).ljust(made._width, b"\0")
            made._sure = int.from_bytes(sure, "little")
            believed = made._sure | (int.from_bytes(seen, "little") if same_boot else 0)
            made._seen = bytearray(believed.to_bytes(made._width, "little")) if made._width else bytearray()
            made._missing = made.chunks - believed.bit_count()
            noted, *times = TIMES.unpack(os.pread(fd, TIMES.size, TIMES_AT))
            made.interrupted_times = (times[0], times[1]) if noted else None
            if not same_boot:
                made._begin_boot(fd)
        finally:
            os.close(fd)
        return made

    @classmethod
    def stage(cls, path: str, absent: AbsentFile, disk: Disk, boot_id: str, seen: int, sure: int) -> None:
        """Write a presence with these bits to `path`, which is not its place yet. Nothing is synced."""
        made = cls(path, absent, disk, boot_id)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            made._write_header(fd)
            bits = b"".join(each.to_bytes(made._width, "little") for each in (seen, sure))
            disk.pwrite("presence:stage", fd, bits, BITS_AT)
        finally:
            os.close(fd)

    def _begin_boot(self, fd: int) -> None:
        """Only when the bits of the old boot are gone for good is the header that of this one."""
        self._disk.pwrite("presence:reset", fd, bytes(self._seen), BITS_AT)
        self._disk.fsync("presence:reset", fd)
        self._write_header(fd)
        self._disk.fsync("presence:boot", fd)

    def _write_header(self, fd: int) -> None:
        body = struct.pack("<Q36s", self.chunks, self._boot_id)
        packed = HEADER.pack(MAGIC, VERSION, zlib.crc32(body), self.chunks, self._boot_id)
        self._disk.pwrite("presence:header", fd, packed, 0)

    def _check_header(self, fd: int) -> bool:
        """Whether it is of this boot."""
        data = os.pread(fd, HEADER.size, 0)
        if len(data) < HEADER.size or not data.startswith(MAGIC):
            raise CorruptionError("the presence of a file", self.path, "it does not begin as one")
        _, version, checksum, chunks, boot_id = HEADER.unpack(data)
        if version > VERSION:
            raise VersionError(f"{self.path} has format {version}; this snapfs reads up to {VERSION}: use a newer one")
        if checksum != zlib.crc32(struct.pack("<Q36s", chunks, boot_id)) or chunks != self.chunks:
            raise CorruptionError("the presence of a file", self.path, "wrong checksum or length")
        return bool(boot_id == self._boot_id)

    # -- what an AbsentFile tells

    @property
    def size(self) -> int:
        """Of the origin; the file's own size is its backing file's."""
        return self.absent.size

    @property
    def origin(self) -> bytes:
        return self.absent.origin

    # -- asking

    def is_absent(self, chunk: int) -> bool:
        return chunk < self.chunks and not self._seen[chunk >> 3] >> (chunk & 7) & 1

    @property
    def missing(self) -> int:
        """How many chunks are not here yet."""
        return self._missing

    @property
    def bits(self) -> tuple[int, int]:
        """SEEN and SURE, a bit a chunk."""
        with self.lock:
            return self._seen_bits(), self._sure

    def absent_chunks(self, first: int = 0, stop: int | None = None, limit: int = 1 << 62) -> list[int]:
        """Up to `limit` chunks of [first, stop) that are not here, ascending."""
        found: list[int] = []
        chunk, stop = first, self.chunks if stop is None else min(stop, self.chunks)
        while chunk < stop and len(found) < limit:
            if not chunk & 7 and self._seen[chunk >> 3] == 0xFF:
                lacking = _NOT_FULL.search(self._seen, chunk >> 3)
                chunk = lacking.start() << 3 if lacking else stop
                continue
            if self.is_absent(chunk):
                found.append(chunk)
            chunk += 1
        return found

    def has(self, offset: int, length: int) -> bool:
        """Whether all bytes of the range are here."""
        return length <= 0 or not self.absent_chunks(offset // CHUNK_SIZE, chunk_count(offset + length), 1)

    def lacking(self, offset: int, length: int, size: int, *, even_whole: bool = False) -> list[int]:
        """Chunks that must be fetched before these bytes of a file of `size` bytes are overwritten.

        One that is overwritten from its beginning to its end is not, unless `even_whole`: a cut may need it.
        """
        found = self.absent_chunks(offset // CHUNK_SIZE, chunk_count(offset + length))
        if not even_whole:
            found = [chunk for chunk in found if not _covers(offset, offset + length, chunk, size)]
        last = size // CHUNK_SIZE
        if size % CHUNK_SIZE and offset > size and last not in found and self.is_absent(last):
            found.insert(0, last)  # it gets longer, even where no byte is written to it
        return found

    # -- changing

    def write(self, fd: int, data: bytes | memoryview, offset: int, size: int) -> int:
        """Overwrite bytes of the backing file `fd`, of `size` bytes so far; `lacking` has found nothing. OSError."""
        with self.lock:
            done = os.pwrite(fd, data, offset)
            absent = self.absent_chunks(offset // CHUNK_SIZE, chunk_count(offset + done))
            half = next((chunk for chunk in absent if not _covers(offset, offset + done, chunk, size)), None)
            if half is not None:  # the disk is full: what was to be replaced is still what counts
                done = max(half * CHUNK_SIZE - offset, 0)
                absent = [chunk for chunk in absent if chunk < half]
            self._add(absent)
        return done

    def arrive(self, fd: int, pieces: list[tuple[int, bytes]], size: int) -> int:
        """Put fetched chunks where they belong, those that were overwritten meanwhile left out. Bytes written."""
        written = 0
        with self.lock:
            arrived = []
            for chunk, plain in pieces:
                if self.is_absent(chunk):
                    room = max(min(size - chunk * CHUNK_SIZE, len(plain)), 0)
                    written += _write_data(fd, plain[:room], chunk * CHUNK_SIZE)
                    arrived.append(chunk)
            self._add(arrived)
        return written

    def note_times(self, times_ns: tuple[int, int] | None) -> None:
        """Before chunks are put in: the (ctime, mtime) that the file has; None when it has them again."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._disk.pwrite("presence:times", fd, TIMES.pack(times_ns is not None, *(times_ns or (0, 0))), TIMES_AT)
        finally:
            os.close(fd)

    def cut_off(self, size: int) -> None:
        """The file was truncated to `size`, durably: what is beyond is never fetched."""
        with self.lock:
            self._add(self.absent_chunks(chunk_count(size)))

    def leave_holes(self, data: int) -> None:
        """What is absent and has no bit in `data` is a hole of the origin, as it is one here: nothing is to come."""
        with self.lock:
            seen = self._seen_bits() | ((1 << self.chunks) - 1 & ~data)
            self._seen = bytearray(seen.to_bytes(self._width, "little"))
            self._missing = self.chunks - seen.bit_count()
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._disk.pwrite("presence:holes", fd, bytes(self._seen), BITS_AT)
            finally:
                os.close(fd)

    def _seen_bits(self) -> int:
        return int.from_bytes(self._seen, "little")

    def _add(self, chunks: list[int]) -> None:
        """With the lock held, the bytes being there."""
        if not chunks:
            return
        for chunk in chunks:
            self._missing -= self.is_absent(chunk)
            self._seen[chunk >> 3] |= 1 << (chunk & 7)
        low, high = chunks[0] >> 3, (chunks[-1] >> 3) + 1
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._disk.pwrite("presence:seen", fd, bytes(self._seen[low:high]), BITS_AT + low)
        finally:
            os.close(fd)

    # -- making sure

    def noted(self) -> int:
        """The bits that may become sure when the bytes have been flushed."""
        with self.lock:
            return self._seen_bits()

    def make_sure(self, noted: int) -> None:
        """The bytes of the chunks in `noted` are durable: say so, durably. Nothing to do where it is known."""
        with self.lock:
            sure = self._sure | noted
            if sure == self._sure:
                return
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._disk.pwrite("presence:sure", fd, sure.to_bytes(self._width, "little"), BITS_AT + self._width)
                self._disk.fdatasync("presence:sync", fd)
            finally:
                os.close(fd)
            self._sure = sure

    def check_invariants(self) -> None:
        with self.lock:
            seen = self._seen_bits()
            assert self._missing == self.chunks - seen.bit_count()
            assert self._sure & ~seen == 0
            assert seen >> self.chunks == 0


def _covers(start: int, end: int, chunk: int, size: int) -> bool:
    """Whether the bytes [start, end) are all that a file of `size` bytes has in `chunk`."""
    return start <= chunk * CHUNK_SIZE and end >= min((chunk + 1) * CHUNK_SIZE, size)


def _write_data(fd: int, plain: bytes, offset: int) -> int:
    """Write `plain`; zeros stay a hole, unless a write that was cut short had left something there."""
    if not plain.strip(b"\0") and next(data_ranges(fd, offset, offset + len(plain)), None) is None:
        return 0
    view, start = memoryview(plain), offset
    while view:
        done = os.pwrite(fd, view, start)
        view, start = view[done:], start + done
    return len(plain)
