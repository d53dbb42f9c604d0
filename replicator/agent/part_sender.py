"""Sends the objects of one step to a target, in parts: several at a time, as many and as large as the link allows.

Invariants:
1. At most as many parts are in flight as the pace and the target's window allow; under a limit of bytes per second a
   part waits until its bytes are due.
2. A part that fails for a passing reason is sent again, ATTEMPTS times; then the error is raised and the parts in
   flight are cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from replicator.agent.link_report import LinkReport
from replicator.agent.rate_control import SMALLEST_BYTES, Bucket, Pace
from replicator.agent.retry_rules import ATTEMPTS, LINK_ERRORS, RetryWaits, is_transient
from replicator.agent.source_thread import SourceThread
from replicator.source.selection import Part
from replicator.targets.target import Target
from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol.refusals import RefusedError

Interrupt = Callable[[], Awaitable[None]]
"""Called before each part; raises if something else is to be sent first."""


class PartSender:
    """Sends objects to one target, in parts; one `send` at a time. Used in the loop's thread."""

    def __init__(
        self, thread: SourceThread, target: Target, report: LinkReport, waits: RetryWaits, limit_bytes_per_s: float
    ) -> None:
        self._thread, self._target, self._report, self._waits = thread, target, report, waits
        self._bucket = Bucket(limit_bytes_per_s)
        self._pace = Pace()

    async def send(self, newest: SnapshotNumber, numbers: NumberSet, interrupt: Interrupt | None = None) -> None:
        """Send these objects; `newest` is the snapshot that the status shows as being sent.

        Raises what `interrupt` raises, CorruptionError, RefusedError, OSError.
        """
        source = self._thread.source
        self._report.begin_sending(newest, source.stored_bytes(numbers))
        parts = source.parts(numbers, self._part_bytes, self._target.limits.part_objects)
        pending: set[asyncio.Task[None]] = set()
        try:
            while (part := await self._thread.run(next, parts, None)) is not None:
                if interrupt is not None:
                    await interrupt()
                await self._wait_for_room(pending)
                await asyncio.sleep(self._bucket.wait_s(time.monotonic(), part.bytes))
                pending.add(asyncio.create_task(self._send_part(part)))
            while pending:
                await _one_done(pending)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _part_bytes(self) -> int:
        """The size of the next part. A limit is kept by small parts, not by long pauses between large ones."""
        most = min(self._pace.request_bytes, self._target.limits.part_bytes)
        return max(SMALLEST_BYTES, min(most, int(self._bucket.burst))) if self._bucket.bytes_per_s else most

    async def _wait_for_room(self, pending: set[asyncio.Task[None]]) -> None:
        while len(pending) >= min(self._pace.limit, self._target.limits.window_parts):
            await _one_done(pending)

    async def _send_part(self, part: Part) -> None:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(ATTEMPTS), wait=self._wait_s, reraise=True,
            retry=retry_if_exception(is_transient), before_sleep=self._report.part_failed,
        )  # fmt: skip
        async for attempt in retrying:
            with attempt:
                started_s = time.monotonic()
                try:
                    wire_bytes = await self._target.send(part)
                except (SnapfsError, *LINK_ERRORS):
                    now_s = time.monotonic()
                    self._pace.failed(now_s, now_s - started_s)
                    raise
                now_s = time.monotonic()
                self._pace.succeeded(now_s, wire_bytes, now_s - started_s)
        self._report.part_sent(now_s, part, wire_bytes)

    def _wait_s(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        requested_s = error.problem.retry_after if isinstance(error, RefusedError) else 0.0
        return max(requested_s, self._waits(state))


async def _one_done(pending: set[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        pending.discard(task)
        task.result()
