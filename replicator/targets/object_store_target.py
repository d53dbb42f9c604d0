"""A target in an object store (S3 and kin, by obstore): immutable segments, and a head that moves by a conditional put.

What lies there under which names, and what the head has, is described in snapfs/store/bucket/bucket_layout.py. The
duties are apart: bucket_requests.py sends requests, bucket_head.py moves the head, bucket_segments.py knows which
objects are there, bucket_garbage.py removes what no head names, bucket_guard.py checks the store and its clock and
reads the lock, bucket_space.py merges and collects. Here they are a Target (target.py).

Invariants:
1. The put of the head is the commit point: it names only segments and pages that are there, whole. A crash before it
   leaves objects that no head names; what of them is needed again goes on being used, the rest is garbage.
2. Before a claim, before the first head, and each hour, the store proves that it refuses what it must
   (conditional_puts.py); one that does not is changed no more.
3. What is known of the objects there is known by this writer alone: when the head turns out to have been changed by
   another writer, all of it is forgotten, and the bucket is listed anew.
4. One request a part and one a commit. Small segments are merged, by the store's own size tiers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from obstore.store import ObjectStore

from replicator.source.selection import Part
from replicator.targets.bucket_garbage import Garbage
from replicator.targets.bucket_gates import BucketGates
from replicator.targets.bucket_guard import BucketGuard
from replicator.targets.bucket_head import HeadKeeper, decoded_head
from replicator.targets.bucket_lock import BucketLock
from replicator.targets.bucket_requests import BucketRequests
from replicator.targets.bucket_segments import BucketSegments
from replicator.targets.bucket_space import BucketSpace
from replicator.targets.target import ContentHashOf, Manifest, TargetLimits, TargetState
from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.store.bucket import bucket_client, bucket_layout, catalog_pages, head_object
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.bucket.head_object import BucketBranch, Head
from snapfs.store.bucket.segment_names import info_of, segment_path
from snapfs.store.gates.gate_entries import GateEntry
from snapfs.store.log import snapshot_records
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.locks import Lock, LockedSnapshot, Stays
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol.refusals import Refusal, refuse

log = logging.getLogger(__name__)

TAIL: Final = 256
HOT_SECONDS: Final = 60.0
_LIMITS: Final = TargetLimits(part_bytes=32 << 20, window_parts=8)


class ObjectStoreTarget:
    """A volume below the prefix of an obstore store. `clock`: instead of the store's own, in seconds."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] | None = None, tail: int = TAIL) -> None:
        self._store, self._salt = store, bucket_layout.new_salt()
        self._requests = BucketRequests(store)
        self._heads = HeadKeeper(self._requests, tail, self._salt)
        self._segments = BucketSegments(self._requests, self._salt)
        self._garbage = Garbage(self._requests, self._heads, self._segments, self._salt)
        self._gates = BucketGates(self._requests)
        self._lock = BucketLock(self._requests)
        self.guard = BucketGuard(store, self._lock, self._heads, clock)
        self._space = BucketSpace(self.guard, self._heads, self._segments, self._garbage)
        self._others = 0  # changes of the head by other writers, as of the last listing of the bucket
        self._listed = False
        self._hot, self._hot_due_s = "", 0.0  # the hot list that we put last, and when it may be another one
        self.requests = self._requests.counts
        """Requests to the store, by kind."""

    @property
    def limits(self) -> TargetLimits:
        return _LIMITS

    async def open(self, identity: StoreIdentity, *, make: bool = True) -> TargetState:
        await self._heads.open(identity, self.guard.prove if make else _make_nothing)
        await self.guard.read_lock()
        return self._state(self.guard.lock_s)

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        self._heads.forget_claim()
        await self.guard.prove()
        await self._heads.claim(generation, writer_id, snapshot, peers)
        await self.guard.read_lock()
        await self.guard.retain()
        await self._space.begin()

    async def lacks(self, numbers: NumberSet, content_hash_of: ContentHashOf | None = None) -> NumberSet:
        await self._look_around()
        return await self._segments.lacks(numbers, self._heads.catalog, content_hash_of)

    async def send(self, part: Part) -> int:
        self._heads.check_claimed()
        self._forget_if_changed()
        return await self._segments.send(self._volume_id, part)

    async def commit(
        self, records_: Sequence[SnapshotRecord], *, history: bool = False, manifest: Manifest | None = None
    ) -> int:
        self._heads.check_claimed()
        self._forget_if_changed()
        new = [record for record in records_ if not self._is_there(record)]
        if not new:
            return self._heads.head.revision
        newest = max(self._heads.catalog.snapshots, default=SnapshotNumber(0))
        if not history and min(record.number for record in new) < newest:
            raise refuse(Refusal.BAD_REQUEST, f"a snapshot below {newest} is history, and has to be called so")
        await self._check_sent(new)
        fields = [catalog_pages.entry(record, int(self.now_s() * 1e9)) for record in new]
        staged = sorted(self._segments.staged)
        await self._heads.change(lambda head: head_object.with_changes(head, snapshots=fields, segments=staged))
        revision = self._heads.head.revision
        self._segments.committed()
        await self.guard.refresh_lock()
        await self._space.tidy()
        return revision

    async def drop(self, numbers: Sequence[SnapshotNumber], why: str = "") -> Sequence[LockedSnapshot]:
        self._heads.check_claimed()
        there = self._heads.catalog.snapshots
        newest = max(there, default=None)
        requested = [number for number in numbers if number in there and number != newest]
        kept = await self._lock.keeps(requested, self._heads.catalog, self.now_s()) if requested else []
        staying = {each.number for each in kept}
        wanted = [number for number in requested if number not in staying]
        if set(wanted) - self._held():
            await self._heads.change(lambda head: head_object.without(head, wanted, int(self.now_s() * 1e9)))
            await self._space.tidy()
        kept += [LockedSnapshot(number, Stays.HELD) for number in wanted if number in self._held()]
        return [*kept, *(LockedSnapshot(number, Stays.NEWEST) for number in numbers if number == newest)]

    async def put_holds(self, records: Sequence[HoldRecord]) -> frozenset[SnapshotNumber]:
        self._heads.check_claimed()
        if head_object.with_holds(self._heads.head, records) != self._heads.head:
            await self._heads.change(lambda head: head_object.with_holds(head, records))
        return self._held()

    def _held(self) -> frozenset[SnapshotNumber]:
        """What people hold of what is there, by the store's clock."""
        held = head_object.held_in(self._heads.head, int(self.now_s() * 1e9))
        return frozenset(number for number in self._heads.catalog.snapshots if number in held)

    async def locked(self, numbers: Sequence[SnapshotNumber]) -> Sequence[LockedSnapshot]:
        """Those of these that the lock keeps, and until when. The target is open."""
        there = [number for number in numbers if number in self._heads.catalog.snapshots]
        return await self._lock.keeps(there, self._heads.catalog, self.now_s()) if there else []

    async def lock(self, seconds: float | None = None, *, shorten: bool = False) -> Lock | None:
        """The lock there is; with `seconds` it is set. Raises UserError, RefusedError, OSError."""
        if seconds is None:
            return await self._lock.read()
        await self.guard.prove()
        return await self._lock.set(seconds, self.now_s(), shorten=shorten)

    async def branch_off(self, after: SnapshotNumber, name: str) -> None:
        self._heads.check_claimed()
        generation = self._heads.head.generation
        foreign = [
            record for record in self._heads.catalog.snapshots.values()
            if record.number > after and record.generation < generation
        ]  # fmt: skip
        branched = [BucketBranch(name, snapshot_records.to_fields(record)) for record in foreign]
        numbers = [record.number for record in foreign]
        if foreign:

            def change(head: Head) -> Head:
                changed = head_object.without(head, numbers)
                return msgspec.structs.replace(changed, branches=[*head.branches, *branched])

            await self._heads.change(change)

    async def collect(self, live: NumberSet, below: Number = Number(0)) -> int:
        """Free what is not in `live`; see BucketSpace.collect. Called between commits, by the one writer."""
        self._heads.check_claimed()
        return await self._space.collect(live, below)

    async def keys(self) -> bytes:
        return self._heads.head.keys.encode()

    async def put_keys(self, data: bytes) -> None:
        await self._heads.change(lambda head: msgspec.structs.replace(head, keys=data.decode()))

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Keep what is used most, in the place of what was kept before; each HOT_SECONDS, since it changes slowly."""
        self._heads.check_claimed()
        path, at_s = bucket_layout.hot_path(self._heads.head.generation, number), self.now_s()
        if self._hot and at_s < self._hot_due_s:
            return
        await self._requests.put_once(path, data)
        self._hot, self._hot_due_s = path, at_s + HOT_SECONDS

    async def gates(self) -> list[GateEntry]:
        """What the snapshots there have passed."""
        return await self._gates.read()

    async def put_gates(self, entries: Sequence[GateEntry]) -> None:
        """Send along what snapshots that are there have passed."""
        self._heads.check_claimed()
        await self._gates.put(entries, self._root_number)

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber], below: Number = Number(0)) -> int:
        return await self.collect(live, below)

    async def close(self) -> None:
        self.guard.close()

    async def identify(self) -> StoreIdentity:
        """Whose history is here. Raises RefusedError if there is none."""
        found = await self._requests.find(HEAD)
        if found is None:
            raise bucket_client.no_head(FileNotFoundError())
        return decoded_head(found.data).identity

    async def rows(self, info: SegmentInfo) -> list[Row]:
        """The table of a segment. Raises RefusedError if it is not the one that the name describes."""
        return await self._segments.rows(info)

    async def read_range(self, info: SegmentInfo, start: int, end: int) -> bytes:
        """Bytes of a segment."""
        return await self._requests.get_range(segment_path(info.path), start, end)

    async def read_segment(self, name: str) -> bytes:
        """A whole segment."""
        return await self._requests.get(segment_path(name))

    async def check_invariants(self) -> None:
        """What is in memory is what is there."""
        again = ObjectStoreTarget(self._store)
        await again.open(self._heads.identity)
        assert again._heads.catalog == self._heads.catalog
        assert again._heads.head == self._heads.head
        for name in self._heads.catalog.segments:
            await again.rows(info_of(name))

    def segments(self) -> list[SegmentInfo]:
        """Those that the head names; `path` is the name."""
        return self._heads.segments()

    def now_s(self) -> float:
        """By the clock of the store."""
        return self.guard.now_s()

    # -- looking

    def _state(self, lock_s: float) -> TargetState:
        found, head = self._heads.catalog.snapshots, self._heads.head
        ordered = tuple(found[number] for number in sorted(found))
        stored = sum(info.size for info in self._heads.catalog.segments.values())
        return TargetState(
            Generation(head.generation),
            head.writer_id,
            ordered,
            stored_bytes=stored,
            lock_s=lock_s,
            successions=tuple(head.successions),
            target_id=head.target,
            revision=head.revision,
            last_number=max((info.last for info in self._heads.catalog.segments.values()), default=Number(0)),
            peers=head.peers,
            held=self._held(),
            people=tuple(head.holds),
        )

    def _forget_if_changed(self) -> None:
        if self._others != self._heads.others:
            self._segments.forget()
            self._others, self._listed = self._heads.others, False

    async def _look_around(self) -> None:
        """List the bucket, once for each change of the head by another writer."""
        self._forget_if_changed()
        if not self._listed and self._heads.claimed is not None:
            await self._garbage.find_strays()
            self._listed = True

    async def _check_sent(self, new: list[SnapshotRecord]) -> None:
        wanted = [number for record in new for number in (record.root.number, record.last_number)]
        if any(number not in self._segments.have for number in wanted):
            await self._segments.learn(wanted, self._heads.catalog)
        for record in new:
            if record.root.number not in self._segments.have or record.last_number not in self._segments.have:
                raise refuse(Refusal.INCOMPLETE, "its root was not sent", missing=[record.root.number])

    # -- small things

    def _root_number(self, number: int) -> int | None:
        found = self._heads.catalog.snapshots.get(SnapshotNumber(number))
        return None if found is None else found.root.number

    @property
    def _volume_id(self) -> str:
        return self._heads.identity.volume_id

    def _is_there(self, record: SnapshotRecord) -> bool:
        there = self._heads.catalog.snapshots.get(record.number)
        if there is not None and there.root != record.root:
            raise refuse(Refusal.DIVERGED, f"another snapshot {record.number} is there", snapshot=record.number)
        return there is not None


async def _make_nothing() -> None:
    raise refuse(Refusal.NOT_FOUND, f"there is no {HEAD} in the object store")
