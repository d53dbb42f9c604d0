"""Claims of a volume's generation at its targets, before it is written.

`claim`, at each mount, claims the volume's generation (again) at the mirrors and object stores (both are called mirrors
here) among the volume's targets (claim_requests.py). Folders are claimed by the agent, a moment later. `take_over`
makes this host the writer on purpose, in a generation of its own.

Invariants:
1. A mirror that reports that another host took over makes the volume a fenced one (fence.py), durably, before it is
   mounted; an earlier fencing stays until every mirror that answers grants the claim.
2. A mirror that does not answer in time stops nothing, unless the settings want so many claims before the
   first write (`replication.claim = "require"`): a mirror only ever accepts pushes of its writer anyway.
3. `take_over` has written "taken-over" to the log before it claims: a crash leaves a volume that claims at its next
   mount.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import BusyError, CorruptionError, UserError
from snapfs.base.volumes.volume import Volume
from snapfs.base.writer_id import writer_id_of
from snapfs.store.log.claims import ClaimWriter, taken_over_in
from snapfs.store.log.peers import NotAsked, lines, not_asked
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import LOG
from snapfs.transfer.failover.claim_requests import Claims, claim_at_all, mirrors_of, query_targets
from snapfs.transfer.failover.fence import least_there
from snapfs.transfer.failover.fence_file import FENCE_FILE, Fenced, read_fenced, write_fenced
from snapfs.transfer.lazy.generation_claim import peer_fields, unreached_lines


@dataclass(frozen=True, slots=True)
class OwnTakeover:
    """A host became the writer of its own volume, which goes on from `snapshot`. `unreached`, `not_asked`: as in a
    RemountReport."""

    generation: Generation
    snapshot: int
    cut_time_ns: int
    unreached: list[str]
    not_asked: list[NotAsked]

    def lines(self) -> list[str]:
        """The report for people."""
        begins = f"generation {self.generation} begins: this host is the writer, and the last one is fenced off"
        return [begins, *unreached_lines(self.unreached), *lines(self.not_asked, self.snapshot, self.cut_time_ns)]


def claim(volume: Volume, disk: Disk) -> list[str]:
    """Claim the volume's generation at its mirrors; returns warnings for people. The volume is locked.

    Raises BusyError if too few grant it and the settings require them; UserError, OSError.
    """
    targets = mirrors_of(volume)
    if not targets:
        return []
    repository = _open_store(volume, disk)
    if repository is None:
        return []  # nothing was ever sealed here, so there is nothing to fence
    try:
        ours = ClaimWriter(volume.generation, writer_id_of(volume.path), taken_over_in(repository.events()))
    finally:
        repository.close()
    claims = claim_at_all(targets, ours, volume.volume_id)
    if claims.fenced:
        return [_fence(volume, claims, disk)]
    known = read_fenced(volume.path)
    if known is not None and not claims.silent and claims.granted:
        _unfence(volume, disk)
        known = None
    wanted = volume.config.replication.copies
    if len(claims.granted) < wanted and volume.config.replication.claim == "require" and known is None:
        absent = "it has no such volume, or none for this token (`snapfs-replicator push --once` would make it)"
        silent = [*claims.silent.items(), *((name, absent) for name in claims.unknown)]
        why = "; ".join(f"{name}: {words}" for name, words in silent)
        raise BusyError(
            f"{wanted} mirrors must let this host write before it does (replication.claim = require), and "
            f"{len(claims.granted)} did: {why or 'there are no more'}"
        )
    return [f"{name} could not confirm that this host still writes: {why}" for name, why in claims.silent.items()]


def take_over(volume: Volume, disk: Disk) -> OwnTakeover:
    """Make this host the writer of a volume that another has taken over, or that was moved.

    What the other wrote stays on the targets as a branch (`before-generation-N`). Raises BusyError if too few mirrors
    can be reached, or if another host takes over at the same time.
    """
    targets, writer_id = mirrors_of(volume), writer_id_of(volume.path)
    volume.lock("taking over")
    try:
        repository = _open_store(volume, disk, readonly=False)
        if repository is None:
            raise UserError(f"{volume.path} has no snapshot: there is nothing to take over")
        with contextlib.closing(repository):
            queried, known = query_targets(volume), None
            highest = max(volume.generation, queried.generation)
            with contextlib.suppress(CorruptionError):  # damaged, and goes; one of a later format is refused
                known = read_fenced(volume.path)
                highest = max(highest, known.by_generation if known is not None else 0)
            generation = volume.bump_generation(highest + 1)
            base, cut_time_ns = _base(known, repository)
            peers = not_asked(queried.answered, queried.failed)
            repository.record_event(
                "taken-over", generation=generation, holder=writer_id, snapshot=base, **peer_fields(peers)
            )
        claims = claim_at_all(targets, ClaimWriter(generation, writer_id, generation), volume.volume_id, base)
        wanted = min(volume.config.replication.copies, len(targets))
        if claims.fenced or len(claims.granted) + len(claims.unknown) < wanted:
            why = [f"{name}: generation {number} is {who}'s" for name, (number, who, _) in claims.fenced.items()]
            why += [f"{name}: {words}" for name, words in claims.silent.items()]
            raise BusyError(f"too few mirrors let this host take over ({'; '.join(why)}): try again")
        _unfence(volume, disk)
        unreached = [f"{url} ({why})" for url, why in queried.failed.items()]
        return OwnTakeover(generation, base, cut_time_ns, unreached, peers)
    finally:
        volume.unlock()


def _base(known: Fenced | None, repository: Repository) -> tuple[SnapshotNumber, int]:
    """The snapshot that a takeover goes on from, and its time: the winner's base if that was reported, else our newest.

    0 if there is none; the time is that of an older snapshot if the base is not here any more.
    """
    latest = repository.latest()
    newest = latest.number if latest is not None else SnapshotNumber(0)
    base = SnapshotNumber(known.base) if known is not None and known.base_is_reported else newest
    records = (record for record in repository.snapshots() if record.number <= base)
    return base, max((record.cut_time_ns for record in records), default=0)


def _open_store(volume: Volume, disk: Disk, *, readonly: bool = True) -> Repository | None:
    if not os.path.exists(os.path.join(volume.store_dir, LOG)):
        return None
    identity = StoreIdentity(volume.volume_id, volume.seed)
    return Repository.open(volume.store_dir, identity, disk, readonly=readonly)


def _fence(volume: Volume, claims: Claims, disk: Disk) -> str:
    """Record durably that another host writes; returns the warning."""
    name, (generation, writer_id, _) = max(claims.fenced.items(), key=lambda item: item[1][0])
    known = read_fenced(volume.path)
    base = min((snapshot for _, _, snapshot in claims.fenced.values() if snapshot), default=0)
    fenced = Fenced(
        volume.generation, generation, writer_id, name, time.time_ns(), base or _last_replicated(volume),
        base_is_reported=bool(base),
    )  # fmt: skip
    if known is not None:
        fenced = known
    else:
        write_fenced(volume.path, fenced, disk)
    return str(fenced)


def _unfence(volume: Volume, disk: Disk) -> None:
    """Record durably that this host is the writer. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink("fence:lift", os.path.join(volume.path, FENCE_FILE))
        disk.sync_dir("fence:lift", volume.path)


def _last_replicated(volume: Volume) -> int:
    from snapfs.store.log import replica_state

    found = replica_state.read(replica_state.path_of(volume.path), volume.volume_id)
    return least_there(found.targets) if found is not None else 0
