"""The bytes of a residency file: pages with checksums, each kept twice. What they mean: residency.py.

Version 2 is two equal areas of pages of 512 bytes, the second at the next multiple of 4096:

    page 0              TIMES
    pages 1 to n        PRESENT, 3744 chunks a page
    pages n+1 to 2n     DURABLE, likewise

A page: magic, version, kind, index, chunks of the file, tag of the boot that wrote it, checksum of all else; payload.

Invariants:
1. A page lies within one sector of any disk, and is written whole: in the first area, then in the second.
2. A page that does not check out is never used; its other copy is. Where neither does, its bits are *unknown*, which is
   neither 0 nor 1. That takes two faults, or a file that was cut off.
3. Where both copies check out and differ, a crash came between them: bits are only ever added, so either's count.
4. In every version the first 10 bytes of the file are the magic and the version.

Version 1 was a header, and the bits without a checksum (`_read_v1`): what is there of them counts, and what lies
beyond the end of a file that was cut off is unknown.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from snapfs.base.errors import CorruptionError, VersionError

MAGIC = b"snapPRES"
VERSION = 2
PAGE_BYTES = 512
HEAD = struct.Struct("<8sHHIQ16sI")  # magic, version, kind, index, chunks, boot tag, checksum
PAYLOAD_BYTES = PAGE_BYTES - HEAD.size
AREA_ALIGNMENT = 4096
TIMES = struct.Struct("<Qqq")  # 1 or 0, ctime, mtime
_VERSION_AT, _VERSION = 8, struct.Struct("<H")

HEADER_V1 = struct.Struct("<8sHxxIQ36s")  # magic, version, checksum of the rest, chunks, boot id
TIMES_AT_V1, BITS_AT_V1 = 256, 4096


class Kind(IntEnum):
    TIMES = 1
    PRESENT = 2
    DURABLE = 3


def boot_tag(boot_id: str) -> bytes:
    return hashlib.blake2b(boot_id.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pages of a file of so many chunks are."""

    chunks: int

    @property
    def width(self) -> int:
        """Bytes of one kind of bits."""
        return -(-self.chunks // 8)

    @property
    def bit_pages(self) -> int:
        return -(-self.width // PAYLOAD_BYTES)

    @property
    def pages(self) -> int:
        return 1 + 2 * self.bit_pages

    @property
    def second_area(self) -> int:
        return -(-self.pages * PAGE_BYTES // AREA_ALIGNMENT) * AREA_ALIGNMENT

    def places(self, kind: Kind, index: int) -> tuple[int, int]:
        """Byte offsets of both copies of a page."""
        page = {Kind.TIMES: 0, Kind.PRESENT: 1, Kind.DURABLE: 1 + self.bit_pages}[kind] + index
        return page * PAGE_BYTES, self.second_area + page * PAGE_BYTES

    def page(self, kind: Kind, index: int, tag: bytes, payload: bytes) -> bytes:
        """A whole page."""
        payload = payload.ljust(PAYLOAD_BYTES, b"\0")
        head = (MAGIC, VERSION, kind, index, self.chunks, tag)
        return HEAD.pack(*head, zlib.crc32(payload, zlib.crc32(HEAD.pack(*head, 0)))) + payload

    def payload(self, bits: bytes | bytearray, index: int) -> bytes:
        return bytes(bits[index * PAYLOAD_BYTES : (index + 1) * PAYLOAD_BYTES])

    def changed(self, before: bytes | bytearray, after: bytes | bytearray) -> list[int]:
        """The pages of bits that differ."""
        return [index for index in range(self.bit_pages) if self.payload(before, index) != self.payload(after, index)]

    def image(self, tag: bytes, times: bytes, present: bytes, durable: bytes) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of all of a new file."""
        area = bytearray(self.page(Kind.TIMES, 0, tag, times))
        for kind, bits in ((Kind.PRESENT, present), (Kind.DURABLE, durable)):
            for index in range(self.bit_pages):
                area += self.page(kind, index, tag, self.payload(bits, index))
        yield 0, bytes(area)
        yield self.second_area, bytes(area)


@dataclass(slots=True)
class FoundPages:
    """The content of a residency file: bitmaps as integers, a bit a chunk. `present` is 0 if another boot wrote it."""

    present: int = 0
    durable: int = 0
    unknown_present: int = 0
    unknown_durable: int = 0
    times: tuple[int, int] | None = None
    is_old: bool = False
    torn: int = 0
    """Pages of which one copy does not check out, or differs."""


def read(path: str, data: bytes, layout: Layout, boot_id: str) -> FoundPages:
    """Decode the bytes of the file. VersionError for a later format, CorruptionError for another file's."""
    v1 = data[: HEADER_V1.size]
    if data.startswith(MAGIC) and len(data) >= HEADER_V1.size and _VERSION.unpack_from(data, _VERSION_AT) == (1,):
        _, _, checksum, chunks, writer = HEADER_V1.unpack(v1)
        if checksum == zlib.crc32(struct.pack("<Q36s", chunks, writer)):
            _must_be_of(path, layout, chunks)
            return _read_v1(data, layout, writer.rstrip(b"\0") == boot_id.encode("ascii"))
    return _read_pages(path, data, layout, boot_tag(boot_id))


def _must_be_of(path: str, layout: Layout, chunks: int) -> None:
    if chunks != layout.chunks:
        why = f"it is of a file of {chunks} chunks, not {layout.chunks}"
        raise CorruptionError("the residency record of a file", path, why)


def _read_v1(data: bytes, layout: Layout, same_boot: bool) -> FoundPages:
    width, every = layout.width, (1 << layout.chunks) - 1
    present, durable = data[BITS_AT_V1 : BITS_AT_V1 + width], data[BITS_AT_V1 + width : BITS_AT_V1 + 2 * width]
    found = FoundPages(is_old=True)
    found.durable = int.from_bytes(durable, "little") & every
    found.unknown_durable = every >> 8 * len(durable) << 8 * len(durable)
    if same_boot:
        found.present = int.from_bytes(present, "little") & every
        found.unknown_present = every >> 8 * len(present) << 8 * len(present)
    if len(data) >= TIMES_AT_V1 + TIMES.size:
        noted, *times = TIMES.unpack_from(data, TIMES_AT_V1)
        found.times = (times[0], times[1]) if noted == 1 else None
    return found


def _read_pages(path: str, data: bytes, layout: Layout, tag: bytes) -> FoundPages:
    found, every = FoundPages(), (1 << layout.chunks) - 1
    _refuse_later(path, data, layout)
    for payload in _copies(path, data, layout, Kind.TIMES, 0, found):
        noted, *times = TIMES.unpack_from(payload)
        found.times = (times[0], times[1]) if noted else None
    for kind in (Kind.PRESENT, Kind.DURABLE):
        known, unknown = bytearray(), bytearray()
        for index in range(layout.bit_pages):
            copies = _copies(path, data, layout, kind, index, found, tag if kind is Kind.PRESENT else None)
            bits = 0
            for payload in copies:
                bits |= int.from_bytes(payload, "little")
            known += bits.to_bytes(PAYLOAD_BYTES, "little")
            unknown += bytes(PAYLOAD_BYTES) if copies else b"\xff" * PAYLOAD_BYTES
        bits, lost = (int.from_bytes(each, "little") & every for each in (known, unknown))
        if kind is Kind.PRESENT:
            found.present, found.unknown_present = bits, lost
        else:
            found.durable, found.unknown_durable = bits, lost
    return found


def _refuse_later(path: str, data: bytes, layout: Layout) -> None:
    """A later format may have its checksums elsewhere: its first bytes count, unless our second copy contradicts."""
    if len(data) < _VERSION_AT + _VERSION.size or not data.startswith(MAGIC):
        return
    (version,) = _VERSION.unpack_from(data, _VERSION_AT)
    if version > VERSION and _checked(data[layout.second_area :][:PAGE_BYTES]) is None:
        raise VersionError(f"{path} has format {version}; this snapfs reads up to {VERSION}: use a newer one")


def refuse_later_page(path: str, page: bytes) -> None:
    """VersionError if this page, which checks out, is of a later format."""
    head = _checked(page)
    if head is not None and head[0] > VERSION:
        raise VersionError(f"{path} has format {head[0]}; this snapfs reads up to {VERSION}: use a newer one")


def _checked(page: bytes) -> tuple[int, int, int, int, bytes] | None:
    """(version, kind, index, chunks, boot tag) of a page that checks out."""
    if len(page) < PAGE_BYTES:
        return None
    magic, version, kind, index, chunks, tag, checksum = HEAD.unpack_from(page)
    head = HEAD.pack(magic, version, kind, index, chunks, tag, 0)
    if magic != MAGIC or zlib.crc32(page[HEAD.size :], zlib.crc32(head)) != checksum:
        return None
    return version, kind, index, chunks, tag


def _copies(
    path: str, data: bytes, layout: Layout, kind: Kind, index: int, found: FoundPages, tag: bytes | None = None
) -> set[bytes]:
    """The payloads of a page that check out; with `tag` zeros instead of one that another boot wrote."""
    whole, payloads = 0, set[bytes]()
    for place in layout.places(kind, index):
        page = data[place : place + PAGE_BYTES]
        head = _checked(page)
        if head is None:
            continue
        refuse_later_page(path, page)
        _must_be_of(path, layout, head[3])
        if head[1:3] == (kind, index):
            whole += 1
            payloads.add(page[HEAD.size :] if tag in (None, head[4]) else bytes(PAYLOAD_BYTES))
    found.torn += whole == 1 or len(payloads) > 1
    return payloads
