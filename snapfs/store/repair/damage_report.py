"""Who suffers from a bad object: the snapshots that need it, and the file that it is a piece of.

Invariants:
1. What needs a bad base needs it as much as what points to a bad object.
2. A page that several snapshots share is visited once; what is known of the clean ones is a bit each.
3. Memory is bounded however much is bad: the first `MAX_DETAILED` objects are reported one by one; of the others it is
   known that they are bad, and which snapshots are damaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from snapfs.base.blocks import ChunkIndex, Ino, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import ObjectKind, Pointer, Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import has_more_bases
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.reachability import Children, Role, Visit

MAX_DETAILED: Final = 1000
_OTHERS: Final = Number(0)  # stands for the bad objects that are not reported one by one


@dataclass(slots=True)
class BadObject:
    """An object that is not what it must be. `ino` and `chunk` are what needs it first, where that is known."""

    number: Number
    why: str
    kind: str = "object"
    """What it is a piece of, in words: a chunk, a map page, ...; "object" where that is not known any more."""
    snapshots: list[SnapshotNumber] = field(default_factory=list)
    ino: Ino | None = None
    chunk: ChunkIndex | None = None


class BadObjects:
    """All that was found bad."""

    def __init__(self) -> None:
        self.numbers = NumberSet()
        self.detailed: dict[Number, BadObject] = {}

    def add(self, number: Number, why: str) -> None:
        if self.numbers.add(number) and len(self.detailed) < MAX_DETAILED:
            self.detailed[number] = BadObject(number, why)

    def among(self, *numbers: Number) -> set[Number]:
        """Those of the numbers that are bad, one number standing for all that are not detailed."""
        return {number if number in self.detailed else _OTHERS for number in numbers if number in self.numbers}


def row_of(repository: Repository, pointer: Pointer) -> Row:
    """The row of the object that is pointed to. Raises CorruptionError if there is none, or of another content."""
    source, row = repository.index.locate(pointer.number)
    if row.content_hash != pointer.content_hash:
        raise CorruptionError(f"object {pointer.number:#x}", source.path, "it is not the content that was expected")
    return row


def bases_of(repository: Repository, row: Row) -> tuple[Number, ...]:
    """The full objects that decoding this one needs. Raises CorruptionError, OSError."""
    if has_more_bases(row):
        return repository.objects.bases_of(row.number)
    return (row.base,) if row.base else ()


_KINDS: Final = {
    Role.ROOT: ObjectKind.ROOT,
    Role.INODES: ObjectKind.INODE_PAGE,
    Role.DIRECTORY: ObjectKind.DIR_PAGE,
    Role.MAP: ObjectKind.MAP_PAGE,
}


def kind_of(repository: Repository, visit: Visit) -> ObjectKind:
    """The kind of an object: by its row, or else what it is to what points to it."""
    try:
        return ObjectKind(row_of(repository, visit.pointer).kind)
    except (SnapfsError, OSError, ValueError):
        return ObjectKind.CHUNK if visit.is_leaf else _KINDS[visit.role]


class Needs:
    """Which of the bad objects does an object need, by itself or through what it points to? Each is visited once."""

    def __init__(self, repository: Repository, bad: BadObjects) -> None:
        self._repository = repository
        self._bad = bad
        self._children = Children(repository)
        self._clean = NumberSet()
        self._known: dict[Number, frozenset[Number]] = {}

    def is_affected(self, record: SnapshotRecord) -> bool:
        """Charge what the snapshot needs of the bad objects to it; False if it needs none."""
        needed = self.of(Visit(record.root, Role.ROOT))
        for number in needed - {_OTHERS}:
            self._bad.detailed[number].snapshots.append(record.number)
        return bool(needed)

    def of(self, visit: Visit) -> frozenset[Number]:
        number = visit.pointer.number
        if number in self._clean:
            return frozenset()
        if number not in self._known:
            needed = self._itself(visit).union(*map(self.of, self._below(visit)))
            if not needed:
                self._clean.add(number)
                return needed
            self._known[number] = needed
        return self._known[number]

    def _itself(self, visit: Visit) -> frozenset[Number]:
        number = visit.pointer.number
        try:
            row = row_of(self._repository, visit.pointer)
            needed = self._bad.among(number, *bases_of(self._repository, row))
        except (SnapfsError, OSError):
            needed = self._bad.among(number)
        kind = kind_of(self._repository, visit) if needed else ObjectKind.CHUNK
        for each in needed - {_OTHERS}:
            self._place(self._bad.detailed[each], visit, kind)
        return frozenset(needed)

    @staticmethod
    def _place(bad: BadObject, visit: Visit, kind: ObjectKind) -> None:
        bad.kind = kind.name.lower().replace("_", " ")  # a base is of the kind of what is a difference to it
        if bad.ino is None and visit.ino:
            bad.ino = visit.ino
            bad.chunk = ChunkIndex(visit.start) if visit.is_leaf and kind == ObjectKind.CHUNK else None

    def _below(self, visit: Visit) -> list[Visit]:
        try:
            return self._children.of(visit)
        except (SnapfsError, OSError):
            return []
