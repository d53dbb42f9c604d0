"""Requests that bring something to a mirror: parts, commits, drops, holds, branches, hot lists.

Invariants:
1. What was acknowledged of a part is durable; of a part that breaks off what came is kept.
2. So many parts at a time, so many bytes a second: beyond that "busy", or TCP's own back-pressure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from aiohttp import web

from replicator.mirror.mirror_requests import Requests, number_of
from replicator.mirror.tokens import require
from snapfs.base.blocks import MAX_GENERATION, Generation, SnapshotNumber
from snapfs.store.gates.gate_entries import GateList
from snapfs.store.ingest.receiver import PartReceiver
from snapfs.store.protocol import messages, number_runs, wire, wire_fields
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.store.protocol.wire import Right

log = logging.getLogger(__name__)

_FEED_BYTES: Final = 1 << 20


class Incoming(Requests):
    """Handlers of what comes."""

    async def _lacks(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        runs = number_runs.unpack_runs(await self._body(request))
        packed = await self._in(self._control, lambda: number_runs.pack_runs(volume.receiver.lacks(runs)))
        return web.Response(body=packed, content_type=wire.RUNS_TYPE, headers=self._headers())

    async def _put_part(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        self.mirror.check_room()
        if self._parts >= self.options.max_parts:
            raise refuse(Refusal.BUSY, "too many parts at a time", retry_after=0.2)
        self._parts += 1
        try:
            part = volume.part(generation, writer_id)
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

    async def _receive(self, request: web.Request, part: PartReceiver) -> messages.PartReceipt:
        try:
            async for pieces in self._chunks(request):
                await self._rate.take(sum(map(len, pieces)))
                await self._in(self._pushes, part.feed, *pieces)
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

    async def _chunks(self, request: web.Request) -> AsyncIterator[list[bytes]]:
        """The body as it comes, about _FEED_BYTES at a time. ConnectionError, TimeoutError at the end of what came."""
        gathered: list[bytes] = []
        size = 0
        broken: OSError | None = None
        data: bytes | None = b""
        while data is not None:
            try:
                async with asyncio.timeout(self.options.silence_seconds):
                    data = await _read(request)
            except (ConnectionError, TimeoutError) as error:
                data, broken = None, error
            if self._stopping.is_set():
                raise refuse(Refusal.STOPPING, "this mirror is shutting down; what came is kept", retry_after=2.0)
            gathered.append(data or b"")
            size += len(data or b"")
            if size and (size >= _FEED_BYTES or data is None):
                yield gathered
                gathered, size = [], 0
        if broken is not None:
            raise broken

    async def _commit(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        commit = await self._message(request, messages.Commit)
        candidates = [wire_fields.decode_record(fields) for fields in commit.records]
        try:
            made = await self._in(
                self._commits, volume.commit, candidates, commit.history, generation, writer_id, commit
            )
        finally:
            await self._notify_waiting()
        self.metrics.committed.labels(volume.name).inc(len(made))
        newest = volume.repository.latest()
        return self._answer(
            messages.CommitReceipt(
                [record.number for record in made], volume.revision, newest.number if newest else 0,
                volume.repository.catalog.last_number,
            )
        )  # fmt: skip

    async def _drop(self, request: web.Request) -> web.Response:
        volume, token = self._volume(request, Right.READ), self._token(request)
        drop = await self._message(request, messages.Drop)
        numbers: list[int] = list(drop.snapshots)
        if Right.PRUNE not in token.right_on(volume.name):
            if Right.PUSH not in token.right_on(volume.name):  # no writer, who is to go on without its drops
                require(token, volume.name, Right.PRUNE)
            kept = await self._in(self._control, volume.retention.without_right, numbers)
        elif wire.GENERATION_HEADER in request.headers:
            kept = await self._in(self._commits, volume.drop, numbers, *_writer(request), drop.why)
        else:
            kept = await self._in(self._commits, volume.prune, numbers, f"by token {token.id}", drop.why)
        await self._notify_waiting()
        listed = await self._in(self._control, volume.snapshot_list)
        stay = [messages.KeptSnapshot(each.number, each.reason, each.until_ns) for each in kept]
        return self._answer(
            messages.DropAnswer(
                listed.revision, listed.generation, listed.writer_id, listed.snapshots, listed.branches, stay
            )
        )

    async def _aside(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        branch = await self._message(request, messages.BranchMessage)
        await self._in(self._commits, volume.branch_off, branch.after, branch.name, generation, writer_id)
        await self._notify_waiting()
        return self._answer(await self._in(self._control, volume.snapshot_list))

    async def _collect(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        manifest = await self._message(request, messages.Collect)
        if Right.PRUNE not in self._token(request).right_on(volume.name):
            return self._answer(messages.Collected(0))  # a refusal would stop earlier pushers
        return self._answer(await self._in(self._commits, volume.collect_by_manifest, manifest, generation, writer_id))

    async def _put_keys(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        data = await self._body(request)
        kept = await self._in(self._commits, volume.put_keys, data, generation, writer_id)
        return web.Response(body=kept, content_type=wire.JSON_TYPE, headers=self._headers())

    async def _put_gates(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        sent = await self._message(request, GateList)
        await self._in(self._commits, volume.put_gates, sent.entries, generation, writer_id)
        return self._answer(GateList())

    async def _holds(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.READ)
        return self._answer(await self._in(self._control, volume.retention.hold_list))

    async def _put_held(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        wanted = await self._message(request, messages.PutHolds)
        may_end = Right.PRUNE in self._token(request).right_on(volume.name)
        put = partial(volume.put_holds, wanted.records, generation, writer_id, may_end=may_end)
        await self._in(self._commits, put)
        return self._answer(await self._in(self._control, volume.retention.hold_list))

    async def _hold(self, request: web.Request) -> web.Response:
        volume, name = self._volume(request, Right.PUSH), _hold_name(request)
        hold = await self._message(request, messages.HoldMessage)
        await self._in(self._commits, volume.hold, name, hold.snapshot, hold.seconds)
        return self._answer(await self._in(self._control, volume.retention.hold_list))

    async def _release(self, request: web.Request) -> web.Response:
        volume, name = self._volume(request, Right.PUSH), _hold_name(request)
        await self._in(self._commits, volume.retention.release, name)
        return self._answer(await self._in(self._control, volume.retention.hold_list))

    async def _put_hot(self, request: web.Request) -> web.Response:
        volume = self._volume(request, Right.PUSH)
        generation, writer_id = _writer(request)
        number = SnapshotNumber(volume.find(request.match_info["ref"]).number)
        data = await self._body(request)
        await self._in(self._commits, volume.put_hot, number, data, generation, writer_id)
        return web.Response(body=data, content_type=wire.HOT_TYPE, headers=self._headers())


async def _read(request: web.Request) -> bytes | None:
    """A piece of the body as it came, uncopied; None at its end. Raises ConnectionError if no more will come."""
    try:
        data, is_chunk_end = await request.content.readchunk()
        return data if data or is_chunk_end else None
    except asyncio.CancelledError as error:  # aiohttp's word, in the body, for a connection that is gone
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionResetError(str(error)) from None
    except OSError:
        raise
    except Exception as error:  # it has several for a body that ends early
        raise ConnectionResetError(str(error)) from None


def _writer(request: web.Request) -> tuple[Generation, str]:
    """The writer that the request names. Raises RefusedError."""
    generation = number_of(request.headers.get(wire.GENERATION_HEADER, ""), wire.GENERATION_HEADER, MAX_GENERATION)
    writer_id = request.headers.get(wire.WRITER_HEADER, "")
    if not wire.WRITER_ID.fullmatch(writer_id):
        raise refuse(Refusal.BAD_REQUEST, f"the header {wire.WRITER_HEADER} does not name a writer")
    return Generation(generation), writer_id


def _hold_name(request: web.Request) -> str:
    name = request.match_info["name"]
    if not wire.HOLD_NAME.fullmatch(name):
        raise refuse(Refusal.BAD_REQUEST, "a hold's name is 1 to 63 of letters, digits, . _ and -")
    return name
