"""What has to be found again: the objects that cannot be read, and the places where their content may still be.

Invariants:
1. An object is wanted if it is bad, or if it is a difference to one that is: with its own content back, stored in full,
   it does not need that one any more.
2. What lies below a page that cannot be read is not known before that page is there again: the repair searches again.
3. Memory is bounded: so many objects at a time, so many places each. Nothing is read but tables and rows.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Final

from snapfs.base.blocks import Number
from snapfs.base.errors import SnapfsError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repair.damage_report import bases_of, kind_of, row_of
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.reachability import Children, Role, Visit

MAX_WANTED: Final = 100_000
"""Objects that are looked for at a time; the others have their turn when these are repaired."""
_MAX_PLACES: Final = 8


@dataclass(slots=True)
class RepairCandidates:
    """An object that cannot be read, and where its content is a piece of what."""

    pointer: Pointer
    kind: ObjectKind
    places: list[Visit] = field(default_factory=list)
    records: list[SnapshotRecord] = field(default_factory=list)
    """The snapshots in which these places are."""


def wanted(repository: Repository, records: list[SnapshotRecord], bad: NumberSet) -> dict[Number, RepairCandidates]:
    """The objects in `bad`, and those that are differences to one of them, as far as the snapshots need them."""
    search = _Search(repository, bad)
    for record in records:
        search.go(record)
    return search.found


class _Search:
    def __init__(self, repository: Repository, bad: NumberSet) -> None:
        self._repository, self._bad = repository, bad
        self._children, self._seen = Children(repository), NumberSet()
        self.found: dict[Number, RepairCandidates] = {}

    def go(self, record: SnapshotRecord) -> None:
        pending = [Visit(record.root, Role.ROOT)]
        while pending:
            visit = pending.pop()
            if not self._seen.add(visit.pointer.number):
                self._note_again(visit, record)
                continue
            if self._is_lost(visit):
                self._note(visit, record)
            if not visit.is_leaf:
                with contextlib.suppress(SnapfsError, OSError):
                    pending += self._children.of(visit)

    def _is_lost(self, visit: Visit) -> bool:
        number = visit.pointer.number
        if number in self._bad:
            return True
        try:
            row = row_of(self._repository, visit.pointer)
            return any(base in self._bad for base in bases_of(self._repository, row))
        except (SnapfsError, OSError):
            return True

    def _note(self, visit: Visit, record: SnapshotRecord) -> None:
        if len(self.found) < MAX_WANTED:
            kind = kind_of(self._repository, visit)
            self.found[visit.pointer.number] = RepairCandidates(visit.pointer, kind)
            self._note_again(visit, record)

    def _note_again(self, visit: Visit, record: SnapshotRecord) -> None:
        """Another place of an object that is looked for: its content may still be there."""
        known = self.found.get(visit.pointer.number)
        if known is not None and len(known.places) < _MAX_PLACES:
            known.places.append(visit)
            known.records.append(record)
