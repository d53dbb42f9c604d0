"""Which chunks of a partly present file are here: what makes a huge absent file writable at once.

Owns live/presence/: ``<inode as hex>`` exists exactly while the backing file of that inode is incomplete. It has, in
pages that check themselves and are kept twice (residency_pages.py):

    TIMES   while chunks are put in: the times that the host's clock is overwriting (else zero)
    PRESENT one bit a chunk: its bytes are in the backing file, as far as this run of the machine goes
    DURABLE one bit a chunk: they are there after a power cut, too

The order of steps for a chunk that arrives or is overwritten whole: write its bytes, then set its PRESENT bit. A sync
of the file notes the PRESENT bits, flushes the bytes, sets the noted bits in DURABLE, and flushes those.

Invariants:
1. A chunk without its bit is a hole of the backing file that stands for the chunk of the origin; it is never read as
   zeros. What a bit is missing for is fetched once more, which does no harm: nothing newer was promised there.
2. PRESENT bits count on the boot that set them (the page cache outlives the process), DURABLE bits always.
3. Bits are only ever added. Chunks beyond the origin's end, or beyond an end that a truncate set, count as present.
4. `lock` is held while the bytes and the PRESENT bit of a chunk change together, so a chunk that arrives late never
   overwrites newer bytes.
5. A bit that neither copy of its page has is unknown: before the file is used the chunk is compared with the origin's
   (`settle_unknown`, by residency_recovery.py). Bytes that are here stay, since they may be newer; where there are none
   the origin's are put. So a chunk is never read as zeros because a record of it was damaged.
6. Native code overwrites chunks whose bit is in `recorded` without `lock`: their bit is in the file, so what it answers
   outlives the process, and what arrives leaves them alone.

A crash between any two steps leaves a chunk without its bit. A file of version 1 is replaced when it is loaded, in one
step: beside it, synced, renamed.
"""

from __future__ import annotations

import os
import threading

from snapfs.base.blocks import CHUNK_SIZE, Disk, chunk_count
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.residency.chunk_bits import ChunkBits
from snapfs.live.residency.hole_writes import holes, write_data
from snapfs.live.residency.residency_file import ResidencyFile
from snapfs.live.residency.residency_pages import PAYLOAD_BYTES, FoundPages, Kind


class Residency:
    """One partly present file, in the place of its `AbsentFile`. All methods from any thread."""

    can_change = True
    """Its bytes can be changed where `lacking` finds nothing."""

    def __init__(
        self, file: ResidencyFile, absent: AbsentFile, present: int = 0, durable: int = 0, *, unknown: int = 0,
        damage: str = "", interrupted_times: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """`unknown`: a bit for each chunk of which it is not known whether it is here (invariant 5). `damage`: what was
        found wrong with the file, in a few words."""
        self.absent, self.chunks = absent, file.layout.chunks
        self.unknown, self.damage, self.interrupted_times = unknown, damage, interrupted_times
        self.lock = threading.Lock()
        self._file = file
        self._bits = ChunkBits(file.layout.chunks, file.layout.width)
        self._bits.put(present, durable)
        self.recorded = bytearray(self._bits.present)
        """The PRESENT bits that are on record, a bit a chunk: set one by one, and never cleared (invariant 6)."""

    @classmethod
    def create(cls, path: str, absent: AbsentFile, disk: Disk, boot_id: str) -> Residency:
        """Nothing is present yet; durable when this returns."""
        made = cls(_file_of(path, absent, disk, boot_id), absent)
        made._put("residency:bits")
        return made

    @classmethod
    def load(cls, path: str, absent: AbsentFile, disk: Disk, boot_id: str) -> Residency:
        """The bits of the last life that still count; see `unknown`. CorruptionError, VersionError, OSError."""
        file = _file_of(path, absent, disk, boot_id)
        found = file.read()
        unknown = found.unknown_present & ~found.durable | found.unknown_durable & ~found.present
        damage = _damage_of(found, unknown)
        made = cls(
            file, absent, found.present, found.durable, unknown=unknown, damage=damage, interrupted_times=found.times
        )
        if found.is_old and not damage:
            made._put("residency:upgrade")
        return made

    @classmethod
    def stage(cls, path: str, absent: AbsentFile, disk: Disk, boot_id: str, present: int, durable: int) -> None:
        """Write a residency file with these bits to `path`, from where it is renamed into place. Nothing is synced."""
        file = _file_of(path, absent, disk, boot_id)
        bits = cls(file, absent, present, durable)._bits
        file.write_image("residency:stage", path, None, bytes(bits.present), bits.to_bytes(bits.durable), sync=False)

    def _put(self, label: str) -> None:
        bits = self._bits
        self._file.put(label, self.interrupted_times, bytes(bits.present), bits.to_bytes(bits.durable))

    @property
    def path(self) -> str:
        """Of the residency file."""
        return self._file.path

    # -- as an AbsentFile

    @property
    def size(self) -> int:
        """Of the origin; the file's own size is its backing file's."""
        return self.absent.size

    @property
    def origin(self) -> bytes:
        return self.absent.origin

    # -- queries

    def is_absent(self, chunk: int) -> bool:
        return self._bits.is_absent(chunk)

    @property
    def missing(self) -> int:
        """How many chunks are not here yet."""
        return self._bits.missing

    @property
    def bits(self) -> tuple[int, int]:
        """PRESENT and DURABLE, a bit a chunk."""
        with self.lock:
            return self._bits.present_bits, self._bits.durable

    def absent_chunks(self, first: int = 0, stop: int | None = None, limit: int = 1 << 62) -> list[int]:
        """Up to `limit` chunks of [first, stop) that are not here, ascending."""
        return self._bits.absent(first, stop, limit)

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
                    written += write_data(fd, plain[:room], chunk * CHUNK_SIZE)
                    arrived.append(chunk)
            self._add(arrived)
        return written

    def note_times(self, times_ns: tuple[int, int] | None) -> None:
        """Before chunks are put in: the (ctime, mtime) that the file has; None when it has them again."""
        self._file.write_times(times_ns)

    def cut_off(self, size: int) -> None:
        """The file was truncated to `size`, durably: what is beyond is never fetched."""
        with self.lock:
            self._add(self.absent_chunks(chunk_count(size)))

    def leave_holes(self, data: int) -> None:
        """What is absent and has no bit in `data` is a hole of the origin, as it is one here: nothing is to come."""
        with self.lock:
            bits = self._bits
            before = bytes(bits.present)
            bits.put(bits.present_bits | ((1 << self.chunks) - 1 & ~data), bits.durable)
            changed = self._file.layout.changed(before, bits.present)
            self._file.write_pages("residency:holes", Kind.PRESENT, bits.present, changed)
            self.recorded[:] = bits.present

    def _add(self, chunks: list[int]) -> None:
        """With the lock held, the bytes being there."""
        if not chunks:
            return
        self._bits.add(chunks)
        pages = sorted({(chunk >> 3) // PAYLOAD_BYTES for chunk in chunks})
        self._file.write_pages("residency:present", Kind.PRESENT, self._bits.present, pages)
        for chunk in chunks:
            self.recorded[chunk >> 3] |= 1 << (chunk & 7)

    # -- unknown chunks

    def settle_unknown(self, fd: int, pieces: list[tuple[int, bytes]], size: int) -> None:
        """Give these unknown chunks of the backing file, of `size` bytes, what the origin has where they have nothing.

        They count as present afterwards, in memory; `end_unknown` records that on the disk.
        """
        with self.lock:
            for chunk, plain in pieces:
                start = chunk * CHUNK_SIZE
                end = min(start + len(plain), size)
                for begin, stop in holes(fd, start, end):
                    write_data(fd, plain[begin - start : stop - start], begin)
                self._bits.add([chunk])

    def end_unknown(self) -> None:
        """All that was unknown is settled, and the bytes of the file are durable: so is every bit, after this."""
        with self.lock:
            self.unknown = 0
            self._bits.put(self._bits.present_bits, self._bits.present_bits)
            self._put("residency:repaired")
            self.recorded[:] = self._bits.present

    def forget_unknown(self) -> None:
        """What is unknown counts as absent: nothing newer can be here, as in a tree without writers."""
        with self.lock:
            self.unknown = 0
            self._put("residency:repaired")

    # -- making durable

    def noted(self) -> int:
        """The bits that become durable when the bytes have been flushed."""
        with self.lock:
            return self._bits.present_bits

    def make_durable(self, noted: int) -> None:
        """Record, durably, that the bytes of the chunks in `noted` are durable. No effect where that is on record."""
        with self.lock:
            bits = self._bits
            durable = bits.durable | noted
            if durable == bits.durable:
                return
            before, after = bits.to_bytes(bits.durable), bits.to_bytes(durable)
            changed = self._file.layout.changed(before, after)
            self._file.write_pages("residency:durable", Kind.DURABLE, after, changed, sync=True)
            bits.mark_durable(durable)

    def check_invariants(self) -> None:
        with self.lock:
            self._bits.check_invariants()


def _file_of(path: str, absent: AbsentFile, disk: Disk, boot_id: str) -> ResidencyFile:
    return ResidencyFile(path, chunk_count(absent.size), disk, boot_id)


def _damage_of(found: FoundPages, unknown: int) -> str:
    """What is wrong with a residency file, in a few words; "" if nothing is."""
    if unknown:
        return f"it does not show whether {unknown.bit_count()} chunks are here"
    if found.unknown_durable:
        return "it does not show which chunks outlive a power cut"
    return "one of its two copies is damaged; it is repaired from the other" if found.torn else ""


def _covers(start: int, end: int, chunk: int, size: int) -> bool:
    """Whether the bytes [start, end) are all that a file of `size` bytes has in `chunk`."""
    return start <= chunk * CHUNK_SIZE and end >= min((chunk + 1) * CHUNK_SIZE, size)
