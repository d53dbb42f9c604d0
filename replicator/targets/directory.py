"""A folder as a target: another disk, or a mounted share. Inside it is a volume, whose store snapfs itself can read.

FOLDER/volume.toml and FOLDER/store are those of any volume (same id and seed as the source), so that `snapfs list`,
`restore`, `verify` and `clone` work on it. FOLDER/writer.json names who has claimed it.

Invariants:
1. What arrives goes through the store's own door for objects from elsewhere (store/receiving.py): verified, durable,
   whole, in parts that survive a crash. Nothing of that is done again here.
2. One process at a time has the folder open, by the volume's lock. The claim is durable before it is answered, and
   looked at again immediately before each change.
3. Merging and freeing of space happen after a commit was answered, and fail nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from replicator.source import Part
from replicator.targets.base import Limits, TargetState
from snapfs.blocks import Disk, Generation, SnapshotNumber
from snapfs.errors import CorruptionError, SnapfsError
from snapfs.store import stream, wire
from snapfs.store.check import live_numbers
from snapfs.store.holds import Holds
from snapfs.store.numbers import NumberSet
from snapfs.store.receiving import Receiver
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.repository import SEGMENTS, Repository
from snapfs.store.staging import take_back
from snapfs.store.wire import Refusal, refuse
from snapfs.volume import Volume

log = logging.getLogger(__name__)

WRITER: Final = "writer.json"
CACHE_BYTES: Final = 32 << 20
COLLECT_AFTER_DROPS: Final = 64


class _Writer(msgspec.Struct, frozen=True):
    generation: int = 0
    holder: str = ""


class DirectoryTarget:
    """The volume in the folder `path`, which is made if it is missing."""

    def __init__(self, path: str, disk: Disk | None = None) -> None:
        self.path, self._disk = os.path.abspath(path), disk or Disk()
        self._volume: Volume | None = None
        self._receiver: Receiver | None = None
        self._claim: _Writer | None = None
        self._writer = _Writer()
        self._upkeep: asyncio.Task[None] | None = None
        self._dropped = 0

    @property
    def limits(self) -> Limits:
        return Limits(part_bytes=32 << 20, window_parts=2)

    async def open(self, identity: StoreIdentity) -> TargetState:
        if self._receiver is None:
            await asyncio.to_thread(self._open, identity)
        return await asyncio.to_thread(self._state)

    async def claim(self, generation: Generation, holder: str) -> None:
        await asyncio.to_thread(self._take_claim, _Writer(generation, holder))

    async def lacks(self, numbers: NumberSet) -> NumberSet:
        return await asyncio.to_thread(self._lacks, numbers)

    async def send(self, part: Part) -> int:
        await asyncio.to_thread(self._receive, part)
        return part.bytes

    async def commit(self, records: Sequence[SnapshotRecord], *, history: bool = False) -> None:
        await self._upkeep_done()
        work = partial(self._receiving.commit, list(records), history=history, fence=self._check_claimed)
        await asyncio.to_thread(work)
        self._upkeep = asyncio.create_task(asyncio.to_thread(self._tidy))

    async def drop(self, numbers: Sequence[SnapshotNumber]) -> None:
        await self._upkeep_done()
        await asyncio.to_thread(self._drop, numbers)

    async def aside(self, after: SnapshotNumber, name: str) -> None:
        raise refuse(
            Refusal.UNSUPPORTED,
            f"{self.path} has snapshots that are not in this volume's history: push to another folder",
        )

    async def close(self) -> None:
        await self._upkeep_done()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            await asyncio.to_thread(self._close, receiver)

    # -- in threads

    @property
    def _receiving(self) -> Receiver:
        if self._receiver is None:
            raise ConnectionError(f"{self.path} is not open")
        return self._receiver

    def _open(self, identity: StoreIdentity) -> None:
        volume = self._find_volume(identity)
        volume.lock("target of a replication")
        try:
            repository = _open_repository(volume, identity, self._disk)
            try:
                limits = wire.Limits(part_bytes=wire.MAX_PART_BYTES)
                self._receiver = Receiver(repository, self._disk, cache_bytes=CACHE_BYTES, limits=limits)
            except BaseException:
                repository.close()
                raise
            self._writer = self._read_writer()
        except BaseException:
            volume.unlock()
            raise
        self._volume = volume

    def _find_volume(self, identity: StoreIdentity) -> Volume:
        if not Volume.exists(self.path):
            Volume.create(self.path, self._disk, seed=identity.seed, volume_id=identity.volume_id)
        volume = Volume.open(self.path, self._disk)
        if (volume.volume_id, volume.seed) != (identity.volume_id, identity.seed):
            raise refuse(Refusal.EXISTS, f"{self.path} is another volume ({volume.volume_id}): choose another folder")
        return volume

    def _close(self, receiver: Receiver) -> None:
        receiver.close()
        receiver.repository.close()
        assert self._volume is not None
        self._volume.unlock()

    def _state(self) -> TargetState:
        repository = self._receiving.repository
        held = Holds(repository.store_dir, self._disk).held()
        stored = sum(info.size for info in repository.index.segments())
        records = tuple(repository.snapshots())
        return TargetState(Generation(self._writer.generation), self._writer.holder, records, held, stored)

    def _take_claim(self, wanted: _Writer) -> None:
        with self._receiving.lock:
            self._claim, there = None, self._read_writer()
            newer = there.generation > wanted.generation
            if newer or (there.generation == wanted.generation and there.holder != wanted.holder):
                raise self._fenced(there)
            if there != wanted:
                self._disk.replace_file("target:claim", self._writer_path, msgspec.json.encode(wanted) + b"\n")
            self._writer = self._claim = wanted

    def _check_claimed(self) -> None:
        if self._claim is None:
            raise refuse(Refusal.UNCLAIMED, "no generation has been claimed")
        there = self._read_writer()
        if there != self._claim:
            raise self._fenced(there)

    def _fenced(self, there: _Writer) -> Exception:
        return refuse(
            Refusal.FENCED, f"generation {there.generation} of {there.holder} writes in {self.path}",
            generation=there.generation, holder=there.holder,
        )  # fmt: skip

    @property
    def _writer_path(self) -> str:
        return os.path.join(self.path, WRITER)

    def _read_writer(self) -> _Writer:
        try:
            with open(self._writer_path, "rb") as file:
                return msgspec.json.decode(file.read(4096), type=_Writer)
        except FileNotFoundError:
            return _Writer()
        except msgspec.MsgspecError as error:
            raise CorruptionError("the claim", self._writer_path, str(error)) from None

    def _lacks(self, numbers: NumberSet) -> NumberSet:
        found = NumberSet()
        row = self._receiving.union.row
        for number in numbers:
            if row(number) is None:
                found.add(number)
        return found

    def _receive(self, part: Part) -> None:
        assert self._claim is not None, "claim comes first"
        receiving = self._receiving.part(Generation(self._claim.generation), self._check_claimed)
        try:
            receiving.feed(stream.stream_header())
            for row, framed in zip(part.rows, part.framed, strict=True):
                receiving.feed(stream.item_bytes(row, framed))
            receiving.finish()
        except BaseException:
            receiving.abort()
            raise

    def _drop(self, numbers: Sequence[SnapshotNumber]) -> None:
        receiver = self._receiving
        with receiver.lock:
            self._check_claimed()
            latest, held = receiver.repository.latest(), Holds(receiver.repository.store_dir, self._disk).held()
            for record in receiver.repository.snapshots():
                if record.number in numbers and record != latest and record.number not in held:
                    receiver.repository.drop(record.number)
                    self._dropped += 1

    def _tidy(self) -> None:
        """Merge small segments; free space after many drops."""
        receiver = self._receiving
        try:
            with receiver.lock:
                while receiver.repository.merge_once():
                    pass
                if self._dropped >= COLLECT_AFTER_DROPS:
                    self._collect(receiver)
        except (OSError, SnapfsError) as error:
            log.warning("%s: tidying up is left for later: %s", self.path, error)

    def _collect(self, receiver: Receiver) -> None:
        repository = receiver.repository
        with repository.collection() as collection:
            receiver.whole = NumberSet()
            collection.run(live_numbers(repository, repository.snapshots()))
        self._dropped = 0

    async def _upkeep_done(self) -> None:
        task, self._upkeep = self._upkeep, None
        if task is not None:
            await task


def _open_repository(volume: Volume, identity: StoreIdentity, disk: Disk) -> Repository:
    """Open the store for writing, what an interrupted commit left made into parts again."""
    if not os.listdir(volume.store_dir):
        Repository.create(volume.store_dir, identity, disk).close()
    looking = Repository.open(volume.store_dir, identity, disk, readonly=True, cache_bytes=1 << 20)
    last = looking.catalog.last_number
    looking.close()
    take_back(volume.store_dir, os.path.join(volume.store_dir, SEGMENTS), disk, last)
    return Repository.open(volume.store_dir, identity, disk, cache_bytes=CACHE_BYTES)

