"""How the daemon waits for the kernel's next request: look first, spin briefly, then sleep.

Between two requests of one application lie 10 to 50 us. To sleep in epoll for that long, and to be scheduled by
trio afterwards, costs more than the wait itself: measured on a mount with one stat(2) after another, 49 us a request
with pyfuse3's own waiting, 22 us when the reader looks at the descriptor for up to 50 us before it sleeps.

With a router (router.py) the descriptor is a socket, and to look does more: the replies that were put into it are sent
to the kernel, and the `unique` of the next request is learned, which pyfuse3 keeps from its handlers. The task that
looks is the one that reads and handles the request, so a context variable hands it on.

pyfuse3 takes its waiting from the name `trio` in its own module, which is how `pyfuse3.asyncio` puts another
event loop in; `install` uses the same way in.

Invariants:
1. Other work comes first: while a request is in flight (its handler waits for a thread), or
   a task is about to run, the reader yields to trio before it looks, and does not spin.
2. An idle mount costs nothing: a spin follows only a request, and one that found nothing makes the next ones rarer.
3. A stream of requests without a pause still lets trio run: at least every `_REQUESTS_BETWEEN_YIELDS`.
4. The router relies on the reader to send the replies only while the one request in flight is the one that the reader
   let through: it is answered before the reader looks again, or counted in `in_flight`.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pyfuse3
import trio

from snapfs.fuse.kernel import router
from snapfs.fuse.kernel.idleness import Idleness
from snapfs.fuse.kernel.read_lock import ReadLock
from snapfs.fuse.kernel.router import Latency
from snapfs.fuse.kernel.spin_budget import SpinBudget

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router


_unique: ContextVar[int] = ContextVar("unique", default=0)
_SPIN_SECONDS = 50e-6
_REQUESTS_BETWEEN_YIELDS = 16


def unique() -> int:
    """What the kernel calls the request that is being handled; 0 if unknown. Bit 63: it was sent once before."""
    return _unique.get()


InThread = Callable[[Callable[[], int]], Awaitable[int]]


class RequestReader:
    """The waiting of one pyfuse3 session. `in_flight` and `requests`, by operation, are kept by the handlers."""

    def __init__(self, *, runs_first: bool = False) -> None:
        """`runs_first`: whether the router's threads should run before all that computes (native/threads.c)."""
        self.runs_first = runs_first
        self.in_flight = 0
        self.lock = ReadLock()
        self.idleness = Idleness()
        self.requests: defaultdict[str, int] = defaultdict(int)
        self._router: Router | None = None
        self._taken = self._alone = 0
        self._catching_up: list[tuple[int, trio.Event]] = []
        self._held: trio.Event | None = None
        self._poll = select.poll()
        self._registered = -1
        self._since_yield = 0
        self._spinning = SpinBudget()

    @property
    def router(self) -> Router | None:
        """The session's router; None without one, and before and after the session."""
        return self._router

    def connect(self, router: Router | None) -> None:
        """The session has its router, or none. Called once, after INIT and before the first request is served."""
        self._router = router

    def disconnect(self) -> None:
        """The session is closed, and its router with it."""
        self._router = None

    def slow(self, slowed: bool) -> None:
        """Whether all writes and fsyncs must come through the handlers, which throttle them."""
        if self._router is not None:
            self._router.throttle(slowed)

    def refuse_changes(self) -> None:
        """The router refuses requests that change bytes, from now on."""
        if self._router is not None:
            self._router.set_read_only(True)

    def begin(self, operation: str) -> None:
        """A request is being handled, and may wait."""
        self.requests[operation] += 1
        self.in_flight += 1

    def begin_waiting(self) -> None:
        """The handler of a request that was counted already has to wait."""
        self.in_flight += 1
        self.lock.hand_over()

    def end(self) -> None:
        """The reply to a request that was `begin` or `begin_waiting` is made."""
        self.in_flight -= 1

    async def wait_readable(self, fd: int) -> None:
        """Return when a read of `fd` will not block. Raises `trio.ClosedResourceError` as trio does."""
        if self._router is not None:
            await self._wait_routed(fd, self._router)
            self.lock.keep()
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
        total.update(router.answered(self._router))
        return total

    def latencies(self) -> Mapping[str, Latency]:
        return router.latencies(self._router)

    async def catch_up(self, in_thread: InThread = trio.to_thread.run_sync) -> None:
        """Return when every request that was read from the device before is answered by the router, or its handler has
        begun. `in_thread` waits for the router."""
        if self._router is None:
            return
        sent = await in_thread(self._router.settle)
        if self._taken < sent:
            event = trio.Event()
            self._catching_up.append((sent, event))
            await event.wait()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """In the block no request is answered but by handlers, so that nothing comes between two of its awaits."""
        self._alone += 1
        try:
            if self._router is not None:
                await trio.to_thread.run_sync(self._router.pause, True)
            yield
        finally:
            self._alone -= 1
            if self._router is not None and not self._alone:
                self._router.pause(False)

    def _note_caught_up(self) -> None:
        """The tasks that wait run after the handler of the request that is being let through has begun."""
        for sent, event in self._catching_up:
            if sent <= self._taken:
                event.set()
        self._catching_up = [(sent, event) for sent, event in self._catching_up if sent > self._taken]

    async def _next(self, fd: int, router: Router) -> int:
        """The unique of the next request. While this waits the router sends the replies by itself."""
        self._since_yield += 1
        others = self.in_flight or self._since_yield >= _REQUESTS_BETWEEN_YIELDS
        spins = not others and self._spinning.may_spin()
        unique = router.next(_SPIN_SECONDS if spins else 0.0)
        if spins:
            self._spinning.note(bool(unique))
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
        if not self._spinning.may_spin():
            return False
        end = time.perf_counter() + _SPIN_SECONDS
        found = False
        while not found and time.perf_counter() < end:
            found = bool(self._poll.poll(0))
        self._spinning.note(found)
        return found


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
