"""What is known of a volume at one moment, gathered from its open store and its history.

Invariant: what is gathered for the list of volumes costs the same however many snapshots there are, but for what was
appended to the log since the last time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from replicator.console.views.volume_history import Drill, drill_of
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.store.gates.gates import NO_GATES, Gates
from snapfs.store.log.holds import FOR_EVER_S, Hold, holder_of
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.repository.store_folders import LOG


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """Bytes, and ns since 1970. `last_drill` None: no record of one."""

    name: str
    encrypted: bool
    generation: int
    writer_id: str
    snapshots: int
    newest: SnapshotRecord | None
    newest_received_ns: int
    damaged: int
    stored_bytes: int
    staged_bytes: int
    last_drill: Drill | None


@dataclass(frozen=True, slots=True)
class HeldFor:
    """A hold on one snapshot. `until_ns` None: for ever."""

    who: str
    until_ns: int | None
    why: str
    is_person: bool


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """One snapshot with what happened to it. `locked_until_ns` 0: no lock keeps it."""

    record: SnapshotRecord
    received_ns: int
    gates: Gates
    copies: frozenset[str]
    holds: tuple[HeldFor, ...]
    locked_until_ns: int
    is_newest: bool


def log_path(volume: MirrorVolume) -> str:
    return os.path.join(volume.volume.store_dir, LOG)


def gather(volume: MirrorVolume) -> VolumeFacts:
    """Raises OSError."""
    repository, newest = volume.repository, volume.repository.latest()
    last_drill = repository.catalog.last_drill
    return VolumeFacts(
        name=volume.name,
        encrypted=volume.encrypted is not None,
        generation=volume.generation,
        writer_id=volume.writer_id,
        snapshots=len(repository.catalog),
        newest=newest,
        newest_received_ns=volume.receiver.received_ns.get(newest.number, 0) if newest is not None else 0,
        damaged=repository.catalog.damaged_count,
        stored_bytes=sum(info.size for info in repository.index.segments()),
        staged_bytes=sum(part.size for part in volume.receiver.staging.parts()),
        last_drill=drill_of(last_drill) if last_drill is not None else None,
    )


Holding = Mapping[int, tuple[HeldFor, ...]]


def holds_of(volume: MirrorVolume) -> Holding | None:
    """By snapshot; None: the holds cannot be read, and count as holding everything. Raises OSError."""
    now_ns, found = volume.repository.clock(), dict[int, tuple[HeldFor, ...]]()
    try:
        known = volume.retention.holds.all()
    except SnapfsError:
        return None
    for hold in known:
        for number in hold.snapshots:
            is_person = hold.holder == holder_of(number)
            who = "a person" if is_person else hold.holder.removeprefix("remote.")
            held = HeldFor(who, _until(hold, now_ns), hold.why, is_person)
            found[number] = (*found.get(number, ()), held)
    return found


def _until(hold: Hold, now_ns: int) -> int | None:
    """When it ends; None for one that was taken for ever."""
    return None if hold.expires_ns - now_ns > FOR_EVER_S * 1e9 / 2 else hold.expires_ns


def snapshot_facts(volume: MirrorVolume, records: Iterable[SnapshotRecord], holds: Holding) -> list[SnapshotFacts]:
    """Raises OSError."""
    lock_ns, now_ns = int(volume.retention.lock_s * 1e9), volume.repository.clock()
    catalog = volume.repository.catalog
    newest, found = catalog.newest(), list[SnapshotFacts]()
    for record in records:
        received_ns = volume.receiver.received_ns.get(record.number, 0) if not record.branch else 0
        until_ns = (received_ns or now_ns) + lock_ns
        gates = catalog.gates(record.number) if not record.branch else NO_GATES
        copies = catalog.copies(record.number) if not record.branch else frozenset()
        found.append(
            SnapshotFacts(
                record, received_ns, gates, copies, holds.get(record.number, ()),
                until_ns if lock_ns and until_ns > now_ns else 0, record.number == newest and not record.branch,
            )
        )  # fmt: skip
    return found


def page_of_numbers(volume: MirrorVolume, before: int, most: int) -> tuple[list[SnapshotRecord], list[SnapshotNumber]]:
    """Up to so many snapshots below a number (0: the newest), newest first; and the numbers of all."""
    catalog = volume.repository.catalog
    numbers = catalog.numbers()
    wanted = [number for number in numbers if number < before] if before else numbers
    records = [record for number in reversed(wanted[-most:]) if (record := catalog.get(number)) is not None]
    return records, numbers
