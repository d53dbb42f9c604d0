"""The lock of pyfuse3's tasks around the reading of requests, kept by a task whose handler does not wait."""

from __future__ import annotations

from types import TracebackType

import trio


class ReadLock:
    """Which of pyfuse3's tasks may wait for a request: one reads, and one stands by.

    A `trio.Lock` passes to the task that stands by as soon as a request is read: a round of trio's loop before the
    reply can be sent. Here the task that read a request (`keep`) holds the lock while its handler does not wait: it
    comes back, and reads again. The lock passes when a handler is going to wait (`hand_over`), with an error, and
    always after `end`, so that no task stands by for ever.
    """

    def __init__(self) -> None:
        self._held = self._ended = False
        self._standby = trio.lowlevel.ParkingLot()
        self._kept = False

    async def __aenter__(self) -> None:
        if self._held:
            await self._standby.park()
        self._held, self._kept = True, False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._ended or not self._kept:
            self.hand_over()

    def keep(self) -> None:
        """The task that holds the lock goes on with the next request when its handler has not waited."""
        self._kept = True

    def hand_over(self) -> None:
        """Let the task that stands by wait for requests, unless one does."""
        if not self._held and self._standby.unpark():
            self._held = True

    def end(self) -> None:
        """Wake the tasks that wait, to see that the session is over."""
        self._ended = True
        self.hand_over()
