"""Objects by number: found through the index, decoded with their bases, checked, and kept for a while.

Invariants:
1. What `read` returns has the content hash of the pointer; anything else is a CorruptionError that names the object.
2. Both caches together hold at most `cache_bytes` of content: three quarters for full objects that new versions are
   encoded against, one quarter for what was read, so that a restore does not drive out the bases.
3. Reading one object reads at most one more frame (three for a SHIFT, sixteen for a MOSAIC): a base is a full object.
   Reading a block of a MOSAIC reads one more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple, Protocol

import xxhash

from snapfs.base.blocks import BLOCK_SIZE, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import codec, mosaic_payload
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Encoding, Pointer, Row
from snapfs.store.objects.payload_types import Bases, DecodeError
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.objects.segment_reader import RowSource

_FULL = (Encoding.RAW, Encoding.ZSTD)
_ALONE = (*_FULL, Encoding.ENCRYPTED)  # decoded without a base
PART_BYTES = 32768
"""Longer parts of a chunk are read by reading all of it."""
_ENTRY_BYTES = 200  # what an entry costs besides its content


class Places(Protocol):
    """Where objects lie: the segments of a store, and on a mirror also what has been received and not committed."""

    def locate(self, number: Number) -> tuple[RowSource, Row]:
        """Where the object is. Raises CorruptionError if it is nowhere."""

    def find(self, number: Number) -> SegmentInfo | None:
        """The segment around `number`, to be named in an error."""


class FullBase(NamedTuple):
    """The full object behind a pointer: what a new version of it is encoded against."""

    number: Number
    stored: int  # payload bytes of the full object
    ordinal: int  # of the object that was pointed to: 0 if it is the full one itself
    plain: bytes


class ByteCache:
    """Least recently used content goes first, by bytes. Thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Number, tuple[bytes, bytes]] = OrderedDict()
        self._bytes = 0

    def get(self, number: Number) -> tuple[bytes, bytes] | None:
        """(content hash, plain) of the object."""
        with self._lock:
            found = self._entries.get(number)
            if found is not None:
                self._entries.move_to_end(number)
            return found

    def put(self, number: Number, content_hash: bytes, plain: bytes) -> None:
        cost = len(plain) + _ENTRY_BYTES
        if cost > self._limit // 4:
            return
        with self._lock:
            if number in self._entries:
                return
            self._entries[number] = (content_hash, plain)
            self._bytes += cost
            while self._bytes > self._limit:
                _, (_, gone) = self._entries.popitem(last=False)
                self._bytes -= len(gone) + _ENTRY_BYTES

    def forget(self, number: Number) -> None:
        """Drop one object."""
        with self._lock:
            gone = self._entries.pop(number, None)
            if gone is not None:
                self._bytes -= len(gone[1]) + _ENTRY_BYTES

    def forget_from(self, first: Number) -> None:
        """Drop the objects from this number on."""
        with self._lock:
            for number in [number for number in self._entries if number >= first]:
                self._bytes -= len(self._entries.pop(number)[1]) + _ENTRY_BYTES

    def check_invariants(self) -> None:
        with self._lock:
            assert self._bytes == sum(len(plain) + _ENTRY_BYTES for _, plain in self._entries.values())
            assert self._bytes <= self._limit


class Objects:
    """Reads of objects, from any thread."""

    def __init__(self, index: Places, seed: int, cache_bytes: int) -> None:
        self.index = index
        self.seed = seed
        self.bases = ByteCache(cache_bytes * 3 // 4)
        self.recent = ByteCache(cache_bytes // 4)

    def content_hash_of(self, plain: bytes) -> bytes:
        return xxhash.xxh3_128_digest(plain, self.seed)

    def read(self, pointer: Pointer) -> bytes:
        """The plain content. Raises CorruptionError, and OSError if the disk fails."""
        number, content_hash = pointer
        found = self.bases.get(number) or self.recent.get(number)
        if found is None:
            source, row = self.index.locate(number)
            found = row.content_hash, self._decode(source, row)
            self.recent.put(number, *found)
        if found[0] != content_hash:
            raise CorruptionError(f"object {number:#x}", self._where(number), "it is not the content that was expected")
        return found[1]

    def read_part(self, pointer: Pointer, start: int, size: int) -> bytes:
        """`read(pointer)[start : start + size]`, of a MOSAIC at the cost of these blocks alone. Errors as `read`.

        What is not read is not checked; of the blocks each is, by its own content hash.
        """
        number, content_hash = pointer
        if self.bases.get(number) is None and self.recent.get(number) is None and size <= PART_BYTES:
            source, row = self.index.locate(number)
            if row.encoding == Encoding.MOSAIC and row.content_hash == content_hash:
                return self._read_blocks(source, row, start, size)
        return self.read(pointer)[start : start + size]

    def _read_blocks(self, source: RowSource, row: Row, start: int, size: int) -> bytes:
        length, payload = self._payload(source, row)
        size = min(size, length - start)
        if size <= 0:
            return b""
        first, stop = start // BLOCK_SIZE, -(-(start + size) // BLOCK_SIZE)
        try:
            places = mosaic_payload.mosaic_of(row.base, payload, length).places[first:stop]
            parts = [
                mosaic_payload.block_of(self.full_plain(place.number), block, place, length)
                for block, place in enumerate(places, first)
            ]
        except DecodeError as error:
            raise CorruptionError(f"object {row.number:#x}", source.path, str(error)) from None
        return b"".join(parts)[start - first * BLOCK_SIZE :][:size]

    def mosaic(self, pointer: Pointer) -> mosaic_payload.Mosaic | None:
        """Where the blocks of a chunk are, if it is a MOSAIC or a full object; else None. Raises CorruptionError."""
        source, row = self.index.locate(pointer.number)
        length, payload = self._payload(source, row)
        if row.encoding in _FULL:
            return mosaic_payload.Mosaic((mosaic_payload.BlockPlace(row.number, 0),) * -(-length // BLOCK_SIZE), 0)
        if row.encoding != Encoding.MOSAIC:
            return None
        try:
            return mosaic_payload.mosaic_of(row.base, payload, length)
        except DecodeError as error:
            raise CorruptionError(f"object {row.number:#x}", source.path, str(error)) from None

    def read_uncached(self, number: Number) -> tuple[Row, bytes]:
        """The object's row and plain content, read from the disk whatever the caches hold, for verification."""
        source, row = self.index.locate(number)
        return row, self._decode(source, row)

    def full_base(self, pointer: Pointer) -> FullBase | None:
        """What to encode a new version of this object against; None for a MOSAIC. Raises CorruptionError."""
        source, row = self.index.locate(pointer.number)
        if row.encoding == Encoding.MOSAIC:
            return None
        ordinal = row.ordinal
        if row.encoding not in _FULL:
            source, row = self.index.locate(row.base)
        return FullBase(row.number, row.stored, ordinal, self._full_plain(source, row))

    def compressed_bytes(self, pointer: Pointer) -> int:
        """Payload bytes of the full object behind this one; 0 if it does not compress. Raises CorruptionError."""
        row = self.index.locate(pointer.number)[1]
        if row.encoding == Encoding.MOSAIC:
            return 0
        if row.encoding not in _FULL:
            row = self.index.locate(row.base)[1]
        return row.stored if row.encoding == Encoding.ZSTD else 0

    def bases_of(self, number: Number) -> tuple[Number, ...]:
        """The full objects that decoding this one needs."""
        source, row = self.index.locate(number)
        payload = self._payload(source, row)[1] if has_more_bases(row) else b""
        return tuple(base for base in _base_numbers(row, payload) if base)

    def full_plain(self, number: Number) -> bytes:
        """The content of a full object, which stays in the cache of bases. b"" for number 0."""
        if not number:
            return b""
        found = self.bases.get(number) or self.recent.get(number)
        return found[1] if found is not None else self._full_plain(*self.index.locate(number))

    def forget_one(self, number: Number) -> None:
        """It was not what it must be."""
        self.bases.forget(number)
        self.recent.forget(number)

    def forget_from(self, first: Number) -> None:
        """These numbers came to nothing: their transaction was aborted."""
        self.bases.forget_from(first)
        self.recent.forget_from(first)

    def check_invariants(self) -> None:
        self.bases.check_invariants()
        self.recent.check_invariants()

    def _full_plain(self, source: RowSource, row: Row) -> bytes:
        found = self.bases.get(row.number) or self.recent.get(row.number)
        if found is not None:
            return found[1]
        if row.encoding not in _FULL:
            raise CorruptionError(f"object {row.number:#x}", source.path, "it is a base and not a full object")
        plain = self._decode(source, row)
        self.bases.put(row.number, row.content_hash, plain)
        return plain

    def _decode(self, source: RowSource, row: Row) -> bytes:
        length, payload = self._payload(source, row)
        bases = None
        try:
            if row.encoding not in _ALONE:
                bases = Bases(*map(self.full_plain, _base_numbers(row, payload)))
            plain = codec.decode(row.encoding, payload, length, bases)
        except DecodeError as error:
            raise CorruptionError(f"object {row.number:#x}", source.path, str(error)) from None
        if xxhash.xxh3_128_digest(plain, self.seed) != row.content_hash:
            raise CorruptionError(f"object {row.number:#x}", source.path, "its content does not match its content hash")
        return plain

    def _payload(self, source: RowSource, row: Row) -> tuple[int, bytes]:
        """(plain length, payload), checked against the frame's checksum and the row."""
        data = source.frame(row)
        frame = fmt.unpack_frame(data) if len(data) >= FRAME_BYTES else None
        if frame is None or not fmt.frame_is_good(data):
            raise CorruptionError(f"object {row.number:#x}", source.path, f"wrong checksum at byte {row.offset}")
        if (frame.number, frame.encoding, frame.base) != (row.number, row.encoding, row.base):
            raise CorruptionError(f"object {row.number:#x}", source.path, "table and frame disagree")
        return frame.plain, data[FRAME_BYTES:]

    def _where(self, number: Number) -> str:
        info = self.index.find(number)
        return info.path if info is not None else "the unfinished segment"


def has_more_bases(row: Row) -> bool:
    """Whether the payload names more of them than the row."""
    return codec.has_more(row.encoding, row.ordinal)


def _base_numbers(row: Row, payload: bytes) -> tuple[Number, ...]:
    """In the order of `Bases`; 0 where there is none."""
    return codec.base_numbers(row.encoding, row.ordinal, row.base, payload)
