"""Records of inodes, and the pages that hold 32 of them: the bottom of a snapshot's inode table.

INODES page (header of table_pages.py: level 0, count 1..32), then `count` rows of 88 bytes; row i is inode 32 * n + i
of the n-th page. What a write to a file changes lies together at the end of its row, and no row ever moves:
     0  mode        4  0: no such inode, and the rest is zero       24  height         1  of the content's table
     4  uid         4                                               25  tail height    1  of the tail's table
     8  gid         4                                               26  reserved       2  zero
    12  nlink       4                                               28  tail length    4  bytes
    16  rdev        8                                               32  atime          8  ns since 1970, signed
    40  size        8                                               64  content number 8  root of the block map (regular
    48  mtime       8  ns since 1970, signed                        72  content content hash 16  file) or of the
    directory 56  ctime       8  ns since 1970, signed
then, in the order of the rows, their tails: the tail itself if it has at most 255 bytes, or else the pointer (number 8,
content hash 16) of a radix table of XATTRS objects that hold 64 KiB of it each.

TAIL (empty if there is neither target nor xattr):
     0  length      2  of the symlink's target
     2  target
then per extended attribute, ascending by name:
     0  name length 1
     1  value length 4
     5  name, value

Invariants:
1. Equal records give equal rows and tails, so that a page without a changed record comes out as before.
2. A record that changes does not store its long tail again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from snapfs.base.blocks import CHUNK_SIZE, Ino, Number, chunk_count
from snapfs.base.limits import XATTRS_MAX
from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.tables import radix
from snapfs.store.tables.table_pages import HEADER, ObjectWriter, Pages, PageType, damaged, open_page, page_header

BITS: Final = 5
INODES_PER_PAGE: Final = 1 << BITS
INLINE_TAIL_BYTES: Final = 255
MAX_TAIL_BYTES: Final = XATTRS_MAX

_ROW: Final = struct.Struct("<IIIIQBBxxIqQqqQ16s")
_POINTER: Final = struct.Struct("<Q16s")
_CHECKED_FIELDS: Final = "I20xBBxxI56x"  # of a row: mode, height, tail height, tail length
_TARGET: Final = struct.Struct("<H")
_XATTR: Final = struct.Struct("<BI")
_ABSENT: Final = bytes(_ROW.size)
_ROWS: Final = [struct.Struct(f"{_ROW.size}s" * count) for count in range(INODES_PER_PAGE + 1)]
_CHECKED: Final = [struct.Struct("<" + _CHECKED_FIELDS * count) for count in range(INODES_PER_PAGE + 1)]
_CONTENT: Final = 64  # where a row has the content's pointer

Xattrs = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class InodeRecord:
    """An inode as a snapshot has it. Times are nanoseconds since 1970, `size` is in bytes, `xattrs` ascend by name.

    `content` is the root of a file's block map, whose height is `height` (0: the chunk itself), or of a directory.
    """

    ino: Ino
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: bytes = b""
    xattrs: Xattrs = ()
    content: Pointer = NULL
    height: int = 0


class Slot(NamedTuple):
    """A row and its tail as they are in the page; equal slots are equal records."""

    row: bytes
    tail: bytes


EMPTY: Final = Slot(_ABSENT, b"")


class InodePage(NamedTuple):
    pointer: Pointer
    slots: list[Slot]


def encode_page(slots: list[Slot]) -> bytes:
    """The page of these slots, of which the last is not empty."""
    assert slots[-1] != EMPTY
    return b"".join(
        (page_header(PageType.INODES, 0, len(slots)), *[slot.row for slot in slots], *[slot.tail for slot in slots])
    )


def decode_page(pointer: Pointer, plain: bytes) -> InodePage:
    level, count = open_page(pointer, plain, PageType.INODES)
    offset = HEADER.size + count * _ROW.size
    if level or not 1 <= count <= INODES_PER_PAGE or offset > len(plain):
        raise damaged(pointer, f"an inode page of {len(plain)} bytes for {count} records")
    rows = _ROWS[count].unpack_from(plain, HEADER.size)
    checked = _CHECKED[count].unpack_from(plain, HEADER.size)
    modes, heights, tail_heights, lengths = (checked[at::4] for at in range(4))
    if 0 in modes and any(mode == 0 and row != _ABSENT for mode, row in zip(modes, rows, strict=True)):
        raise damaged(pointer, "a record without a mode")
    height, tail_height, length = max(heights), max(tail_heights), max(lengths)
    if max(height, tail_height) > radix.MAX_HEIGHT or length > MAX_TAIL_BYTES:
        raise damaged(pointer, f"a record with heights {height} and {tail_height} and a tail of {length} bytes")
    ends = list(accumulate(map(_stored_tail_bytes, lengths), initial=offset))
    if ends[-1] != len(plain):
        raise damaged(pointer, f"an inode page of {len(plain)} bytes whose records end at {ends[-1]}")
    tails = (plain[start:end] for start, end in pairwise(ends))
    return InodePage(pointer, list(map(Slot, rows, tails)))


def _stored_tail_bytes(length: int) -> int:
    """Bytes in the page for a tail of this length."""
    return length if length <= INLINE_TAIL_BYTES else _POINTER.size


def load(pages: Pages, pointer: Pointer) -> InodePage:
    """The page behind `pointer`, without records for NULL. Raises CorruptionError."""
    return pages.get(pointer, decode_page) if pointer.number else InodePage(NULL, [])


def record_of(pages: Pages, page: InodePage, ino: Ino) -> InodeRecord | None:
    """The record of `ino`, whose page this is; reads its tail if that is stored elsewhere. Raises CorruptionError."""
    slot = slot_of(page, ino)
    if slot is EMPTY or slot.row == _ABSENT:
        return None
    mode, uid, gid, nlink, rdev, height, _, _, atime, size, mtime, ctime, number, content_hash = _ROW.unpack(slot.row)
    tail = b"".join(tail_pieces(pages, slot, page.pointer))
    target, xattrs = decode_tail(page.pointer, tail) if tail else (b"", ())
    content = _pointer(number, content_hash)
    return InodeRecord(
        ino, mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, target, xattrs, content, height
    )  # fmt: skip


def slot_of(page: InodePage, ino: int) -> Slot:
    index = ino & (INODES_PER_PAGE - 1)
    return page.slots[index] if index < len(page.slots) else EMPTY


def is_same(before: Slot, after: Slot) -> bool:
    """Are these equal records, even if their content or tail is stored under another number?"""
    return before == after or _without_numbers(before) == _without_numbers(after)


def _without_numbers(slot: Slot) -> tuple[bytes, bytes, bytes]:
    is_long = tail_table(slot)[0].number
    return slot.row[:_CONTENT], slot.row[_CONTENT + 8 :], slot.tail[8:] if is_long else slot.tail


def size_of(slot: Slot) -> int:
    """The file's size in bytes."""
    size: int = _ROW.unpack(slot.row)[9]
    return size


class Links(NamedTuple):
    """What a record points to. `tail` is NULL if the tail is in the page."""

    mode: int
    content: Pointer
    height: int
    tail: Pointer
    tail_height: int


def links_of(slot: Slot) -> Links:
    """What the record points to; mode 0 if there is none."""
    mode, _, _, _, _, height, tail_height, length, _, _, _, _, number, content_hash = _ROW.unpack(slot.row)
    tail = NULL if length <= INLINE_TAIL_BYTES else _pointer(*_POINTER.unpack(slot.tail))
    return Links(mode, _pointer(number, content_hash), height, tail, tail_height)


def _pointer(number: int, content_hash: bytes) -> Pointer:
    return Pointer(Number(number), content_hash) if number else NULL


def tail_table(slot: Slot) -> tuple[Pointer, int, int]:
    """Where a long tail is: pointer and height of its table, and its length in bytes; NULL if it is in the page."""
    _, _, _, _, _, _, height, length, *_ = _ROW.unpack(slot.row)
    if length <= INLINE_TAIL_BYTES:
        return NULL, 0, length
    return _pointer(*_POINTER.unpack(slot.tail)), height, length


def tail_pieces(pages: Pages, slot: Slot, owner: Pointer) -> Iterator[bytes]:
    """The tail, one object at a time. Raises CorruptionError."""
    root, height, length = tail_table(slot)
    if length <= INLINE_TAIL_BYTES:
        yield slot.tail
        return
    last, found = chunk_count(length), 0
    for index, pointer in radix.items(pages, root, height, 0, last):
        piece = pages.read(pointer)
        if index != found or len(piece) != min(CHUNK_SIZE, length - index * CHUNK_SIZE):
            raise damaged(pointer, f"piece {index} of a tail has {len(piece)} bytes")
        found += 1
        yield piece
    if found != last:
        raise damaged(owner, f"a tail of {length} bytes has {found} pieces")


def encode_tail(target: bytes, xattrs: Xattrs) -> bytes:
    """Raises ValueError if the attributes are not ascending by name or longer than a record can hold."""
    if not target and not xattrs:
        return b""
    if any(a[0] >= b[0] for a, b in pairwise(xattrs)):
        raise ValueError("extended attributes must ascend by name")
    parts = [_TARGET.pack(len(target)), target]
    for name, value in xattrs:
        parts += (_XATTR.pack(len(name), len(value)), name, value)
    tail = b"".join(parts)
    if len(tail) > MAX_TAIL_BYTES:
        raise ValueError(f"extended attributes of {len(tail)} bytes; a record holds {MAX_TAIL_BYTES}")
    return tail


def decode_tail(pointer: Pointer, tail: bytes) -> tuple[bytes, Xattrs]:
    """(target, xattrs). `pointer` is the page that is named if the tail is damaged."""
    try:
        (length,) = _TARGET.unpack_from(tail)
        offset = _TARGET.size + length
        target, xattrs = tail[_TARGET.size : offset], []
        while offset < len(tail):
            name_length, value_length = _XATTR.unpack_from(tail, offset)
            middle = offset + _XATTR.size + name_length
            xattrs.append((tail[offset + _XATTR.size : middle], tail[middle : middle + value_length]))
            offset = middle + value_length
    except struct.error:
        offset = -1
    if offset != len(tail):
        raise damaged(pointer, "target and extended attributes of an inode do not fill their place")
    return target, tuple(xattrs)


def encode_slot(pages: Pages, writer: ObjectWriter, record: InodeRecord, before: Slot) -> Slot:
    """The slot for `record` in the place of `before`; stores a long tail as objects of its own, if it is a new one."""
    tail = encode_tail(record.target, record.xattrs)
    in_page, tail_height = tail, 0
    if len(tail) > INLINE_TAIL_BYTES:
        root, tail_height = _store_tail(pages, writer, tail, before)
        in_page = _POINTER.pack(*root)
    row = _ROW.pack(
        record.mode, record.uid, record.gid, record.nlink, record.rdev, record.height, tail_height, len(tail),
        record.atime_ns, record.size, record.mtime_ns, record.ctime_ns, *record.content,
    )  # fmt: skip
    return Slot(row, in_page)


def _store_tail(pages: Pages, writer: ObjectWriter, tail: bytes, before: Slot) -> tuple[Pointer, int]:
    """The table of the tail's pieces; those that are as before are the ones from before."""
    root, height, _ = tail_table(before)
    pieces = _new_pieces(pages, writer, tail, root, height)
    return radix.update(pages, writer, ObjectKind.XATTRS, (root, height), pieces, limit=chunk_count(len(tail)))


def _new_pieces(
    pages: Pages, writer: ObjectWriter, tail: bytes, root: Pointer, height: int
) -> Iterator[tuple[int, Pointer]]:
    for index in range(chunk_count(len(tail))):
        piece = tail[index * CHUNK_SIZE : (index + 1) * CHUNK_SIZE]
        old = radix.lookup(pages, root, height, index)
        if old.number and pages.read(old) == piece:
            continue
        yield index, writer.put_page(ObjectKind.XATTRS, piece, old if old.number else None)
