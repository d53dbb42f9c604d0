"""What all requests to a mirror have in common: authentication, refusals, threads, bounds.

Invariants:
1. Every way a request can end is one here: an answer, a refusal (wire.Problem), a connection that is gone, a bug (a
   refusal "internal", with a traceback in the log). Each is counted.
2. Nothing but health is served without a token, nor while stopping. A site beside the requests (`replicator/console`)
   sees to that itself.
3. Whatever takes long runs in one of the pools, and each pool is for one kind of work.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from aiohttp import web

from replicator.mirror.connection_limits import AuthenticatedConnections
from replicator.mirror.mirror import DISK_FULL, Mirror
from replicator.mirror.mirror_metrics import MirrorMetrics
from replicator.mirror.tokens import Token, Tokens, require
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.errors import CorruptionError, SnapfsError, UserError, VersionError
from snapfs.base.logs import json_lines
from snapfs.store.protocol import message_codec, wire
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.store.protocol.wire import Right

log = logging.getLogger(__name__)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_URGENT_SECONDS: Final = 0.5
WAITING: Final = frozenset({"console_events"})
"""Operations that are no work while they last: they count among no requests under way."""

Result = TypeVar("Result")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Bounds. `max_parts` in flight over all volumes, a few MiB of memory each; `rate_bytes` per second, 0: none."""

    max_parts: int = 8
    max_requests: int = 256
    max_polls: int = 1024
    push_threads: int = 4
    read_threads: int = 4
    commit_threads: int = 4
    silence_seconds: float = 60.0
    upkeep_seconds: float = 60.0
    rate_bytes: float = 0.0


class RequestRate:
    """So many bytes a second, with a second's worth at once; 0 is no limit. Lives in the loop."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Wait until that many more bytes are due."""
        seconds = self.delay(asyncio.get_running_loop().time(), count)
        if seconds:
            await asyncio.sleep(seconds)

    def delay(self, now: float, count: int) -> float:
        """How long to wait, at `now` seconds, with that many bytes."""
        if not self._rate:
            return 0.0
        self._free_at = max(self._free_at, now - 1.0) + count / self._rate
        return max(self._free_at - now, 0.0)


class Requests:
    """The base of the service: its parts, its bounds, and what surrounds each request."""

    def __init__(self, mirror: Mirror, tokens: Tokens, options: ServerOptions) -> None:
        self.mirror, self.tokens, self.options = mirror, tokens, options
        self.metrics = MirrorMetrics(lambda: [volume.state() for volume in mirror.volumes()])
        self._pushes = ThreadPoolExecutor(options.push_threads, "push")
        self._reads = ThreadPoolExecutor(options.read_threads, "read")
        self._commits = ThreadPoolExecutor(options.commit_threads, "commit")
        self._control = ThreadPoolExecutor(2, "control")
        self._upkeeps = ThreadPoolExecutor(1, "upkeep")
        self.authenticated = AuthenticatedConnections()
        self._rate = RequestRate(options.rate_bytes)
        self._parts = self._polls = self._requests = 0
        self._bulk = asyncio.Semaphore(max(options.read_threads // 2, 1))
        self._urgent_at = -1e9
        self._changed = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._upkeep_task: asyncio.Task[None] | None = None

    # Around each request.

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        json_lines.volume.set(request.match_info.get("volume", ""))
        operation = handler.__name__.strip("_")
        started, result = time.monotonic(), "ok"
        try:
            return await self._admitted(request, handler, operation)
        except web.HTTPException as error:  # no such path or method, a body that is too large
            result = "bad_request"
            return self._refusal(_of_http(error))
        except RefusedError as error:
            result = error.problem.error
            if result not in (Refusal.BUSY, Refusal.STOPPING, Refusal.INCOMPLETE):
                log.warning("%s %s from %s: %s", request.method, request.path, request.remote, error)
            return self._refusal(error)
        except (ConnectionError, TimeoutError):  # gone, or silent for too long
            result = "broken"
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=400)
        except (SnapfsError, OSError) as error:
            result = "failed"
            log.error("%s %s: %s", request.method, request.path, error)
            return self._refusal(_of_failure(error))
        except Exception:
            result = "bug"
            log.exception("%s %s", request.method, request.path)
            return self._refusal(refuse(Refusal.INTERNAL, "the mirror failed at this request; see its log"))
        finally:
            self.metrics.requests.labels(operation, result).inc()
            self.metrics.seconds.labels(operation).observe(time.monotonic() - started)

    async def _admitted(self, request: web.Request, handler: Handler, operation: str) -> web.StreamResponse:
        if operation in ("health", "ready"):
            return await handler(request)
        if self._stopping.is_set():
            raise refuse(Refusal.STOPPING, "this mirror is shutting down", retry_after=2.0)
        version = request.headers.get(wire.PROTOCOL_HEADER, str(wire.PROTOCOL_VERSION))
        if not version.isdecimal() or int(version[:9]) > wire.PROTOCOL_VERSION:
            raise refuse(Refusal.VERSION, f"this mirror speaks protocol {wire.PROTOCOL_VERSION}: use a newer mirror")
        if operation in WAITING or (operation == "snapshots" and "revision" in request.query):
            return await handler(request)  # it only waits, and has a bound of its own
        if self._requests >= self.options.max_requests:
            raise refuse(Refusal.BUSY, "too many requests at a time", retry_after=0.5)
        self._requests += 1
        try:
            return await handler(request)
        finally:
            self._requests -= 1

    def _refusal(self, error: RefusedError) -> web.Response:
        headers = self._headers()
        if error.problem.retry_after:
            headers["Retry-After"] = str(max(round(error.problem.retry_after), 1))
        if error.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="snapfs"'
        body = message_codec.encode(error.problem)
        return web.Response(body=body, status=error.status, content_type=wire.JSON_TYPE, headers=headers)

    def _headers(self) -> dict[str, str]:
        return {wire.PROTOCOL_HEADER: str(wire.PROTOCOL_VERSION), wire.WINDOW_HEADER: str(self._window())}

    def _window(self) -> int:
        urgent = time.monotonic() - self._urgent_at < _URGENT_SECONDS
        return 1 if urgent else max(min(self.mirror.options.limits.window_parts, self.options.max_parts), 1)

    def _answer(self, message: Any) -> web.Response:
        return web.Response(body=message_codec.encode(message), content_type=wire.JSON_TYPE, headers=self._headers())

    def _token(self, request: web.Request) -> Token:
        token = self.tokens.check(request.headers.get("Authorization"))
        self.authenticated.add(request.transport)
        return token

    def _volume(self, request: web.Request, right: Right) -> MirrorVolume:
        token, name = self._token(request), wire.check_volume_name(request.match_info["volume"])
        require(token, name, right)
        return self.mirror.get(name)

    # What a site beside the requests is made of.

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def change(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Change something of a volume in a thread, and wake those that wait for it."""
        try:
            return await self._in(self._commits, work, *arguments)
        finally:
            await self._notify_waiting()

    async def changed(self, seconds: float) -> None:
        """Wait until something changed, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait()

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Result], *arguments: Any) -> Result:
        """In a thread of the pool, with the context of the caller: lines of the log there name its volume."""
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(pool, partial(run, work, *arguments))

    async def _body(self, request: web.Request) -> bytes:
        async with asyncio.timeout(self.options.silence_seconds):
            return await request.read()

    async def _message(self, request: web.Request, kind: type[message_codec.Message]) -> message_codec.Message:
        return message_codec.decode(await self._body(request), kind)

    async def _notify_waiting(self) -> None:
        """Something changed: wake the requests that wait for it."""
        async with self._changed:
            self._changed.notify_all()


def number_of(text: str, what: str, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 20 or int(text) > most:
        raise refuse(Refusal.BAD_REQUEST, f"{what} is a number up to {most}")
    return int(text)


def _of_http(error: web.HTTPException) -> RefusedError:
    if error.status == 413:
        return refuse(Refusal.TOO_LARGE, "the body is larger than is read here")
    if error.status == 404:
        return refuse(Refusal.NOT_FOUND, "there is nothing at this path")
    return refuse(Refusal.BAD_REQUEST, f"{error.reason}: is this request of another protocol?")


def _of_failure(error: SnapfsError | OSError) -> RefusedError:
    if isinstance(error, OSError) and error.errno in _FULL:
        return refuse(Refusal.DISK_FULL, DISK_FULL, retry_after=10.0)
    if isinstance(error, CorruptionError | UserError | VersionError):
        return refuse(Refusal.INTERNAL, str(error))
    return refuse(Refusal.INTERNAL, "the mirror's disk fails; see its log")
