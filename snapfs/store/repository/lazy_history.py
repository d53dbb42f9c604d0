"""The past of a store that is still at a mirror: what is taken over of it, and how it becomes ordinary segments.

A store without such a past has nothing to fetch: all of this does nothing there, but for `adopt` and `take_part`, which
are not called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snapfs.store.lazy.fetched_objects import FetchedObjects
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.publisher import Publisher
from snapfs.store.objects.staging import StagedPart
from snapfs.store.repository.sealing import Sealing
from snapfs.store.repository.store_parts import StoreParts


class LazyHistory:
    """What one store fetches, and has fetched. Any thread."""

    def __init__(self, parts: StoreParts, sealing: Sealing) -> None:
        self._parts, self._sealing = parts, sealing

    def adopt(self, record: SnapshotRecord) -> None:
        """Take over a snapshot of the same volume from elsewhere, whose objects can be fetched. Raises OSError."""
        assert self._parts.lazy is not None
        self._parts.log.append("snapshot", snapshot_records.to_fields(record))
        self._parts.catalog.add(record)
        self._sealing.reserve(record.last_number)

    def fetch_missing(self, pointers: Sequence[Pointer]) -> None:
        """Have those of the objects that are elsewhere come in few requests; there may be none. OSError.

        What cannot be brought is named by its reader.
        """
        lazy = self._parts.lazy
        source = lazy.source if lazy is not None else None
        if lazy is not None and source is not None:
            lacking = lazy.lacking(pointers)
            if lacking:
                source.fetch(lacking)

    def take_part(self, part: StagedPart) -> None:
        """What came from elsewhere in the order of the numbers becomes a segment. Raises OSError, CorruptionError."""
        lazy = self._parts.lazy
        assert lazy is not None
        with self._parts.compacting:
            self._publish(lazy.places.fetched, [part])
            lazy.places.trust(part.first, part.last)

    def settle(self, pause: Callable[[], None] = lambda: None) -> int:
        """Everything that was at a mirror is here: make ordinary segments of it. How many. Raises OSError."""
        parts = self._parts
        lazy = parts.lazy
        if lazy is None:
            return 0
        places, fetched = lazy.places, lazy.places.fetched
        with parts.compacting:
            made = fetched.settle(parts.identity.volume_id, places.has_segment_of, pause)
            self._publish(fetched, made)
            parts.log.append("hydrated", {"segments": len(made), "objects": fetched.count})
            places.settle()
        fetched.remove()
        parts.loss.list_segments()
        return len(made)

    def _publish(self, fetched: FetchedObjects, made: list[StagedPart]) -> None:
        publisher = Publisher(self._parts.index, fetched, self._parts.disk, self._parts.identity.volume_id)
        fetched.discard(publisher.publish(made, ()))
