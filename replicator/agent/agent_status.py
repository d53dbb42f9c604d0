"""What the agent reports of its work: the state of each target, and VOLUME/replication.json.

The file is the channel from the agent to every other process of the host: the daemon of the volume reads it for
`wait=replicated` and the bounded mode, `snapfs-replicator status` shows it. (In the other direction the agent watches
store/snapshots.log.) Its layout is defined in snapfs/store/log/replica_state.py, for both ends.

Invariants:
1. The file is replaced in one step, whenever a snapshot has arrived at a target, at once; else at most once in
   QUIET_SECONDS, and at least once in BEAT_SECONDS while the agent lives. It is not synced: it shows what is, not what
   was, and after a restart of the machine a new agent writes it anew.
2. A snapshot is in it as replicated only after the target has acknowledged it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import msgspec

from replicator.agent.rate_control import TransferRate
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.volumes.volume_files import REPLICATION_FILE
from snapfs.store.gates.number_ranges import Run
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.replica_state import (
    BEAT_SECONDS,
    REPLICATION,
    ErrorFacts,
    FencedFacts,
    KeptFacts,
    Replication,
    SendingFacts,
    TargetFacts,
    read,
)
from snapfs.store.log.snapshot_records import SnapshotRecord

QUIET_SECONDS: Final = 0.25


class Link(Enum):
    """How it stands with a target."""

    CONNECTING = "connecting"
    READING = "reading"  # finding out what it has, or needs
    SENDING = "sending"
    IDLE = "idle"  # it has everything
    WAITING = "waiting"  # something failed: it is tried again in a while
    FENCED = "fenced"  # a writer with a newer generation writes there
    REFUSED = "refused"  # it does not take what we send, and will not before a person changes something


@dataclass(slots=True)
class TargetStatus:
    """What is known of one target."""

    name: str
    url: str
    link: Link = Link.CONNECTING
    newest: SnapshotRecord | None = None
    snapshots: int = 0
    complete_through: SnapshotNumber = SnapshotNumber(0)
    owed: tuple[Run, ...] = ()
    """Up to there, what it never had, since it could not be read here."""
    there: tuple[Run, ...] | None = None
    """The runs of our snapshots that it has, as far as was ever seen; None: not known."""
    stored_bytes: int | None = None
    behind: SnapshotRecord | None = None
    """The oldest snapshot above `newest` that the target has not."""
    behind_bytes: int = 0
    last_delay_s: float | None = None
    """From the cut of the snapshot that arrived last until it was acknowledged."""
    sending: SnapshotNumber | None = None
    sent_bytes: int = 0  # of the step under way
    planned_bytes: int = 0
    total_bytes: int = 0
    total_snapshots: int = 0
    retries: int = 0
    failures: int = 0
    last_error: str | None = None
    last_error_ns: int = 0
    fenced_by: FencedFacts | None = None
    """Who writes there in our place, since the last attempt to claim."""
    kept: tuple[LockedSnapshot, ...] = ()
    """What was dropped here and stays there, with why."""
    rate: TransferRate = field(default_factory=TransferRate)
    seen_ns: int = 0
    """When it answered last; 0: never."""
    revision: int = 0
    """Of the target, when it was opened last."""
    newest_there: int = 0
    """The newest snapshot that it is known to have had."""
    had: int = 0
    """The same as an earlier agent knew it, until the target has answered this one."""
    note: str | None = None
    """What people should know of it, though it works."""

    def lag_s(self, now_ns: int) -> float:
        """For how long something that is sealed here has been missing there."""
        return max(0.0, (now_ns - self.behind.cut_time_ns) / 1e9) if self.behind is not None else 0.0

    def facts(self, now_ns: int, now_s: float) -> TargetFacts:
        newest = self.newest
        return TargetFacts(
            name=self.name,
            url=self.url,
            link=self.link.value,
            newest=newest.number if newest else None,
            newest_cut_ns=newest.cut_time_ns if newest else None,
            lag_s=round(self.lag_s(now_ns), 3),
            behind_bytes=self.behind_bytes,
            snapshots=self.snapshots,
            complete_through=self.complete_through,
            stored_bytes=self.stored_bytes,
            last_delay_s=self.last_delay_s,
            bytes_per_s=round(self.rate.at(now_s)),
            total_bytes=self.total_bytes,
            retries=self.retries,
            sending=SendingFacts(self.sending, self.sent_bytes, self.planned_bytes) if self.sending else None,
            last_error=ErrorFacts(self.last_error, self.last_error_ns) if self.last_error else None,
            fenced_by=self.fenced_by,
            kept=kept_facts(self.kept),
            seen_ns=self.seen_ns,
            revision=self.revision,
            note=self.note,
            had=self.had if newest is None else 0,
            there=list(self.there) if self.there is not None else msgspec.UNSET,
            owed=list(self.owed) or msgspec.UNSET,
        )

    def failed(self, error: BaseException) -> None:
        self.failures += 1
        self.last_error = " ".join(str(error).split())[:500] or type(error).__name__
        self.last_error_ns = time.time_ns()


def kept_facts(kept: tuple[LockedSnapshot, ...]) -> list[KeptFacts]:
    """By the reason: how many, the first of them, and when the last of a lock's ends."""
    reasons = sorted({each.reason for each in kept})
    groups = {reason: [each for each in kept if each.reason == reason] for reason in reasons}
    return [
        KeptFacts(reason, len(group), min(each.number for each in group), max(each.until_ns for each in group))
        for reason, group in groups.items()
    ]


class StatusFile:
    """Writes VOLUME/replication.json."""

    def __init__(self, volume_path: str, volume_id: str, targets: list[TargetStatus], disk: Disk) -> None:
        self._path = os.path.join(volume_path, REPLICATION_FILE)
        self._volume_id, self._targets, self._disk = volume_id, targets, disk
        self._written_s = 0.0
        self.generation = 0
        self.clock: Callable[[], float] = time.monotonic
        self._remember()

    def _remember(self) -> None:
        """Take over what an earlier agent knew of the same targets."""
        found = read(self._path, self._volume_id)
        known = {(each.name, each.url): each for each in found.targets} if found is not None else {}
        for target in self._targets:
            if (target.name, target.url) in known:
                before = known[target.name, target.url]
                target.complete_through = SnapshotNumber(before.complete_through)
                target.there = None if isinstance(before.there, msgspec.UnsetType) else tuple(before.there)
                target.owed = () if isinstance(before.owed, msgspec.UnsetType) else tuple(before.owed)
                target.seen_ns = before.seen_ns
                target.had = before.newest or before.had
                target.revision, target.newest_there = before.revision, target.had
                target.note = before.note

    def facts(self) -> Replication:
        now_ns, now_s = time.time_ns(), self.clock()
        return Replication(
            volume_id=self._volume_id, pid=os.getpid(), written_ns=now_ns, generation=self.generation,
            targets=[target.facts(now_ns, now_s) for target in self._targets],
        )  # fmt: skip

    def write(self, *, urgent: bool = False) -> None:
        """Write it, if it is urgent or time for it. A failure is passed over: the next second tries again."""
        now_s = self.clock()
        if not urgent and now_s - self._written_s < QUIET_SECONDS:
            return
        self._written_s = now_s
        with contextlib.suppress(OSError):
            self._disk.replace_unsynced("replication:status", self._path, REPLICATION.encode(self.facts()))

    def is_due(self) -> bool:
        """Whether it is time to show that we are alive."""
        return self.clock() - self._written_s >= BEAT_SECONDS
