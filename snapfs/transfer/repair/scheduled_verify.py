"""The verification in the background of a mounted volume: `[verify] share` of the store a day; what is bad is healed.

Each look earns what the time since the last step is worth, a day's share at most, and reads so much (store/repair/
scrub.py), not faster than `rate`, in a worker thread that gives way to seals.

Invariants:
1. What is found bad is repaired at once, from a copy, the live tree, other snapshots, or a target. What cannot be is
   marked, and the next snapshot does not build on it.
2. A pass that ends is a line `verified` in the log, with the snapshots that it covers and that are good.
3. Nothing here fails the daemon: what goes wrong is logged, and tried again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import trio

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.base.schedule.verify_times import DAY_S
from snapfs.base.settings.proof_settings import VerifySettings
from snapfs.base.volumes.volume import Volume
from snapfs.live.tree import LiveTree
from snapfs.store.gates.gates import PAST_THE_CACHE, VERIFIED
from snapfs.store.log.snapshot_records import DAMAGED
from snapfs.store.protocol.number_runs import runs_of
from snapfs.store.repair.scrub import Scrub, ScrubStep, table_findings
from snapfs.store.repository.repository import Repository
from snapfs.transfer.seal.snapshotter import Snapshotter

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0
LEAST_BYTES: Final = 256 << 10
"""A step is worth a look from so much on, or from a tenth of the store, if that is less."""
_YIELD_S: Final = 0.01


class _StoppedError(Exception):
    """The daemon ends."""


class ScheduledVerify:
    """Of one mounted volume. `run` in the trio thread."""

    def __init__(
        self, volume: Volume, repository: Repository, tree: LiveTree, snapshotter: Snapshotter, disk: Disk,
        look_s: float = LOOK_S,
    ) -> None:  # fmt: skip
        self._settings: VerifySettings = volume.config.verify
        self._volume, self._repository, self._tree = volume, repository, tree
        self._snapshotter, self._disk, self._look_s = snapshotter, disk, look_s
        self._scrub: Scrub | None = None
        self._stopping, self._ahead_s = False, 0.0
        self.repaired = 0
        self._limiter = trio.CapacityLimiter(1)

    def stop(self) -> None:
        """Give up at the next object."""
        self._stopping = True

    async def run(self, pause: Callable[[float], Any]) -> None:
        """Verify, for ever; at once back where no share is set."""
        while self._settings.share_a_day and not self._stopping:
            try:
                await self._look()
            except _StoppedError:
                return
            except (OSError, SnapfsError) as error:
                log.error("the verification in the background: %s", error)
            await pause(self._look_s)

    def facts(self) -> dict[str, Any]:
        """For the status."""
        whole_ns = self._repository.catalog.whole_pass_ns
        facts: dict[str, Any] = {"share": self._settings.share, "last_whole_pass_ns": whole_ns or None, "pass": None}
        if self._scrub is not None:
            state = self._scrub.state
            facts["pass"] = {
                "begun_ns": state.begun_ns, "read_bytes": state.stored_bytes, "bad": state.bad,
                "store_bytes": self._repository.index.size_bytes(), "repaired": self.repaired,
            }  # fmt: skip
        return facts

    def earned_bytes(self, now_ns: int) -> int:
        """What may be read now."""
        assert self._scrub is not None
        since_s = min(max((now_ns - self._scrub.state.worked_ns) / 1e9, 0.0), DAY_S)
        return int(self._settings.share_a_day * self._repository.index.size_bytes() * since_s / DAY_S)

    async def _look(self) -> None:
        if self._repository.lazy is not None:
            return  # part of it is elsewhere
        if self._scrub is None:
            self._scrub = await self._in_thread(lambda: Scrub(self._repository, self._disk))
        earned, size = self.earned_bytes(time.time_ns()), self._repository.index.size_bytes()
        if earned <= 0 or earned < min(LEAST_BYTES, size // 10):
            return
        scrub = self._scrub
        step = await self._in_thread(lambda: scrub.step(earned, self._pause))
        if step.bad.numbers or step.segments:
            await self._in_thread(lambda: self._heal(step))
            await self._build_on_no_damage()
        if step.ended:
            await self._in_thread(self._finish)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _heal(self, step: ScrubStep) -> None:
        from snapfs.transfer.repair.repair import heal  # hardly ever needed, and long to import
        from snapfs.transfer.repair.repair_targets import RepairTargets

        targets = RepairTargets(self._volume, log.warning)
        try:
            done = heal(self._repository, step.bad, step.segments, tree=self._tree, fetch=targets.fetch)
        finally:
            targets.close()
        self.repaired += done.repaired
        for line in done.done:
            log.warning("verified in the background: %s", line)

    async def _build_on_no_damage(self) -> None:
        async with self._snapshotter.turn():
            parent = self._snapshotter.parent
            if parent is not None and self._repository.catalog.recorded_state(parent.number) == DAMAGED:
                self._snapshotter.start_over()

    def _finish(self) -> None:
        """The pass is over: record what it covers, and begin the next one."""
        assert self._scrub is not None
        scrub, repository = self._scrub, self._repository
        records = scrub.records()
        new = [record for record in records if not repository.catalog.gates(record.number).verified_ns]
        bad = table_findings(repository, new, lambda: self._pause(0))
        for number, why in bad.items():
            repository.mark(number, DAMAGED, why)
        numbers = [record.number for record in new if record.number not in bad]
        state = scrub.state
        repository.record_event(
            VERIFIED, snapshots=[list(run) for run in runs_of(numbers)], how=PAST_THE_CACHE, whole=True,
            objects=state.objects, stored_bytes=state.stored_bytes, begun_ns=state.begun_ns,
        )  # fmt: skip
        scrub.begin()

    def _pause(self, read_bytes: int) -> None:
        """In the worker thread, between objects: keep to the rate, and let seals go first."""
        if self._settings.rate:
            self._ahead_s += read_bytes / self._settings.rate
        if self._ahead_s > _YIELD_S:
            time.sleep(self._ahead_s)
            self._ahead_s = 0.0
        while self._snapshotter.running is not None and not self._stopping:
            time.sleep(_YIELD_S)
        if self._stopping:
            raise _StoppedError
