"""A directory's entries, sorted by name, in pages that split by content.

ENTRIES page (header of table_pages.py: level 0), then `count` rows of 10 bytes, then the names, one after the other:
    0  ino     8
    8  kind    1  file type, the bits of stat.S_IFMT shifted right by 12
    9  length  1  of the name in bytes, 1..255
BRANCHES page (level 1..MAX_LEVEL), then `count` rows of 25 bytes, then the names:
    0  number  8  of the page one level below
    8  content hash  16
   24  length  1  of the name, which is the last one in that page
A directory is its top page: of level 0 while one page holds all. An empty directory is the NULL pointer.

Where pages begin and end is decided by directory_update.py.

Invariants:
1. Names ascend, within a page and from page to page; a branch is called what its page ends with.
2. A name is 1 to 255 bytes without NUL and slash, and neither "." nor "..": a directory read from a damaged or hostile
   store cannot lead out of itself.
3. A lookup reads one page a level; a listing holds one page a level.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

from snapfs.base.blocks import Ino, Number
from snapfs.store.objects.format import Pointer
from snapfs.store.tables.table_pages import HEADER, Pages, PageType, damaged, open_page, page_header

MAX_NAME_BYTES: Final = 255
MAX_ROWS: Final = 256
MAX_LEVEL: Final = 12

_ENTRY: Final = struct.Struct("<QBB")
_BRANCH: Final = struct.Struct("<Q16sB")
ENTRY_BYTES: Final = _ENTRY.size
BRANCH_BYTES: Final = _BRANCH.size


class DirEntry(NamedTuple):
    """A name in a directory. `kind` is the file type: the bits of stat.S_IFMT shifted right by 12."""

    name: bytes
    ino: Ino
    kind: int


class Branch(NamedTuple):
    """A page one level below: `name` is the last one in it."""

    name: bytes
    pointer: Pointer


@dataclass(frozen=True, slots=True)
class EntryPage:
    names: list[bytes]
    entries: list[DirEntry]


@dataclass(frozen=True, slots=True)
class BranchPage:
    level: int
    names: list[bytes]
    branches: list[Branch]


AnyPage = EntryPage | BranchPage


def encode_entries(entries: list[DirEntry]) -> bytes:
    rows = [_ENTRY.pack(entry.ino, entry.kind, len(entry.name)) for entry in entries]
    names = [entry.name for entry in entries]
    return b"".join((page_header(PageType.ENTRIES, 0, len(entries)), *rows, *names))


def encode_branches(level: int, branches: list[Branch]) -> bytes:
    assert 1 <= level <= MAX_LEVEL
    rows = [_BRANCH.pack(*branch.pointer, len(branch.name)) for branch in branches]
    names = [branch.name for branch in branches]
    return b"".join((page_header(PageType.BRANCHES, level, len(branches)), *rows, *names))


def decode_page(pointer: Pointer, plain: bytes) -> AnyPage:
    if plain[:1] == bytes([PageType.ENTRIES]):
        return _decode_entries(pointer, plain)
    return _decode_branches(pointer, plain)


def _decode_entries(pointer: Pointer, plain: bytes) -> EntryPage:
    level, count = open_page(pointer, plain, PageType.ENTRIES)
    if level:
        raise damaged(pointer, f"a page of directory entries at level {level}")
    rows, names = _open_rows(pointer, plain, _ENTRY, count)
    entries = [DirEntry(name, Ino(ino), kind) for (ino, kind, _), name in zip(rows, names, strict=True)]
    if any(kind > 15 or kind == 0 or ino == 0 for ino, kind, _ in rows):
        raise damaged(pointer, "a directory entry without inode or file type")
    return EntryPage(names, entries)


def _decode_branches(pointer: Pointer, plain: bytes) -> BranchPage:
    level, count = open_page(pointer, plain, PageType.BRANCHES)
    if not 1 <= level <= MAX_LEVEL:
        raise damaged(pointer, f"a directory page of level {level}")
    rows, names = _open_rows(pointer, plain, _BRANCH, count)
    branches = [
        Branch(name, Pointer(Number(number), content_hash))
        for (number, content_hash, _), name in zip(rows, names, strict=True)
    ]
    if any(branch.pointer.number == 0 for branch in branches):
        raise damaged(pointer, "a directory page that points nowhere")
    return BranchPage(level, names, branches)


def _open_rows(pointer: Pointer, plain: bytes, row: struct.Struct, count: int) -> tuple[list[Any], list[bytes]]:
    """The rows, and the names after them, whose lengths the rows end in."""
    begin = HEADER.size + count * row.size
    if not 1 <= count <= MAX_ROWS or begin > len(plain):
        raise damaged(pointer, f"a directory page of {len(plain)} bytes for {count} rows")
    rows = list(row.iter_unpack(memoryview(plain)[HEADER.size : begin]))
    ends = list(accumulate((each[-1] for each in rows), initial=begin))
    if ends[-1] != len(plain):
        raise damaged(pointer, f"a directory page of {len(plain)} bytes whose names end at {ends[-1]}")
    names = [plain[start:end] for start, end in pairwise(ends)]
    blob = plain[begin:]
    no_names = b"" in names or b"." in names or b".." in names or b"/" in blob or b"\0" in blob
    if no_names or any(a >= b for a, b in pairwise(names)):
        raise damaged(pointer, "directory entries that are no names or not in order")
    return rows, names


def load(pages: Pages, pointer: Pointer, level: int | None = None) -> AnyPage:
    """The directory page behind `pointer`, at `level` if that is known. Raises CorruptionError."""
    page = pages.get(pointer, decode_page)
    if level is not None and level_of(page) != level:
        raise damaged(pointer, f"a directory page of level {level_of(page)} where level {level} belongs")
    return page


def level_of(page: AnyPage) -> int:
    return page.level if isinstance(page, BranchPage) else 0


def lookup(pages: Pages, root: Pointer, name: bytes) -> DirEntry | None:
    """The entry called `name`, or None. Raises CorruptionError."""
    if root.number == 0:
        return None
    page = load(pages, root)
    while isinstance(page, BranchPage):
        slot = bisect_left(page.names, name)
        if slot == len(page.names):
            return None
        page = load(pages, page.branches[slot].pointer, page.level - 1)
    slot = bisect_left(page.names, name)
    return page.entries[slot] if slot < len(page.names) and page.names[slot] == name else None


def entries(pages: Pages, root: Pointer, after: bytes | None = None) -> Iterator[DirEntry]:
    """The entries with names greater than `after`, ascending. Raises CorruptionError."""
    if root.number:
        yield from _entries(pages, load(pages, root), after)


def _entries(pages: Pages, page: AnyPage, after: bytes | None) -> Iterator[DirEntry]:
    begin = bisect_right(page.names, after) if after is not None else 0
    if isinstance(page, EntryPage):
        yield from page.entries[begin:]
        return
    for branch in page.branches[begin:]:
        yield from _entries(pages, load(pages, branch.pointer, page.level - 1), after)
