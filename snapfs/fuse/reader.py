"""How the daemon waits for the kernel's next request: look first, spin briefly, then sleep.

Between two requests of one application lie 10 to 50 us. To sleep in epoll for that long, and to be scheduled by
trio afterwards, costs more than the wait itself: measured on a mount with one stat(2) after another, 49 us a request
with pyfuse3's own waiting, 22 us when the reader looks at the descriptor for up to 50 us before it sleeps.

With a router (router.py) the descriptor is a socket, and to look is more: the replies that were put into it are brought
to the kernel, and the `unique` of the next request is learned, which pyfuse3 keeps from its handlers. The task that
looks is the one that reads and handles the request, so a context variable hands it on.

pyfuse3 takes its waiting from the name `trio` in its own module, which is how `pyfuse3.asyncio` puts another
event loop in; `install` uses the same door.

Invariants:
1. Whoever else has something to do comes first: while a request is in flight (its handler waits for a thread), or
   a task is about to run, the reader yields to trio before it looks, and does not spin.
2. An idle mount costs nothing: a spin follows only a request, and one that found nothing makes the next ones rarer.
3. A stream of requests without a pause still lets trio run: at least every `_REQUESTS_BETWEEN_YIELDS`.
4. The router may count on us to bring the replies only while the one request in flight is that which we let through:
   it is answered before we look again, or counted in `in_flight`.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING

import pyfuse3
import trio

from snapfs.fuse import router
from snapfs.fuse.router import Latency

if TYPE_CHECKING:
    from snapfs.fuse._router import Router


_unique: ContextVar[int] = ContextVar("unique", default=0)
_SPIN_SECONDS = 50e-6
_REQUESTS_BETWEEN_YIELDS = 16
_PATIENCE = 8  # spins in vain, in excess of the successful ones, after which spinning pauses
_PAUSE_REQUESTS = 64


def unique() -> int:
    """What the kernel calls the request that is being handled; 0 if unknown. Bit 63: it was sent once before."""
    return _unique.get()


class RequestReader:
    """The waiting of one pyfuse3 session. `in_flight` and `requests`, by operation, are kept by the handlers."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.lock = ReadLock()
        self.requests: defaultdict[str, int] = defaultdict(int)
        self.router: Router | None = None
        self._taken = self._alone = 0
        self._catching_up: list[tuple[int, trio.Event]] = []
        self._held: trio.Event | None = None
        self._poll = select.poll()
        self._registered = -1
        self._since_yield = 0
        self._luck = _PATIENCE
        self._pause = 0

    async def wait_readable(self, fd: int) -> None:
        """Return when a read of `fd` will not block. Raises `trio.ClosedResourceError` as trio does."""
        if self.router is not None:
            await self._wait_routed(fd, self.router)
            self.lock.let_through = True
            return
        await self._wait_readable(fd)
        while self._held is not None:
            await self._held.wait()
            await self._wait_readable(fd)

    async def _wait_routed(self, fd: int, router: Router) -> None:
        unique = await self._next(fd, router)
        while self._held is not None:
            router.promise(False)
            await self._held.wait()
            unique = await self._next(fd, router)
        _unique.set(unique)
        self._taken += 1
        if self._catching_up:
            self._note_caught_up()
        router.promise(not self.in_flight)

    def counts(self) -> Mapping[str, int]:
        """Requests answered, by operation: by handlers and by the router."""
        total = Counter(self.requests)
        total.update(router.answered(self.router))
        return total

    def latencies(self) -> Mapping[str, Latency]:
        return router.latencies(self.router)

    async def catch_up(self) -> None:
        """Return when every request that was read from the device before is answered by the router, or its handler has
        begun."""
        if self.router is None:
            return
        sent = await trio.to_thread.run_sync(self.router.settle)
        if self._taken < sent:
            event = trio.Event()
            self._catching_up.append((sent, event))
            await event.wait()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """In the block no request is answered but by handlers, so that nothing comes between two of its awaits."""
        self._alone += 1
        try:
            if self.router is not None:
                await trio.to_thread.run_sync(self.router.pause, True)
            yield
        finally:
            self._alone -= 1
            if self.router is not None and not self._alone:
                self.router.pause(False)

    def _note_caught_up(self) -> None:
        """What waits runs after the handler of the request that is being let through has begun."""
        for sent, event in self._catching_up:
            if sent <= self._taken:
                event.set()
        self._catching_up = [(sent, event) for sent, event in self._catching_up if sent > self._taken]

    async def _next(self, fd: int, router: Router) -> int:
        """The unique of the next request. While this waits the router brings the replies by itself."""
        self._since_yield += 1
        others = self.in_flight or self._since_yield >= _REQUESTS_BETWEEN_YIELDS
        spins = not others and self._may_spin()
        unique = router.next(_SPIN_SECONDS if spins else 0.0)
        if spins:
            self._note_luck(bool(unique))
        elif others:
            self._since_yield = 0
            router.promise(False)
            await trio.lowlevel.checkpoint()
            unique = unique or router.next(0.0)
        while not unique:
            self._since_yield = 0
            router.promise(False)
            await trio.lowlevel.wait_readable(fd)
            unique = router.next(0.0)
        if unique < 0:
            router.promise(False)
            for _, event in self._catching_up:
                event.set()
            raise trio.ClosedResourceError
        return unique

    def hold(self) -> None:
        """Take no more requests, until `resume`. One that waits for a thread goes on."""
        self._held = self._held or trio.Event()

    def resume(self) -> None:
        if self._held is not None:
            self._held.set()
            self._held = None

    async def _wait_readable(self, fd: int) -> None:
        if fd != self._registered:
            self._poll = select.poll()  # without the descriptor of an earlier session, which is always "ready"
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        self._since_yield += 1
        if self.in_flight or self._since_yield >= _REQUESTS_BETWEEN_YIELDS:
            self._since_yield = 0
            await trio.lowlevel.checkpoint()
        if self._poll.poll(0) or (not self.in_flight and self._spin()):
            return
        self._since_yield = 0
        await trio.lowlevel.wait_readable(fd)

    def _spin(self) -> bool:
        """Look for a request for a moment; whether one came."""
        if not self._may_spin():
            return False
        end = time.perf_counter() + _SPIN_SECONDS
        found = False
        while not found and time.perf_counter() < end:
            found = bool(self._poll.poll(0))
        self._note_luck(found)
        return found

    def _may_spin(self) -> bool:
        if not self._pause:
            return True
        self._pause -= 1
        return False

    def _note_luck(self, found: bool) -> None:
        self._luck = min(self._luck + 1, _PATIENCE) if found else self._luck - 1
        if not self._luck:
            self._pause, self._luck = _PAUSE_REQUESTS, _PATIENCE


class ReadLock:
    """Who of pyfuse3's tasks may wait for a request: one reads, and one stands by.

    A `trio.Lock` passes to who stands by as soon as a request is read: a turn of trio's loop before the reply
    can be brought. Here who read the request (`let_through`) keeps its place while its handler does not wait: it comes
    back, and looks again. It passes when a handler is going to wait (`hand_over`), with an error, and always after
    `end`, so that nobody stands by for ever.
    """

    def __init__(self) -> None:
        self._held = self._ended = False
        self._standby = trio.lowlevel.ParkingLot()
        self.let_through = False

    async def __aenter__(self) -> None:
        if self._held:
            await self._standby.park()
        self._held, self.let_through = True, False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._ended or not self.let_through:
            self.hand_over()

    def hand_over(self) -> None:
        """Let who stands by wait for requests, unless somebody does."""
        if not self._held and self._standby.unpark():
            self._held = True

    def end(self) -> None:
        """Whoever waits shall see that it is over."""
        self._ended = True
        self.hand_over()


def install(reader: RequestReader) -> None:
    """Let pyfuse3 wait as `reader` does. To be called before `pyfuse3.init`."""
    lowlevel = SimpleNamespace(
        wait_readable=reader.wait_readable,
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        notify_closing=trio.lowlevel.notify_closing,
    )
    vars(pyfuse3)["trio"] = SimpleNamespace(
        Lock=lambda: reader.lock,
        lowlevel=lowlevel,
        ClosedResourceError=trio.ClosedResourceError,
        open_nursery=trio.open_nursery,
    )
