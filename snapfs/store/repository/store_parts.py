"""The parts of one store, built from the bottom up: each is whole when it is constructed.

What is open is closed again if a part above it cannot be opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError
from snapfs.store.lazy.fetched_objects import FetchedObjects
from snapfs.store.lazy.lazy_objects import LazyObjects, LazyPlaces
from snapfs.store.lazy.reader_cache import PassingObjects
from snapfs.store.log.catalog import Catalog
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects.dedup import SLOTS, Dedup
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex
from snapfs.store.repository.compaction import Compactor
from snapfs.store.repository.segment_loss import SegmentLoss
from snapfs.store.repository.store_folders import SEGMENTS, open_log
from snapfs.store.repository.store_recovery import StoreRecovery

CACHE_BYTES: Final = 64 << 20
MAX_OPEN_SEGMENTS: Final = 64


@dataclass(frozen=True, slots=True)
class StoreOpening:
    """Which store is opened, and how; see `Repository.open`."""

    store_dir: str
    identity: StoreIdentity
    disk: Disk
    readonly: bool = False
    cache_bytes: int = CACHE_BYTES
    max_open_segments: int = MAX_OPEN_SEGMENTS
    clock: Callable[[], int] = time.time_ns
    recovers_parts: bool = False
    passing: PassingObjects | None = None


class StoreParts:
    """What is open of a store."""

    def __init__(self, opening: StoreOpening) -> None:
        """Opens the log and the segments. Raises as `Repository.open`."""
        self.opening, self.identity, self.disk = opening, opening.identity, opening.disk
        self.recovered: list[str] = []
        """A line for people for each repair."""
        self.compacting = threading.Lock()
        """Held while segments take the place of others."""
        self._refreshing = threading.Lock()
        self.catalog = Catalog(opening.store_dir, opening.identity.volume_id)
        self.log = open_log(opening.store_dir, opening.disk, opening.readonly, opening.clock)
        try:
            self.index = SegmentIndex(os.path.join(opening.store_dir, SEGMENTS), opening.max_open_segments)
            self._lazy = _lazy_objects(opening, self.index)
        except BaseException:
            self.log.close()
            raise
        self.objects = self._lazy or Objects(self.index, opening.identity.seed, opening.cache_bytes)
        self.dedup = Dedup(self.index, 1 if opening.readonly else SLOTS)
        self.compactor = Compactor(self.index, self.objects, opening.disk, opening.identity.volume_id)
        self.loss = SegmentLoss(
            opening.store_dir, opening.disk, self.catalog, self.index, self.dedup, self.recovered, opening.readonly,
            lambda: self.lazy is not None,
        )  # fmt: skip
        self.recovery = StoreRecovery(
            opening.store_dir, opening.identity.volume_id, opening.disk, self.log, self.catalog, self.index,
            self.objects, self.recovered, opening.recovers_parts,
        )  # fmt: skip

    @property
    def lazy(self) -> LazyObjects | None:
        """The same as `objects` where some of them are still to be fetched, else None."""
        return self._lazy if self._lazy is not None and not self._lazy.places.settled else None

    def refresh(self) -> None:
        """Take in what another process has appended since. Thread-safe."""
        with self._refreshing:
            try:
                self.follow_log()
            except CorruptionError:  # the writer may have taken a line back that was seen here: begin anew
                self.log.rewind()
                self.catalog.clear()
                self.follow_log()
            self.index.refresh()
            self.loss.judge()

    def follow_log(self) -> None:
        """Take into the catalog what was appended to the log since. Raises CorruptionError."""
        for line in self.log.follow_lines():
            self.catalog.apply(line)

    def close(self) -> None:
        """Close all files."""
        if self.lazy is not None:
            self.lazy.places.fetched.close()
        self.index.close()
        self.log.close()


def _lazy_objects(opening: StoreOpening, index: SegmentIndex) -> LazyObjects | None:
    """None for a store that has all of its past."""
    if opening.passing is None and not FetchedObjects.exists(opening.store_dir):
        return None
    fetched = opening.passing or FetchedObjects(opening.store_dir, opening.disk, readonly=opening.readonly)
    return LazyObjects(LazyPlaces(index, fetched), opening.identity.seed, opening.cache_bytes)
