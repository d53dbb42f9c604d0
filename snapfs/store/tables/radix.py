"""Radix tables of pointers by index: the block map of a file, and the inner pages of the inode table.

A table of height h covers the indices below 64**h. Height 0 is the one pointer of index 0 itself, so that a file of
one chunk needs no page. A hole is the NULL pointer at any height, however much it covers.

MAP page (header of table_pages.py: level 1..8, count 1..64), then `count` rows of 24 bytes, row i for slot i:
    0  number   8  of the object in that slot, 0 for a hole
    8  content hash   16  its content hash, zero for a hole
Slots from `count` on are holes; the last row is none. On level 1 a row points to what the table is about (a chunk,
a page of inodes), above that to the page one level below. Rows never move, so a changed row is a short difference.

Invariants:
1. Canonical form: a table's height is the smallest that covers its last index that is no hole; no page is without
   rows. Hence equal tables have equal heights, whatever was done in between.
2. An update reads and writes the pages on the way to the changed indices and no others, each once, and holds one page
   a level in memory. Changes are consumed as they come.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple

from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.tables.table_pages import HEADER, ObjectWriter, Pages, PageType, damaged, open_page, page_header

BITS: Final = 6
FANOUT: Final = 1 << BITS
MAX_HEIGHT: Final = 8
"""64**8 chunks are 2**64 bytes."""

_ROW: Final = struct.Struct("<Q16s")


_PACKED_ROWS: Final = [struct.Struct(f"{_ROW.size}s" * count) for count in range(FANOUT + 1)]
_NO_NUMBER: Final = bytes(8)
_unpacked: Callable[[tuple[Any, ...]], Pointer] = partial(tuple.__new__, Pointer)
"""Its own constructor takes four times as long, and there are millions."""


class MapPage(NamedTuple):
    level: int
    rows: list[Pointer]


class PackedPage(NamedTuple):
    level: int
    rows: tuple[bytes, ...]


def encode_map(level: int, rows: list[Pointer]) -> bytes:
    """The page of these rows, of which the last is no hole."""
    assert 1 <= level <= MAX_HEIGHT
    assert rows[-1].number
    count = len(rows)
    return page_header(PageType.MAP, level, count) + struct.pack("<" + "Q16s" * count, *chain.from_iterable(rows))


def decode_map(pointer: Pointer, plain: bytes) -> MapPage:
    level, packed = decode_packed(pointer, plain)
    return MapPage(level, list(map(_unpacked, map(_ROW.unpack, packed))))


def decode_packed(pointer: Pointer, plain: bytes) -> PackedPage:
    """The page with its rows as they are stored: to compare, which costs a fraction of what pointers do."""
    level, count = open_page(pointer, plain, PageType.MAP)
    if not 1 <= count <= FANOUT or len(plain) != HEADER.size + count * _ROW.size:
        raise damaged(pointer, f"a map page of {len(plain)} bytes for {count} rows")
    if not 1 <= level <= MAX_HEIGHT:
        raise damaged(pointer, f"a map page of level {level}")
    rows = _PACKED_ROWS[count].unpack_from(plain, HEADER.size)
    if rows[-1][:8] == _NO_NUMBER:
        raise damaged(pointer, "a map page that ends in a hole")
    return PackedPage(level, rows)


def pack_pointer(pointer: Pointer) -> bytes:
    """A row as it is stored."""
    return _ROW.pack(*pointer)


def unpack_pointer(row: bytes) -> Pointer:
    return _unpacked(_ROW.unpack(row))


def load_packed(pages: Pages, pointer: Pointer, level: int) -> tuple[bytes, ...]:
    """The rows of the page at `level`, packed. Raises CorruptionError."""
    page = pages.get(pointer, decode_packed)
    if page.level != level:
        raise damaged(pointer, f"a map page of level {page.level} where level {level} belongs")
    return page.rows


def load_rows(pages: Pages, pointer: Pointer, level: int) -> list[Pointer]:
    """The rows of the page at `level`; the list is shared and must not be changed."""
    page = pages.get(pointer, decode_map)
    if page.level != level:
        raise damaged(pointer, f"a map page of level {page.level} where level {level} belongs")
    return page.rows


def lookup(pages: Pages, root: Pointer, height: int, index: int) -> Pointer:
    """The pointer at `index`, NULL for a hole. Raises CorruptionError."""
    if index >> (BITS * height):
        return NULL
    pointer = root
    for level in range(height, 0, -1):
        if pointer.number == 0:
            return NULL
        rows = load_rows(pages, pointer, level)
        slot = index >> (BITS * (level - 1)) & (FANOUT - 1)
        pointer = rows[slot] if slot < len(rows) else NULL
    return pointer


def items(
    pages: Pages, root: Pointer, height: int, first: int = 0, stop: int | None = None
) -> Iterator[tuple[int, Pointer]]:
    """Each (index, pointer) with first <= index < stop that is no hole, ascending. Raises CorruptionError."""
    end = 1 << BITS * height
    return _Walk(pages, first, end if stop is None else min(stop, end)).items(root, height, 0)


class _Walk(NamedTuple):
    pages: Pages
    first: int
    stop: int

    def items(self, pointer: Pointer, level: int, start: int) -> Iterator[tuple[int, Pointer]]:
        """What lies in the range, below a pointer of this level that covers the indices from `start` on."""
        if level == 0:
            if pointer.number and self.first <= start < self.stop:
                yield start, pointer
            return
        rows = load_rows(self.pages, pointer, level) if pointer.number else []
        shift = BITS * (level - 1)
        begin = max(self.first - start, 0) >> shift
        for slot in range(begin, min(len(rows), -(-(self.stop - start) >> shift))):
            if rows[slot].number == 0:
                continue
            if level == 1:
                yield start + slot, rows[slot]
            else:
                yield from self.items(rows[slot], level - 1, start + (slot << shift))


class Changes:
    """An ascending stream of (index, pointer) below `limit` with its head in view; the rest is swallowed."""

    def __init__(self, source: Iterable[tuple[int, Pointer]], limit: int) -> None:
        self._source = iter(source)
        self._limit = limit
        self._last = -1
        self.index: int | None = None
        """Of the change in view; None at the end."""
        self._pointer = NULL
        self._step()

    def take(self) -> Pointer:
        pointer = self._pointer
        self._step()
        return pointer

    def skip_holes(self) -> None:
        while self.index is not None and self._pointer.number == 0:
            self._step()

    def _step(self) -> None:
        for index, pointer in self._source:
            if index <= self._last:
                raise ValueError(f"index {index} after {self._last}: changes must ascend")
            self._last = index
            if index < self._limit:
                self.index, self._pointer = index, pointer
                return
        self.index = None


def update(
    pages: Pages,
    writer: ObjectWriter,
    kind: ObjectKind,
    table: tuple[Pointer, int],
    changes: Iterable[tuple[int, Pointer]],
    *,
    limit: int = 1 << BITS * MAX_HEIGHT,
) -> tuple[Pointer, int]:
    """The table (root, height) with the ascending `changes` made, and nothing left at or beyond index `limit`."""
    return _Update(pages, writer, kind, Changes(changes, limit), limit).run(*table)


class _Update:
    def __init__(self, pages: Pages, writer: ObjectWriter, kind: ObjectKind, changes: Changes, limit: int) -> None:
        self._pages = pages
        self._writer = writer
        self._kind = kind
        self._changes = changes
        self._limit = limit

    def run(self, root: Pointer, height: int) -> tuple[Pointer, int]:
        root, height = self._lowered(root, height)
        rows, base = self._rows(height, root), root
        self._apply(height, rows, 0)
        while self._more_beyond(height):
            top = self._stored(height, rows, base)
            height, base = height + 1, NULL
            rows = [top] + [NULL] * (FANOUT - 1)
            self._apply(height, rows, 0)
        return self._finished(height, rows, base)

    def _lowered(self, root: Pointer, height: int) -> tuple[Pointer, int]:
        """Cut off the levels of which the limit leaves only the first slot."""
        if self._limit == 0:
            return NULL, 0
        while height > 0 and root.number and self._limit <= 1 << BITS * (height - 1):
            root, height = load_rows(self._pages, root, height)[0], height - 1
        return (root, height) if root.number else (NULL, 0)

    def _more_beyond(self, height: int) -> bool:
        """Is there a change to come that a table of this height has no place for? A hole needs none."""
        self._changes.skip_holes()
        index = self._changes.index
        if index is not None and index >> BITS * MAX_HEIGHT:
            raise ValueError(f"index {index} is beyond what a table can hold")
        return index is not None

    def _finished(self, height: int, rows: list[Pointer], base: Pointer) -> tuple[Pointer, int]:
        """The canonical form: without the levels that have become superfluous."""
        while height > 0 and _length(rows) <= 1:
            base, height = rows[0], height - 1
            if base.number == 0:
                return NULL, 0
            rows = self._rows(height, base)
        return self._stored(height, rows, base), height

    def _rows(self, level: int, pointer: Pointer) -> list[Pointer]:
        """All slots of the page at `level`, to be changed at will."""
        if level == 0:
            return [pointer]
        known = load_rows(self._pages, pointer, level) if pointer.number else []
        return known + [NULL] * (FANOUT - len(known))

    def _apply(self, level: int, rows: list[Pointer], start: int) -> None:
        """Make the changes of the indices that this node covers, from `start` on."""
        end, visited = start + (1 << BITS * level), -1
        shift = BITS * max(level - 1, 0)
        while (index := self._changes.index) is not None and index < end:
            visited = (index - start) >> shift
            rows[visited] = self._child(level - 1, rows[visited], start + (visited << shift))
        if level and self._limit < end:
            self._cut(level, rows, start, visited)

    def _child(self, level: int, pointer: Pointer, start: int) -> Pointer:
        if level <= 0:
            return self._changes.take()
        rows = self._rows(level, pointer)
        self._apply(level, rows, start)
        return self._stored(level, rows, pointer)

    def _cut(self, level: int, rows: list[Pointer], start: int, visited: int) -> None:
        """Drop what lies at or beyond the limit; a child that was `visited` has done so already."""
        shift = BITS * (level - 1)
        slot, inside = divmod(self._limit - start, 1 << shift)
        if inside:
            if slot != visited and rows[slot].number:
                rows[slot] = self._child(level - 1, rows[slot], start + (slot << shift))
            slot += 1
        rows[slot:] = [NULL] * (FANOUT - slot)

    def _stored(self, level: int, rows: list[Pointer], base: Pointer) -> Pointer:
        if level == 0:
            return rows[0]
        count = _length(rows)
        if count == 0:
            return NULL
        if base.number == 0:
            return self._writer.put_page(self._kind, encode_map(level, rows[:count]), None)
        if load_rows(self._pages, base, level) == rows[:count]:
            return base
        return self._writer.put_page(self._kind, encode_map(level, rows[:count]), base)


def _length(rows: list[Pointer]) -> int:
    """Without the holes at the end."""
    count = len(rows)
    while count and rows[count - 1].number == 0:
        count -= 1
    return count
