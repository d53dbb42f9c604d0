"""A folder as a target: another disk, or a mounted share.

In it is what a mirror keeps of a volume (mirror_volume.py), so that `snapfs list`, `restore` and `verify` work on it,
and a mirror may serve it later.

Invariants:
1. What arrives goes through the same door as on a mirror: verified, durable, whole, fenced. Nothing is done again here.
2. One process at a time has the folder open, by the volume's lock.
3. Merging and freeing of space follow a commit that was answered, and fail nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Final

from replicator.mirror_volume import MirrorVolume
from replicator.source import Part
from replicator.targets.base import Limits, TargetState, Told, live_messages
from snapfs.blocks import Disk, Generation, SnapshotNumber
from snapfs.errors import SnapfsError
from snapfs.store import stream, wire
from snapfs.store.numbers import NumberSet
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.wire import Refusal, refuse

log = logging.getLogger(__name__)

CACHE_BYTES: Final = 32 << 20
_LIMITS: Final = Limits(part_bytes=32 << 20, window_parts=2)
_Claim = tuple[Generation, str]


class DirectoryTarget:
    """The volume in the folder `path`, which is made if it is missing."""

    def __init__(self, path: str, disk: Disk | None = None) -> None:
        self.path, self._disk = os.path.abspath(path), disk or Disk()
        self.opened: MirrorVolume | None = None
        self._claim: _Claim | None = None
        self._upkeep: asyncio.Task[None] | None = None

    @property
    def limits(self) -> Limits:
        return _LIMITS

    async def open(self, identity: StoreIdentity) -> TargetState:
        if self.opened is None:
            self._claim = None
            self.opened = await asyncio.to_thread(self._open, identity)
        self.opened.check_identity(_wanted(identity))
        return await asyncio.to_thread(_state_of, self.opened)

    async def claim(self, generation: Generation, holder: str) -> None:
        self._claim = None
        await asyncio.to_thread(self._volume.claim, generation, holder)
        self._claim = generation, holder

    async def lacks(self, numbers: NumberSet) -> NumberSet:
        return await asyncio.to_thread(_lacking, self._volume, numbers)

    async def send(self, part: Part) -> int:
        await asyncio.to_thread(_receive, self._volume, part, *self._claimed)
        return part.bytes

    async def commit(
        self, records: Sequence[SnapshotRecord], *, history: bool = False, told: Told | None = None
    ) -> None:
        await self.settle()
        volume = self._volume
        more = told.commit((), history) if told is not None else None
        await asyncio.to_thread(volume.commit, list(records), history, *self._claimed, more)
        self._upkeep = asyncio.create_task(asyncio.to_thread(_tidy, volume))

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Send the list of what is used most along with a snapshot that is there."""
        await asyncio.to_thread(self._volume.put_hot, number, data, *self._claimed)

    async def drop(self, numbers: Sequence[SnapshotNumber]) -> None:
        await self.settle()
        await asyncio.to_thread(self._volume.drop, list(numbers), *self._claimed)

    async def aside(self, after: SnapshotNumber, name: str) -> None:
        await self.settle()
        await asyncio.to_thread(self._volume.aside, after, name, *self._claimed)

    async def keys(self) -> bytes:
        return await asyncio.to_thread(self._volume.must_be_opaque().keys)

    async def put_keys(self, data: bytes) -> None:
        await asyncio.to_thread(self._volume.put_keys, data, *self._claimed)

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber]) -> int:
        await self.settle()
        freed_bytes = 0
        for message in live_messages(live, snapshots):
            done = await asyncio.to_thread(self._volume.collect_told, message, *self._claimed)
            freed_bytes = done.freed_bytes
        return freed_bytes

    async def close(self) -> None:
        await self.settle()
        opened, self.opened = self.opened, None
        if opened is not None:
            await asyncio.to_thread(opened.close)

    async def settle(self) -> None:
        """Wait for the upkeep that follows a commit."""
        task, self._upkeep = self._upkeep, None
        if task is not None:
            await task

    def _open(self, identity: StoreIdentity) -> MirrorVolume:
        limits = wire.Limits(part_bytes=wire.MAX_PART_BYTES)
        return MirrorVolume.create(self.path, _wanted(identity), self._disk, cache_bytes=CACHE_BYTES, limits=limits)

    @property
    def _volume(self) -> MirrorVolume:
        if self.opened is None:
            raise ConnectionError(f"{self.path} is not open")
        return self.opened

    @property
    def _claimed(self) -> _Claim:
        if self._claim is None:
            raise refuse(Refusal.UNCLAIMED, "no generation has been claimed")
        return self._claim


def _wanted(identity: StoreIdentity) -> wire.CreateVolume:
    mode = wire.Mode.OPAQUE if identity.opaque else wire.Mode.PLAIN
    return wire.CreateVolume(identity.volume_id, f"{identity.seed:016x}", mode)


def _state_of(volume: MirrorVolume) -> TargetState:
    stored = sum(info.size for info in volume.repository.index.segments())
    records = tuple(volume.repository.snapshots())
    return TargetState(volume.generation, volume.holder, records, volume.holds.held(), stored)


def _lacking(volume: MirrorVolume, numbers: NumberSet) -> NumberSet:
    found = NumberSet()
    for number in numbers:
        if volume.receiver.union.row(number) is None:
            found.add(number)
    return found


def _receive(volume: MirrorVolume, part: Part, generation: Generation, holder: str) -> None:
    receiving = volume.part(generation, holder)
    try:
        receiving.feed(stream.stream_header())
        for row, framed in zip(part.rows, part.framed, strict=True):
            receiving.feed(stream.item_bytes(row, framed))
        receiving.finish()
    except BaseException:
        receiving.abort()
        raise


def _tidy(volume: MirrorVolume) -> None:
    try:
        volume.upkeep()
    except (OSError, SnapfsError) as error:
        log.warning("%s: tidying up is left for later: %s", volume.volume.path, error)
