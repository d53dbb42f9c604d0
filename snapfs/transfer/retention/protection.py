"""Which snapshots are not to be dropped, whatever rule or person asks, and why: one place that every drop asks.

Each asks at the moment it acts.

Invariants:
1. Nothing drops the newest snapshot (the next one builds on it), the newest good one (recovery uses it), the newest
   that counts as replicated (what a host that takes over would go on from), one that is held (store/log/holds.py: by a
   person, a mount, a clone, a reader, a transfer), or one that a reason of the caller's names (`Reasons`).
2. If the holds cannot be read, nothing is dropped: the failure is raised.
3. A reason is one line for people; the record of no drop needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import BusyError
from snapfs.base.settings.replication_settings import plain_url, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.store.log import replica_state
from snapfs.store.log.drops import PERSON
from snapfs.store.log.holds import Hold, Holds
from snapfs.store.log.replica_state import Replication
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.retention.named_holds import release_dropped

Reasons = Callable[[], Mapping[SnapshotNumber, str]]
"""Which snapshots stay for a reason that the store does not know, and that reason: "it is a member of group shop, whose
other members stay". Called at the moment of each drop, in any thread. Where it raises OSError or SnapfsError, nothing
goes."""

NEWEST: Final = "it is the newest, which the next one builds on"


def protected(repository: Repository, reasons: Iterable[Reasons] = ()) -> dict[SnapshotNumber, str]:
    """The snapshots that stay, each with the first reason. Raises OSError, CorruptionError, VersionError."""
    found: dict[SnapshotNumber, str] = {}
    latest, good = repository.latest(), repository.latest_good()
    if latest is not None:
        found[latest.number] = NEWEST
    if good is not None:
        found.setdefault(good.number, "it is the newest good one")
    for hold in Holds(repository.store_dir, repository.disk).all():
        for number in hold.snapshots:
            found.setdefault(number, held_reason(hold))
    for each in reasons:
        for number, why in each().items():
            found.setdefault(number, why)
    return found


def held_reason(hold: Hold) -> str:
    """As a line of `prune` has it."""
    return f"it is held by {hold.holder} ({hold.why})" if hold.why else f"it is held by {hold.holder}"


def drop(
    repository: Repository, record: SnapshotRecord, by: str = PERSON, why: str = "", reasons: Iterable[Reasons] = ()
) -> None:
    """Drop a snapshot. `by`: a person or a rule (store/log/drops.py), which the log records with the reason `why`.

    Raises BusyError for one that is protected; OSError.
    """
    reason = protected(repository, reasons).get(record.number)
    if reason == NEWEST:
        raise BusyError(f"snapshot {record.number} is the newest, which the next one builds on: make another one first")
    if reason is not None:
        raise BusyError(f"snapshot {record.number} stays: {reason}")
    repository.drop(record.number, by, why)
    release_dropped(Holds(repository.store_dir, repository.disk), record.number)


def replicated_reasons(volume: Volume) -> Reasons:
    """Protects the newest snapshot that counts as replicated, by the settings and what the agent wrote last.

    Raises OSError, CorruptionError, VersionError where that cannot be read: nothing goes then.
    """

    def reasons() -> Mapping[SnapshotNumber, str]:
        settings = volume.config.replication
        if not settings.target:
            return {}
        known = replica_state.read_checked(replica_state.path_of(volume.path), volume.volume_id)
        if known is None:
            return {}  # no agent was ever at work here
        named = {(target_name(each), plain_url(each.url)) for each in settings.target}
        return newest_replicated(known, named, settings.copies)

    return reasons


def newest_replicated(known: Replication, named: set[tuple[str, str]], copies: int) -> dict[SnapshotNumber, str]:
    """The newest snapshot that so many of the targets in the settings have, by name and URL. Pure.

    Of one that has not answered this agent, the newest that an earlier agent knew to be there.
    """
    there = [
        (each.newest or each.had, each.name)
        for each in known.targets
        if (each.name, each.url) in named and (each.newest or each.had)
    ]
    there.sort(reverse=True)
    if not 0 < copies <= len(there):
        return {}
    newest, name = there[copies - 1]
    return {SnapshotNumber(newest): f"it is the newest that is replicated ({name})"}
