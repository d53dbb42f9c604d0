"""Which snapshots lack something, without reading what files hold: the tables are walked, and chunks are looked for.

For a process that serves a store, or takes over from it, after a segment was lost (segment_list.py has when that may
be). Reading everything back is `verify`'s.

Invariant: a snapshot that is not named has all of its objects, with the bases of differences, in segments whose tables
check out. Of an encrypted store, which cannot be walked, every snapshot is named that may need what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapfs.base.blocks import Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.repair.damage_report import BadObjects, Needs, bases_of
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.required_objects import RequiredObjects
from snapfs.store.tables.reachability import Walk


def lacking(repository: Repository, records: Sequence[SnapshotRecord]) -> dict[SnapshotNumber, str]:
    """Those of the snapshots that lack something, each with what. Raises OSError."""
    if repository.identity.encrypted:
        return _lacking_encrypted(repository, records)
    bad = BadObjects()

    def failed(pointer: Pointer, error: Exception) -> None:
        bad.add(pointer.number, str(error))

    walk = Walk(repository, failed)
    for record in records:
        for visit in walk.visits(record.root):
            if visit.is_leaf:
                _look(repository, visit.pointer.number, bad)
    if not bad.numbers:
        return {}
    needs = Needs(repository, bad)
    first = min(bad.detailed)
    return {record.number: f"object {first:#x} is missing" for record in records if needs.is_affected(record)}


def _look(repository: Repository, number: Number, bad: BadObjects) -> None:
    row = repository.index.peek(number)
    if row is None:
        bad.add(number, "it is missing")
        return
    try:
        for base in bases_of(repository, row):
            if repository.index.peek(base) is None:
                bad.add(base, "it is missing")
    except (CorruptionError, SnapfsError) as error:
        bad.add(number, str(error))


def _lacking_encrypted(repository: Repository, records: Sequence[SnapshotRecord]) -> dict[SnapshotNumber, str]:
    missing_since: int | None = None
    for snapshot, numbers in RequiredObjects(repository.store_dir, repository.disk).by_snapshot():
        if any(repository.index.peek(Number(number)) is None for number in numbers):
            missing_since = snapshot if missing_since is None else min(missing_since, snapshot)
    found = {}
    for record in records:
        ends = (record.root.number, record.last_number)
        if any(repository.index.peek(number) is None for number in ends):
            found[record.number] = "its root or record is missing"
        elif missing_since is not None and record.number >= missing_since:
            found[record.number] = "objects that it may need are missing"
    return found
