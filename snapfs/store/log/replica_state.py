"""VOLUME/replication.json: how far each target is, written by the replicator's agent for the host.

Written by the agent (replicator/agent/agent_status.py), read by the daemon and by `status`. One small JSON file,
because that is the sturdiest channel between two processes that may each be restarted at any time: nothing to connect,
nothing to lose.

Invariants:
1. The file is whole at any time: it is replaced by a rename.
2. `newest` of a target has been acknowledged by it: verified and durable there. It only grows while the agent lives.
3. A file that was not renewed for STALE_SECONDS is not of the present but for 2: what has been replicated
   stays so. Whether the agent lives is known from its lock as well (`agent_lives`). What follows from the file is
   judged in target_standing.py.
4. A number in it means the snapshot that had it then: one of a later generation than the report is another one.
"""

from __future__ import annotations

import os
import time
from typing import Final

import msgspec

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.base.file_lock import lock_owner
from snapfs.base.json_file import JsonFile
from snapfs.base.volumes.volume_files import REPLICATION_FILE, REPLICATION_LOCK
from snapfs.store.gates.number_ranges import NumberRanges, Run

BEAT_SECONDS: Final = 2.0
"""The agent renews the file at least so often."""
STALE_SECONDS: Final = 10.0


class ErrorFacts(msgspec.Struct, frozen=True):
    message: str
    time_ns: int


class SendingFacts(msgspec.Struct, frozen=True):
    """The snapshot on its way, or the last of a stretch; bytes sent, and all that are to be sent."""

    snapshot: int
    done_bytes: int
    planned_bytes: int


class FencedFacts(msgspec.Struct, frozen=True):
    """Who writes there in our place; `snapshot`: the newest of ours that they went on from, 0 if not stated."""

    generation: int
    writer_id: str = msgspec.field(name="holder")
    snapshot: int = 0


class KeptFacts(msgspec.Struct, frozen=True):
    """Snapshots that were dropped here and stay there: why (locks.Stays), how many, the first, a lock's last end."""

    reason: str
    count: int
    first: int
    until_ns: int = 0


class TargetFacts(msgspec.Struct, frozen=True):
    """A target. `newest`, `newest_cut_ns`: of the newest snapshot of ours there, None if there is none (known).

    `lag_s`: for how long something that is sealed has been missing there; `last_delay_s`: from the cut to the
    acknowledgment of what arrived last. `link`: see Link in replicator/agent/agent_status.py. `complete_through`: up to
    this snapshot the target has had everything but `owed` (what could not be read here), for the next agent's sake; it
    may have dropped it since. As is `revision`, the target's own count of what happened there. `there`: the runs
    [first, last] of our snapshots that were there, whole, when it was seen last; unset where that is not known, as by
    earlier agents. `note`: what people should know of a target that works. `seen_ns`: when it answered last, 0: never
    (or not to an agent that notes it). `had`: while this agent has had no answer, the newest snapshot of ours that an
    earlier one knew to be there, 0 if none did.
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
    kept: list[KeptFacts] = []
    seen_ns: int = 0
    revision: int = 0
    note: str | None = None
    had: int = 0
    there: list[Run] | msgspec.UnsetType = msgspec.UNSET
    owed: list[Run] | msgspec.UnsetType = msgspec.UNSET

    def known_there(self) -> NumberRanges:
        """The snapshots of ours that are known to have been there when it was seen last: where there is no list of
        them, its newest alone."""
        if isinstance(self.there, msgspec.UnsetType):
            return NumberRanges.of(number for number in (self.newest, self.had) if number)
        return NumberRanges(self.there)


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
        """How many targets have this snapshot or a newer one: enough to go on from, but no count of its copies."""
        return sum(target.newest is not None and target.newest >= snapshot for target in self.targets)

    def newest_on(self, copies: int) -> int:
        """The newest snapshot that so many targets have, or newer ones; 0 if there is none."""
        known = sorted((target.newest or 0 for target in self.targets), reverse=True)
        return known[copies - 1] if 0 < copies <= len(known) else 0

    def cut_time_ns(self, copies: int) -> int | None:
        """The cut of the newest state that so many targets have; None if there is none."""
        known = (target.newest_cut_ns for target in self.targets)
        times = sorted((cut_ns for cut_ns in known if cut_ns is not None), reverse=True)
        return times[copies - 1] if 0 < copies <= len(times) else None


REPLICATION: Final = JsonFile(
    "replication status", Replication, advice="a running `snapfs-replicator agent` writes it anew"
)


def agent_lives(volume_path: str) -> bool | None:
    """Whether an agent holds the volume's lock; None if we may not look."""
    try:
        return lock_owner(os.path.join(volume_path, REPLICATION_LOCK)) is not None
    except FileNotFoundError:
        return False
    except OSError:
        return None


def path_of(volume_path: str) -> str:
    return os.path.join(volume_path, REPLICATION_FILE)


class ReplicaReader:
    """Follows the file of one volume at the cost of a stat(2) a look."""

    def __init__(self, volume_path: str, volume_id: str) -> None:
        self._path, self._volume_id = path_of(volume_path), volume_id
        self._seen: tuple[int, int, int] | None = None
        self._found: Replication | None = None

    def look(self) -> Replication | None:
        """Its content, however old; None if there is none that can be understood."""
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
    """The file at `path`; None if nothing is known: it is missing, damaged, of a later format, or another volume's."""
    try:
        return read_checked(path, volume_id)
    except (OSError, SnapfsError):
        return None


def read_checked(path: str, volume_id: str) -> Replication | None:
    """The same; CorruptionError, VersionError for a file that cannot be understood. Raises OSError."""
    found = REPLICATION.read(path)
    return found if found is not None and found.volume_id == volume_id else None
