"""What the agent tells of its work: the state of each target, and VOLUME/replication.json.

The file is the channel from the agent to everybody else on the host: the daemon of the volume reads it for
`wait=replicated` and the bounded mode, `snapfs-replicator status` shows it. (In the other direction the agent watches
store/snapshots.log.) Its layout is defined in snapfs/store/replicas.py, for both ends.

Invariants:
1. The file is replaced in one step, whenever a snapshot has arrived at a target, at once; else at most once in
   QUIET_SECONDS, and at least once in BEAT_SECONDS while the agent lives. It is not synced: it says what is, not what
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

from replicator.flow import Rate
from snapfs.blocks import SnapshotNumber
from snapfs.store.records import SnapshotRecord
from snapfs.store.replicas import (
    BEAT_SECONDS,
    FILE,
    ErrorFacts,
    FencedFacts,
    Replication,
    SendingFacts,
    TargetFacts,
    read,
)

QUIET_SECONDS: Final = 0.25


class Link(Enum):
    """How it stands with a target."""

    CONNECTING = "connecting"
    READING = "reading"  # finding out what it has, or needs
    SENDING = "sending"
    IDLE = "idle"  # it has everything
    WAITING = "waiting"  # something failed: it is tried again in a while
    FENCED = "fenced"  # somebody with a newer generation writes there
    REFUSED = "refused"  # it does not take what we send, and will not before somebody changes something


@dataclass(slots=True)
class TargetStatus:
    """What is known of one target."""

    name: str
    url: str
    link: Link = Link.CONNECTING
    newest: SnapshotRecord | None = None
    snapshots: int = 0
    complete_through: SnapshotNumber = SnapshotNumber(0)
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
    rate: Rate = field(default_factory=Rate)

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
        )

    def failed(self, error: BaseException) -> None:
        self.failures += 1
        self.last_error = " ".join(str(error).split())[:500] or type(error).__name__
        self.last_error_ns = time.time_ns()


class StatusFile:
    """Writes VOLUME/replication.json."""

    def __init__(self, volume_path: str, volume_id: str, targets: list[TargetStatus]) -> None:
        self._path = os.path.join(volume_path, FILE)
        self._volume_id, self._targets = volume_id, targets
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
                target.complete_through = SnapshotNumber(known[target.name, target.url].complete_through)

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
            temporary = f"{self._path}.new"
            with open(temporary, "wb") as file:
                file.write(msgspec.json.encode(self.facts()) + b"\n")
            os.rename(temporary, self._path)

    def is_due(self) -> bool:
        """Whether it is time to show that we are alive."""
        return self.clock() - self._written_s >= BEAT_SECONDS
