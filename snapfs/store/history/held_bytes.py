"""The bytes of a store that its snapshots hold: what each holds alone, and what dropping some of them frees.

An object is held by the snapshots that reach it, and by those that reach a difference to it. Counted is what it takes
in a segment: frame, payload and row. Dropping frees it in the background, when enough of a segment is dead.

Invariants:
1. Pages that snapshots share are read once for all of them, in each direction: the first and the last snapshot that
   hold an object are found by two walks, from the oldest on and from the newest on. What holds it alone is both.
2. What is reported as freed is held by no other snapshot, of the history or of a branch.
3. Memory: four bytes for each object number there is, a bit in the second walk; by path also a sum for each file that
   has something.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from snapfs.base.blocks import ROOT_INO, Ino, Number
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES, Pointer, Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import has_more_bases
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.name_search import walk
from snapfs.store.tables.reachability import Walk
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree

_SHIFT: Final = 13
_LOW: Final = (1 << _SHIFT) - 1
_NO_FILE: Final = Ino(0)
TABLES: Final = b""
"""In place of a path: what belongs to no file, such as pages of the inode table."""


@dataclass(slots=True)
class HeldBytes:
    """Objects, and the bytes that they take in the store."""

    objects: int = 0
    stored_bytes: int = 0

    def add(self, stored_bytes: int) -> None:
        self.objects += 1
        self.stored_bytes += stored_bytes


@dataclass(slots=True)
class Freed:
    """What dropping a set of snapshots frees: as a whole, and `by_path` if that was asked for."""

    held: HeldBytes = field(default_factory=HeldBytes)
    by_path: dict[bytes, HeldBytes] = field(default_factory=dict)


class _Object(NamedTuple):
    number: Number
    stored_bytes: int
    ino: Ino


class _FirstHolders:
    """The first snapshot that holds each object, by position."""

    def __init__(self) -> None:
        self._granules: dict[int, array[int]] = {}

    def note(self, number: int, at: int) -> None:
        granule = self._granules.get(number >> _SHIFT)
        if granule is None:
            granule = self._granules[number >> _SHIFT] = array("I", bytes(4 << _SHIFT))
        granule[number & _LOW] = granule[number & _LOW] or at + 1

    def of(self, number: int) -> int:
        return self._granules[number >> _SHIFT][number & _LOW] - 1


def held_alone(repository: Repository, snapshots: Sequence[SnapshotRecord]) -> list[HeldBytes]:
    """What each of the snapshots, which are all there are, holds alone. Raises CorruptionError, OSError."""
    first, forward = _FirstHolders(), _walk(repository)
    for at, snapshot in enumerate(snapshots):
        for held in _objects(repository, forward, snapshot):
            first.note(held.number, at)
    alone = [HeldBytes() for _ in snapshots]
    backward, done = _walk(repository), NumberSet()
    for at in range(len(snapshots) - 1, -1, -1):
        for held in _objects(repository, backward, snapshots[at]):
            if done.add(held.number) and first.of(held.number) == at:
                alone[at].add(held.stored_bytes)
    return alone


def freed_by_dropping(
    repository: Repository, dropped: Sequence[SnapshotRecord], kept: Sequence[SnapshotRecord], *, by_path: bool = False
) -> Freed:
    """What is in the store for the `dropped` snapshots and none of the `kept` ones. Raises CorruptionError, OSError.

    `by_path`: also for each path, as the newest of the dropped snapshots has it; what several files share is that of
    the first of them.
    """
    walked, done, freed = _walk(repository), NumberSet(), Freed()
    for snapshot in kept:
        for held in _objects(repository, walked, snapshot):
            done.add(held.number)
    for snapshot in reversed(dropped):
        sums: dict[Ino, HeldBytes] = {}
        for held in _objects(repository, walked, snapshot):
            if done.add(held.number):
                freed.held.add(held.stored_bytes)
                sums.setdefault(held.ino, HeldBytes()).add(held.stored_bytes)
        if by_path:
            _add_by_path(freed.by_path, SnapshotTree(repository, snapshot.root), sums)
    return freed


def _walk(repository: Repository) -> Walk:
    def failed(pointer: Pointer, error: Exception) -> None:
        raise error

    return Walk(repository, failed)


def _objects(repository: Repository, walked: Walk, snapshot: SnapshotRecord) -> Iterator[_Object]:
    """What the walk had not come to before, each with the full objects that it is a difference to; and the copy of the
    record. Raises CorruptionError."""
    for visit in walked.visits(snapshot.root):
        row = repository.index.locate(visit.pointer.number)[1]
        yield _object(row, visit.ino)
        if row.base:
            bases = repository.objects.bases_of(row.number) if has_more_bases(row) else (row.base,)
            for base in bases:
                yield _object(repository.index.locate(base)[1], visit.ino)
    copy = repository.index.peek(snapshot.last_number)
    if copy is not None:
        yield _object(copy, _NO_FILE)


def _object(row: Row, ino: Ino) -> _Object:
    return _Object(row.number, FRAME_BYTES + row.stored + ROW_BYTES, ino)


def _add_by_path(found: dict[bytes, HeldBytes], tree: SnapshotTree, sums: dict[Ino, HeldBytes]) -> None:
    names = {_NO_FILE: TABLES, ROOT_INO: b"."}
    wanted = sums.keys() - names.keys()
    for ino, path in _names_of(tree, set(wanted)) if wanted else ():
        names.setdefault(ino, path)
    for ino, held in sums.items():
        total = found.setdefault(names.get(ino, TABLES), HeldBytes())
        total.objects += held.objects
        total.stored_bytes += held.stored_bytes


def _names_of(tree: SnapshotTree, inodes: set[Ino]) -> Iterator[tuple[Ino, bytes]]:
    """A name of each, folders too; the walk ends when all are found."""
    left = set(inodes)

    def listing(parent: InodeRecord) -> Iterator[tuple[DirEntry, DirEntry | None]]:
        return ((entry, None) for entry in tree.entries(parent))

    for path, entry, _ in walk(tree, listing, lambda ino: bool(left)):
        if entry.ino in left:
            left.discard(entry.ino)
            yield entry.ino, path
        if not left:
            return


def summed_to_depth(by_path: dict[bytes, HeldBytes], depth: int) -> list[tuple[bytes, HeldBytes]]:
    """The sums of folders, with all that is in them, down to `depth` names; the largest first."""
    sums: Counter[bytes] = Counter()
    objects: Counter[bytes] = Counter()
    for path, held in by_path.items():
        top = path if path in (TABLES, b".") else b"/".join(path.split(b"/")[:depth]) or b"."
        sums[top] += held.stored_bytes
        objects[top] += held.objects
    return [(path, HeldBytes(objects[path], size)) for path, size in sums.most_common()]
