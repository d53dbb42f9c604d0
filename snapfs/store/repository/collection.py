"""Frees space in a store: merges small segments, and collects what no snapshot reaches any more.

Invariants:
1. From the beginning of a collection on no new snapshot comes to need an object that the existing ones do not.
2. One at a time: merges, collections and repairs share the lock of compaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from snapfs.base.blocks import Number
from snapfs.base.errors import BusyError
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repository.compaction import MIN_DEAD, CollectReport
from snapfs.store.repository.sealing import Sealing
from snapfs.store.repository.store_parts import StoreParts


class Collection:
    """One collection of unneeded objects, from the walk of what is reachable to the rewritten segments."""

    def __init__(self, parts: StoreParts, horizon: Number) -> None:
        self._parts = parts
        self.horizon = horizon
        """Newer objects than this one are left alone."""

    def run(
        self, live: NumberSet, pause: Callable[[], None] = lambda: None, min_dead: float = MIN_DEAD
    ) -> CollectReport:
        """Free what is not in `live`: all objects that the snapshots reach; their bases are added here.

        A segment is rewritten if at least `min_dead` of it is dead. `pause` is called between objects, to let others
        run or to raise. Raises OSError, and CorruptionError if damage keeps it from being known what is needed.
        """
        parts = self._parts
        for record in parts.catalog.pages():
            live.add(record.last_number)
        report = parts.compactor.collect(live, self.horizon, pause, min_dead)
        parts.loss.collected()
        freed = {"removed": report.removed, "rewritten": report.rewritten, "freed_bytes": report.freed_bytes}
        parts.log.append("collected", freed)
        return report


@contextlib.contextmanager
def collection(parts: StoreParts, sealing: Sealing) -> Iterator[Collection]:
    """As `Repository.collection`."""
    if parts.lazy is not None:
        raise BusyError("part of this store is still on its way from a mirror: space is collected when it is here")
    with parts.compacting:
        horizon = sealing.horizon()
        try:
            yield Collection(parts, horizon)
        finally:
            parts.loss.set_dedup_floor()


def merge_once(parts: StoreParts, pause: Callable[[], None]) -> int:
    """As `Repository.merge_once`."""
    with parts.compacting:
        fewer = parts.compactor.merge_once(pause)
        if fewer:
            parts.loss.list_segments()
        return fewer
