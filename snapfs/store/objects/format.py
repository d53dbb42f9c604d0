"""Every byte layout of the store, field by field, and nothing else.

All integers are little-endian. A segment is

    header | frame, frame, ... | table | trailer

HEADER (64 bytes)                         TRAILER (96 bytes)
    0  magic       8  b"snapSEGM"             0  magic         8  b"snapTAIL"
    8  version     2  2                       8  version       2  2
   10  generation  2  of the writer          10  reserved      6  zero
   12  reserved    4  zero                   16  table offset  8  bytes from the start of the file
   16  volume id  16  that wrote it          24  rows          8  of the table
   32  first       8  object number          32  first         8  object number
   40  reserved   16  zero                   40  last          8  object number
   56  checksum    8  XXH3-64 of 0..55       48  table hash   32  SHA-256 of the table
                                             80  reserved      8  zero
                                             88  checksum      8  XXH3-64 of 0..87

FRAME (32 bytes, then the payload)        ROW of the table (40 bytes, ascending by number)
    0  number      8                          0  delta         4  number - first of the segment
    8  base        8  0: needs none           4  offset        6  of the frame, from the start of the file
   16  kind        1  Kind                   10  kind          1  Kind
   17  plain       3  length decoded         11  encoding      1  as in the frame
   20  encoding    1  see below              12  stored        4  length of the payload
   21  stored      3  length of payload      16  base          8
   24  checksum    8  XXH3-64 of 0..23       24  content hash        16  XXH3-128 of the plain content, volume's seed
                      and the payload

ENCODING byte: the low four bits are the Encoding, the high four the ordinal: 0 for a full object, 1 to 8 for the
first to eighth version after the full object it is a difference to; 8 for a MOSAIC, which is no base for a next one.

VERSION 1 of a segment has neither MOSAIC nor BLOCK, and is else the same.

PAYLOAD by Encoding. "zstd" is a magicless frame without content size and checksum; its dictionary, where one
is named, is raw content.
    RAW     the plain content
    ZSTD    zstd of the plain content
    PATCH   mask (2 bytes: bit i = block i of 4 KiB differs), zstd of the blocks in the mask, one after the other;
            dictionary: the same blocks of the base, clipped at its end. A mask of 0 is followed by nothing.
            Blocks not in the mask are the base's, clipped at the plain length.
    DELTA   zstd of the plain content; dictionary: the whole base.
    SHIFT   before (8 bytes), after (8 bytes): numbers of full objects, 0 for none; zstd of the plain content;
            dictionary: the last 32 KiB of `before`, the first 32 KiB of `after`, the base.
    MOSAIC  a chunk that is written at random: where each of its blocks is. Age (1 byte: blocks that were stored since
            the chunk was stored full, 255 for more), count (1 byte, 0 to 15: further bases), map (8 bytes: of block i,
            in nibble i, the low one of a byte first, which base has it; 0 is the frame's), starts (8 bytes: of base j,
            in nibble j, the block that it begins with), the further bases (8 bytes each).
A base (also `before`, `after` and those of a MOSAIC) is always a full object (RAW or ZSTD): a read costs one or two
frames, a SHIFT four at most; of a MOSAIC a block costs two, all of the chunk up to seventeen.
    ENCRYPTED   ciphertext, in an encrypted store (encryption.py has its layout). To that store the payload is the
            content: the content hash is made of it, with seed 0. `base` and the numbers at its beginning (their count
            is the ordinal, 0 to 15) are those of objects that are needed to decode it. The kind is ENCRYPTED too.

OBJECT NUMBER (64 bits): generation (upper 16) and a counter (lower 48). 0 is no object's number. Files are
`segments/<first number as 16 hex digits>.seg`; the ending is `.new` until the segment is whole and durable.

RECORD object (the last one of a snapshot's segment): the snapshot's line of snapshots.log as JSON, without "prev", so
that a lost log can be rebuilt from the segments.

snapshots.log is described in snapshot_log.py.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

import xxhash

from snapfs.base.blocks import Generation, Number
from snapfs.base.errors import CorruptionError, VersionError

VERSION: Final = 1
"""Of snapshots.log. Every later version reads this one."""
SEGMENT_VERSION: Final = 2
"""Of segments. Every later version reads the earlier ones."""

HEADER_MAGIC: Final = b"snapSEGM"
TRAILER_MAGIC: Final = b"snapTAIL"
_HEADER: Final = struct.Struct("<8sHH4x16sQ16xQ")
_TRAILER: Final = struct.Struct("<8sH6xQQQQ32s8xQ")
_FRAME: Final = struct.Struct("<QQIIQ")
_ROW: Final = struct.Struct("<IIHBBIQ16s")
HEADER_BYTES: Final = _HEADER.size
TRAILER_BYTES: Final = _TRAILER.size
FRAME_BYTES: Final = _FRAME.size
ROW_BYTES: Final = _ROW.size
_FRAME_SUMMED: Final = struct.Struct("<QQII")

PATCH_MASK: Final = struct.Struct("<H")
MORE_BASES: Final = struct.Struct("<Q")
"""One of the numbers at the beginning of an ENCRYPTED payload."""
SHIFT_BASES: Final = struct.Struct("<QQ")
MOSAIC_HEAD: Final = struct.Struct("<BB8s8s")
MAX_MORE_BASES: Final = 15
"""Bases of one object besides that of its frame."""
BASES_HEAD_BYTES: Final = MOSAIC_HEAD.size + MAX_MORE_BASES * MORE_BASES.size
"""The beginning of a payload of any encoding that is enough to know all bases."""

MAX_OBJECT_BYTES: Final = (1 << 24) - 1
"""Longest plain content or payload of an object."""
MAX_ORDINAL: Final = 8
MAX_DELTA: Final = (1 << 32) - 1
COUNTER_BITS: Final = 48

SEGMENT_SUFFIX: Final = ".seg"
UNFINISHED_SUFFIX: Final = ".new"


class ObjectKind(IntEnum):
    """What an object is a piece of."""

    CHUNK = 0
    MAP_PAGE = 1
    INODE_PAGE = 2
    DIR_PAGE = 3
    XATTRS = 4
    ROOT = 5
    RECORD = 6
    ENCRYPTED = 7  # ciphertext; this store does not know the kind inside
    BLOCK = 8  # one or several of a chunk that is written at random; always a full object


class Encoding(IntEnum):
    """How an object's payload is made of its plain content."""

    RAW = 0
    ZSTD = 1
    PATCH = 2
    DELTA = 3
    SHIFT = 4
    ENCRYPTED = 5
    MOSAIC = 6


class Pointer(NamedTuple):
    """Names an object and its content: the content hash is XXH3-128 of the plain bytes under the volume's seed."""

    number: Number
    content_hash: bytes


NULL: Final = Pointer(Number(0), bytes(16))
"""A hole, or nothing."""


class Header(NamedTuple):
    volume_id: str
    generation: Generation
    first: Number


class Trailer(NamedTuple):
    table_offset: int
    rows: int
    first: Number
    last: Number
    table_hash: bytes


class Row(NamedTuple):
    """A row of a segment's table. `offset` is that of the frame, `stored` the payload's length in bytes."""

    number: Number
    offset: int
    kind: int
    encoding: int
    ordinal: int
    stored: int
    base: Number
    content_hash: bytes


class Frame(NamedTuple):
    number: Number
    base: Number
    kind: int
    encoding: int
    ordinal: int
    plain: int
    stored: int
    checksum: int


def make_number(generation: Generation, counter: int) -> Number:
    """The object number with this generation and counter."""
    assert 0 <= generation < 1 << 16, generation
    assert 0 < counter < 1 << COUNTER_BITS, counter
    return Number(generation << COUNTER_BITS | counter)


def generation_of(number: Number) -> Generation:
    return Generation(number >> COUNTER_BITS)


def segment_name(first: Number) -> str:
    return f"{first:016x}{SEGMENT_SUFFIX}"


def pack_header(header: Header) -> bytes:
    volume = bytes.fromhex(header.volume_id)
    packed = _HEADER.pack(HEADER_MAGIC, SEGMENT_VERSION, header.generation, volume, header.first, 0)
    return packed[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(packed[:-8]))


def unpack_header(data: bytes, where: str) -> Header:
    """Raises VersionError for a later version and CorruptionError, naming `where`, for anything else."""
    if len(data) < HEADER_BYTES or not data.startswith(HEADER_MAGIC):
        raise CorruptionError("segment header", where, "not the beginning of a segment")
    _, version, generation, volume, first, checksum = _HEADER.unpack(data)
    _check_version(version, where)
    if checksum != xxhash.xxh3_64_intdigest(data[:-8]):
        raise CorruptionError("segment header", where, "wrong checksum")
    return Header(volume.hex(), Generation(generation), Number(first))


def pack_trailer(trailer: Trailer) -> bytes:
    packed = _TRAILER.pack(TRAILER_MAGIC, SEGMENT_VERSION, *trailer, 0)
    return packed[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(packed[:-8]))


def unpack_trailer(data: bytes, where: str) -> Trailer:
    """Raises VersionError for a later version and CorruptionError, naming `where`, for anything else."""
    if len(data) < TRAILER_BYTES or not data.startswith(TRAILER_MAGIC):
        raise CorruptionError("segment trailer", where, "the file has no end; it was cut off")
    _, version, table_offset, rows, first, last, table_hash, checksum = _TRAILER.unpack(data)
    _check_version(version, where)
    if checksum != xxhash.xxh3_64_intdigest(data[:-8]):
        raise CorruptionError("segment trailer", where, "wrong checksum")
    return Trailer(table_offset, rows, Number(first), Number(last), table_hash)


def _check_version(version: int, where: str) -> None:
    if version > SEGMENT_VERSION:
        words = f"{where} has format version {version}; this snapfs reads up to {SEGMENT_VERSION}: use a newer snapfs"
        raise VersionError(words)


def pack_frame(number: int, base: int, kind: int, encoding: int, ordinal: int, plain: int, payload: bytes) -> bytes:
    """The frame that goes before this payload. `plain` is the length of the decoded content in bytes."""
    stored = len(payload)
    if plain > MAX_OBJECT_BYTES or stored > MAX_OBJECT_BYTES:
        raise ValueError(f"an object of {max(plain, stored)} bytes; the longest has {MAX_OBJECT_BYTES}")
    summed = _FRAME_SUMMED.pack(number, base, plain << 8 | kind, stored << 8 | ordinal << 4 | encoding)
    return summed + _checksum(summed, payload).to_bytes(8, "little")


def unpack_frame(data: bytes | bytearray | memoryview, offset: int = 0) -> Frame:
    """The frame's own fields; `frame_is_good` checks them together with the payload."""
    number, base, kind, encoding, checksum = _FRAME.unpack_from(data, offset)
    return Frame(
        Number(number), Number(base), kind & 255, encoding & 15, encoding >> 4 & 15, kind >> 8, encoding >> 8, checksum
    )


def frame_is_good(data: bytes) -> bool:
    """True if `data`, a frame with exactly its payload, has the checksum and length in its header."""
    frame = unpack_frame(data)
    if len(data) != FRAME_BYTES + frame.stored:
        return False
    return _checksum(data[: _FRAME_SUMMED.size], memoryview(data)[FRAME_BYTES:]) == frame.checksum


def _checksum(summed: bytes, payload: bytes | memoryview) -> int:
    digest = xxhash.xxh3_64(summed)
    digest.update(payload)
    return digest.intdigest()


def pack_row(first: int, row: Row) -> bytes:
    return _ROW.pack(
        row.number - first, row.offset & 0xFFFFFFFF, row.offset >> 32, row.kind, row.ordinal << 4 | row.encoding,
        row.stored, row.base, row.content_hash,
    )  # fmt: skip


def unpack_row(first: int, data: bytes, offset: int = 0) -> Row:
    delta, low, high, kind, encoding, stored, base, content_hash = _ROW.unpack_from(data, offset)
    return Row(
        Number(first + delta), high << 32 | low, kind, encoding & 15, encoding >> 4, stored, Number(base), content_hash
    )


def row_delta(data: bytes, offset: int) -> int:
    """Only the number's delta of the row at byte `offset`, for a binary search."""
    return int.from_bytes(data[offset : offset + 4], "little")
