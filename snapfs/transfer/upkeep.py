"""Upkeep of the store in the background: drop what the policy no longer keeps, merge small segments, free space.

Runs after snapshots and drops, in a worker thread. A seal that comes meanwhile goes first: upkeep pauses between
objects until it is done.

Invariants:
1. The newest snapshot is never dropped: the live tree's dirtiness is relative to it.
2. Nothing here fails a snapshot or the daemon: what goes wrong is logged, and tried again after the next one.
3. It can be stopped at any object, at the cost of what the step had done.
4. A snapshot that somebody holds (store/holds.py) is not dropped. If the holds cannot be read, none is.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from snapfs import policy
from snapfs.errors import BusyError, SnapfsError
from snapfs.store.check import live_numbers
from snapfs.store.holds import Holds
from snapfs.store.repository import Repository, SnapshotRecord
from snapfs.transfer.snapshotter import Snapshotter

log = logging.getLogger(__name__)
T = TypeVar("T")

_YIELD_SECONDS = 0.01
_WORK_SECONDS = 0.003
"""Upkeep works for so long and then sleeps for `_YIELD_SECONDS`, and as long as a seal is running: what it computes it
takes from the requests. (Without pauses it raised the pause of a cut from 0.3 to 38 ms in the worst of a hundred.)"""
COLLECT_AFTER_DROPS = 16
COLLECT_EVERY_SECONDS = 60.0
"""A walk over all tables pays when it frees several snapshots; fewer wait for this long since the last walk."""


def drop(repository: Repository, record: SnapshotRecord) -> None:
    """Drop a snapshot that somebody wants dropped. BusyError for the newest and for one that is held; OSError."""
    latest = repository.latest()
    if latest is not None and record.number == latest.number:
        raise BusyError(f"snapshot {record.number} is the newest, which the next one builds on: make another one first")
    for hold in Holds(repository.store_dir, repository.disk).all():
        if record.number in hold.snapshots:
            raise BusyError(f"snapshot {record.number} is held by {hold.holder} ({hold.why}): try again later")
    repository.drop(record.number)


class _StoppedError(Exception):
    """The daemon ends."""


class Upkeep:
    """Keeps one store in shape. Lives in the trio thread."""

    def __init__(
        self,
        repository: Repository,
        snapshotter: Snapshotter,
        keep: int,
        gone: Callable[[SnapshotRecord], Awaitable[None]],
    ) -> None:
        """`keep` as in the settings; `gone` is told of each snapshot that was dropped."""
        self._repository = repository
        self._snapshotter = snapshotter
        self._keep = keep
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
        expired = policy.expired(self._repository.snapshots(), self._keep)
        held = await self._in_thread(Holds(self._repository.store_dir, self._repository.disk).held) if expired else ()
        numbers = [number for number in expired if number not in held]
        for number in numbers:
            record = self._repository.find(str(number))
            await trio.to_thread.run_sync(drop, self._repository, record, limiter=self._limiter)
            await self._gone(record)
        self._uncollected += len(numbers)

    def _merge(self) -> None:
        while self._repository.merge_once(self._pause):
            pass

    def _collect(self) -> None:
        started = time.monotonic()
        with self._repository.collection() as collection:
            live = live_numbers(self._repository, self._repository.snapshots(), self._pause)
            report = collection.run(live, self._pause)
        self._uncollected, self._collected_s = 0, time.monotonic()
        log.info(
            "collected: %d bytes freed, %d segments removed, %d rewritten, in %.1f s",
            report.freed_bytes, report.removed, report.rewritten, time.monotonic() - started,
        )  # fmt: skip

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
