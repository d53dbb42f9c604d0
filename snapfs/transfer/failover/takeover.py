"""Taking over a standby: it becomes the volume that is written, from what is on this host.

Steps: end the standby's process; claim the next generation at its sources; take in what they were pushed until then;
let the live tree become the newest good snapshot; remove standby.json, the commit point. A crash before that leaves a
standby, and the takeover begins anew. What the tree does not have yet is read from the volume's own store.

Invariants:
1. Before a standby becomes the writer it has claimed the next generation at its sources, unless it is forced.
2. It has taken in every snapshot that they had been pushed before that claim.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import Final

from snapfs.base.blocks import ROOT_INO, Disk, Generation, SnapshotNumber
from snapfs.base.errors import BusyError, CorruptionError, SnapfsError, UserError
from snapfs.base.settings import exclusion
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import STANDBY_FILE
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.base.writer_id import writer_id_of
from snapfs.store.gates.gates import NO_GATES, Gates
from snapfs.store.ingest.hold_writer import take_in
from snapfs.store.log import snapshot_records
from snapfs.store.log.peers import NotAsked, lines
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.failover.standby_apply import ReplicaTree
from snapfs.transfer.failover.standby_file import STANDING_BY, read_standby
from snapfs.transfer.failover.standby_volume import Standby
from snapfs.transfer.lazy.generation_claim import (
    claim_generation,
    correct_claim,
    peer_fields,
    pushed_meanwhile,
    unqueried_peers,
    unreached_lines,
)
from snapfs.transfer.lazy.origin_file import ORIGIN_FILE, OriginFile, write_origin
from snapfs.transfer.lazy.passed_gates import drill_lines, take_in_gates
from snapfs.transfer.lazy.snapshot_choice import lineage_order
from snapfs.transfer.sources.late_source import LateSource
from snapfs.transfer.sources.people_holds import held_by_people
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import late_source

log = logging.getLogger(__name__)

HANDOVER_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class TakeoverReport:
    """What was taken over. `is_whole`: the live tree has everything, and nothing has to come from the store.

    `unreached`, `not_asked`, `exclude` and `gates`: as in a RemountReport.
    """

    snapshot: SnapshotNumber
    cut_time_ns: int
    generation: Generation
    is_whole: bool
    unreached: list[str]
    not_asked: list[NotAsked]
    exclude: tuple[str, ...] = ()
    gates: Gates = NO_GATES

    def lines(self) -> list[str]:
        """The report for people."""
        age_s = max(time.time() - self.cut_time_ns / 1e9, 0)
        taken = f"snapshot {self.snapshot}, {age_s:.0f} s old, is taken over from this host's standby"
        more = [] if self.is_whole else ["not all of it is in the live tree yet: the rest comes from this host's store"]
        more += [*unreached_lines(self.unreached), *lines(self.not_asked, self.snapshot, self.cut_time_ns)]
        more += drill_lines(self.gates, self.snapshot)
        more += exclusion.remarks(self.exclude, self.snapshot)
        return [f"{taken}; generation {self.generation} begins", *more]


def take_over(path: str, disk: Disk, *, force: bool = False) -> TakeoverReport | None:
    """Make a standby the volume that is written; None if the folder is no standby. Its process is ended first.

    Raises BusyError if the last writer cannot be fenced off and `force` is not set; UserError without a good snapshot.
    """
    known = read_standby(path)
    if known is None:
        return None
    end_process(path)
    with contextlib.ExitStack() as parts:
        sources = [parts.enter_context(contextlib.closing(late_source(each, known.access))) for each in known.sources]
        report = _take_over_from(path, sources, disk, force)
    disk.unlink("standby:done", os.path.join(path, STANDBY_FILE))
    disk.sync_dir("standby:done", path)
    return report


def _take_over_from(path: str, sources: list[LateSource], disk: Disk, force: bool) -> TakeoverReport:
    """All steps but the commit point."""
    volume, writer_id = Volume.open(path, disk), writer_id_of(path)
    repository = _open_store(volume, disk)
    try:
        record = newest_mountable(repository)
        raise_generation(volume, record)
        claim = claim_generation(volume, sources, writer_id, force, record.number)
        if pushed_meanwhile(sources, repository.snapshots(), force):
            repository.close()
            _receive_the_rest(path, disk, force)
            repository = _open_store(volume, disk)
            record = newest_mountable(repository)
            correct_claim(sources, claim.generation, writer_id, record.number)
        take_in(repository, held_by_people(sources, record.number), "takeover")
        take_in_gates(repository, sources, "takeover")
        gates = repository.catalog.gates(record.number)
        is_whole = _leave_live_tree(volume, repository, record, disk)
        peers = unqueried_peers(sources, claim)
        repository.record_event(
            "remounted", snapshot=record.number, generation=claim.generation,
            sources=[source.name for source in sources], **peer_fields(peers),
        )  # fmt: skip
    finally:
        repository.close()
    return TakeoverReport(
        record.number, record.cut_time_ns, claim.generation, is_whole, claim.unreached, peers, record.cut.exclude, gates
    )


def _open_store(volume: Volume, disk: Disk) -> Repository:
    return Repository.open(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), disk)


def _receive_the_rest(path: str, disk: Disk, force: bool) -> None:
    """Receive what a source was pushed before our claim and is not here yet: it was acknowledged to the last writer."""
    standby = Standby(path, (), Access(), disk)
    try:
        for received in standby.catch_up():
            log.info("snapshot %d came in before taking over", received.record.number)
    except (OSError, SnapfsError) as error:
        if not force:
            why = "a newer snapshot is there, which was acknowledged to the last writer"
            raise BusyError(f"{error}: {why}; try again, or give --force to go on without it") from None
        log.warning("%s: the newest snapshot there is left behind", error)
    finally:
        standby.close()


def _leave_live_tree(volume: Volume, repository: Repository, record: SnapshotRecord, disk: Disk) -> bool:
    """Leave a live tree that is this snapshot; whether all of it is there.

    If not, origin.json without sources makes the next mount read the rest from the volume's own store.
    """
    replica = ReplicaTree(volume, repository, disk)
    try:
        replica.become(record)
        absent = replica.has_absent()
        replica.hand_over()
    finally:
        replica.close()
    if absent:
        origin = OriginFile([], snapshot_records.to_fields(record), writer_id_of(volume.path))
        write_origin(volume.path, origin, disk)
    else:
        with contextlib.suppress(FileNotFoundError):  # of a takeover that a crash cut short
            disk.unlink("standby:origin", os.path.join(volume.path, ORIGIN_FILE))
    return not absent


def newest_mountable(repository: Repository) -> SnapshotRecord:
    """The newest good snapshot whose root directory can be read. Raises UserError if there is none."""
    for record in sorted(repository.snapshots(), key=lineage_order, reverse=True):
        with contextlib.suppress(CorruptionError, OSError):
            tree = SnapshotTree(repository, record.root)
            root = tree.inode(ROOT_INO)
            if record.state == GOOD and root is not None:
                next(tree.entries(root), None)
                return record
    raise UserError(f"{repository.store_dir} has no snapshot that can be taken over: `snapfs list` shows what it has")


def raise_generation(volume: Volume, record: SnapshotRecord) -> None:
    """Make the volume's generation higher than that of the snapshot's writer."""
    if volume.generation <= record.generation:
        volume.lock("taking over")
        try:
            volume.bump_generation(record.generation + 1)
        finally:
            volume.unlock()


def end_process(path: str) -> None:
    """Send the standby's process SIGTERM and wait until it releases the volume's lock.

    Raises BusyError if another process has the lock, or if the standby does not end within HANDOVER_S.
    """
    deadline = time.monotonic() + HANDOVER_S
    signalled = False
    while (holder := lock_holder(path)) is not None:
        word, _, rest = holder.partition(" ")
        pid, _, purpose = rest.partition(", ")
        if word != "process" or not pid.isdecimal() or not purpose.startswith(STANDING_BY):
            raise BusyError(f"{path} is in use by {holder}")
        if not signalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
            signalled = True
        if time.monotonic() > deadline:
            raise BusyError(f"{path}: the standby (process {pid}) does not end: stop it first")
        time.sleep(0.02)
