"""VOLUME/replication.json: what the replicator's agent tells the host of how far each target is.

Written by the agent (replicator/status.py), read by the daemon and by `status`. One small JSON file, because that is
the sturdiest channel between two processes that may each be restarted at any time: nothing to connect, nothing to lose.

Invariants:
1. The file is whole at any time: it is replaced by a rename.
2. `newest` of a target has been acknowledged by it: verified and durable there. It only grows while the agent lives.
3. A file that was not renewed for STALE_SECONDS says nothing about the present but for 2: what has been replicated
   stays so.
"""

from __future__ import annotations

import os
import time
from typing import Final

import msgspec

from snapfs.blocks import SnapshotNumber

FILE: Final = "replication.json"
BEAT_SECONDS: Final = 2.0
"""The agent renews the file at least so often."""
STALE_SECONDS: Final = 10.0
_LARGEST_BYTES: Final = 1 << 20


class ErrorFacts(msgspec.Struct, frozen=True):
    message: str
    time_ns: int


class SendingFacts(msgspec.Struct, frozen=True):
    """The snapshot on its way, or the last of a stretch; bytes sent, and all that are to be sent."""

    snapshot: int
    done_bytes: int
    planned_bytes: int


class FencedFacts(msgspec.Struct, frozen=True):
    """Who writes there in our place."""

    generation: int
    holder: str


class TargetFacts(msgspec.Struct, frozen=True):
    """A target. `newest`, `newest_cut_ns`: of the newest snapshot of ours there, None if there is none (known).

    `lag_s`: for how long something that is sealed has been missing there; `last_delay_s`: from the cut to the
    acknowledgment of what arrived last. `link`: see Link in replicator/status.py. `complete_through`: up to this
    snapshot the target has had everything, for the next agent's sake.
    """

    name: str
    url: str
    link: str
    newest: int | None = None
    newest_cut_ns: int | None = None
    lag_s: float = 0.0
    behind_bytes: int = 0
    snapshots: int = 0
    complete_through: int = 0
    stored_bytes: int | None = None
    last_delay_s: float | None = None
    bytes_per_s: int = 0
    total_bytes: int = 0
    retries: int = 0
    sending: SendingFacts | None = None
    last_error: ErrorFacts | None = None
    fenced_by: FencedFacts | None = None


class Replication(msgspec.Struct, frozen=True):
    """The file. Times are ns since 1970, UTC."""

    volume_id: str
    pid: int
    written_ns: int
    generation: int
    targets: list[TargetFacts]
    format: int = 1

    def is_fresh(self, now_ns: int) -> bool:
        """Whether an agent is at work."""
        return abs(now_ns - self.written_ns) < STALE_SECONDS * 1e9

    def copies(self, snapshot: SnapshotNumber) -> int:
        """How many targets have this snapshot, or a newer one."""
        return sum(target.newest is not None and target.newest >= snapshot for target in self.targets)

    def cut_time_ns(self, copies: int) -> int | None:
        """The cut of the newest state that so many targets have; None if there is none."""
        known = (target.newest_cut_ns for target in self.targets)
        times = sorted((cut_ns for cut_ns in known if cut_ns is not None), reverse=True)
        return times[copies - 1] if 0 < copies <= len(times) else None


def path_of(volume_path: str) -> str:
    return os.path.join(volume_path, FILE)


class ReplicaReader:
    """Follows the file of one volume at the cost of a stat(2) a look."""

    def __init__(self, volume_path: str, volume_id: str) -> None:
        self._path, self._volume_id = path_of(volume_path), volume_id
        self._seen: tuple[int, int, int] | None = None
        self._found: Replication | None = None

    def look(self) -> Replication | None:
        """What it says now, however old; None if there is none that can be understood."""
        try:
            stat = os.stat(self._path)
        except OSError:
            self._seen = self._found = None
            return None
        seen = stat.st_ino, stat.st_mtime_ns, stat.st_size
        if seen != self._seen:
            self._found, self._seen = read(self._path, self._volume_id), seen
        return self._found

    def fresh(self) -> Replication | None:
        """The same, if an agent is at work."""
        found = self.look()
        return found if found is not None and found.is_fresh(time.time_ns()) else None


def read(path: str, volume_id: str) -> Replication | None:
    """The file at `path`; None if it is missing, no such file, or another volume's."""
    try:
        with open(path, "rb") as file:
            found = msgspec.json.decode(file.read(_LARGEST_BYTES), type=Replication)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found.format == 1 and found.volume_id == volume_id else None
