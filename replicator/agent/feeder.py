"""One target of one volume: brings each new snapshot there, and the history.

A Feeder runs as one task. It opens the target, claims the volume's generation there, and then takes one step of
`push_plan.plan` after the other (delivery.py). When something fails it waits, longer each time and with jitter, and
begins at the opening again; what was sent stays there and is not sent twice.

Invariants:
1. History gives way: when a newer snapshot turns up, a stretch of history is interrupted until that is there.
2. The failure of one target affects no other: each has a source, a pace and a limit of its own.
3. Being fenced or refused never ends the task: it tries again now and then, since people change such things.
4. What is reported of an idle link is not older than LOOK_SECONDS: the target is opened again, also when there is
   nothing to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from replicator.agent.agent_status import Link, TargetStatus
from replicator.agent.delivery import Delivery
from replicator.agent.link_report import Counters, LinkReport
from replicator.agent.part_sender import PartSender
from replicator.agent.push_plan import Step, StepKind
from replicator.agent.retry_rules import ATTEMPTS, LINK_ERRORS, default_waits, is_final, retry_wait_s
from replicator.agent.source_thread import SourceThread
from replicator.agent.target_session import TargetRole, TargetSession
from replicator.source.volume_source import VolumeSource
from replicator.targets.target import Target
from snapfs.base.errors import SnapfsError

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 60.0


class _OvertakenError(Exception):
    """There is something newer than the history that is being sent."""


class Feeder:
    """Feeds `target` from `source`; closes both."""

    def __init__(
        self,
        source: VolumeSource,
        target: Target,
        status: TargetStatus,
        role: TargetRole,
        *,
        changed: Callable[[bool], None],
        limit_bytes_per_s: float = 0.0,
        counters: Counters | None = None,
    ) -> None:
        """`changed(urgent)` is called whenever `status` has changed."""
        self.status, self.target = status, target
        self.thread = SourceThread(source, f"push {status.name}")
        self.waits = default_waits()
        """Between attempts. Seconds."""
        self._source, self._settings = source, role.settings
        self._report = LinkReport(status, changed, counters or Counters())
        self.session = TargetSession(self.thread, target, self._report, role)
        sender = PartSender(self.thread, target, self._report, self.waits, limit_bytes_per_s)
        self.delivery = Delivery(self.session, sender, self._give_way)
        self._wake = asyncio.Event()
        self._failures = 0

    def wake(self) -> None:
        """The volume has something new."""
        self._wake.set()

    async def run(self) -> None:
        """Feed, for ever."""
        while True:
            try:
                await self.feed(once=False)
            except (SnapfsError, *LINK_ERRORS) as error:
                await self._back_off(error)

    async def run_once(self) -> None:
        """Return when the target has everything. Raises what a target or the source raises, after some attempts."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS), wait=self.waits, reraise=True,
            retry=retry_if_exception(
                lambda error: isinstance(error, (SnapfsError, *LINK_ERRORS)) and not is_final(error)
            ),
        )  # fmt: skip
        async for attempt in attempts:
            with attempt:
                try:
                    await self.feed(once=True)
                except (SnapfsError, *LINK_ERRORS) as error:
                    self._report.failed(error)
                    raise

    async def close(self) -> None:
        await self.target.close()
        await self.thread.close()

    async def feed(self, *, once: bool) -> None:
        """From one opening of the target until something fails, or with `once` until the target has everything.

        Raises SnapfsError, OSError, TimeoutError.
        """
        await self._connect()
        claimed = None
        while True:
            self._wake.clear()
            await self.thread.refresh()
            if claimed != self._source.volume.generation or self.session.seems_older:
                await self.session.open()
                claimed = await self.session.claim()
            step = await self.session.plan()
            # Of a target that has diverged, what is there of a number may be another's.
            if step.kind is not StepKind.DIVERGED and await self.session.send_holds():
                continue
            if step.kind is not StepKind.DONE:
                await self.take(step)
                self._failures = 0
                continue
            await self._rest()
            if once:
                return
            if not await self.session.peers_are_current() or not await self._until_woken():
                claimed = None  # is it still there, and we its writer? Does it know the other targets?

    async def take(self, step: Step) -> None:
        """Take one step of the plan."""
        if step.kind is StepKind.DIVERGED:
            await self.session.branch_off(step)
        elif step.kind is StepKind.DROP:
            await self.delivery.drop(step.snapshots, step.rule)
        else:
            with contextlib.suppress(_OvertakenError):
                await self.delivery.deliver(step, query=self._failures > 0)

    async def _connect(self) -> None:
        self._report.set_link(Link.CONNECTING)
        await self.thread.refresh()
        self.delivery.forget()
        self.session.update_status()
        self._report.changed(False)

    async def _rest(self) -> None:
        """The target has everything."""
        self.session.note_complete()
        await self.delivery.hold_base(())
        await self.delivery.send_gates()
        self._report.set_link(Link.IDLE)

    async def _until_woken(self) -> bool:
        """Wait for something new; False after a while without, to open the target again and to renew what is held."""
        seconds = min(LOOK_SECONDS, float(self._settings.hold or 60.0) / 8)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may lose a cancellation that meets the wake
                await self._wake.wait()
                return True
        return False

    async def _give_way(self) -> None:
        """Interrupt history while there is something newer to send."""
        if self._wake.is_set():
            self._wake.clear()
            await self.thread.refresh()
            if (await self.session.plan()).kind in (StepKind.NEXT, StepKind.NEWEST):
                raise _OvertakenError

    async def _back_off(self, error: Exception) -> None:
        self._report.failed(error)
        self._failures += 1
        wait_s = retry_wait_s(error, self._failures)
        with contextlib.suppress(SnapfsError, OSError):
            await self.thread.refresh()
        self.session.update_status()
        self._report.changed(True)
        await self._until_another_generation(wait_s)

    async def _until_another_generation(self, wait_s: float) -> None:
        """Wait so long, but no longer than until this host begins a generation: the target may accept it now."""
        generation, end_s = self._source.volume.generation, time.monotonic() + wait_s
        while (left_s := end_s - time.monotonic()) > 0 and self._source.volume.generation == generation:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            with contextlib.suppress(SnapfsError, OSError):
                await self.thread.refresh()
                self.session.update_status()
                self._report.changed(False)
