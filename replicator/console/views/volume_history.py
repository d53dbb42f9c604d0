"""What the log of a mirror's volume says beside its catalog, followed line by line as it grows.

The catalog has the snapshots there are, and the gates that each has passed; this has what arrived over time, the drills
there were, and where in the file the acts are.

Invariants:
1. Only what a line says is kept; a line of a kind that is not known, or of other fields, is an act, and nothing more.
2. Memory is bounded: rings of buckets, DRILLS drills, ACTS places of acts.
3. The lines of acts are read from the file again when a page shows them.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from replicator.console.views.arrival_buckets import RANGES, BucketRing, Range
from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.store.gates.gates import DRILLED, drill_time_ns
from snapfs.store.log.log_lines import Event, Line, parse_line
from snapfs.store.log.snapshot_log import SnapshotLog

DRILLS: Final = 50
ACTS: Final = 16384
_LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Drill:
    """A trial recovery. `recovery_s`, `objective_s`: None where the record does not say."""

    snapshot: int
    time_ns: int
    passed: bool
    recovery_s: float | None
    objective_s: float | None
    why: str


class VolumeHistory:
    """Of one volume's snapshots.log. Thread-safe."""

    def __init__(self, path: str, disk: Disk) -> None:
        """Raises UserError if there is no log."""
        self._path, self._lock = path, threading.Lock()
        self._log = SnapshotLog(path, disk, readonly=True)
        self._rings = [BucketRing(kept) for kept in RANGES]
        self._acts = array("Q")
        self._newest = self._offset = 0
        self.acts_before = 0
        """How many acts are older than those that can be shown."""
        self.drills: deque[Drill] = deque(maxlen=DRILLS)
        self.began_ns = 0

    def follow(self) -> None:
        """Take in what was appended since. Raises CorruptionError, VersionError, OSError."""
        with self._lock:
            for line in self._log.follow_lines():
                self._take(line)
                self._offset += len(line.data) + 1

    def buckets(self, kept: Range, now_s: float) -> Sequence[Any]:
        """Of one range, the oldest first."""
        with self._lock:
            return self._rings[RANGES.index(kept)].until(now_s)

    @property
    def acts(self) -> int:
        """How many can be shown."""
        return len(self._acts)

    def acts_page(self, skip: int, most: int) -> list[Event]:
        """The acts, the newest first, without so many of the newest. Raises CorruptionError, OSError."""
        with self._lock:
            end = max(len(self._acts) - skip, 0)
            places = self._acts[max(end - most, 0) : end].tolist()
        with open(self._path, "rb") as file:
            return [self._event_at(file.fileno(), place) for place in reversed(places)]

    def close(self) -> None:
        self._log.close()

    def _event_at(self, fd: int, place: int) -> Event:
        data = b""
        while b"\n" not in data and len(data) < _LINE_BYTES:
            more = os.pread(fd, 4096, place + len(data))
            if not more:
                break
            data += more
        return parse_line(data.partition(b"\n")[0], f"{self._path} at {place}").event

    def _take(self, line: Line) -> None:
        self.began_ns = self.began_ns or line.time_ns
        if line.kind in ("snapshot", "cloned") and line.record_fields is not None:
            self._take_snapshot(line)
            return
        self._acts.append(self._offset)
        if len(self._acts) > ACTS:
            del self._acts[: ACTS // 2]
            self.acts_before += ACTS // 2
        drill = drill_of(line.event) if line.kind == DRILLED else None
        if drill is not None:
            self.drills.append(drill)

    def _take_snapshot(self, line: Line) -> None:
        fields = line.record_fields
        assert fields is not None
        is_newest, received_s = fields.number > self._newest, line.time_ns / 1e9
        lag_s = (line.time_ns - fields.cut_time_ns) / 1e9 if is_newest and line.kind == "snapshot" else None
        for ring in self._rings:
            ring.put(received_s, fields.stats.stored_bytes, fields.stats.dirty_bytes, lag_s)
        self._newest = max(self._newest, fields.number)


def drill_of(event: Event) -> Drill | None:
    """A line of kind `drilled`; None for one of other fields."""
    fields, number = event.fields, event.fields.get("snapshot")
    if type(number) is not int:
        return None
    recovery_s, objective_s = _seconds(fields.get("recovery_s")), _seconds(fields.get("rto_s"))
    why = ": ".join(str(fields[name]) for name in ("check", "why") if fields.get(name))
    passed, time_ns = fields.get("passed") is True, drill_time_ns(event.time_ns, fields)
    return Drill(number, time_ns, passed, recovery_s, objective_s, why)


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


class Histories:
    """The histories of a mirror's volumes, each opened once. Used by one thread at a time."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._known: dict[str, tuple[int, VolumeHistory]] = {}  # by name: the log's inode, and what it says

    def of(self, name: str, log_path: str) -> VolumeHistory:
        """Up to date. Raises SnapfsError, OSError."""
        inode = os.stat(log_path).st_ino
        known = self._known.get(name)
        if known is not None and known[0] != inode:  # the volume was made anew, or its log was
            self._forget(name)
            known = None
        if known is None:
            known = self._known[name] = (inode, VolumeHistory(log_path, self._disk))
        try:
            known[1].follow()
        except (SnapfsError, OSError):
            self._forget(name)
            raise
        return known[1]

    def keep(self, names: frozenset[str]) -> None:
        """Forget those of volumes that are no more."""
        for name in [name for name in self._known if name not in names]:
            self._forget(name)

    def close(self) -> None:
        for name in list(self._known):
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._known.pop(name)[1].close()
