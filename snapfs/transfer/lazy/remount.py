"""Remount: a volume that begins on this host from what another one left at a source, and fetches as it goes.

The volume is built in `VOLUME.partial` and renamed when it can be mounted: a store with the log of one snapshot and no
objects but those of its root directory, a namespace in which only the root is loaded, and `origin.json`, which names
the sources of the rest. That file is removed when everything is here: then it is a volume like any other.

Invariants:
1. `VOLUME` does not exist, or can be mounted. A crash leaves `VOLUME.partial`, which belongs to no process: the next
   attempt removes it.
2. It is the same volume (id and seed) in a new generation, claimed at every source that knows claims before the volume
   can be mounted (generation_claim.py). Object numbers, inode numbers and snapshot numbers go on from those of the
   snapshot, which snapshot_choice.py chooses.
3. Time and bytes do not depend on the size of the state.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import BusyError, UserError
from snapfs.base.settings import exclusion
from snapfs.base.staged_folder import building_folder
from snapfs.base.volumes.volume import Volume
from snapfs.base.writer_id import writer_id_of
from snapfs.store.gates.gates import NO_GATES, Gates, Requirement
from snapfs.store.ingest.hold_writer import take_in
from snapfs.store.lazy.fetched_objects import FetchedObjects
from snapfs.store.log import branches, snapshot_records
from snapfs.store.log.holds import Holds
from snapfs.store.log.peers import NotAsked, lines
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.transfer.lazy import snapshot_hold
from snapfs.transfer.lazy.generation_claim import (
    ClaimedGeneration,
    claim_generation,
    correct_claim,
    peer_fields,
    pushed_meanwhile,
    unqueried_peers,
    unreached_lines,
)
from snapfs.transfer.lazy.origin_file import OriginFile, read_origin, write_origin
from snapfs.transfer.lazy.passed_gates import drill_lines, take_in_gates
from snapfs.transfer.lazy.root_namespace import fill_root
from snapfs.transfer.lazy.snapshot_choice import branch_of, is_meant, newest_usable, requiring, snapshots_of
from snapfs.transfer.lazy.takeover_keys import encryption_settings, wrapped_keys_of, write_keys
from snapfs.transfer.sources.fetcher import Fetcher
from snapfs.transfer.sources.people_holds import held_by_people
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import late_source
from snapfs.transfer.sources.sources import Origin, Source

BEGIN_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class RemountReport:
    """What was taken over.

    `passed_over`: newer snapshots that could not be used or did not pass what was required, each with the reason.
    `unreached`: sources that may have newer snapshots and could not be reached. `not_asked`: those, and targets that
    the sources know of and that were not named. `is_apart`: the snapshot begins another volume, and no writer was
    fenced off.
    """

    snapshot: SnapshotNumber
    name: str | None
    cut_time_ns: int
    generation: Generation
    bytes: int
    seconds: float
    passed_over: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    not_asked: list[NotAsked] = field(default_factory=list)
    is_apart: bool = False
    branch: str = ""
    exclude: tuple[str, ...] = ()
    """The patterns of what the snapshot was made without."""
    gates: Gates = NO_GATES
    """What the snapshot has passed, where another writer was fenced off."""

    def lines(self) -> list[str]:
        """The report for people."""
        age_s = max(time.time() - self.cut_time_ns / 1e9, 0)
        named = f" {self.name}" if self.name else ""
        if self.is_apart:
            number = f"{self.branch}/{self.snapshot}" if self.branch else self.snapshot
            begins = f"snapshot {number}{named}, {age_s:.0f} s old, begins a volume of its own"
            return [*self.passed_over, f"{begins}; no writer is fenced off", *exclusion.remarks(self.exclude, number)]
        taken = f"snapshot {self.snapshot}{named}, {age_s:.0f} s old, is taken over"
        more = [*unreached_lines(self.unreached), *lines(self.not_asked, self.snapshot, self.cut_time_ns)]
        more += exclusion.remarks(self.exclude, self.snapshot)
        failed = [f"{line}; --require drilled takes one that passed" for line in drill_lines(self.gates, self.snapshot)]
        return [*self.passed_over, f"{taken}; generation {self.generation} begins", *failed, *more]


def remount(
    path: str,
    places: Sequence[str],
    disk: Disk,
    *,
    access: Access | None = None,
    force: bool = False,
    snapshot: str | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    apart: bool = False,
    requirement: Requirement | None = None,
) -> RemountReport | None:
    """Make the volume `path` of what `places` (URLs and folders) have; None if an earlier remount is gone on with.

    `snapshot`: this one, by number or name, instead of the newest good one. `requirement`: the newest that has passed
    this gate. `apart`: a volume of its own (another id,
    no claim, no targets), as a clone is; else the same volume in its next generation. `force`: also where a source that
    could fence the last writer off cannot be reached or does not grant the claim. Raises UserError, BusyError and what
    the sources raise; nothing is left behind then.
    """
    path, access = os.path.abspath(path), access or Access()
    if Volume.exists(path):
        _go_on(path, places, access, disk, snapshot)
        return None
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise UserError(f"{path} exists, and is no volume: name a folder that does not exist yet")
    sources: list[Source] = [late_source(place, access, whole_history=snapshot is not None) for place in places]
    making = _Remount(
        path, sources, access, disk, snapshot, force=force, apart=apart, settings=settings or {},
        requirement=requirement,
    )  # fmt: skip
    try:
        with building_folder(path, disk) as building:
            if Volume.exists(path):
                raise BusyError(f"{path} was made by another process meanwhile: mount it without --from")
            report = making.build(building)
            disk.rename("remount:publish", building, path)
    finally:
        for source in sources:
            source.close()
    disk.sync_dir("remount:publish", os.path.dirname(path))
    return report


def _go_on(path: str, places: Sequence[str], access: Access, disk: Disk, snapshot: str | None) -> None:
    """Let a volume that was begun before fetch the rest from these places."""
    known = read_origin(path)
    if known is not None and snapshot is not None and not is_meant(known.record, snapshot):
        begun = branches.reference(known.record)
        raise UserError(f"{path} was begun with snapshot {begun}: name a new volume for another one")
    if known is None:
        raise UserError(
            f"{path} is a volume already, and all of it is here: mount it without --from, or name a new volume "
            f"(and give --from {path} as well, so that what it has is not fetched)"
        )
    if (list(places), access) != (known.sources, known.access):
        write_origin(path, msgspec.structs.replace(known, sources=list(places), access=access), disk)


class _Remount:
    """One volume in the making."""

    def __init__(
        self, path: str, sources: list[Source], access: Access, disk: Disk, wanted: str | None, *,
        force: bool, apart: bool, settings: dict[str, dict[str, Any]], requirement: Requirement | None,
    ) -> None:  # fmt: skip
        self._path, self._sources, self._access, self._disk, self._wanted = path, sources, access, disk, wanted
        self._force, self._apart, self._settings = force, apart, settings
        self._requirement, self._newer, self._listed = requirement, list[str](), list[SnapshotRecord]()
        self._started_s = time.monotonic()

    def build(self, building: str) -> RemountReport:
        """Build the volume in the folder `building`. Raises as `remount` does."""
        origin, snapshots = snapshots_of(self._sources)
        if self._apart and self._wanted is not None and not any(is_meant(each, self._wanted) for each in snapshots):
            snapshots = branch_of(self._sources, self._wanted)
        self._listed = snapshots
        snapshots, self._newer = requiring(self._sources, snapshots, self._requirement)
        volume = self._create(building, origin)
        identity = StoreIdentity(volume.volume_id, volume.seed)
        Repository.create(volume.store_dir, identity, self._disk).close()
        FetchedObjects(volume.store_dir, self._disk).close()
        repository = Repository.open(volume.store_dir, identity, self._disk)
        try:
            lazy = repository.lazy
            assert lazy is not None
            fetcher = Fetcher(lazy, self._sources, wait_s=BEGIN_WAIT_S)
            lazy.attach(fetcher)
            try:
                report = self._fill(volume, repository, fetcher, snapshots)
                lazy.places.fetched.sync()
            finally:
                lazy.detach()
                fetcher.close()
        finally:
            repository.close()
        return replace(report, seconds=time.monotonic() - self._started_s)

    def _create(self, building: str, origin: Origin) -> Volume:
        keys = b"" if self._apart else wrapped_keys_of(self._sources)
        volume = Volume.create(
            building, self._disk, seed=origin.identity.seed,
            volume_id=None if self._apart else origin.identity.volume_id,
            generation=origin.generation + 1,
            settings=_merged(encryption_settings(self._access, keys), self._settings),
        )  # fmt: skip
        write_keys(building, keys, self._disk)
        return volume

    def _fill(
        self, volume: Volume, repository: Repository, fetcher: Fetcher, snapshots: list[SnapshotRecord]
    ) -> RemountReport:
        """Choose the snapshot, claim the generation, and write what a mount needs."""
        record, tree, passed_over = newest_usable(repository, fetcher, snapshots, self._wanted)
        writer_id = writer_id_of(self._path)
        claim = ClaimedGeneration(volume.generation, {})
        peers: list[NotAsked] = []
        if not self._apart:
            claim = claim_generation(volume, self._sources, writer_id, self._force, record.number)
            if pushed_meanwhile(self._sources, self._listed, self._force):
                newer, self._newer = requiring(self._sources, snapshots_of(self._sources)[1], self._requirement)
                record, tree, passed_over = newest_usable(repository, fetcher, newer, self._wanted)
                correct_claim(self._sources, claim.generation, writer_id, record.number)
            peers = unqueried_peers(self._sources, claim)
        fill_root(volume, repository, tree, self._disk)
        snapshot_hold.hold(Holds(volume.store_dir, self._disk), record.number)
        repository.lazy_history.adopt(record)
        if not self._apart:
            take_in(repository, held_by_people(self._sources, record.number), "mount --from")
            take_in_gates(repository, self._sources, "mount --from")
        self._record(volume, repository, record, claim.generation, peers, writer_id)
        return RemountReport(
            record.number, record.name, record.cut_time_ns, claim.generation,
            sum(state.bytes for state in fetcher.states.values()), 0.0,
            [*self._newer, *passed_over], claim.unreached, peers, self._apart, record.branch,
            record.cut.exclude, repository.catalog.gates(record.number),
        )  # fmt: skip

    def _record(
        self, volume: Volume, repository: Repository, record: SnapshotRecord, generation: Generation,
        peers: list[NotAsked], writer_id: str,
    ) -> None:  # fmt: skip
        """Write the event to the log, and origin.json."""
        places = [source.name for source in self._sources]
        repository.record_event(
            "remounted", snapshot=record.number, generation=generation, sources=places, **peer_fields(peers)
        )
        fields = snapshot_records.to_fields(record)
        origin = OriginFile(places, fields, writer_id, self._access, branch=record.branch)
        write_origin(volume.path, origin, self._disk)


def _merged(*settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables of all settings; a later value replaces an earlier one."""
    found: dict[str, dict[str, Any]] = {}
    for tables in settings:
        for section, table in tables.items():
            found[section] = {**found.get(section, {}), **table}
    return found
