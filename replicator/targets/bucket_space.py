"""Frees the space of a bucket: merges small segments, rewrites what is half dead, sweeps what no head names.

Invariant: nothing here fails the commit that it comes after. A segment is replaced by one put of the head, which names
the new segment and not the old one; a crash before it leaves an object that no head names.
"""

from __future__ import annotations

import logging

from obstore.exceptions import BaseError

from replicator.targets.bucket_garbage import SWEEP_SECONDS, Garbage
from replicator.targets.bucket_guard import BucketGuard
from replicator.targets.bucket_head import HeadKeeper
from replicator.targets.bucket_segments import BucketSegments
from snapfs.base.blocks import Number
from snapfs.base.errors import SnapfsError
from snapfs.store.bucket import head_object
from snapfs.store.bucket.segment_names import info_of
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.repository import compaction

log = logging.getLogger(__name__)


class BucketSpace:
    """Frees the space of the bucket of one writer."""

    def __init__(self, guard: BucketGuard, heads: HeadKeeper, segments: BucketSegments, garbage: Garbage) -> None:
        self._guard, self._heads, self._segments, self._garbage = guard, heads, segments, garbage
        self._sweep_due_s: float | None = None

    async def begin(self) -> None:
        """A generation was claimed: sweeps are due from now on, SWEEP_SECONDS apart."""
        if self._sweep_due_s is None:
            self._sweep_due_s = self._guard.now_s() + SWEEP_SECONDS
        await self._sweep_if_due()

    async def collect(self, live: NumberSet, below: Number = Number(0)) -> int:
        """Free what is neither in `live`, what the snapshots need that the writer knows, nor numbered up to `below`.

        Returns bytes freed in the end. What a snapshot needs that the writer never had, or a branch needs, is
        not known; but none of it has a number above the snapshot's last. `live` gains the bases of what is a
        difference here, though perhaps not at the writer any more: a repair stores in full. Called between commits, by
        the one writer. A segment is rewritten if at least half of it is dead.
        """
        freed = 0
        below = max([below, *(Number(each.record["last_number"]) for each in self._heads.head.branches)])
        infos = [info for info in self._heads.segments() if info.last > below]
        for info in infos:
            await self._segments.add_bases(info, live)
        for info in infos:
            freed += await self._collect_one(info, live, below)
        self._segments.forget_numbers()
        await self.tidy()
        return freed

    async def _collect_one(self, info: SegmentInfo, live: NumberSet, below: Number) -> int:
        rows = await self._segments.rows(info)
        kept = [row for row in rows if row.number <= below or row.number in live]
        kept_bytes = sum(FRAME_BYTES + row.stored + ROW_BYTES for row in kept)
        if kept and kept_bytes > (1 - compaction.MIN_DEAD) * info.size:
            return 0
        made: list[str] = []
        if kept:
            living = {row.number for row in kept}
            objects = [each for each in await self._segments.objects(info) if each[0].number in living]
            made = [await self._segments.make(self._heads.identity.volume_id, objects)]
        await self._heads.change(lambda head: head_object.with_changes(head, segments=made, gone=[info.path]))
        return info.size - sum(info_of(name).size for name in made)

    async def tidy(self) -> None:
        """Merge what is due, and remove what no snapshot needs. Nothing of it fails the commit that it comes after."""
        try:
            while run := compaction.due_merge(self._heads.segments()):
                await self._merge(run)
        except (OSError, BaseError, SnapfsError) as error:
            log.warning("object store: merging is left for later: %s", error)
        await self._sweep_if_due()

    async def _merge(self, run: list[SegmentInfo]) -> None:
        merged = {row.number: (row, framed) for info in run for row, framed in await self._segments.objects(info)}
        name = await self._segments.make(self._heads.identity.volume_id, [merged[number] for number in sorted(merged)])
        gone = [info.path for info in run]
        await self._heads.change(lambda head: head_object.with_changes(head, segments=[name], gone=gone))
        self._segments.made(name, gone)

    async def _sweep_if_due(self) -> None:
        if self._sweep_due_s is None or self._guard.now_s() < self._sweep_due_s:
            return
        self._sweep_due_s = self._guard.now_s() + SWEEP_SECONDS
        try:
            await self._guard.prove()
            await self._garbage.sweep(self._guard.now_s())
        except (OSError, BaseError, SnapfsError) as error:
            log.warning("object store: tidying up is left for later: %s", error)
