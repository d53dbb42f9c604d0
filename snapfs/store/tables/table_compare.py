"""What differs between two snapshots: by inode, by chunk, by name. `diff.py` puts it together by path.

Invariants:
1. Equal pages are never opened: two pointers with one content hash are one content, whatever their numbers. So the cost
   follows what differs, not the size of the state.
2. Nothing that differs is left out. What is stored anew with equal content is no difference of chunks and names; of an
   inode it can be reported, with a `before` and `after` that differ in their content's pointer only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Final, NamedTuple

from snapfs.base.blocks import ChunkIndex, Ino
from snapfs.store.objects.format import NULL, Pointer
from snapfs.store.tables import directory_table, inode_table, radix
from snapfs.store.tables.directory_table import BranchPage, DirEntry
from snapfs.store.tables.inode_table import InodePage
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree, listing_of, map_of
from snapfs.store.tables.table_pages import Pages

_HOLE: Final = radix.pack_pointer(NULL)
Wanted = Callable[[int, int], bool]


class InodeChange(NamedTuple):
    """An inode whose record differs; None where there is none."""

    ino: Ino
    before: InodeRecord | None
    after: InodeRecord | None


class EntryChange(NamedTuple):
    name: bytes
    before: DirEntry | None
    after: DirEntry | None


def is_same(before: Pointer, after: Pointer) -> bool:
    """Do these point to equal content?"""
    return before.content_hash == after.content_hash and (before.number == 0) == (after.number == 0)


# By inode and by chunk.


def diff(a: SnapshotTree, b: SnapshotTree, *, even_stored_anew: bool = False) -> Iterator[InodeChange]:
    """The inodes whose records differ, ascending. Raises CorruptionError.

    `even_stored_anew`: also each whose content is equal and has other numbers, for who keeps pointers.
    """
    same = operator.eq if even_stored_anew else inode_table.is_same
    for first, old, new in diff_inode_pages(a, b):
        for ino in range(first, first + max(len(old.slots), len(new.slots))):
            if not same(inode_table.slot_of(old, ino), inode_table.slot_of(new, ino)):
                before = inode_table.record_of(a.pages, old, Ino(ino))
                yield InodeChange(Ino(ino), before, inode_table.record_of(b.pages, new, Ino(ino)))


def diff_inode_pages(
    a: SnapshotTree, b: SnapshotTree, wanted: Wanted | None = None
) -> Iterator[tuple[int, InodePage, InodePage]]:
    """(first inode, page before, page after) of the pages of the two inode tables that differ, ascending.

    `wanted(level, index)`: whether what a page of this level has, from the `index`th page of inodes on, is of interest;
    else it is not opened. Raises CorruptionError.
    """
    tables = ((tree.root.table, tree.root.height) for tree in (a, b))
    for index, before, after in _Radix(a.pages, b.pages, wanted).differing(*tables):
        yield index << inode_table.BITS, inode_table.load(a.pages, before), inode_table.load(b.pages, after)


def diff_map(
    a: SnapshotTree, before: InodeRecord | None, b: SnapshotTree, after: InodeRecord | None
) -> Iterator[tuple[ChunkIndex, Pointer, Pointer]]:
    """(chunk, pointer before, pointer after) of the chunks of two files that differ, ascending; NULL for a hole."""
    for index, old, new in _Radix(a.pages, b.pages).differing(map_of(before), map_of(after)):
        yield ChunkIndex(index), old, new


class _Radix(NamedTuple):
    a: Pages
    b: Pages
    wanted: Wanted | None = None

    def differing(self, a: tuple[Pointer, int], b: tuple[Pointer, int]) -> Iterator[tuple[int, Pointer, Pointer]]:
        """The entries of two radix tables (root, height) that differ."""
        return self._below(*a, *b, 0)

    def _below(
        self, a: Pointer, a_height: int, b: Pointer, b_height: int, start: int
    ) -> Iterator[tuple[int, Pointer, Pointer]]:
        if is_same(a, b) and (a_height == b_height or a.number == 0):
            return
        level = max(a_height if a.number else 0, b_height if b.number else 0)
        if self.wanted is not None and not self.wanted(level, start):
            return
        if level == 0:
            yield start, a, b
            return
        before, after = _rows(self.a, a, a_height, level), _rows(self.b, b, b_height, level)
        heights = min(a_height, level - 1), min(b_height, level - 1)
        for slot, (old, new) in enumerate(zip_longest(before, after, fillvalue=_HOLE)):
            if old != new:  # of most pages most rows are equal
                beginning = start + (slot << radix.BITS * (level - 1))
                pointers = radix.unpack_pointer(old), radix.unpack_pointer(new)
                yield from self._below(pointers[0], heights[0], pointers[1], heights[1], beginning)


def _rows(pages: Pages, pointer: Pointer, height: int, level: int) -> tuple[bytes, ...]:
    """The rows, packed, that a table of this height has, or would have, at `level`."""
    if pointer.number == 0:
        return ()
    return radix.load_packed(pages, pointer, level) if height == level else (radix.pack_pointer(pointer),)


# By name within a directory.


def diff_entries(
    a: SnapshotTree, before: InodeRecord | None, b: SnapshotTree, after: InodeRecord | None
) -> Iterator[EntryChange]:
    """The entries of two directories that differ, ascending by name. Raises CorruptionError."""
    old, new = _Cursor(a.pages, listing_of(before)), _Cursor(b.pages, listing_of(after))
    while True:
        x, y = _next_entries(old, new)
        if x is None and y is None:
            return
        if x is not None and (y is None or x.name <= y.name):
            old.pending.pop()
        if y is not None and (x is None or y.name <= x.name):
            new.pending.pop()
        if x is None or (y is not None and y.name < x.name):
            assert y is not None
            yield EntryChange(y.name, None, y)
        elif y is None or x.name < y.name:
            yield EntryChange(x.name, x, None)
        elif x != y:
            yield EntryChange(x.name, x, y)


class _Unopened(NamedTuple):
    level: int
    pointer: Pointer


class _Cursor:
    """What is left of a directory: entries, and pages not opened yet, in `pending` from last to first."""

    def __init__(self, pages: Pages, root: Pointer) -> None:
        self._pages = pages
        self.pending: list[DirEntry | _Unopened] = []
        if root.number:
            self.pending.append(_Unopened(directory_table.level_of(directory_table.load(pages, root)), root))

    def head(self) -> DirEntry | _Unopened | None:
        return self.pending[-1] if self.pending else None

    def open(self, unopened: _Unopened) -> None:
        self.pending.pop()
        page = directory_table.load(self._pages, unopened.pointer, unopened.level)
        if isinstance(page, BranchPage):
            self.pending += [_Unopened(page.level - 1, branch.pointer) for branch in reversed(page.branches)]
        else:
            self.pending += reversed(page.entries)


def _next_entries(old: _Cursor, new: _Cursor) -> tuple[DirEntry | None, DirEntry | None]:
    """Bring both to an entry, or the end, past the pages that they have in common."""
    while True:
        x, y = old.head(), new.head()
        if not isinstance(x, _Unopened) and not isinstance(y, _Unopened):
            return x, y
        if isinstance(x, _Unopened) and isinstance(y, _Unopened) and is_same(x.pointer, y.pointer):
            old.pending.pop()
            new.pending.pop()
            continue
        if isinstance(x, _Unopened) and not (isinstance(y, _Unopened) and y.level > x.level):
            old.open(x)
        if isinstance(y, _Unopened) and not (isinstance(x, _Unopened) and x.level > y.level):
            new.open(y)
