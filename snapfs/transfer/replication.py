"""Durability beyond this disk: what a mounted volume does with what the replicator tells of its targets.

The replicator is another process; VOLUME/replication.json is all that is known of it (store/replicas.py). Here it is
turned into two promises: a snapshot that waits until it is replicated, and a bound on how old work may grow that is
on this host alone.

Invariants:
1. `replicated` returns only when so many targets have acknowledged the snapshot or a newer one; else it is an OSError
   that says what stands in the way. The snapshot itself exists either way.
2. In mode bounded no fsync is answered while work older than the bound is on this host alone. Before that writes are
   slowed, more and more, so that the application feels it coming. A write is slowed and never held: the kernel's own
   writing back, on which a snapshot's flush and an unmount wait, always comes to an end.
3. What is exposed is what changed after the newest cut that so many targets have. Nothing changed: nothing is exposed,
   however long ago that was.
4. Lifting the bound (by command, or when the daemon is told to stop) lets go of everything that is held, at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import trio

from snapfs.blocks import SnapshotNumber
from snapfs.config import ReplicationSettings, Seconds, SnapshotSettings
from snapfs.store.replicas import ReplicaReader, Replication

LOOK_SECONDS: Final = 0.1
_WAIT_LOOK_SECONDS: Final = 0.02
SLOW_FROM: Final = 0.5
"""The share of the bound from which on writes are slowed."""
MOST_DELAY_SECONDS: Final = 0.25
"""Of one write: 32 requests of 128 KiB at a time then still make 16 MB/s, so that an unmount ends."""
SNAPSHOTS_A_BOUND: Final = 4
_HOPELESS: Final = ("fenced", "refused")


def snapshot_settings(settings: SnapshotSettings, replication: ReplicationSettings) -> SnapshotSettings:
    """When snapshots are to be made: a bound needs several of them in its time, whatever else was chosen. Pure."""
    if replication.mode != "bounded":
        return settings
    longest_s = replication.bound / SNAPSHOTS_A_BOUND
    every_s = min(settings.every or longest_s, longest_s)
    return msgspec.structs.replace(settings, every=Seconds(every_s))


def delay_s(exposed_s: float, bound_s: float) -> float:
    """How long a write is slowed when work of this age is exposed: nothing at half the bound, the most at all of it."""
    share = (exposed_s / bound_s - SLOW_FROM) / (1 - SLOW_FROM)
    return MOST_DELAY_SECONDS * min(max(share, 0.0), 1.0) ** 3


class Tether:
    """Ties a mounted volume to its replicas. Lives in the trio thread."""

    def __init__(
        self,
        settings: ReplicationSettings,
        reader: ReplicaReader,
        latest: Callable[[], SnapshotNumber],
        changed: Callable[[], bool],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`latest`: the newest snapshot; `changed`: whether anything has changed since."""
        self._settings, self._reader, self._clock = settings, reader, clock
        self._latest, self._changed = latest, changed
        self._unchanged_ns = clock()
        self._released = trio.Event()
        self._released.set()
        self.lifted = settings.mode != "bounded"
        self.delay_s = 0.0
        """What each write is slowed by now."""
        self.held = 0
        """Fsyncs that wait for replication now."""
        self.on_pace: Callable[[bool], None] = lambda slowed: None
        """Told at each look whether `before_write` and `before_fsync` do anything: then all must go through them."""

    @property
    def holds(self) -> bool:
        """Whether fsyncs are being held."""
        return not self._released.is_set()

    async def run(self) -> None:
        """Keep an eye on what is exposed, for ever, if there is a bound."""
        while not self.lifted:
            self.look()
            await trio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Take in how far the targets are."""
        exposed_s, bound_s = self.exposed_s(), float(self._settings.bound)
        self.delay_s = 0.0 if self.lifted else delay_s(exposed_s, bound_s)
        if self.lifted or exposed_s < bound_s:
            self._released.set()
        elif self._released.is_set():
            self._released = trio.Event()
        self.on_pace(bool(self.delay_s) or self.holds)

    def exposed_s(self) -> float:
        """Age of the oldest work that too few targets have, at most: the time since the newest cut that they have."""
        now_ns, latest = self._clock(), self._latest()
        found = self._reader.look()
        replicated = found is not None and found.copies(latest) >= self._settings.copies
        if (replicated or not latest) and not self._changed():
            self._unchanged_ns = now_ns
            return 0.0
        cut_ns = found.cut_time_ns(self._settings.copies) if found is not None else None
        return max(0.0, (now_ns - max(cut_ns or 0, self._unchanged_ns)) / 1e9)

    def lift(self) -> None:
        """No bound any more, until the next mount."""
        self.lifted = True
        self.look()

    async def before_write(self) -> None:
        """Wait as long as a write is to be slowed."""
        if self.delay_s:
            await trio.sleep(self.delay_s)

    async def before_fsync(self) -> None:
        """Wait until an fsync may be answered."""
        if self._released.is_set():
            return
        self.held += 1
        try:
            while not self._released.is_set():
                await self._released.wait()
        finally:
            self.held -= 1

    async def replicated(self, number: SnapshotNumber, timeout_s: float | None = None) -> Mapping[str, Any]:
        """Return when enough targets have the snapshot, with who they are. OSError: ETIMEDOUT, ECONNREFUSED, EINVAL."""
        if not self._settings.target:
            raise OSError(errno.EINVAL, f"snapshot {number} is sealed, but there is no target to replicate it to")
        started, limit_s = trio.current_time(), float(self._settings.wait) if timeout_s is None else timeout_s
        while True:
            found = self._reader.look()
            if found is not None and found.copies(number) >= self._settings.copies:
                names = [each.name for each in found.targets if each.newest is not None and each.newest >= number]
                return {"targets": names, "seconds": round(trio.current_time() - started, 3)}
            if found is not None:
                self._raise_if_hopeless(number, found)
            if trio.current_time() - started > limit_s:
                raise OSError(errno.ETIMEDOUT, self._why_late(number, limit_s))
            await trio.sleep(_WAIT_LOOK_SECONDS)

    def facts(self) -> Mapping[str, Any]:
        """For status: what the agent told last, and what follows from it here."""
        found = self._reader.look()
        return {
            "mode": self._settings.mode,
            "lifted": self.lifted and self._settings.mode == "bounded",
            "exposed_s": round(self.exposed_s(), 3) if self._settings.target else None,
            "held_fsyncs": self.held,
            "write_delay_s": round(self.delay_s, 4),
            "agent": found is not None and found.is_fresh(self._clock()),
            "targets": msgspec.to_builtins(found.targets) if found is not None else [],
        }

    def _raise_if_hopeless(self, number: SnapshotNumber, found: Replication) -> None:
        lost = [each for each in found.targets if each.link in _HOPELESS and (each.newest or 0) < number]
        if len(found.targets) - len(lost) < self._settings.copies and found.is_fresh(self._clock()):
            why = lost[0].last_error.message if lost[0].last_error else lost[0].link
            raise OSError(errno.ECONNREFUSED, f"snapshot {number} is sealed, but {lost[0].name} refuses it: {why}")

    def _why_late(self, number: SnapshotNumber, limit_s: float) -> str:
        if self._reader.fresh() is None:
            return f"snapshot {number} is sealed, but no agent replicates it: start `snapfs-replicator agent`"
        has = self._settings.copies
        return f"snapshot {number} is sealed, and still on its way to {has} target(s) after {limit_s:g} s"
