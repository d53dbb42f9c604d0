"""Objects on the wire: framed as in a segment, each with its content hash; both ends copy bytes and encode nothing.

STREAM HEADER (16 bytes)                 ITEM (48 bytes, then the payload)
    0  magic     8  b"snapOBJS"              0  content hash   16  XXH3-128 of the plain content, volume's seed
    8  version   2  1                       16  frame   32  as in a segment (format.py)
   10  flags     2  zero
   12  reserved  4  zero

A stream is header | item ... | end. Two items are none of an object:
    END      number 0: nothing follows. `base` is the count of items before it, `plain` 1 if an answer was cut at its
             limit.
    ABSENT   encoding 15: the object of that number is not here, or damaged; the payload is the reason, in UTF-8.
The frame's checksum covers frame and payload, also of these. A stream without its END was cut off: what came is good.

Of a volume in ENCRYPTED mode the items are ENCRYPTED: without a key the payload is the content, and the content hash is
made of that, with seed 0. So a mirror verifies what it receives as it does for any volume; the reader at the other end
has the cipher's tag, and then the content hash of the plain content.

Invariants:
1. `StreamParser` never holds more than one unfinished item and what it was fed last; a length above the limit is
   refused before anything is gathered for it.
2. It yields only items whose frame has the right checksum, and whose fields are possible. Whether the content has the
   content hash is for who can decode it (`part_receiver.py` on a mirror, the reader of a lazy mount).
3. Any bytes whatever either parse or raise RefusedError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import xxhash

from snapfs.base.blocks import Number
from snapfs.store.objects import codec
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Encoding, Frame, ObjectKind, Row
from snapfs.store.objects.payload_types import Bases
from snapfs.store.protocol.refusals import Refusal, refuse

STREAM_MAGIC: Final = b"snapOBJS"
_HEADER: Final = struct.Struct("<8sHH4x")
STREAM_HEADER_BYTES: Final = _HEADER.size
CONTENT_HASH_BYTES: Final = 16
ABSENT: Final = 15
_HEAD_BYTES: Final = CONTENT_HASH_BYTES + FRAME_BYTES
ENDS_BYTES: Final = STREAM_HEADER_BYTES + _HEAD_BYTES
"""Of the header and the end."""
STREAM_VERSION: Final = 2
"""1 has neither MOSAIC nor BLOCK, and is else the same."""
_LAST_KIND: Final = max(ObjectKind)
_LAST_ENCODING: Final = max(Encoding)


class Item(NamedTuple):
    """An object, or (`encoding` ABSENT) the word that it is not there. `framed`: frame and payload, as in a segment."""

    content_hash: bytes
    frame: Frame
    framed: bytes

    @property
    def payload(self) -> bytes:
        return self.framed[FRAME_BYTES:]

    @property
    def is_absent(self) -> bool:
        return self.frame.encoding == ABSENT

    def row(self) -> Row:
        """The row of a segment's table for it; its offset is not known yet."""
        number, base, kind, encoding, ordinal, _, stored, _ = self.frame
        return Row(number, 0, kind, encoding, ordinal, stored, base, self.content_hash)

    def base_numbers(self) -> tuple[Number, ...]:
        """The full objects that decoding it needs. Raises codec.DecodeError."""
        return tuple(number for number in self.bases_in_order() if number)

    def bases_in_order(self) -> tuple[Number, ...]:
        """The same in the order of `payload_types.Bases`; 0 where there is none. Raises codec.DecodeError."""
        frame = self.frame
        payload = self.payload if codec.has_more(frame.encoding, frame.ordinal) else b""
        return codec.base_numbers(frame.encoding, frame.ordinal, frame.base, payload)

    def decode(self, bases: Bases | None) -> bytes:
        """The plain content; `bases` for a difference. Does not check the content hash. Raises codec.DecodeError."""
        return codec.decode(self.frame.encoding, memoryview(self.framed)[FRAME_BYTES:], self.frame.plain, bases)


def stream_header(version: int = STREAM_VERSION) -> bytes:
    """`version` 1 for a reader that has sent which encodings it knows."""
    return _HEADER.pack(STREAM_MAGIC, version, 0)


def item_bytes(row: Row, framed: bytes) -> bytes:
    """An item of what `RowSource.frame(row)` gave."""
    return row.content_hash + framed


def absent_item(number: Number, why: str) -> bytes:
    payload = why.encode()[:1000]
    return bytes(CONTENT_HASH_BYTES) + fmt.pack_frame(number, 0, 0, ABSENT, 0, 0, payload) + payload


def stream_end(count: int, *, cut: bool = False) -> bytes:
    """The end after `count` items; `cut` if there would have been more but for the limit."""
    return bytes(CONTENT_HASH_BYTES) + fmt.pack_frame(0, count, 0, 0, 0, int(cut), b"")


class StreamParser:
    """Bytes in, items out. After `ended`, `cut` is whether the sender left something out at its limit."""

    def __init__(self, *, max_object_bytes: int = fmt.MAX_OBJECT_BYTES, allow_absent: bool = True) -> None:
        self.ended = False
        self.cut = False
        self.count = 0
        self._limit, self._allow_absent = max_object_bytes, allow_absent
        self._cut_off = bytearray()  # the beginning of an item whose end has not come
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Item]:
        """The items that are complete with this. Go through all of them before the next call. Raises RefusedError."""
        view, at = memoryview(data), 0
        while at < len(view) or self._cut_off:
            if self.ended:
                raise refuse(Refusal.BAD_REQUEST, "bytes after the end of a stream of objects")
            held = len(self._cut_off)
            front = self._cut_off or view[at:]
            size, frame = self._measure(front)
            if size > held + len(view) - at:
                self._cut_off += view[at:]
                return
            if held < size and held:
                self._cut_off += view[at : at + size - held]
                front = self._cut_off
            at += size - held
            if frame is None and self._begun:
                continue  # so much was needed to know how long it is
            item = self._take(front, frame)
            self._cut_off = bytearray()
            if item is not None:
                yield item

    @property
    def buffered_bytes(self) -> int:
        """Bytes of an item that has not come to its end."""
        return len(self._cut_off)

    def _measure(self, front: bytearray | memoryview) -> tuple[int, Frame | None]:
        """How many bytes are needed of what begins here, and its frame; without one, to know more."""
        if not self._begun:
            if not STREAM_MAGIC.startswith(bytes(front[: len(STREAM_MAGIC)])):
                raise refuse(Refusal.BAD_REQUEST, "not a stream of objects")
            return STREAM_HEADER_BYTES, None
        if len(front) < _HEAD_BYTES:
            return _HEAD_BYTES, None
        frame = fmt.unpack_frame(front, CONTENT_HASH_BYTES)
        self._check_fields(frame)
        return _HEAD_BYTES + frame.stored, frame

    def _take(self, front: bytearray | memoryview, frame: Frame | None) -> Item | None:
        """What begins here, all of it: the header, an item, or the end."""
        if frame is None:
            self._read_header(front)
            return None
        with memoryview(front) as view:  # one copy; a slice of the bytearray would be a second one
            content_hash, framed = (
                bytes(view[:CONTENT_HASH_BYTES]),
                bytes(view[CONTENT_HASH_BYTES : _HEAD_BYTES + frame.stored]),
            )
        self._check_sum(frame, framed)
        if not frame.number:
            self._end(frame)
            return None
        self.count += 1
        return Item(content_hash, frame, framed)

    def _read_header(self, front: bytearray | memoryview) -> None:
        magic, version, flags = _HEADER.unpack_from(front)
        if magic != STREAM_MAGIC or not version:
            raise refuse(Refusal.BAD_REQUEST, "not a stream of objects")
        if version > STREAM_VERSION:
            raise refuse(Refusal.VERSION, f"a stream of version {version}; this one reads up to {STREAM_VERSION}")
        if flags:
            raise refuse(Refusal.UNSUPPORTED, f"a stream with flags {flags:#x}, which are not known here")
        self._begun = True

    def _check_fields(self, frame: Frame) -> None:
        if not frame.number:
            return
        absent = frame.encoding == ABSENT
        if frame.stored > self._limit or frame.plain > self._limit:
            raise refuse(Refusal.TOO_LARGE, f"object {frame.number:#x} is longer than {self._limit} bytes")
        if absent and self._allow_absent:
            return
        full = frame.encoding in (Encoding.RAW, Encoding.ZSTD)
        most = fmt.MAX_MORE_BASES if frame.encoding == Encoding.ENCRYPTED else fmt.MAX_ORDINAL
        if absent or frame.kind > _LAST_KIND or frame.encoding > _LAST_ENCODING or frame.ordinal > most:
            raise refuse(Refusal.BAD_REQUEST, f"object {frame.number:#x} is of no known kind", number=frame.number)
        if frame.encoding == Encoding.ENCRYPTED:
            bad = bool(frame.ordinal) > bool(frame.base)
        else:
            bad = frame.kind == ObjectKind.BLOCK and not full
            bad |= full == bool(frame.base) or full == bool(frame.ordinal)
        if bad or frame.base >= frame.number:
            raise refuse(Refusal.BAD_REQUEST, f"object {frame.number:#x} has an impossible base", number=frame.number)

    def _check_sum(self, frame: Frame, framed: bytes) -> None:
        if not fmt.frame_is_good(framed):
            what = f"object {frame.number:#x}" if frame.number else "the end of the stream"
            raise refuse(Refusal.CORRUPT, f"{what} has a wrong checksum: damaged on its way", number=frame.number)

    def _end(self, frame: Frame) -> None:
        if frame.base != self.count:
            raise refuse(Refusal.CORRUPT, f"a stream of {self.count} objects whose end has {frame.base}")
        self.ended, self.cut = True, bool(frame.plain)


def content_hash_matches(item: Item, plain: bytes, seed: int) -> bool:
    """Whether `plain`, decoded from the item, has its content hash."""
    return xxhash.xxh3_128_digest(plain, seed) == item.content_hash
