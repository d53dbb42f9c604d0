"""A folder as a target: another disk, or a mounted share.

In it is what a mirror keeps of a volume (mirror_volume.py), so that `snapfs list`, `restore` and `verify` work on it,
and a mirror may serve it later.

Invariants:
1. What arrives goes through the same receiver as on a mirror: verified, durable, whole, fenced.
2. One process at a time has the folder open, by the volume's lock.
3. Merging and freeing of space follow a commit that was answered, and fail nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Final

from replicator.source.selection import Part
from replicator.targets.target import ContentHashOf, Manifest, TargetLimits, TargetState, live_messages
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.store.gates.gate_entries import GateEntry
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import messages, object_stream, wire
from snapfs.store.protocol.refusals import Refusal, refuse

log = logging.getLogger(__name__)

CACHE_BYTES: Final = 32 << 20
_LIMITS: Final = TargetLimits(part_bytes=32 << 20, window_parts=2)
_Claim = tuple[Generation, str]


class DirectoryTarget:
    """The volume in the folder `path`, which is made if it is missing."""

    def __init__(self, path: str, disk: Disk | None = None) -> None:
        self.path, self._disk = os.path.abspath(path), disk or Disk()
        self.opened: MirrorVolume | None = None
        self._claim: _Claim | None = None
        self._place: tuple[int, int] | None = None
        self._upkeep: asyncio.Task[None] | None = None

    @property
    def limits(self) -> TargetLimits:
        return _LIMITS

    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState:
        if self.opened is not None and not await asyncio.to_thread(self._is_still_there):
            await self.close()
        if self.opened is None:
            if not make and not await asyncio.to_thread(MirrorVolume.exists, self.path):
                raise refuse(Refusal.NOT_FOUND, f"there is no volume's history in {self.path}")
            self._claim = None
            self.opened = await asyncio.to_thread(self._open, identity)
            self._place = await asyncio.to_thread(_place_of, self.opened.volume.store_dir)
        self.opened.check_identity(_wanted(identity))
        return await asyncio.to_thread(_state_of, self.opened)

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        self._claim = None
        await asyncio.to_thread(self._volume.claim, generation, writer_id, "", snapshot, peers)
        self._claim = generation, writer_id

    async def lacks(self, numbers: NumberSet, content_hash_of: ContentHashOf | None = None) -> NumberSet:
        return await asyncio.to_thread(_lacking, self._volume, numbers)

    async def send(self, part: Part) -> int:
        await asyncio.to_thread(_receive, self._volume, part, *self._claimed)
        return part.bytes

    async def commit(
        self, records: Sequence[SnapshotRecord], *, history: bool = False, manifest: Manifest | None = None
    ) -> int:
        await self.settle()
        volume = self._volume
        more = manifest.commit((), history) if manifest is not None else None
        await asyncio.to_thread(volume.commit, list(records), history, *self._claimed, more)
        revision = volume.revision
        self._upkeep = asyncio.create_task(asyncio.to_thread(_tidy, volume))
        return revision

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Send the list of what is used most along with a snapshot that is there."""
        await asyncio.to_thread(self._volume.put_hot, number, data, *self._claimed)

    async def gates(self) -> list[GateEntry]:
        """What the snapshots there have passed."""
        return (await asyncio.to_thread(self._volume.gate_list)).entries

    async def put_gates(self, entries: Sequence[GateEntry]) -> None:
        """Send along what snapshots that are there have passed."""
        await asyncio.to_thread(self._volume.put_gates, list(entries), *self._claimed)

    async def drop(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]:
        await self.settle()
        return await asyncio.to_thread(self._volume.drop, list(numbers), *self._claimed, why)

    async def put_holds(self, records: Sequence[HoldRecord]) -> frozenset[SnapshotNumber]:
        await asyncio.to_thread(self._volume.put_holds, list(records), *self._claimed)
        return await asyncio.to_thread(_held, self._volume)

    async def branch_off(self, after: SnapshotNumber, name: str) -> None:
        await self.settle()
        await asyncio.to_thread(self._volume.branch_off, after, name, *self._claimed)

    async def keys(self) -> bytes:
        return await asyncio.to_thread(self._volume.must_be_encrypted().keys)

    async def put_keys(self, data: bytes) -> None:
        await asyncio.to_thread(self._volume.put_keys, data, *self._claimed)

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber], below: Number = Number(0)) -> int:
        if below:
            return 0  # no message to a mirror can express that; it keeps everything
        await self.settle()
        freed_bytes = 0
        for message in live_messages(live, snapshots):
            done = await asyncio.to_thread(self._volume.collect_by_manifest, message, *self._claimed)
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
        limits = messages.Limits(part_bytes=wire.MAX_PART_BYTES)
        return MirrorVolume.create(self.path, _wanted(identity), self._disk, cache_bytes=CACHE_BYTES, limits=limits)

    def _is_still_there(self) -> bool:
        """A disk may have been unmounted, or another one mounted, while its folder was open."""
        assert self.opened is not None
        return _place_of(self.opened.volume.store_dir) == self._place

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


def _place_of(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _wanted(identity: StoreIdentity) -> messages.CreateVolume:
    mode = wire.Mode.ENCRYPTED if identity.encrypted else wire.Mode.PLAIN
    return messages.CreateVolume(identity.volume_id, f"{identity.seed:016x}", mode)


def _state_of(volume: MirrorVolume) -> TargetState:
    stored = sum(info.size for info in volume.repository.index.segments())
    records, held = tuple(volume.repository.snapshots()), _held(volume)
    successions = tuple(volume.claims.successions)
    retention, claims = volume.retention, volume.claims
    return TargetState(
        volume.generation, volume.writer_id, records, held, stored, retention.lock_s, successions, volume.target_id,
        volume.revision, peers=claims.peers, people=tuple(volume.repository.catalog.hold_records.all()),
    )  # fmt: skip


def _held(volume: MirrorVolume) -> frozenset[SnapshotNumber]:
    return volume.retention.holds.held_of(volume.repository.catalog.numbers())


def _lacking(volume: MirrorVolume, numbers: NumberSet) -> NumberSet:
    found = NumberSet()
    for number in numbers:
        if volume.receiver.union.row(number) is None:
            found.add(number)
    return found


def _receive(volume: MirrorVolume, part: Part, generation: Generation, writer_id: str) -> None:
    part_receiver = volume.part(generation, writer_id)
    try:
        part_receiver.feed(object_stream.stream_header())
        for row, framed in zip(part.rows, part.framed, strict=True):
            part_receiver.feed(object_stream.item_bytes(row, framed))
        part_receiver.finish()
    except BaseException:
        part_receiver.abort()
        raise


def _tidy(volume: MirrorVolume) -> None:
    try:
        volume.upkeep()
    except (OSError, SnapfsError) as error:
        log.warning("%s: tidying up is left for later: %s", volume.volume.path, error)
