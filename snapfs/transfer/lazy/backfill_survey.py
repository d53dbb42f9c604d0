"""Which objects a backfill needs: the tables of the snapshot are walked, which fetches their pages.

A page that has a pointer is written after what it points to, so it has the higher number: what is above a number is
found by following pages above it alone.

Memory: a batch of pages, and the set of the pages' numbers; what is needed goes to the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from snapfs.base.blocks import Number
from snapfs.store.lazy.lazy_objects import LazyObjects
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol.number_runs import runs_of
from snapfs.store.repository.repository import Repository
from snapfs.store.tables import radix
from snapfs.store.tables.reachability import Children, Role, Visit
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.lazy.backfill_queue import BackfillQueue, Leaf
from snapfs.transfer.sources.fetcher import Fetcher

PAGES_AT_ONCE: Final = 256
BASES_AT_ONCE: Final = 1 << 15


class BackfillSurvey:
    """The survey of one snapshot. One thread at a time. All methods raise OSError, SnapfsError."""

    def __init__(
        self, repository: Repository, lazy: LazyObjects, fetcher: Fetcher, record: SnapshotRecord, tree: SnapshotTree,
        with_places: bool,
    ) -> None:  # fmt: skip
        """`with_places`: also note where each chunk belongs in which files."""
        self._repository, self._lazy, self._fetcher = repository, lazy, fetcher
        self._record, self._tree, self._with_places = record, tree, with_places

    def objects(self, needed: BackfillQueue, above: Number = Number(0)) -> Iterator[int]:
        """Fetch the tables' pages, and add all objects above this number that are missing; in steps, each yields 0."""
        children, seen = Children(self._repository), NumberSet()
        pending = [Visit(self._record.root, Role.ROOT)]
        while pending:
            batch = [visit for visit in pending[-PAGES_AT_ONCE:] if seen.add(visit.pointer.number)]
            del pending[-PAGES_AT_ONCE:]
            self._fetcher.fetch_in_background(self._lazy.lacking([visit.pointer for visit in batch]))
            found: list[Leaf] = []
            for visit in batch:
                found.append(Leaf(visit.pointer, visit.ino, -1))
                if visit.role is Role.MAP and visit.level == 1:
                    found += self._leaves(visit)
                    continue
                for child in children.of(visit):
                    if child.is_leaf:
                        found.append(Leaf(child.pointer, child.ino, -1 if child.is_tail else child.start))
                    elif child.pointer.number > above:
                        pending.append(child)
            missing = self._missing([leaf for leaf in found if leaf.pointer.number > above])
            needed.add(leaf.pointer for leaf in missing)
            if self._with_places:
                needed.add_places(leaf for leaf in missing if leaf.ino and leaf.chunk >= 0)
            yield 0

    def _leaves(self, visit: Visit) -> list[Leaf]:
        """The pointers of a last page of a block map, of which there are very many."""
        rows = radix.load_rows(self._tree.pages, visit.pointer, visit.level)
        places = enumerate(rows, visit.start)
        return [Leaf(row, visit.ino, -1 if visit.is_tail else chunk) for chunk, row in places if row.number]

    def _missing(self, leaves: list[Leaf]) -> list[Leaf]:
        numbers = [leaf.pointer.number for leaf in leaves] or [Number(0)]
        if self._repository.index.is_empty(min(numbers), max(numbers)):
            return leaves
        return [leaf for leaf in leaves if self.is_missing(leaf.pointer.number)]

    def is_missing(self, number: Number) -> bool:
        """Whether it is not in a segment. What was fetched alone is still to go into one."""
        return number in self._lazy.places.suspects or self._repository.index.peek(number) is None

    def bases(self, needed: BackfillQueue) -> Iterator[int]:
        """Add the bases of the objects, as far as sources know them; in steps, each yields 0."""
        after = Number(0)
        while pointers := needed.after(after, BASES_AT_ONCE):
            runs = list(runs_of(pointer.number for pointer in pointers))
            for first, last in self._fetcher.bases(runs):
                bases = (Number(number) for number in range(first, last + 1))
                needed.add(Pointer(number, b"") for number in bases if self.is_missing(number))
            after = pointers[-1].number
            yield 0
