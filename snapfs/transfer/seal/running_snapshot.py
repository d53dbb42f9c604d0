"""What is known of a snapshot on its way, and of one that failed."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum

from snapfs.base.errors import SnapshotError
from snapfs.store.log.snapshot_records import AskedBy


class SnapshotPhase(Enum):
    """The step that the running snapshot is in."""

    HOOK = "hook"
    FLUSH = "flush"
    CUT = "cut"
    SEAL = "seal"


@dataclass(slots=True)
class RunningSnapshot:
    """The snapshot on its way. `by`: who asked for it, if that is known. Bytes are of changed chunks: read so far, and
    known of so far."""

    name: str | None
    trigger: str
    started_s: float
    by: AskedBy | None = None
    phase: SnapshotPhase = SnapshotPhase.HOOK
    done_bytes: int = 0
    planned_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotFailure:
    """A snapshot or command that failed. `time_ns` since 1970."""

    what: str
    message: str
    errno: int
    time_ns: int


class StoppedError(SnapshotError):
    """Raised in a seal that `Snapshotter.stop` ends."""

    def __init__(self) -> None:
        super().__init__("the snapshot was stopped, because the volume is being unmounted", errno.EINTR)
