"""What a snapshot needs: from its root through the tables to the chunks, each object once.

Invariants:
1. An object that several snapshots share is visited once by one `Walk`: it remembers numbers, a bit each.
2. A page that cannot be read or understood is reported to `failed`, and the walk goes on beside it.
3. Leaves (chunks, and the pieces of long attributes) are not read; all other objects have been when they are given out.
4. Memory is the set of numbers and, for each level of the tables, one page's children.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from typing import Final, NamedTuple

from snapfs.base.blocks import Ino, Number
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import Objects, has_more_bases
from snapfs.store.objects.segment_index import SegmentIndex
from snapfs.store.tables import directory_table, inode_table, radix
from snapfs.store.tables.snapshot import decode_root
from snapfs.store.tables.table_pages import ObjectReader, Pages

_NO_INO: Final = Ino(0)
_TOP: Final = -1  # the level of a directory's top page, which only the page itself knows

Failed = Callable[[Pointer, Exception], None]


class Role(Enum):
    """What an object is to what points to it."""

    ROOT = auto()
    INODES = auto()
    MAP = auto()
    DIRECTORY = auto()


class Visit(NamedTuple):
    """An object that was come to: of inode `ino` (0: of none), which covers a map's or table's indices from `start`.

    `is_tail`: of the map of its long attributes, whose pieces are no chunks of a file.
    """

    pointer: Pointer
    role: Role
    level: int = 0
    ino: Ino = _NO_INO
    start: int = 0
    is_tail: bool = False

    @property
    def is_leaf(self) -> bool:
        return self.role is Role.MAP and self.level == 0


class Children:
    """Knows what each object points to."""

    def __init__(self, reader: ObjectReader) -> None:
        self._pages = Pages(reader, cache_bytes=0)

    def of(self, visit: Visit) -> list[Visit]:
        """What the object points to, holes left out. Raises CorruptionError, VersionError, OSError."""
        pointer, level = visit.pointer, visit.level
        if visit.role is Role.ROOT:
            root = self._pages.get(pointer, decode_root)
            found = [Visit(root.table, Role.INODES, root.height)]
        elif visit.role is Role.DIRECTORY:
            page = directory_table.load(self._pages, pointer, None if level == _TOP else level)
            branches = page.branches if isinstance(page, directory_table.BranchPage) else []
            below = directory_table.level_of(page) - 1
            found = [Visit(branch.pointer, Role.DIRECTORY, below, visit.ino) for branch in branches]
        elif level:
            rows, shift = radix.load_rows(self._pages, pointer, level), radix.BITS * (level - 1)
            found = [
                Visit(row, visit.role, level - 1, visit.ino, visit.start + (slot << shift), visit.is_tail)
                for slot, row in enumerate(rows)
            ]
        else:
            found = self._of_inodes(visit) if visit.role is Role.INODES else []
        return [child for child in found if child.pointer.number]

    def _of_inodes(self, visit: Visit) -> list[Visit]:
        found = []
        slots = inode_table.load(self._pages, visit.pointer).slots
        for ino, slot in enumerate(slots, visit.start << inode_table.BITS):
            mode, content, height, tail, tail_height = inode_table.links_of(slot)
            if content.number and stat.S_ISDIR(mode):
                found.append(Visit(content, Role.DIRECTORY, _TOP, Ino(ino)))
            elif content.number:
                found.append(Visit(content, Role.MAP, height, Ino(ino)))
            if tail.number:
                found.append(Visit(tail, Role.MAP, tail_height, Ino(ino), is_tail=True))
        return found


class Walk:
    """`visits(root)` gives what no earlier call on this walk has given."""

    def __init__(self, reader: ObjectReader, failed: Failed, seen: NumberSet | None = None) -> None:
        """`seen`: takes what was visited; what it has from the beginning is passed over."""
        self._children = Children(reader)
        self._failed = failed
        self.seen = NumberSet() if seen is None else seen

    def visits(self, root: Pointer) -> Iterator[Visit]:
        """The root and all below it, in the order of the tables."""
        pending = [Visit(root, Role.ROOT)]
        while pending:
            visit = pending.pop()
            if not self.seen.add(visit.pointer.number):
                continue
            if not visit.is_leaf:
                pending += reversed(self._try(visit))
            yield visit

    def _try(self, visit: Visit) -> list[Visit]:
        try:
            return self._children.of(visit)
        except (SnapfsError, OSError) as error:
            self._failed(visit.pointer, error)
            return []


def bases_of_all(index: SegmentIndex, objects: Objects, numbers: Iterable[int]) -> NumberSet:
    """The full objects that those of the ascending numbers that are in segments are differences to. Raises OSError."""
    found = NumberSet()
    for row in index.rows(map(Number, numbers)):
        with contextlib.suppress(CorruptionError):
            for base in () if not row.base else objects.bases_of(row.number) if has_more_bases(row) else (row.base,):
                found.add(base)
    return found
