"""The way back from an object store: its history as a volume's folder, which snapfs lists, restores and mounts.

Invariants:
1. Everything goes through the door that a mirror has for objects from elsewhere: each object is verified, a snapshot
   is there whole or not at all.
2. It can be interrupted at any time and done again: what is in the folder already is not fetched twice. Done again
   later, it brings what is new.
3. A snapshot that cannot be had whole is left out and named; the others are not held up by it.
4. Nothing is changed in the object store.
5. Memory is a few pieces of PIECE_BYTES, and the rows of one segment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from replicator.mirror_volume import MirrorVolume
from replicator.targets.objects import ObjectStoreTarget
from snapfs.blocks import Disk, Generation, SnapshotNumber
from snapfs.errors import SnapfsError
from snapfs.store import format as fmt
from snapfs.store import stream, wire
from snapfs.store.format import FRAME_BYTES, Row
from snapfs.store.index import SegmentInfo
from snapfs.store.records import SnapshotRecord
from snapfs.store.wire import Refusal, RefusedError, refuse

PIECE_BYTES: Final = 8 << 20
PIECES: Final = 4
"""Requests at a time."""
_HOLDER: Final = "fetched"

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Fetched:
    """What a fetch did. `incomplete`: snapshots that could not be had, with the reason."""

    snapshots: int = 0
    new: int = 0
    fetched_bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    incomplete: dict[SnapshotNumber, str] = field(default_factory=dict)


async def fetch(
    target: ObjectStoreTarget, folder: str, disk: Disk, progress: Progress = lambda done, total: None
) -> Fetched:
    """Bring everything into `folder`, a new one or one of an earlier fetch. `progress(done, total)` is told bytes.

    Raises RefusedError, OSError, BusyError.
    """
    identity = await target.identify()
    state = await target.open(identity)
    wanted = wire.CreateVolume(identity.volume_id, f"{identity.seed:016x}")
    volume = await asyncio.to_thread(MirrorVolume.create, folder, wanted, disk)
    try:
        work = _Fetch(target, volume, progress)
        await asyncio.to_thread(work.claim, state.generation)
        for info in target.segments():
            await work.segment(info)
        await asyncio.to_thread(work.commit, list(state.snapshots))
        return work.report
    finally:
        await asyncio.to_thread(volume.close)


class _Fetch:
    def __init__(self, target: ObjectStoreTarget, volume: MirrorVolume, progress: Progress) -> None:
        self._target, self._volume, self._progress = target, volume, progress
        self._generation = Generation(1)
        self._total = sum(info.size for info in target.segments())
        self._done = 0
        self.report = Fetched()

    def claim(self, generation: Generation) -> None:
        self._generation = max(generation, self._volume.generation, Generation(1))
        if (self._volume.generation, self._volume.holder) != (self._generation, _HOLDER):
            self._generation = max(self._generation, Generation(self._volume.generation + 1))
            self._volume.claim(self._generation, _HOLDER)

    async def segment(self, info: SegmentInfo) -> None:
        """What of this segment is not in the folder yet."""
        try:
            rows = await self._target.rows(info)
        except RefusedError as error:
            self.report.damaged.append(str(error))
            return
        lacking = [row for row in rows if self._volume.receiver.union.row(row.number) is None]
        room = asyncio.Semaphore(PIECES)
        async with asyncio.TaskGroup() as group:
            for piece in _pieces(lacking):
                group.create_task(self._piece(room, info, piece))
        self._done += info.size
        self._progress(self._done, self._total)

    async def _piece(self, room: asyncio.Semaphore, info: SegmentInfo, rows: list[Row]) -> None:
        async with room:
            start = rows[0].offset
            data = await self._target.read_range(info, start, _end(rows[-1]))
            self.report.fetched_bytes += len(data)
            await asyncio.to_thread(self._take, info, rows, data)

    def _take(self, info: SegmentInfo, rows: list[Row], data: bytes) -> None:
        """Verify the objects and stage them; one that is damaged is left out."""
        receiving = self._volume.part(self._generation, _HOLDER)
        try:
            receiving.feed(stream.stream_header())
            for row in rows:
                at = row.offset - rows[0].offset
                framed = data[at : at + FRAME_BYTES + row.stored]
                if len(framed) < FRAME_BYTES or not fmt.frame_is_good(framed):
                    self.report.damaged.append(f"object {row.number:#x} in {info.path} is damaged")
                    continue
                receiving.feed(stream.item_bytes(row, framed))
            receiving.finish()
        except BaseException:
            receiving.abort()
            raise

    def commit(self, snapshots: list[SnapshotRecord]) -> None:
        """Make visible what is whole, ascending."""
        there = {record.number for record in self._volume.repository.snapshots()}
        for record in snapshots:
            if record.number not in there:
                self._commit_one(record, history=any(number > record.number for number in there))
        self.report.snapshots = len(self._volume.repository.snapshots())
        self._volume.upkeep()

    def _commit_one(self, record: SnapshotRecord, history: bool) -> None:
        try:
            self._volume.commit([record], history, self._generation, _HOLDER)
        except RefusedError as error:
            if error.refusal not in (Refusal.INCOMPLETE, Refusal.CORRUPT):
                raise
            self.report.incomplete[record.number] = str(error)
        except SnapfsError as error:
            raise refuse(Refusal.INTERNAL, f"snapshot {record.number}: {error}") from None
        else:
            self.report.new += 1


def _pieces(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows that are read at once: near each other, at most PIECE_BYTES, but for a single larger object."""
    piece: list[Row] = []
    for row in rows:
        far = piece and (_end(row) - piece[0].offset > PIECE_BYTES or row.offset - _end(piece[-1]) > PIECE_BYTES // 8)
        if far:
            yield piece
            piece = []
        piece.append(row)
    if piece:
        yield piece


def _end(row: Row) -> int:
    return row.offset + FRAME_BYTES + row.stored
