"""Requests that read from a mirror: objects, tables, hot lists, and the wait for new snapshots.

Invariants:
1. An answer is made piece by piece in a thread and sent as the reader takes it: memory is two pieces.
2. Bulk readers have half of the threads at most; while a reader waits for an urgent read, pushers get a smaller window.
3. Who waits for a change gets it at once, or an answer when the time is over; so many may wait at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Final

from aiohttp import web

from replicator.mirror.mirror_requests import Requests, number_of
from replicator.volumes.mirror_reading import bases, first_objects, objects, tables
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import SnapshotNumber
from snapfs.store.protocol import number_runs, read_objects, wire
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import Right

log = logging.getLogger(__name__)

_SEND_BYTES: Final = 512 << 10
_POLL_SECONDS: Final = 1.0


class Outgoing(Requests):
    """Handlers of what is read."""

    async def _snapshots(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        if "revision" in request.query:
            seen = number_of(request.query["revision"], "revision", 1 << 62)
            wait = min(number_of(request.query.get("wait", "30"), "wait", 1 << 20), wire.MAX_WAIT_SECONDS)
            await self._wait_for_change(request, volume, seen, wait)
        return self._answer(await self._in(self._control, volume.snapshot_list))

    async def _wait_for_change(self, request: web.Request, volume: MirrorVolume, seen: int, seconds: float) -> None:
        if self._polls >= self.options.max_polls:
            raise refuse(Refusal.BUSY, "too many are waiting for snapshots", retry_after=5.0)
        deadline = time.monotonic() + seconds
        self._polls += 1
        try:
            while volume.revision == seen and not self._stopping.is_set():
                if request.transport is None:
                    raise ConnectionResetError("who waited is gone")
                left = min(deadline - time.monotonic(), _POLL_SECONDS)
                if left <= 0 and time.monotonic() >= deadline:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left), self._changed:
                        await self._changed.wait()
        finally:
            self._polls -= 1

    async def _hot(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        number = SnapshotNumber(volume.find(request.match_info["ref"]).number)
        data = await self._in(self._reads, volume.hot_lists.get, number)
        return web.Response(body=data, content_type=wire.HOT_TYPE, headers=self._headers())

    async def _gates(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        return self._answer(await self._in(self._control, volume.gate_list))

    async def _keys(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        data = await self._in(self._control, volume.must_be_encrypted().keys)
        return web.Response(body=data, content_type=wire.JSON_TYPE, headers=self._headers())

    async def _objects(self, request: web.Request) -> web.StreamResponse:
        volume = self._volume(request, Right.READ)
        wanted = await self._message(request, read_objects.ReadObjects)
        return await self._stream(request, volume, objects(volume.repository, wanted))

    async def _object(self, request: web.Request) -> web.StreamResponse:
        volume = self._volume(request, Right.READ)
        number = wire.parse_number(request.match_info["number"])
        return await self._stream(request, volume, objects(volume.repository, read_objects.ReadObjects([number])))

    async def _bases(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        runs = number_runs.unpack_runs(await self._body(request))
        packed = await self._in(self._reads, bases, volume.repository, runs)
        return web.Response(body=packed, content_type=wire.RUNS_TYPE, headers=self._headers())

    async def _tables(self, request: web.Request) -> web.StreamResponse:
        volume = self._volume(request, Right.READ)
        record = volume.find(request.match_info["ref"])
        limit = number_of(request.query.get("limit", str(1 << 20)), "limit", wire.MAX_READ_BYTES)
        if volume.encrypted is not None:
            first = await self._in(self._reads, volume.encrypted.first, record.number)
            return await self._stream(request, volume, first_objects(volume.repository, first, max(limit, 1)))
        return await self._stream(request, volume, tables(volume.repository, record, max(limit, 1)))

    async def _stream(self, request: web.Request, volume: MirrorVolume, items: Iterator[bytes]) -> web.StreamResponse:
        bulk = request.headers.get(wire.PRIORITY_HEADER) == "bulk"
        if not bulk:
            self._urgent_at = time.monotonic()
        async with self._bulk if bulk else contextlib.nullcontext():
            response = web.StreamResponse(headers=self._headers())
            response.content_type = wire.OBJECTS_TYPE
            await response.prepare(request)
            async with contextlib.aclosing(self._ahead(items)) as pieces:
                async for data in pieces:
                    self.metrics.sent_bytes.labels(volume.name).inc(len(data))
                    async with asyncio.timeout(self.options.silence_seconds):
                        await response.write(data)
            await response.write_eof()
            return response

    async def _ahead(self, items: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The pieces of a stream, of which the next one is made while one is being sent."""
        making = asyncio.ensure_future(self._in(self._reads, _gather, items))
        try:
            while data := await making:
                making = asyncio.ensure_future(self._in(self._reads, _gather, items))
                yield data
        finally:
            if not making.done():
                await asyncio.wait([making])  # before anybody else uses the iterator, or closes what it reads
            if not making.cancelled():
                making.exception()


def _gather(items: Iterator[bytes]) -> bytes:
    """The next items of a stream, about _SEND_BYTES of them; b"" at its end."""
    found, size = [], 0
    for item in items:
        found.append(item)
        size += len(item)
        if size >= _SEND_BYTES:
            break
    return b"".join(found)
