"""A mirror as a target, over HTTP (aiohttp): each call is one request of the protocol in snapfs/store/protocol/wire.py.

Invariants:
1. Nothing is tried again here: who calls decides that, by what is raised (target.py, 5).
2. A part is streamed from the frames as they were read; nothing is encoded, and no second copy is made of it.
3. The token is read anew at each opening, so that it can be changed without a restart; it never gets into a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from yarl import URL

from replicator.source.selection import Part
from replicator.targets.target import ContentHashOf, Manifest, TargetLimits, TargetState, live_messages
from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.base.errors import UserError, reason
from snapfs.base.mirror_access import MirrorAccess
from snapfs.store.gates.gate_entries import GateEntry, GateList, in_messages
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import message_codec, messages, number_runs, object_stream, refusals, wire
from snapfs.store.protocol.refusals import Refusal
from snapfs.store.protocol.target_url import mirror_of
from snapfs.store.repository.repository import SnapshotRecord

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 120.0
"""Longest silence of a mirror that is to be waited for: a commit of a large snapshot is verified before its answer."""
_PIECE_BYTES: Final = 256 << 10
_QUERY_NUMBERS: Final = 1 << 17
"""In one LACKS: about half a second's work for a mirror."""

Message = TypeVar("Message")


def split(url: str) -> tuple[URL, str]:
    """The mirror's own address and the volume's name there. Raises UserError."""
    base, name = mirror_of(url)
    try:
        origin = URL(base).origin()
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    return origin, name


class HttpTarget:
    """A volume on a mirror. Made within a running loop."""

    def __init__(self, url: str, access: MirrorAccess) -> None:
        self._origin, self.volume = split(url)
        self._access = access
        self._headers = {wire.PROTOCOL_HEADER: str(wire.PROTOCOL_VERSION)}
        self._fence: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._limits = TargetLimits()

    @property
    def limits(self) -> TargetLimits:
        return self._limits

    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState:
        self._headers |= wire.authorization(await asyncio.to_thread(self._access.token))
        if not make:
            await self._query("GET", (), messages.VolumeState)
        mode = wire.Mode.ENCRYPTED if identity.encrypted else wire.Mode.PLAIN
        wanted = messages.CreateVolume(identity.volume_id, f"{identity.seed:016x}", mode)
        state = await self._query("PUT", (), messages.VolumeState, wanted)
        self._take_limits(state.limits)
        listed = await self._query("GET", ("snapshots",), messages.SnapshotList)
        holds = await self._query("GET", ("holds",), messages.HoldList)
        return TargetState(
            Generation(state.generation), state.writer_id, tuple(snapshot.decoded() for snapshot in listed.snapshots),
            frozenset(SnapshotNumber(hold.snapshot) for hold in holds.holds), state.stored_bytes, state.lock_s,
            tuple(state.successions), state.target_id, state.revision, peers=state.peers,
            people=tuple(holds.people) if holds.people is not None else None,
        )  # fmt: skip

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        self._fence = {}
        claim = messages.Claim(generation, writer_id, snapshot=snapshot, peers=peers)
        await self._query("POST", ("claim",), messages.VolumeState, claim)
        self._fence = wire.fence_headers(generation, writer_id)

    async def lacks(self, numbers: NumberSet, content_hash_of: ContentHashOf | None = None) -> NumberSet:
        found = NumberSet()
        for runs in await asyncio.to_thread(
            lambda: list(number_runs.in_requests(number_runs.runs_of(numbers), _QUERY_NUMBERS))
        ):
            data = await self._request("POST", ("lacks",), number_runs.pack_runs(runs), wire.RUNS_TYPE)
            await asyncio.to_thread(_add_runs, found, number_runs.unpack_runs(data, wire.MAX_LACKS_NUMBERS))
        return found

    async def send(self, part: Part) -> int:
        length = {"Content-Length": str(_stream_bytes(part))}
        receipt = await self._request("POST", ("parts",), _stream(part), wire.OBJECTS_TYPE, fenced=True, more=length)
        message_codec.decode(receipt, messages.PartReceipt)
        return part.bytes

    async def commit(
        self, records: Sequence[SnapshotRecord], *, history: bool = False, manifest: Manifest | None = None
    ) -> int:
        wanted = (manifest or Manifest()).commit(records, history)
        return (await self._query("POST", ("commit",), messages.CommitReceipt, wanted, fenced=True)).revision

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Send the list of what is used most along with a snapshot that is there."""
        await self._request("PUT", ("snapshots", str(number), "hot"), data, wire.HOT_TYPE, fenced=True)

    async def gates(self) -> list[GateEntry]:
        """What the snapshots there have passed."""
        return (await self._query("GET", ("gates",), GateList)).entries

    async def put_gates(self, entries: Sequence[GateEntry]) -> None:
        """Send along what snapshots that are there have passed."""
        for message in in_messages(entries):
            await self._query("PUT", ("gates",), GateList, message, fenced=True)

    async def drop(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]:
        wanted = messages.Drop(list(numbers), why)
        answer = await self._query("POST", ("drop",), messages.DropAnswer, wanted, fenced=True)
        return [LockedSnapshot(SnapshotNumber(each.snapshot), each.reason, each.until_ns) for each in answer.kept]

    async def put_holds(self, records: Sequence[HoldRecord]) -> frozenset[SnapshotNumber]:
        wanted = messages.PutHolds(list(records))
        answer = await self._query("PUT", ("held",), messages.HoldList, wanted, fenced=True)
        return frozenset(SnapshotNumber(hold.snapshot) for hold in answer.holds)

    async def snapshots(self) -> list[SnapshotRecord]:
        """What is there, for a token that may read. Raises RefusedError, OSError."""
        self._headers |= wire.authorization(await asyncio.to_thread(self._access.token))
        listed = await self._query("GET", ("snapshots",), messages.SnapshotList)
        return [snapshot.decoded() for snapshot in listed.snapshots]

    async def received(self) -> tuple[list[messages.Snapshot], float, frozenset[SnapshotNumber]]:
        """What is there and when it came, the length of the lock, and what is held. As `snapshots`."""
        self._headers |= wire.authorization(await asyncio.to_thread(self._access.token))
        state = await self._query("GET", (), messages.VolumeState)
        listed = await self._query("GET", ("snapshots",), messages.SnapshotList)
        holds = await self._query("GET", ("holds",), messages.HoldList)
        return listed.snapshots, state.lock_s, frozenset(SnapshotNumber(hold.snapshot) for hold in holds.holds)

    async def prune(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]:
        """Drop snapshots as a person who may, and not as the writer; what stays. After `snapshots`."""
        answer = await self._query("POST", ("drop",), messages.DropAnswer, messages.Drop(list(numbers), why))
        return [LockedSnapshot(SnapshotNumber(each.snapshot), each.reason, each.until_ns) for each in answer.kept]

    async def branch_off(self, after: SnapshotNumber, name: str) -> None:
        await self._query("POST", ("aside",), messages.SnapshotList, messages.BranchMessage(after, name), fenced=True)

    async def keys(self) -> bytes:
        return await self._request("GET", ("keys",), b"", wire.JSON_TYPE)

    async def put_keys(self, data: bytes) -> None:
        await self._request("PUT", ("keys",), data, wire.JSON_TYPE, fenced=True)

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber], below: Number = Number(0)) -> int:
        if below:
            return 0  # no message to a mirror can express that; it keeps everything
        freed_bytes = 0
        for message in live_messages(live, snapshots):
            freed_bytes = (
                await self._query("POST", ("collect",), messages.Collected, message, fenced=True)
            ).freed_bytes
        return freed_bytes

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _take_limits(self, limits: messages.Limits) -> None:
        self._limits = TargetLimits(
            limits.part_bytes, limits.part_objects, limits.commit_snapshots, max(1, limits.window_parts)
        )

    async def _query(
        self, method: str, path: tuple[str, ...], kind: type[Message], message: msgspec.Struct | None = None, *,
        fenced: bool = False,
    ) -> Message:  # fmt: skip
        body = b"" if message is None else message_codec.encode(message)
        answer = await self._request(method, path, body, wire.JSON_TYPE, fenced=fenced)
        return message_codec.decode(answer, kind, wire.MAX_ANSWER_BYTES)

    async def _request(
        self, method: str, path: tuple[str, ...], body: Any, content_type: str, *, fenced: bool = False,
        more: dict[str, str] | None = None,
    ) -> bytes:  # fmt: skip
        if fenced and not self._fence:
            raise refusals.refuse(Refusal.UNCLAIMED, "no generation has been claimed")
        headers = {**self._headers, **(self._fence if fenced else {}), **(more or {})}
        if body:
            headers["Content-Type"] = content_type
        url = self._origin.join(URL(wire.volume_path(self.volume, *path), encoded=True))
        try:
            async with self._opened().request(method, url, data=body or None, headers=headers) as answer:
                self._take_window(answer.headers.get(wire.WINDOW_HEADER))
                data = await answer.read()
                if answer.status >= 300:
                    raise message_codec.decode_problem(answer.status, data)
                return data
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(f"{self._origin}: {reason(error)}") from None

    def _take_window(self, window: str | None) -> None:
        if window is not None and window.isdecimal():
            self._limits = replace(self._limits, window_parts=max(1, int(window)))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls = self._access.tls() if self._origin.scheme == "https" else False
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)
            connector = aiohttp.TCPConnector(limit=32, ssl=tls)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session


def _add_runs(numbers: NumberSet, runs: list[number_runs.Run]) -> None:
    for first, last in runs:
        for number in range(first, last + 1):
            numbers.add(number)


def _stream_bytes(part: Part) -> int:
    return sum(map(len, part.framed)) + len(part.rows) * object_stream.CONTENT_HASH_BYTES + object_stream.ENDS_BYTES


async def _stream(part: Part) -> AsyncIterator[bytes]:
    pieces, size = [object_stream.stream_header()], 0
    for row, framed in zip(part.rows, part.framed, strict=True):
        pieces.append(object_stream.item_bytes(row, framed))
        size += len(framed)
        if size >= _PIECE_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join([*pieces, object_stream.stream_end(len(part.rows))])


def is_final(error: Exception) -> bool:
    """Whether trying again, later, is of no use until a person changes something."""
    return isinstance(error, refusals.RefusedError) and error.refusal in refusals.FINAL_REFUSALS
