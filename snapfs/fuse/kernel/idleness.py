"""Whether a mount is idle, and the pauses of the tasks that look at something from time to time.

Such a task looks at what only changes when requests come. While none come its looks find nothing, and on a host with
many volumes they are all that keeps it awake: 50 idle volumes took 17 % of a core. So a mount that had no request for a
while is *quiet*: a pause then lasts until the next request, or a long time. The router reports the first request after
`watch_activity` was called, at the cost of one load for each of the others.

Invariants:
1. A pause is as long as asked for unless the mount is quiet, and then ends with the first request that is read.
2. A mount is quiet only after QUIET_AFTER_S without a request, so that what follows a request is done before, and not
   while `is_busy` (a snapshot, a hydration) says that something is under way.
3. Without a router nothing reports requests, and a mount is never quiet.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

QUIET_AFTER_S: Final = 10.0
LONGEST_PAUSE_S: Final = 30.0
"""What a look would find by itself, without a request, waits for so long."""

Pause = Callable[[float], Awaitable[object]]
"""`trio.sleep`, or `Idleness.pause`."""


class Idleness:
    """The idleness of one mount. Lives in the trio thread."""

    def __init__(self) -> None:
        self._active = trio.Event()
        self._active.set()
        self._wait = trio.CancelScope()

    @property
    def is_quiet(self) -> bool:
        return not self._active.is_set()

    async def pause(self, seconds: float, longest_s: float = LONGEST_PAUSE_S) -> None:
        """Sleep for so long; on a quiet mount until a request comes, or for `longest_s` in all."""
        await trio.sleep(seconds)
        if longest_s > seconds:
            with trio.move_on_after(longest_s - seconds):
                await self._active.wait()

    def end(self) -> None:
        """Something other than a request has happened that the pausing tasks shall look at soon."""
        self._active.set()
        self._wait.cancel()

    async def run(self, router: Router | None, is_busy: Callable[[], bool]) -> None:
        """Find out when the mount becomes quiet and when that ends, for ever."""
        if router is None:
            return
        event = os.dup(router.watch_activity())  # the router closes its own before trio lets go of it
        try:
            while True:
                if await self._has_request(router, event, QUIET_AFTER_S):
                    await trio.sleep(QUIET_AFTER_S)
                elif not is_busy():
                    self._active = trio.Event()
                    await self._has_request(router, event, math.inf)
                    self._active.set()
        finally:
            os.close(event)

    async def _has_request(self, router: Router, event: int, seconds: float) -> bool:
        """Wait for a request; False if there was none in this time, or `end` was called."""
        router.watch_activity()
        with trio.move_on_after(seconds) as self._wait:
            await trio.lowlevel.wait_readable(event)
            return True
        return False
