"""Durability beyond this disk: waiting for replication, and back-pressure where replication falls behind.

The replicator is another process; VOLUME/replication.json is all that is known of it (store/log/replica_state.py). It
is turned into two promises: a snapshot that waits until it is replicated, and a bound on the age of work that is on
this host alone.

Invariants:
1. `replicated` returns only when `copies` targets have acknowledged the snapshot or a newer one; else it raises an
   OSError with the reason. The snapshot itself exists either way.
2. In mode bounded no fsync is answered while work older than the bound is on this host alone, nor while there is more
   of it than can be shipped within the bound (throttle_model.py): so what was answered is never older than the bound.
   Before that, writes are throttled gradually. A write is delayed by half a second at most, and never held: the
   kernel's write-back, on which a snapshot's flush and an unmount wait, always ends.
3. Exposed is what changed after the newest cut that `copies` targets have. If nothing changed, nothing is exposed,
   however long ago that cut was.
4. Lifting the bound (by command, or when the daemon stops) releases everything that is held, at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import trio

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.settings.replication_settings import ReplicationSettings, TargetSettings
from snapfs.base.settings.units import Seconds
from snapfs.base.settings.volume_settings import SnapshotSettings
from snapfs.store.log.replica_state import ReplicaReader, Replication
from snapfs.transfer.failover.throttle_model import Limiter

LOOK_SECONDS: Final = 0.1
_WAIT_LOOK_SECONDS: Final = 0.02
SLOW_FROM: Final = 0.5
"""The share of the bound from which on writes are delayed."""
MOST_DELAY_SECONDS: Final = 0.25
"""Of one write: 32 requests of 128 KiB at a time then still make 16 MB/s, so that an unmount ends."""
MOST_WAIT_SECONDS: Final = 0.25
"""Of a write, for a cut that is due before it."""
SNAPSHOTS_A_BOUND: Final = 4
_HOPELESS: Final = ("fenced", "refused")


def snapshot_settings(settings: SnapshotSettings, replication: ReplicationSettings) -> SnapshotSettings:
    """The snapshot settings that apply: a bound needs several snapshots in its time, whatever was configured. Pure."""
    if replication.mode != "bounded":
        return settings
    longest_s = replication.bound / SNAPSHOTS_A_BOUND
    every_s = min(settings.every or longest_s, longest_s)
    return msgspec.structs.replace(settings, every=Seconds(every_s))


def delay_s(exposed_s: float, bound_s: float) -> float:
    """The delay of a write when work of this age is exposed: 0 at half the bound, MOST_DELAY_SECONDS at the bound."""
    share = (exposed_s / bound_s - SLOW_FROM) / (1 - SLOW_FROM)
    return MOST_DELAY_SECONDS * min(max(share, 0.0), 1.0) ** 3


class ReplicationThrottle:
    """Throttles a mounted volume by its replication. Lives in the trio thread."""

    def __init__(
        self,
        settings: ReplicationSettings,
        reader: ReplicaReader,
        latest: Callable[[], SnapshotNumber],
        changed: Callable[[], bool],
        clock: Callable[[], int] = time.time_ns,
        targets: Callable[[], Sequence[TargetSettings]] | None = None,
        written: Callable[[], int] | None = None,
        on_pace: Callable[[bool], None] = lambda slowed: None,
    ) -> None:
        """`latest`: the newest snapshot; `changed`: whether anything has changed since; `targets`: those that the
        settings name now, which may be others than at the mount; `written`: bytes of all changes, ever growing; without
        it only ages count. `on_pace` is called at each look with whether `before_write` and `before_fsync` do anything:
        then all requests must go through them."""
        self._written = written or (lambda: 0)
        bounded = settings.mode == "bounded" and written is not None
        self.limiter = Limiter(float(settings.bound)) if bounded else None
        self._targets = targets or (lambda: settings.target)
        self._settings, self._reader, self._clock = settings, reader, clock
        self._latest, self._changed = latest, changed
        self._unchanged_ns = clock()
        self._released = trio.Event()
        self._released.set()
        self.lifted = settings.mode != "bounded"
        self.delay_s = 0.0
        """The delay of each write now."""
        self.held = 0
        """Fsyncs that wait for replication now."""
        self._on_pace = on_pace

    @property
    def holds(self) -> bool:
        """Whether fsyncs are being held."""
        return not self._released.is_set()

    async def run(self) -> None:
        """Look at what is exposed every LOOK_SECONDS, until the bound is lifted."""
        while not self.lifted:
            self.look()
            await trio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Read how far the targets are, and set the delay and the hold."""
        exposed_s, bound_s = self.exposed_s(), float(self._settings.bound)
        self.delay_s = 0.0 if self.lifted else delay_s(exposed_s, bound_s)
        if self.lifted or exposed_s < bound_s:
            self._released.set()
        elif self._released.is_set():
            self._released = trio.Event()
        near = self.limiter is not None and not self.lifted and self._is_near(self.limiter)
        self._on_pace(bool(self.delay_s) or self.holds or near)

    def _is_near(self, limiter: Limiter) -> bool:
        """Update the model with what was written and replicated; whether each request must be looked at."""
        now_s = self._now_s()
        limiter.wrote(self._written())
        found = self._reader.look()
        if found is not None:
            limiter.replicated(found.newest_on(self._settings.copies), now_s)
        return not limiter.is_far_from(now_s)

    def _now_s(self) -> float:
        return self._clock() / 1e9

    def sealed(self, number: SnapshotNumber, written_at_cut: int, stored_bytes: int) -> None:
        """To be called when a snapshot exists. `written_at_cut`: bytes of all changes up to its cut."""
        if self.limiter is not None:
            self.limiter.sealed(number, written_at_cut, stored_bytes, self._now_s())

    def wants_cut(self) -> bool:
        """Whether a snapshot should be made at once, for fsyncs that wait or that were answered."""
        if self.limiter is None or self.lifted:
            return False
        self.limiter.wrote(self._written())
        return self.limiter.wants_cut(self.held, self._now_s())

    def exposed_s(self) -> float:
        """Upper bound of the age of the oldest work that too few targets have: since the newest cut that they have."""
        now_ns, latest = self._clock(), self._latest()
        found = self._reader.look()
        replicated = found is not None and found.copies(latest) >= self._settings.copies
        if (replicated or not latest) and not self._changed():
            self._unchanged_ns = now_ns
            return 0.0
        cut_ns = found.cut_time_ns(self._settings.copies) if found is not None else None
        return max(0.0, (now_ns - max(cut_ns or 0, self._unchanged_ns)) / 1e9)

    def lift(self) -> None:
        """Lift the bound until the next mount."""
        self.lifted = True
        self.look()

    async def before_write(self) -> None:
        """Wait as long as a write is to be delayed."""
        if self.delay_s:
            await trio.sleep(self.delay_s)
        with trio.move_on_after(MOST_WAIT_SECONDS):
            while self.wants_cut():  # a cut for answered fsyncs comes before further writes
                await trio.sleep(_WAIT_LOOK_SECONDS)

    async def before_fsync(self) -> None:
        """Wait until an fsync may be answered."""
        written = self._written()
        if self._may_answer(written):
            return
        self.held += 1
        try:
            while not self._may_answer(written):
                if self.holds:
                    await self._released.wait()
                else:
                    await trio.sleep(_WAIT_LOOK_SECONDS)
        finally:
            self.held -= 1

    def _may_answer(self, written: int) -> bool:
        """Whether an fsync may be answered that was requested when so much had been written."""
        if self.lifted or self.limiter is None:
            return self._released.is_set()
        self._is_near(self.limiter)
        return self._released.is_set() and self.limiter.may_acknowledge(written, self._now_s())

    async def replicated(self, number: SnapshotNumber, timeout_s: float | None = None) -> Mapping[str, Any]:
        """Return when enough targets have the snapshot, with their names. OSError: ETIMEDOUT, ECONNREFUSED, EINVAL."""
        if not self._targets():
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
        """For status: the agent's last record, and what follows from it here."""
        found = self._reader.look()
        return {
            "mode": self._settings.mode,
            "lifted": self.lifted and self._settings.mode == "bounded",
            "exposed_s": round(self.exposed_s(), 3) if self._targets() else None,
            "held_fsyncs": self.held,
            "write_delay_s": round(self.delay_s, 4),
            "budget_bytes": round(self.limiter.budget(self._now_s())) if self.limiter is not None else None,
            "exposed_bytes": max(self.limiter.pending + self.limiter.dirty, 0) if self.limiter is not None else None,
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
