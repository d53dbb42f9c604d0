"""Changing a directory: where its pages begin and end, and how few of them a change touches.

Where a page ends is decided from left to right by the names in it alone: it is full (`MAX_ROWS`, `MAX_BYTES`), or it
has at least the minimum of rows and the hash of its last name decides it. A level above splits the rows for the pages
below it by the same rule, until one page is left.

Invariants:
1. The set of names alone decides where pages begin and end: the order of edits leaves no trace. (The number of
   an unchanged page does depend on when it was written.)
2. An entry's change reads and writes the pages on its way from the top, and those to the right that split
   differently because of it: mostly none, hardly ever more than two or three. All others are taken over unread.
3. Memory is a few pages a level; changes are consumed as they come.
4. A directory hostile to the hash (chosen names) still has bounded pages; only its updates cost more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, cast

import xxhash

from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.tables.directory_table import (
    BRANCH_BYTES,
    ENTRY_BYTES,
    MAX_NAME_BYTES,
    MAX_ROWS,
    AnyPage,
    Branch,
    BranchPage,
    DirEntry,
    EntryPage,
    encode_branches,
    encode_entries,
    level_of,
    load,
)
from snapfs.store.tables.table_pages import ObjectWriter, Pages

MAX_BYTES: Final = 8192
"""A page is full when its rows and names have reached this; so it has at most one row and name more."""

_MIN_ROWS: Final = (16, 8)
_SPLIT_BITS: Final = (6, 5)
"""On level 0 and on those above: pages of 16 + 64 entries, 8 + 32 branches on average."""


class EntryChanges:
    """An ascending stream of (name, entry or None) with its head in view."""

    def __init__(self, source: Iterable[tuple[bytes, DirEntry | None]]) -> None:
        self._source = iter(source)
        self.name: bytes | None = None
        """Of the change in view; None at the end."""
        self._entry: DirEntry | None = None
        self._step(b"")

    def take(self) -> DirEntry | None:
        entry, last = self._entry, self.name
        assert last is not None
        self._step(last)
        return entry

    def _step(self, last: bytes) -> None:
        self.name, self._entry = next(self._source, (None, None))
        if self.name is not None:
            _check_change(self.name, self._entry, last)


def _check_change(name: bytes, entry: DirEntry | None, last: bytes) -> None:
    if not 1 <= len(name) <= MAX_NAME_BYTES or b"/" in name or b"\0" in name or name in {b".", b".."}:
        raise ValueError(f"{name!r} is no name")
    if name <= last:
        raise ValueError(f"{name!r} after {last!r}: changes must ascend")
    if entry is not None and (entry.name != name or not 0 < entry.kind < 16 or entry.ino <= 0):
        raise ValueError(f"{entry} is no entry for {name!r}")


@dataclass(slots=True)
class _Growing:
    """The page of one level that is being filled. `origin` is the old page that its first row stood in."""

    rows: list[DirEntry | Branch] = field(default_factory=list)
    used_bytes: int = 0
    origin: Pointer = NULL
    finished: int = 0  # pages of this level so far


def update(
    pages: Pages, writer: ObjectWriter, root: Pointer, changes: Iterable[tuple[bytes, DirEntry | None]]
) -> Pointer:
    """The directory `root` with the ascending `changes` made: an entry is put in or replaced, None takes it out."""
    stream = EntryChanges(changes)
    return root if stream.name is None else _Update(pages, writer, stream).run(root)


class _Update:
    def __init__(self, pages: Pages, writer: ObjectWriter, changes: EntryChanges) -> None:
        self._pages = pages
        self._writer = writer
        self._changes = changes
        self._growing: list[_Growing] = []
        self._walked: list[Pointer] = []
        """By level, the old page that rows are being taken from."""

    def run(self, root: Pointer) -> Pointer:
        if root.number:
            top = load(self._pages, root)
            self._grow_to(level_of(top))
            self._walk(root, top, None)
        while self._changes.name is not None:
            self._put_change()
        return self._finished()

    def _grow_to(self, level: int) -> None:
        while len(self._growing) <= level:
            self._growing.append(_Growing())
            self._walked.append(NULL)

    def _walk(self, pointer: Pointer, page: AnyPage, last: bytes | None) -> None:
        """Take over what is in this page, with the changes up to the name `last` (None: all that are left)."""
        level = level_of(page)
        self._walked[level] = pointer
        if isinstance(page, EntryPage):
            self._merge(page, last)
            return
        for branch in page.branches:
            end = None if last is None and branch is page.branches[-1] else branch.name
            if self._can_share(level - 1, end):
                self._add(level, branch)
            else:
                self._walk(branch.pointer, load(self._pages, branch.pointer, level - 1), end)
                self._walked[level] = pointer

    def _can_share(self, level: int, last: bytes | None) -> bool:
        """May a page be taken over unread? If nothing changes up to its end and a page would begin where it begins."""
        name = self._changes.name
        untouched = name is None or (last is not None and name > last)
        return untouched and not any(growing.rows for growing in self._growing[: level + 1])

    def _merge(self, page: EntryPage, last: bytes | None) -> None:
        for entry in page.entries:
            while self._changes.name is not None and self._changes.name < entry.name:
                self._put_change()
            if self._changes.name == entry.name:
                self._put_change()
            else:
                self._add(0, entry)
        while self._changes.name is not None and (last is None or self._changes.name <= last):
            self._put_change()

    def _put_change(self) -> None:
        entry = self._changes.take()
        if entry is not None:
            self._add(0, entry)

    def _add(self, level: int, row: DirEntry | Branch) -> None:
        self._grow_to(level)
        growing = self._growing[level]
        if not growing.rows:
            growing.origin = self._walked[level]
        growing.rows.append(row)
        growing.used_bytes += len(row.name) + (BRANCH_BYTES if level else ENTRY_BYTES)
        if _ends_page(level, len(growing.rows), growing.used_bytes, row.name):
            self._close(level)

    def _close(self, level: int) -> None:
        growing = self._growing[level]
        pointer = self._stored(level, growing)
        last = growing.rows[-1].name
        growing.rows, growing.used_bytes = [], 0
        growing.finished += 1
        self._add(level + 1, Branch(last, pointer))

    def _stored(self, level: int, growing: _Growing) -> Pointer:
        base = growing.origin if growing.origin.number else None
        if base and _rows_of(load(self._pages, base, level)) == growing.rows:
            return base
        if level:
            plain = encode_branches(level, cast(list[Branch], growing.rows))
        else:
            plain = encode_entries(cast(list[DirEntry], growing.rows))
        return self._writer.put_page(ObjectKind.DIR_PAGE, plain, base)

    def _finished(self) -> Pointer:
        """Close what is open, from the bottom up, until a level has come down to one page."""
        level = 0
        while level < len(self._growing):
            growing = self._growing[level]
            if level and len(growing.rows) == 1 and not growing.finished and not self._anything_above(level):
                return cast(Branch, growing.rows[0]).pointer
            if growing.rows:
                self._close(level)
            level += 1
        return NULL

    def _anything_above(self, level: int) -> bool:
        return any(growing.rows or growing.finished for growing in self._growing[level + 1 :])


def _rows_of(page: AnyPage) -> list[DirEntry] | list[Branch]:
    return page.branches if isinstance(page, BranchPage) else page.entries


def _ends_page(level: int, rows: int, used_bytes: int, last: bytes) -> bool:
    """Is a page of this many rows and bytes, the last of them called `last`, complete?"""
    if rows >= MAX_ROWS or used_bytes >= MAX_BYTES:
        return True
    above = min(level, 1)
    if rows < _MIN_ROWS[above]:
        return False
    bits = xxhash.xxh3_64_intdigest(last) >> (6 * level & 31)
    return bits & ((1 << _SPLIT_BITS[above]) - 1) == 0


def check_shape(pages: Pages, root: Pointer) -> None:
    """Assert that pages end where the names decide, and that each branch is called what its page ends with."""
    level_pages = [load(pages, root)] if root.number else []
    while level_pages:
        for page in level_pages:
            ends = [_ends_page(*step) for step in _steps(page)]
            assert not any(ends[:-1])
            assert ends[-1] or page is level_pages[-1]
        branches = [branch for page in level_pages if isinstance(page, BranchPage) for branch in page.branches]
        below = [load(pages, branch.pointer, level_of(level_pages[0]) - 1) for branch in branches]
        assert [page.names[-1] for page in below] == [branch.name for branch in branches]
        assert len(below) != 1, "a top page over one page"
        level_pages = below


def _steps(page: AnyPage) -> Iterator[tuple[int, int, int, bytes]]:
    """The argument of `_ends_page` after each row."""
    row_bytes = BRANCH_BYTES if isinstance(page, BranchPage) else ENTRY_BYTES
    used = accumulate(len(name) + row_bytes for name in page.names)
    for rows, (name, used_bytes) in enumerate(zip(page.names, used, strict=True), 1):
        yield level_of(page), rows, used_bytes, name
