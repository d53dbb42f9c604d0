"""A link that does what links do: an HTTP relay that cuts, slows, corrupts, duplicates and reorders. Seeded.

It stands between a pusher (or a reader) and a mirror, in a thread of its own, and its faults can be set at
any time. Used by tests, and by what runs for longer under tools/chaos.

Invariant: it never makes up an answer, and corrupts only streams of objects, which carry checksums of their own; what
is not protected by itself (a JSON message) is TLS's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from snapfs.store.protocol import wire
from tests.fakes.patience import PATIENCE_S

_PIECE_BYTES = 16 << 10
_HOP = {"host", "content-length", "transfer-encoding", "connection"}


@dataclass(frozen=True, slots=True)
class Badness:
    """Chances, each of a request. `bytes_per_s`: 0 for as fast as it goes. `down`: no connection gets through."""

    cut: float = 0.0  # the connection breaks in the middle of the request
    lose_answer: float = 0.0  # the request is done, and its answer lost
    corrupt: float = 0.0  # a byte of a stream of objects is another one
    duplicate: float = 0.0  # the request arrives twice
    reorder: float = 0.0  # it waits until a later one has overtaken it
    bytes_per_s: float = 0.0
    down: bool = False


class BadLink:
    """Relays to the HTTP server at 127.0.0.1:`port`. Its own port is `self.port`."""

    def __init__(
        self,
        port: int,
        seed: int,
        badness: Badness = Badness(),
        *,
        listen: str = "127.0.0.1",
        enter: Callable[[], None] = lambda: None,
    ) -> None:
        """`enter` is called first in the link's thread, and may move it into another network namespace."""
        self.badness = badness
        self.once: list[str] = []
        """What befalls the next requests, one each: "refuse", "cut", "lose_answer", "error", "error_after", "pass"."""
        self.deaf_to: tuple[str, ...] = ()
        """Headers that no PUT arrives with."""
        self._listen, self._enter = listen, enter
        self.done: Counter[str] = Counter()
        """How often it did what."""
        self.port = 0
        self._upstream = f"http://127.0.0.1:{port}"
        self._rng = random.Random(seed)
        self._passed = asyncio.Event()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._live, name="bad link")

    @contextlib.contextmanager
    def running(self) -> Iterator[BadLink]:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        try:
            yield self
        finally:
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE_S)

    def _live(self) -> None:
        self._enter()
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._relay)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self._listen, 0)
        await site.start()
        self.port = runner.addresses[0][1]
        timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as self._session:
            self._ready.set()
            await self._stop.wait()
        await runner.cleanup()

    def _happens(self, chance: float, what: str) -> bool:
        if self._rng.random() >= chance:
            return False
        self.done[what] += 1
        return True

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        bad = self.badness
        if bad.down:
            return self._break(request)
        body = await request.read()
        if self.once:
            return await self._relay_once(request, body, self.once.pop(0))
        if bad.bytes_per_s:
            await asyncio.sleep(len(body) / bad.bytes_per_s)
        if self._happens(bad.reorder, "reorder"):
            self._passed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._passed.wait(), 0.3)
        if body and self._happens(bad.cut, "cut"):
            await self._send_half(request, body)
            return self._break(request)
        if request.content_type == wire.OBJECTS_TYPE and self._happens(bad.corrupt, "corrupt"):
            at = self._rng.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 1 << self._rng.randrange(8)]) + body[at + 1 :]
        try:
            if self._happens(bad.duplicate, "duplicate"):
                await self._forward(request, body)
            status, headers, data = await self._forward(request, body)
        except (aiohttp.ClientError, OSError):
            return self._break(request)
        finally:
            self._passed.set()
        if self.badness.down or self._happens(bad.lose_answer, "lose_answer"):
            return self._break(request)
        return web.Response(status=status, headers=headers, body=data)

    async def _relay_once(self, request: web.Request, body: bytes, what: str) -> web.StreamResponse:
        self.done[what] += 1
        if what == "refuse":
            return self._break(request)
        if what == "cut":
            await self._send_half(request, body)
            return self._break(request)
        if what == "error":
            return web.Response(status=500)
        status, headers, data = await self._forward(request, body)
        if what == "lose_answer":
            return self._break(request)
        if what == "error_after":
            return web.Response(status=500)
        return web.Response(status=status, headers=headers, body=data)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        async with self._request(request, body) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            return answer.status, kept, await answer.read()

    def _request(
        self, request: web.Request, body: bytes | AsyncIterator[bytes]
    ) -> aiohttp.client._RequestContextManager:
        left_out = _HOP | {name.lower() for name in self.deaf_to if request.method == "PUT"}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in left_out}
        return self._session.request(request.method, f"{self._upstream}{request.rel_url}", data=body, headers=headers)

    async def _send_half(self, request: web.Request, body: bytes) -> None:
        """The mirror gets a part of the body, and then the connection breaks."""
        end = self._rng.randrange(len(body)) if body else 0

        async def half() -> AsyncIterator[bytes]:
            for start in range(0, end, _PIECE_BYTES):
                yield body[start : min(start + _PIECE_BYTES, end)]
            raise ConnectionResetError

        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._request(request, half()):
                pass

    def _break(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response(status=503)
