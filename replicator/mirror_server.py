"""The mirror's HTTP side: requests to volumes, with whatever takes long in threads, and every resource bounded.

Invariants:
1. A handler does three things in this order: who is it and may they (security.py), is it well formed (wire.py), do it
   in a thread (mirror_volume.py). Names from the wire reach the filesystem only through `Mirror`, which checks them.
2. Bounded: connections, requests under way, parts in flight, waiting polls, bytes of a body, time of silence, bytes per
   second if wanted. Beyond a bound the answer is "busy", never a death.
3. What a part's sender has been told is durable is durable; of a part that breaks off what came is kept.
4. Parts, reads, commits and upkeep have threads of their own each: none can starve the others. While somebody reads
   urgently the window that pushers are told shrinks to one part.
5. After `stop` nothing new begins; what is under way has a while to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web

import snapfs
from replicator.mirror import DISK_FULL, Mirror
from replicator.mirror_metrics import CONTENT_TYPE, MirrorMetrics
from replicator.mirror_reading import objects, tables
from replicator.mirror_volume import MirrorVolume
from replicator.security import ALL, Token, Tokens, require
from snapfs.blocks import Generation, SnapshotNumber
from snapfs.errors import CorruptionError, SnapfsError, UserError
from snapfs.store import wire
from snapfs.store.receiving import PartReceiver
from snapfs.store.wire import Refusal, RefusedError, Right, refuse

log = logging.getLogger(__name__)

_FEED_BYTES: Final = 512 << 10
_SEND_BYTES: Final = 256 << 10
READ_BUFFER: Final = 512 << 10
_URGENT_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 1.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

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


class Rate:
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


class Service:
    """The requests of one mirror. Made and used within a running loop."""

    def __init__(self, mirror: Mirror, tokens: Tokens, options: ServerOptions) -> None:
        self.mirror, self.tokens, self.options = mirror, tokens, options
        self.metrics = MirrorMetrics(lambda: [volume.state() for volume in mirror.volumes()])
        self._pushes = ThreadPoolExecutor(options.push_threads, "push")
        self._reads = ThreadPoolExecutor(options.read_threads, "read")
        self._commits = ThreadPoolExecutor(options.commit_threads, "commit")
        self._control = ThreadPoolExecutor(2, "control")
        self._upkeeps = ThreadPoolExecutor(1, "upkeep")
        self._rate = Rate(options.rate_bytes)
        self._parts = self._polls = self._requests = 0
        self._bulk = asyncio.Semaphore(max(options.read_threads // 2, 1))
        self._urgent_at = -1e9
        self._changed = asyncio.Condition()
        self._stopping = asyncio.Event()
        self._upkeep_task: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._around], client_max_size=wire.MAX_HOT_BYTES + (1 << 20))
        add, base = app.router.add_route, wire.volumes_path()
        volume = f"{base}/{{volume}}"
        add("GET", wire.HEALTH_PATH, self._health)
        add("GET", wire.READY_PATH, self._ready)
        add("GET", wire.METRICS_PATH, self._metrics)
        add("GET", base, self._volumes)
        add("PUT", volume, self._create)
        add("GET", volume, self._state)
        add("POST", f"{volume}/claim", self._claim)
        add("POST", f"{volume}/promote", self._promote)
        add("GET", f"{volume}/snapshots", self._snapshots)
        add("POST", f"{volume}/lacks", self._lacks)
        add("POST", f"{volume}/parts", self._put_part)
        add("POST", f"{volume}/commit", self._commit)
        add("POST", f"{volume}/drop", self._drop)
        add("POST", f"{volume}/aside", self._aside)
        add("GET", f"{volume}/holds", self._holds)
        add("PUT", f"{volume}/holds/{{name}}", self._hold)
        add("DELETE", f"{volume}/holds/{{name}}", self._release)
        add("POST", f"{volume}/objects", self._objects)
        add("GET", f"{volume}/objects/{{number}}", self._object)
        add("GET", f"{volume}/snapshots/{{ref}}/tables", self._tables)
        add("GET", f"{volume}/snapshots/{{ref}}/hot", self._hot)
        add("PUT", f"{volume}/snapshots/{{ref}}/hot", self._put_hot)
        return app

    def start(self) -> None:
        self._upkeep_task = asyncio.create_task(self._upkeep())

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    async def close(self) -> None:
        """After the last request has ended."""
        self.stop()
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._upkeep_task
        for pool in (self._pushes, self._reads, self._commits, self._control, self._upkeeps):
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(self.mirror.close)

    # Around each request.

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
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
            return self._refusal(refuse(Refusal.INTERNAL, "the mirror failed at this request; its log says how"))
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
        if self._requests >= self.options.max_requests and "revision" not in request.query:
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
        body = wire.encode(error.problem)
        return web.Response(body=body, status=error.status, content_type=wire.JSON_TYPE, headers=headers)

    def _headers(self) -> dict[str, str]:
        return {wire.PROTOCOL_HEADER: str(wire.PROTOCOL_VERSION), wire.WINDOW_HEADER: str(self._window())}

    def _window(self) -> int:
        urgent = time.monotonic() - self._urgent_at < _URGENT_SECONDS
        return 1 if urgent else max(min(self.mirror.options.limits.window_parts, self.options.max_parts), 1)

    def _answer(self, message: Any) -> web.Response:
        return web.Response(body=wire.encode(message), content_type=wire.JSON_TYPE, headers=self._headers())

    def _token(self, request: web.Request) -> Token:
        return self.tokens.check(request.headers.get("Authorization"))

    def _volume(self, request: web.Request, right: Right) -> MirrorVolume:
        token, name = self._token(request), wire.check_volume_name(request.match_info["volume"])
        require(token, name, right)
        return self.mirror.get(name)

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    async def _body(self, request: web.Request) -> bytes:
        async with asyncio.timeout(self.options.silence_seconds):
            return await request.read()

    async def _message(self, request: web.Request, kind: type[wire.Message]) -> wire.Message:
        return wire.decode(await self._body(request), kind)

    async def _tell(self) -> None:
        """Something changed: whoever waits looks."""
        async with self._changed:
            self._changed.notify_all()

    # Health and metrics.

    async def _health(self, request: web.Request) -> web.Response:
        return self._answer(wire.Health("ok", snapfs.__version__))

    async def _ready(self, request: web.Request) -> web.Response:
        """Not ready while stopping, and when the disk is full. No volume is named: nobody has shown a token."""
        try:
            if self._stopping.is_set():
                raise refuse(Refusal.STOPPING, "shutting down")
            await self._in(self._control, self.mirror.check_room)
        except (RefusedError, OSError) as error:
            answer = self._answer(wire.Health("not ready", snapfs.__version__, reason=str(error)))
            answer.set_status(503)
            return answer
        return self._answer(wire.Health("ready", snapfs.__version__))

    async def _metrics(self, request: web.Request) -> web.Response:
        require(self._token(request), ALL, Right.READ)
        text = await self._in(self._control, self.metrics.render)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    # Volumes.

    async def _volumes(self, request: web.Request) -> web.Response:
        token = self._token(request)
        allowed = [volume for volume in self.mirror.volumes() if Right.READ in token.right_on(volume.name)]
        states = await self._in(self._control, lambda: [volume.state() for volume in allowed])
        return self._answer(wire.VolumeList(states))

    async def _create(self, request: web.Request) -> web.Response:
        token, name = self._token(request), wire.check_volume_name(request.match_info["volume"])
        require(token, name, Right.PUSH)
        wanted = await self._message(request, wire.CreateVolume)
        volume = await self._in(self._commits, self.mirror.create, name, wanted)
        return self._answer(await self._in(self._control, volume.state))

    async def _state(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        return self._answer(await self._in(self._control, volume.state))

    async def _claim(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        claim = await self._message(request, wire.Claim)
        generation = Generation(claim.generation)
        await self._in(self._commits, volume.claim, generation, claim.holder, claim.note)
        log.info("%s: generation %d is %s's", volume.name, claim.generation, claim.holder)
        await self._tell()
        return self._answer(await self._in(self._control, volume.state))

    async def _promote(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.ADMIN)
        promote = await self._message(request, wire.Promote)
        await self._in(self._commits, volume.promote, promote.holder)
        log.warning("%s was promoted: generation %d is %s's", volume.name, volume.generation, volume.holder)
        await self._tell()
        return self._answer(await self._in(self._control, volume.state))

    async def _snapshots(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        if "revision" in request.query:
            seen = _number(request.query["revision"], "revision", 1 << 62)
            wait = min(_number(request.query.get("wait", "30"), "wait", 1 << 20), wire.MAX_WAIT_SECONDS)
            await self._wait_for_change(volume, seen, wait)
        return self._answer(await self._in(self._control, volume.snapshot_list))

    async def _wait_for_change(self, volume: MirrorVolume, seen: int, seconds: float) -> None:
        if self._polls >= self.options.max_polls:
            raise refuse(Refusal.BUSY, "too many are waiting for snapshots", retry_after=5.0)
        deadline = time.monotonic() + seconds
        self._polls += 1
        try:
            while volume.revision == seen and not self._stopping.is_set():
                left = min(deadline - time.monotonic(), _POLL_SECONDS)
                if left <= 0 and time.monotonic() >= deadline:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left), self._changed:
                        await self._changed.wait()
        finally:
            self._polls -= 1

    # What comes.

    async def _lacks(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        runs = wire.unpack_runs(await self._body(request))
        packed = await self._in(self._control, lambda: wire.pack_runs(volume.receiver.lacks(runs)))
        return web.Response(body=packed, content_type=wire.RUNS_TYPE, headers=self._headers())

    async def _put_part(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, holder = _writer(request)
        self.mirror.check_room()
        if self._parts >= self.options.max_parts:
            raise refuse(Refusal.BUSY, "too many parts at a time", retry_after=0.2)
        self._parts += 1
        try:
            part = volume.part(generation, holder)
            try:
                receipt = await self._receive(request, part)
            finally:
                await self._in(self._pushes, part.abort)
        finally:
            self._parts -= 1
        self.metrics.received_bytes.labels(volume.name).inc(part.received_bytes)
        self.metrics.received_objects.labels(volume.name).inc(receipt.objects)
        self.metrics.known_objects.labels(volume.name).inc(receipt.known)
        return self._answer(receipt)

    async def _receive(self, request: web.Request, part: PartReceiver) -> wire.PartReceipt:
        try:
            async for data in self._chunks(request):
                await self._rate.take(len(data))
                await self._in(self._pushes, part.feed, data)
            if not part.parser.ended:
                raise refuse(Refusal.BAD_REQUEST, "the stream of objects has no end; what came before is kept")
        except OSError as error:
            if not isinstance(error, ConnectionError | TimeoutError):
                raise  # our disk: nothing of this part can be kept
            await self._in(self._pushes, part.finish)
            raise
        except RefusedError as error:
            if error.refusal is not Refusal.FENCED:
                await self._in(self._pushes, part.finish)
            raise
        return await self._in(self._pushes, part.finish)

    async def _chunks(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body in pieces of about _FEED_BYTES. Raises ConnectionError, TimeoutError at the end of what came."""
        gathered: list[bytes] = []
        size = 0
        broken: OSError | None = None
        data = b"x"
        while data and broken is None:
            try:
                async with asyncio.timeout(self.options.silence_seconds):
                    data = await _read(request)
            except (ConnectionError, TimeoutError) as error:
                data, broken = b"", error
            if self._stopping.is_set():
                raise refuse(Refusal.STOPPING, "this mirror is shutting down; what came is kept", retry_after=2.0)
            gathered.append(data)
            size += len(data)
            if size and (size >= _FEED_BYTES or not data):
                yield b"".join(gathered)
                gathered, size = [], 0
        if broken is not None:
            raise broken

    async def _commit(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, holder = _writer(request)
        commit = await self._message(request, wire.Commit)
        candidates = [wire.decode_record(fields) for fields in commit.records]
        try:
            made = await self._in(self._commits, volume.commit, candidates, commit.history, generation, holder)
        finally:
            await self._tell()
        self.metrics.committed.labels(volume.name).inc(len(made))
        newest = volume.repository.latest()
        return self._answer(
            wire.CommitReceipt(
                [record.number for record in made], volume.revision, newest.number if newest else 0,
                volume.repository.catalog.last_number,
            )
        )  # fmt: skip

    async def _drop(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, holder = _writer(request)
        drop = await self._message(request, wire.Drop)
        await self._in(self._commits, volume.drop, list(drop.snapshots), generation, holder)
        await self._tell()
        return self._answer(await self._in(self._control, volume.snapshot_list))

    async def _aside(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, holder = _writer(request)
        aside = await self._message(request, wire.Aside)
        await self._in(self._commits, volume.aside, aside.after, aside.name, generation, holder)
        await self._tell()
        return self._answer(await self._in(self._control, volume.snapshot_list))

    async def _holds(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        return self._answer(await self._in(self._control, volume.hold_list))

    async def _hold(self, request: web.Request) -> web.Response:
        volume, name = self._volume(request, Right.PUSH), _hold_name(request)
        hold = await self._message(request, wire.Hold)
        await self._in(self._commits, volume.hold, name, hold.snapshot, hold.seconds)
        return self._answer(await self._in(self._control, volume.hold_list))

    async def _release(self, request: web.Request) -> web.Response:
        volume, name = self._volume(request, Right.PUSH), _hold_name(request)
        await self._in(self._commits, volume.release, name)
        return self._answer(await self._in(self._control, volume.hold_list))

    async def _put_hot(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, holder = _writer(request)
        number = SnapshotNumber(volume.find(request.match_info["ref"]).number)
        data = await self._body(request)
        await self._in(self._commits, volume.put_hot, number, data, generation, holder)
        return web.Response(body=data, content_type=wire.HOT_TYPE, headers=self._headers())

    # What is read.

    async def _hot(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        number = SnapshotNumber(volume.find(request.match_info["ref"]).number)
        data = await self._in(self._reads, volume.hot, number)
        return web.Response(body=data, content_type=wire.HOT_TYPE, headers=self._headers())

    async def _objects(self, request: web.Request) -> web.StreamResponse:
        volume = self._volume(request, Right.READ)
        wanted = await self._message(request, wire.ReadObjects)
        return await self._stream(request, volume, objects(volume.repository, wanted))

    async def _object(self, request: web.Request) -> web.StreamResponse:
        volume = self._volume(request, Right.READ)
        number = wire.parse_number(request.match_info["number"])
        return await self._stream(request, volume, objects(volume.repository, wire.ReadObjects([number])))

    async def _tables(self, request: web.Request) -> web.StreamResponse:
        volume = self._volume(request, Right.READ)
        record = volume.find(request.match_info["ref"])
        limit = _number(request.query.get("limit", str(1 << 20)), "limit", wire.MAX_READ_BYTES)
        return await self._stream(request, volume, tables(volume.repository, record, max(limit, 1)))

    async def _stream(self, request: web.Request, volume: MirrorVolume, items: Iterator[bytes]) -> web.StreamResponse:
        bulk = request.headers.get(wire.PRIORITY_HEADER) == "bulk"
        if not bulk:
            self._urgent_at = time.monotonic()
        async with self._bulk if bulk else contextlib.nullcontext():
            response = web.StreamResponse(headers=self._headers())
            response.content_type = wire.OBJECTS_TYPE
            await response.prepare(request)
            while data := await self._in(self._reads, _gather, items):
                self.metrics.sent_bytes.labels(volume.name).inc(len(data))
                async with asyncio.timeout(self.options.silence_seconds):
                    await response.write(data)
            await response.write_eof()
            return response

    # In the background.

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(self.options.upkeep_seconds)
            for volume in self.mirror.volumes():
                try:
                    await self._in(self._upkeeps, self.mirror.upkeep, volume)
                except (SnapfsError, OSError) as error:
                    self.metrics.upkeep_failures.labels(volume.name).inc()
                    log.error("upkeep of %s: %s", volume.name, error)
                except Exception:
                    self.metrics.upkeep_failures.labels(volume.name).inc()
                    log.exception("upkeep of %s", volume.name)
            await self._tell()


async def _read(request: web.Request) -> bytes:
    """What has come of the body. Raises ConnectionError if no more will."""
    try:
        return await request.content.readany()
    except asyncio.CancelledError as error:  # aiohttp's word, in the body, for a connection that is gone
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionResetError(str(error)) from None
    except OSError:
        raise
    except Exception as error:  # it has several for a body that ends early
        raise ConnectionResetError(str(error)) from None


def _gather(items: Iterator[bytes]) -> bytes:
    """The next items of a stream, about _SEND_BYTES of them; b"" at its end."""
    found, size = [], 0
    for item in items:
        found.append(item)
        size += len(item)
        if size >= _SEND_BYTES:
            break
    return b"".join(found)


def _writer(request: web.Request) -> tuple[Generation, str]:
    """Who says that they write. Raises RefusedError."""
    generation = _number(request.headers.get(wire.GENERATION_HEADER, ""), wire.GENERATION_HEADER, 0xFFFF)
    holder = request.headers.get(wire.HOLDER_HEADER, "")
    if not wire.HOLDER_NAME.fullmatch(holder):
        raise refuse(Refusal.BAD_REQUEST, f"the header {wire.HOLDER_HEADER} does not name a writer")
    return Generation(generation), holder


def _number(text: str, what: str, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 20 or int(text) > most:
        raise refuse(Refusal.BAD_REQUEST, f"{what} is a number up to {most}")
    return int(text)


def _hold_name(request: web.Request) -> str:
    name = request.match_info["name"]
    if not wire.HOLD_NAME.fullmatch(name):
        raise refuse(Refusal.BAD_REQUEST, "a hold's name is 1 to 63 of letters, digits, . _ and -")
    return name


def _of_http(error: web.HTTPException) -> RefusedError:
    if error.status == 413:
        return refuse(Refusal.TOO_LARGE, "the body is larger than is read here")
    if error.status == 404:
        return refuse(Refusal.NOT_FOUND, "there is nothing at this path")
    return refuse(Refusal.BAD_REQUEST, f"{error.reason}: is this request of another protocol?")


def _of_failure(error: SnapfsError | OSError) -> RefusedError:
    if isinstance(error, OSError) and error.errno in _FULL:
        return refuse(Refusal.DISK_FULL, DISK_FULL, retry_after=10.0)
    if isinstance(error, CorruptionError | UserError):
        return refuse(Refusal.INTERNAL, str(error))
    return refuse(Refusal.INTERNAL, "the mirror's disk fails; its log says how")
