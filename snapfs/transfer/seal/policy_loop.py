"""Snapshots by policy: when one is due without a request for it, and how failures are retried."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from snapfs.base.counting.metrics import Metrics
from snapfs.base.errors import SnapfsError
from snapfs.base.schedule.rules import Action, Decision
from snapfs.transfer.seal.cadence import Cadence
from snapfs.transfer.seal.snapshotter_parts import SnapshotterTree

POLL_S = 1.0
BUSY_POLL_S = 0.05
WRITING_POLL_S = 0.1
"""While something is changed and a rule depends on how much: at 1 GB/s it is late by 100 MB at most."""
BACK_OFF_S = 1.0
BACK_OFF_LIMIT_S = 60.0


class Pause(Protocol):
    """`Idleness.pause`."""

    def __call__(self, seconds: float, longest_s: float, /) -> Awaitable[object]: ...


async def sleep(seconds: float, longest_s: float) -> None:
    """The pause of a mount that is never quiet."""
    await trio.sleep(seconds)


class MakeSnapshot(Protocol):
    """`Snapshotter.snapshot`."""

    def __call__(self, name: str | None, trigger: str, *, flush: bool) -> Awaitable[Any]: ...


class PolicyLoop:
    """The loop of one mounted volume. Lives in the trio thread."""

    def __init__(
        self,
        tree: SnapshotterTree,
        snapshot: MakeSnapshot,
        is_busy: Callable[[], bool],
        flush: Callable[[], Awaitable[None]],
        metrics: Metrics,
        wants_cut: Callable[[], bool] | None,
        pause: Pause = sleep,
    ) -> None:
        """`wants_cut`: whether a snapshot is to be made at once, without a flush.

        `pause(least_s, most_s)` waits, longer than the least only while nothing is requested of the mount.
        """
        self._pause = pause
        self._tree, self._snapshot, self._is_busy = tree, snapshot, is_busy
        self._flush, self._metrics, self._wants_cut = flush, metrics, wants_cut

    async def run(self, cadence: Cadence) -> None:
        """Make a snapshot whenever one is due, for ever. A failure is retried, less and less often."""
        failures = 0
        while True:
            decision = cadence.decide(self._is_busy(), self._is_cut_wanted())
            if decision.action is Action.WAIT:
                await self._wait(decision.wait_s, cadence)
                continue
            if decision.action is Action.SKIP and not await self._kernel_has_more(cadence):
                self._metrics.skipped.inc()
                cadence.skipped()
            elif await self._try_snapshot(cadence, decision):
                failures = 0
            else:
                failures += 1
                await trio.sleep(min(BACK_OFF_S * 2**failures, BACK_OFF_LIMIT_S))

    async def _wait(self, seconds: float, cadence: Cadence) -> None:
        """Until the decision may be another one."""
        if self._is_busy() or (self._wants_cut is not None and self._tree.has_changes()):
            await trio.sleep(min(seconds, BUSY_POLL_S))
        elif cadence.expects_replica:
            await trio.sleep(min(seconds, WRITING_POLL_S))
        elif cadence.looks_often and self._tree.has_changes():
            await self._pause(min(seconds, WRITING_POLL_S), seconds)
        else:
            await self._pause(min(seconds, POLL_S), seconds)

    def _is_cut_wanted(self) -> bool:
        return self._wants_cut is not None and self._wants_cut()

    async def _kernel_has_more(self, cadence: Cadence) -> bool:
        """Whether the tree only looks unchanged because the kernel still has the changes."""
        if not cadence.settings.flush:
            return False
        with contextlib.suppress(OSError):
            await self._flush()
        return self._tree.has_changes()

    async def _try_snapshot(self, cadence: Cadence, decision: Decision) -> bool:
        """Whether it was made. A failure is logged and counted by the snapshotter."""
        try:
            at_once = self._is_cut_wanted()  # what was fsynced is flushed
            await self._snapshot(None, decision.rule.value, flush=cadence.settings.flush and not at_once)
        except (OSError, SnapfsError):
            return False
        cadence.made(decision)
        return True
