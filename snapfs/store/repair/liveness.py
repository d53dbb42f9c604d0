"""What is alive: the objects that snapshots need.

Invariant: `live_numbers` is complete or raises; a caller that frees space by it may rely on all else being dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repair.damage_report import bases_of, row_of
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.reachability import Walk


def live_numbers(
    repository: Repository, records: Iterable[SnapshotRecord], pause: Callable[[], None] = lambda: None
) -> NumberSet:
    """The numbers of all objects that these snapshots need, bases of differences included.

    `pause` is called between objects, to let others run or to raise. Raises CorruptionError, VersionError or OSError if
    that is not known for certain.
    """

    def failed(pointer: Pointer, error: Exception) -> None:
        raise error

    walk, live = Walk(repository, failed), NumberSet()
    for record in records:
        live.add(record.last_number)  # the copy of the record itself
        for visit in walk.visits(record.root):
            pause()
            row = row_of(repository, visit.pointer)
            for number in (row.number, *bases_of(repository, row)):
                live.add(number)
    return live
