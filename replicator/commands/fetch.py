"""The way back from an object store: its history as a volume's folder, which snapfs lists, restores and mounts.

Invariants:
1. Everything goes through the receiver that a mirror has as well (snapfs/store/ingest/receiver.py): each object is
   verified, and a snapshot is there whole or not at all.
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

from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, UserError
from snapfs.store.crypto.encryption import Encryptor
from snapfs.store.crypto.keys import OwnersKey, WrappedKeys, write_keys
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Row
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol import messages, object_stream
from snapfs.store.protocol.object_stream import Item
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse

PIECE_BYTES: Final = 8 << 20
PIECES: Final = 4
"""Requests at a time."""
_WRITER_ID: Final = "fetched"
WHERE: Final = "the object store"

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class FetchReport:
    """What a fetch did. `incomplete`: snapshots that could not be had, with the reason."""

    snapshots: int = 0
    new: int = 0
    fetched_bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    incomplete: dict[SnapshotNumber, str] = field(default_factory=dict)


async def fetch(
    target: ObjectStoreTarget,
    folder: str,
    disk: Disk,
    progress: Progress = lambda done, total: None,
    *,
    owner: OwnersKey | None = None,
) -> FetchReport:
    """Bring everything into `folder`, a new one or one of an earlier fetch. `progress(done, total)` gets bytes.

    `owner`: the key of a volume that is encrypted there; it is not in the folder. Raises RefusedError, OSError,
    BusyError; UserError, CorruptionError if the key is missing, wrong, or opens nothing.
    """
    identity = await target.identify()
    state = await target.open(identity)
    opening: _Opening | None = None
    if identity.encrypted:
        opening = await asyncio.to_thread(_Opening.of, await target.keys(), owner)
        identity = opening.identity
    wanted = messages.CreateVolume(identity.volume_id, f"{identity.seed:016x}")
    volume = await asyncio.to_thread(MirrorVolume.create, folder, wanted, disk)
    try:
        if opening is not None:
            await asyncio.to_thread(write_keys, folder, opening.wrapped, disk)
        work = _Fetch(target, volume, progress, opening)
        await asyncio.to_thread(work.claim, state.generation)
        for info in target.segments():
            await work.segment(info)
        await asyncio.to_thread(work.commit, list(state.snapshots))
        return work.report
    finally:
        await asyncio.to_thread(volume.close)


@dataclass(frozen=True, slots=True)
class _Opening:
    """The keys of a volume that is encrypted there."""

    wrapped: WrappedKeys
    identity: StoreIdentity
    encryptor: Encryptor

    @staticmethod
    def of(data: bytes, owner: OwnersKey | None) -> _Opening:
        if owner is None:
            raise UserError("what is there is encrypted: give its key, with --key-file or --key-command")
        if not data:
            raise UserError("what is there is encrypted, and has no keys: fetch it from another target")
        wrapped = WrappedKeys.decode(data, WHERE)
        keyring = owner.unwrap(wrapped, WHERE)
        return _Opening(wrapped, StoreIdentity(keyring.volume_id, keyring.seed_number), Encryptor(keyring))


class _Fetch:
    def __init__(
        self, target: ObjectStoreTarget, volume: MirrorVolume, progress: Progress, opening: _Opening | None
    ) -> None:
        self._target, self._volume, self._progress, self._opening = target, volume, progress, opening
        self._generation = Generation(1)
        self._total = sum(info.size for info in target.segments())
        self._done = 0
        self.report = FetchReport()

    def claim(self, generation: Generation) -> None:
        self._generation = max(generation, self._volume.generation, Generation(1))
        if (self._volume.generation, self._volume.writer_id) != (self._generation, _WRITER_ID):
            self._generation = max(self._generation, Generation(self._volume.generation + 1))
            self._volume.claim(self._generation, _WRITER_ID)

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
        part_receiver = self._volume.part(self._generation, _WRITER_ID)
        try:
            part_receiver.feed(object_stream.stream_header())
            for row in rows:
                at = row.offset - rows[0].offset
                framed = data[at : at + FRAME_BYTES + row.stored]
                if len(framed) < FRAME_BYTES or not fmt.frame_is_good(framed):
                    self.report.damaged.append(f"object {row.number:#x} in {info.path} is damaged")
                    continue
                item = self._opened(row, framed)
                if item is not None:
                    part_receiver.feed(item.content_hash + item.framed)
            part_receiver.finish()
        except BaseException:
            part_receiver.abort()
            raise

    def _opened(self, row: Row, framed: bytes) -> Item | None:
        item = Item(row.content_hash, fmt.unpack_frame(framed), framed)
        if self._opening is None:
            return item
        try:
            return self._opening.encryptor.decrypt(item, WHERE)
        except CorruptionError as error:
            self.report.damaged.append(str(error))
            return None

    def _opened_records(self, snapshots: list[SnapshotRecord]) -> Iterator[SnapshotRecord]:
        for record in snapshots:
            try:
                yield self._opening.encryptor.decrypt_record(record, WHERE) if self._opening is not None else record
            except CorruptionError as error:
                self.report.incomplete[record.number] = str(error)

    def commit(self, snapshots: list[SnapshotRecord]) -> None:
        """Make visible what is whole, ascending."""
        there = {record.number for record in self._volume.repository.snapshots()}
        for record in self._opened_records(snapshots):
            if record.number not in there:
                self._commit_one(record, history=any(number > record.number for number in there))
        self.report.snapshots = len(self._volume.repository.snapshots())
        self._volume.upkeep()

    def _commit_one(self, record: SnapshotRecord, history: bool) -> None:
        try:
            self._volume.commit([record], history, self._generation, _WRITER_ID)
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
