"""Upkeep of the store in the background: drop what the policy no longer keeps, merge small segments, free space.

Runs after snapshots and drops, in a worker thread. A seal that comes meanwhile goes first: upkeep pauses between
objects until it is done.

Invariants:
1. The newest snapshot is never dropped: the live tree's dirtiness is relative to it.
2. Nothing here fails a snapshot or the daemon: what goes wrong is logged, and tried again after the next one.
3. It can be stopped at any object, at the cost of what the step had done.
4. What is protected (transfer/retention/protection.py) is not dropped. If the holds cannot be read, nothing is.
5. What goes is decided and dropped in the snapshotter's turn, as are holds, releases and drops by command: none of them
   is answered while it is just going. A few at a time, so that no snapshot waits for many.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import BusyError, SnapfsError
from snapfs.base.settings.retention import going
from snapfs.store.log import group_cuts
from snapfs.store.log.drops import POLICY
from snapfs.store.repair.liveness import live_numbers
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.retention import protection
from snapfs.transfer.retention.expiry import Keeping, verdicts
from snapfs.transfer.retention.protection import Reasons
from snapfs.transfer.seal.snapshotter import Snapshotter

log = logging.getLogger(__name__)
T = TypeVar("T")

_YIELD_SECONDS = 0.01
_WORK_SECONDS = 0.003
"""Upkeep works for so long and then sleeps for `_YIELD_SECONDS`, and as long as a seal is running: what it computes it
takes from the requests. (Without pauses it raised the pause of a cut from 0.3 to 38 ms in the worst of a hundred.)"""
COLLECT_AFTER_DROPS = 16
COLLECT_EVERY_SECONDS = 60.0
"""A walk over all tables pays when it frees several snapshots; fewer wait for this long since the last walk."""
DROPS_A_TURN = 8
"""Each is a flush of the log."""


class _StoppedError(Exception):
    """The daemon ends."""


class Upkeep:
    """Keeps one store in shape. Lives in the trio thread."""

    def __init__(
        self,
        repository: Repository,
        snapshotter: Snapshotter,
        keeping: Keeping,
        reasons: Sequence[Reasons],
        gone: Callable[[SnapshotRecord], Awaitable[None]],
    ) -> None:
        """`keeping`: what the settings keep; `reasons`: what else is protected.

        `gone` is called with each snapshot that was dropped.
        """
        self._repository = repository
        self._snapshotter = snapshotter
        self._keeping, self._reasons = keeping, tuple(reasons)
        self._gone = gone
        self._send, self._receive = trio.open_memory_channel[None](1)
        self._uncollected = 0
        self._collected_s = -COLLECT_EVERY_SECONDS
        self._stopping = False
        self._worked_since_s = 0.0
        self._limiter = trio.CapacityLimiter(1)

    def wake(self, *, dropped: int = 0) -> None:
        """There may be something to do: a snapshot was made, or so many were dropped."""
        self._uncollected += dropped
        with contextlib.suppress(trio.WouldBlock):  # woken already
            self._send.send_nowait(None)

    def stop(self) -> None:
        """Give up what is under way at its next step, and do nothing more."""
        self._stopping = True

    async def run(self) -> None:
        """Work whenever woken, for ever."""
        async for _ in self._receive:
            try:
                await self._expire()
                await self._in_thread(self._merge)
                if self._should_collect():
                    await self._in_thread(self._collect)
            except BusyError:
                continue  # a seal came first; the next snapshot is followed by another try
            except _StoppedError:
                return
            except (OSError, SnapfsError) as error:
                log.error("upkeep of the store: %s", error)

    def _should_collect(self) -> bool:
        waited_s = time.monotonic() - self._collected_s
        return self._uncollected >= COLLECT_AFTER_DROPS or (self._uncollected > 0 and waited_s >= COLLECT_EVERY_SECONDS)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def _expire(self) -> None:
        """Drop what no rule keeps. Most times there is nothing, which costs no turn."""
        while await self._in_thread(self._is_any_expired):
            dropped: list[SnapshotRecord] = []
            try:
                async with self._snapshotter.turn():
                    await self._in_thread(partial(self._drop_expired, dropped))
            finally:
                self._uncollected += len(dropped)
                for record in dropped:
                    await self._gone(record)
            if len(dropped) < DROPS_A_TURN:
                return

    def _is_any_expired(self) -> bool:
        """Whether something would go now; the turn is for deciding it once more, and doing it."""
        repository = self._repository
        if self._given_up() or not self._keeping.is_on:
            return bool(self._given_up())
        records, now_ns = repository.snapshots(), repository.clock()
        if not going(verdicts(records, self._keeping, now_ns, dict)):
            return False  # most times; the holds need not be read for it
        stay = partial(protection.protected, repository, self._reasons)
        return bool(going(verdicts(records, self._keeping, now_ns, stay)))

    def _given_up(self) -> list[SnapshotNumber]:
        """What is left of cuts of groups that were given up, but for the newest snapshot, which stays."""
        newest = self._repository.catalog.newest()
        return [number for number in self._repository.catalog.given_up() if number != newest]

    def _drop_expired(self, dropped: list[SnapshotRecord]) -> None:
        """Drop the first few that go, within the turn, and add them to `dropped`. Raises as `protected`."""
        repository = self._repository
        stay = protection.protected(repository, self._reasons)
        wanted = {number: group_cuts.WAS_GIVEN_UP for number in self._given_up() if number not in stay}
        if self._keeping.is_on:
            for number in going(verdicts(repository.snapshots(), self._keeping, repository.clock(), lambda: stay)):
                wanted.setdefault(number, self._keeping.drop_reason())
        for number in sorted(wanted)[:DROPS_A_TURN]:
            record = repository.catalog.get(number)
            if record is not None and self._drop_one(record, wanted[number]):
                dropped.append(record)

    def _drop_one(self, record: SnapshotRecord, why: str) -> bool:
        """Whether it went: another process may have come to hold it since the verdict."""
        try:
            protection.drop(self._repository, record, POLICY, why)
        except BusyError as error:
            log.info("%s", error)
            return False
        return True

    def _merge(self) -> None:
        while self._repository.merge_once(self._pause):
            pass

    def _collect(self) -> None:
        started = time.monotonic()
        with self._repository.collection() as collection:
            live = live_numbers(self._repository, self._needed(), self._pause)
            report = collection.run(live, self._pause)
        self._uncollected, self._collected_s = 0, time.monotonic()
        log.info(
            "collected: %d bytes freed, %d segments removed, %d rewritten, in %.1f s",
            report.freed_bytes, report.removed, report.rewritten, time.monotonic() - started,
        )  # fmt: skip

    def _needed(self) -> list[SnapshotRecord]:
        """The snapshots to keep: the history and its branches (a fetched folder, or one that a mirror had, has
        some)."""
        return [*self._repository.snapshots(), *self._repository.catalog.branches()]

    def _pause(self) -> None:
        """Called between objects, in the worker thread."""
        now_s = time.monotonic()
        if self._stopping:
            raise _StoppedError
        if now_s - self._worked_since_s > _WORK_SECONDS:
            self._give_way()
            self._worked_since_s = time.monotonic()

    def _give_way(self) -> None:
        time.sleep(_YIELD_SECONDS)
        while self._snapshotter.running is not None and not self._stopping:
            time.sleep(_YIELD_SECONDS)
