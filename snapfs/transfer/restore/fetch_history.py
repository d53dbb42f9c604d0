"""All of a target's history, fetched into a folder of this host as a volume that is listed, restored and mounted from.

Invariants:
1. Each object is verified, and a snapshot is there whole or not at all. One that cannot be fetched whole is left out
   and named; it does not stop the others.
2. It is idempotent: it can be interrupted at any time and done again, and what is in the folder already is not fetched
   twice. Done again later, it fetches what is new.
3. Nothing is changed at the target.
4. What people hold there is held here as well.
5. Branches there become branches here. They are fetched before the history: each of their snapshots is one of the
   history between its record and the log line that makes it one of a branch. A fetch that was interrupted in between
   writes that line when it is done again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from snapfs.base.blocks import Disk, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, UserError
from snapfs.base.staged_folder import building_folder
from snapfs.base.volumes.volume import Volume
from snapfs.store.ingest.hold_writer import take_in
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.log import snapshot_records
from snapfs.store.log.branches import reference
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol.object_stream import Item
from snapfs.store.repository.repository import Repository
from snapfs.transfer.common.receive_snapshot import receive_objects
from snapfs.transfer.lazy.passed_gates import take_in_gates
from snapfs.transfer.lazy.takeover_keys import write_keys
from snapfs.transfer.sources.people_holds import held_by_people
from snapfs.transfer.sources.sources import Origin, Source

FETCHING = "fetching"


@dataclass(slots=True)
class FetchedHistory:
    """What a fetch did. `branch_snapshots`: snapshots of branches that are here, which `snapshots` does not count.
    `left_out`: those that could not be fetched whole, by number or BRANCH/NUMBER, with the reason."""

    snapshots: int = 0
    branch_snapshots: int = 0
    new: int = 0
    fetched_bytes: int = 0
    left_out: dict[int | str, str] = field(default_factory=dict)


Progress = Callable[[int, int], None]


def fetch_history(
    source: Source, folder: str, disk: Disk, report_progress: Progress = lambda done, total: None
) -> FetchedHistory:
    """Fetch every good snapshot of the source into `folder`; `report_progress(done, total)` counts snapshots.

    Raises UserError if the folder is no volume of this history or has a live tree; BusyError, OSError, SnapfsError.
    """
    folder = os.path.abspath(folder)
    origin, wanted = source.origin(), [*source.branches(), *source.snapshots()]
    if not Volume.exists(folder):
        _make(source, origin, folder, disk)
    volume = Volume.open(folder, disk)
    if volume.volume_id != origin.identity.volume_id:
        raise UserError(f"{folder} is another volume than {source.name}: name a folder that does not exist yet")
    if os.path.exists(volume.namespace_path):
        raise UserError(f"{folder} is a volume with a live tree: name a folder that does not exist yet")
    volume.lock(f"{FETCHING} {source.name}")
    try:
        with _receiver(volume, disk) as receiver:
            return _Fetching(source, receiver).run(wanted, report_progress)
    finally:
        volume.unlock()


def _make(source: Source, origin: Origin, folder: str, disk: Disk) -> None:
    with building_folder(folder, disk) as building:
        volume = Volume.create(
            building, disk, seed=origin.identity.seed, volume_id=origin.identity.volume_id, generation=origin.generation
        )
        write_keys(building, source.keys(), disk)
        Repository.create(volume.store_dir, origin.identity, disk).close()
        disk.rename("fetch:publish", building, folder)
    disk.sync_dir("fetch:publish", os.path.dirname(folder))


@contextlib.contextmanager
def _receiver(volume: Volume, disk: Disk) -> Iterator[Receiver]:
    identity = StoreIdentity(volume.volume_id, volume.seed)
    repository = Repository.open(volume.store_dir, identity, disk, recovers_parts=True)
    with contextlib.closing(repository), contextlib.closing(Receiver(repository, disk)) as receiver:
        receiver.recover()
        yield receiver


class _Fetching:
    """One fetch into the store of `receiver`."""

    def __init__(self, source: Source, receiver: Receiver) -> None:
        self._source, self._receiver = source, receiver

    def run(self, wanted: list[SnapshotRecord], report_progress: Progress) -> FetchedHistory:
        report, catalog = FetchedHistory(), self._receiver.repository.catalog
        there = {(record.number, record.root) for record in wanted if not record.branch}
        for done, record in enumerate(wanted):
            report_progress(done, len(wanted))
            if record.branch:
                self._receive_branch(record, there, report)
            elif record.number not in catalog:
                self._receive(record, report)
        take_in(
            self._receiver.repository,
            held_by_people([self._source], catalog.newest() or 0),
            f"fetch {self._source.name}",
        )
        take_in_gates(self._receiver.repository, [self._source], f"fetch {self._source.name}")
        report.snapshots, report.branch_snapshots = len(catalog), len(catalog.branches())
        return report

    def _receive_branch(
        self, record: SnapshotRecord, there: set[tuple[SnapshotNumber, Pointer]], report: FetchedHistory
    ) -> None:
        repository = self._receiver.repository
        if any((each.branch, each.number) == (record.branch, record.number) for each in repository.catalog.branches()):
            return
        known = repository.catalog.get(record.number)
        if known is not None and (known.root != record.root or (known.number, known.root) in there):
            why = "this folder has another snapshot of that number already: fetch into a new one"
            report.left_out[reference(record)] = why
            return
        if known is None:
            self._receive(record, report)
        if record.number in repository.catalog:
            fields = {"snapshot": record.number, "branch": record.branch, "record": snapshot_records.to_fields(record)}
            repository.log.append("aside", fields)
            repository.catalog.remove(record.number)
            repository.catalog.add_branch(record)

    def _receive(self, record: SnapshotRecord, report: FetchedHistory) -> None:
        if record.state != GOOD:
            report.left_out[_key(record)] = "it is known to be damaged there"
            return
        try:
            _, size = receive_objects(self._receiver, record, self._request, self._source.name)
            self._receiver.commit([record], history=True, fence=lambda: None)
        except CorruptionError as error:
            report.left_out[_key(record)] = str(error)
            return
        report.new += 1
        report.fetched_bytes += size

    def _request(self, pointers: list[Pointer]) -> dict[Number, Item]:
        items = self._source.objects(pointers, urgent=False)
        return {item.frame.number: item for item in items if not item.is_absent}


def _key(record: SnapshotRecord) -> int | str:
    return reference(record) if record.branch else record.number
