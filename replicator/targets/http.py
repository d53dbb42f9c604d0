"""A mirror as a target, over HTTP (aiohttp): each call is one request of the protocol in snapfs/store/wire.py.

Invariants:
1. Nothing is tried again here: who calls decides that, by what is raised (base.py, 5).
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

from replicator.source import Part
from replicator.targets.base import Limits, TargetState, Told, live_messages
from snapfs.access import MirrorAccess
from snapfs.blocks import Generation, SnapshotNumber
from snapfs.errors import UserError, reason
from snapfs.store import stream, wire
from snapfs.store.numbers import NumberSet
from snapfs.store.records import StoreIdentity
from snapfs.store.repository import SnapshotRecord
from snapfs.store.wire import Refusal

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 120.0
"""Longest silence of a mirror that is to be waited for: a commit of a large snapshot is verified before its answer."""
_PIECE_BYTES: Final = 256 << 10
_ASK_NUMBERS: Final = 1 << 17
"""In one LACKS: about half a second's work for a mirror."""

Message = TypeVar("Message")


def split(url: str) -> tuple[URL, str]:
    """The mirror's own address and the volume's name there. Raises UserError."""
    wanted = f"{url}: write https://MIRROR:{wire.DEFAULT_PORT}/VOLUME, with a-z, 0-9, - and _ in VOLUME"
    try:
        whole = URL(url)
        origin = whole.origin()
    except ValueError as error:
        raise UserError(f"{wanted} ({error})") from None
    name = whole.path.strip("/")
    if not wire.VOLUME_NAME.fullmatch(name):
        raise UserError(wanted)
    return origin, name


class HttpTarget:
    """A volume on a mirror. Made within a running loop."""

    def __init__(self, url: str, access: MirrorAccess) -> None:
        self._origin, self.volume = split(url)
        self._access = access
        self._headers = {wire.PROTOCOL_HEADER: str(wire.PROTOCOL_VERSION)}
        self._fence: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._limits = Limits()

    @property
    def limits(self) -> Limits:
        return self._limits

    async def open(self, identity: StoreIdentity) -> TargetState:
        self._headers |= wire.authorization(await asyncio.to_thread(self._access.token))
        mode = wire.Mode.OPAQUE if identity.opaque else wire.Mode.PLAIN
        wanted = wire.CreateVolume(identity.volume_id, f"{identity.seed:016x}", mode)
        state = await self._ask("PUT", (), wire.VolumeState, wanted)
        self._take_limits(state.limits)
        listed = await self._ask("GET", ("snapshots",), wire.SnapshotList)
        holds = await self._ask("GET", ("holds",), wire.HoldList)
        return TargetState(
            Generation(state.generation), state.holder, tuple(snapshot.decoded() for snapshot in listed.snapshots),
            frozenset(SnapshotNumber(hold.snapshot) for hold in holds.holds), state.stored_bytes,
        )  # fmt: skip

    async def claim(self, generation: Generation, holder: str) -> None:
        self._fence = {}
        await self._ask("POST", ("claim",), wire.VolumeState, wire.Claim(generation, holder))
        self._fence = wire.fence_headers(generation, holder)

    async def lacks(self, numbers: NumberSet) -> NumberSet:
        found = NumberSet()
        for runs in await asyncio.to_thread(lambda: list(wire.in_requests(wire.runs_of(numbers), _ASK_NUMBERS))):
            data = await self._request("POST", ("lacks",), wire.pack_runs(runs), wire.RUNS_TYPE)
            await asyncio.to_thread(_add_runs, found, wire.unpack_runs(data, wire.MAX_LACKS_NUMBERS))
        return found

    async def send(self, part: Part) -> int:
        length = {"Content-Length": str(_stream_bytes(part))}
        receipt = await self._request("POST", ("parts",), _stream(part), wire.OBJECTS_TYPE, fenced=True, more=length)
        wire.decode(receipt, wire.PartReceipt)
        return part.bytes

    async def commit(
        self, records: Sequence[SnapshotRecord], *, history: bool = False, told: Told | None = None
    ) -> None:
        wanted = (told or Told()).commit(records, history)
        await self._ask("POST", ("commit",), wire.CommitReceipt, wanted, fenced=True)

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Send the list of what is used most along with a snapshot that is there."""
        await self._request("PUT", ("snapshots", str(number), "hot"), data, wire.HOT_TYPE, fenced=True)

    async def drop(self, numbers: Sequence[SnapshotNumber]) -> None:
        await self._ask("POST", ("drop",), wire.SnapshotList, wire.Drop(list(numbers)), fenced=True)

    async def aside(self, after: SnapshotNumber, name: str) -> None:
        await self._ask("POST", ("aside",), wire.SnapshotList, wire.Aside(after, name), fenced=True)

    async def keys(self) -> bytes:
        return await self._request("GET", ("keys",), b"", wire.JSON_TYPE)

    async def put_keys(self, data: bytes) -> None:
        await self._request("PUT", ("keys",), data, wire.JSON_TYPE, fenced=True)

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber]) -> int:
        freed_bytes = 0
        for message in live_messages(live, snapshots):
            freed_bytes = (await self._ask("POST", ("collect",), wire.Collected, message, fenced=True)).freed_bytes
        return freed_bytes

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _take_limits(self, told: wire.Limits) -> None:
        self._limits = Limits(told.part_bytes, told.part_objects, told.commit_snapshots, max(1, told.window_parts))

    async def _ask(
        self, method: str, path: tuple[str, ...], kind: type[Message], message: msgspec.Struct | None = None, *,
        fenced: bool = False,
    ) -> Message:  # fmt: skip
        body = b"" if message is None else wire.encode(message)
        answer = await self._request(method, path, body, wire.JSON_TYPE, fenced=fenced)
        return wire.decode(answer, kind, wire.MAX_ANSWER_BYTES)

    async def _request(
        self, method: str, path: tuple[str, ...], body: Any, content_type: str, *, fenced: bool = False,
        more: dict[str, str] | None = None,
    ) -> bytes:  # fmt: skip
        if fenced and not self._fence:
            raise wire.refuse(Refusal.UNCLAIMED, "no generation has been claimed")
        headers = {**self._headers, **(self._fence if fenced else {}), **(more or {})}
        if body:
            headers["Content-Type"] = content_type
        url = self._origin.join(URL(wire.volume_path(self.volume, *path), encoded=True))
        try:
            async with self._opened().request(method, url, data=body or None, headers=headers) as answer:
                self._take_window(answer.headers.get(wire.WINDOW_HEADER))
                data = await answer.read()
                if answer.status >= 300:
                    raise wire.decode_problem(answer.status, data)
                return data
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(f"{self._origin}: {reason(error)}") from None

    def _take_window(self, told: str | None) -> None:
        if told is not None and told.isdecimal():
            self._limits = replace(self._limits, window_parts=max(1, int(told)))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls = self._access.tls() if self._origin.scheme == "https" else False
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)
            connector = aiohttp.TCPConnector(limit=32, ssl=tls)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session


def _add_runs(numbers: NumberSet, runs: list[wire.Run]) -> None:
    for first, last in runs:
        for number in range(first, last + 1):
            numbers.add(number)


def _stream_bytes(part: Part) -> int:
    return sum(map(len, part.framed)) + len(part.rows) * stream.PROOF_BYTES + stream.ENDS_BYTES


async def _stream(part: Part) -> AsyncIterator[bytes]:
    pieces, size = [stream.stream_header()], 0
    for row, framed in zip(part.rows, part.framed, strict=True):
        pieces.append(stream.item_bytes(row, framed))
        size += len(framed)
        if size >= _PIECE_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join([*pieces, stream.stream_end(len(part.rows))])


def is_final(error: Exception) -> bool:
    """Whether trying again, later, is of no use until somebody changes something."""
    return isinstance(error, wire.RefusedError) and error.refusal in wire.FINAL_REFUSALS


def is_conflict(error: Exception) -> bool:
    """Whether what is there has to be asked again before going on."""
    refusals = (Refusal.INCOMPLETE, Refusal.DIVERGED, Refusal.UNCLAIMED, Refusal.NOT_FOUND)
    return isinstance(error, wire.RefusedError) and error.refusal in refusals
