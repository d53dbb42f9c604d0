"""A mounted volume's connection to its sources, and the fetcher by which the store gets what it lacks.

It exists for a volume with an `origin.json`, and ends when everything is here, which that file's removal records.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.base.volumes.volume import Volume
from snapfs.store.lazy.lazy_objects import LazyObjects
from snapfs.store.log import snapshot_records
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol.hot_codec import Hot
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import StoreSource
from snapfs.transfer.lazy import snapshot_hold
from snapfs.transfer.lazy.backfill import Backfill, Supply, Workers
from snapfs.transfer.lazy.newest_objects import NewestObjects
from snapfs.transfer.lazy.origin_file import ORIGIN_FILE, OriginFile, read_origin
from snapfs.transfer.sources.fetcher import Fetcher
from snapfs.transfer.sources.source_pool import SourceState
from snapfs.transfer.sources.source_urls import late_source
from snapfs.transfer.sources.sources import Source

log = logging.getLogger(__name__)

HOLD_SECONDS = 86400.0
DECODERS = 3
"""Threads that decode what hydration writes. They work outside the interpreter's lock most of the time."""


def hold_name(origin: OriginFile) -> str:
    """Under which name a volume holds its snapshot at the sources."""
    return f"remount-{origin.writer_id}".replace(":", "-").replace("@", "-")[:60]


class Attachment:
    """The attachment of one mounted volume. Any thread, but `close`."""

    def __init__(
        self, volume: Volume, repository: Repository, lazy: LazyObjects | None, origin: OriginFile, disk: Disk
    ) -> None:
        """Without `lazy` the whole history is in the store (a standby's): then nothing is fetched."""
        self.origin, self.record = origin, origin.record
        self._path, self._repository, self._lazy, self._disk = volume.path, repository, lazy, disk
        self.fetcher: Fetcher | None = None
        if lazy is not None:
            sources = [late_source(place, origin.access) for place in origin.sources]
            self.fetcher = Fetcher(lazy, sources, wait_s=float(volume.config.hydration.wait))
            lazy.attach(self.fetcher)
        self._tree: SnapshotTree | None = None
        self._opening = threading.Lock()
        self.is_open = True
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")
        self._workers = Workers()
        self._is_whole = False  # the snapshot is in the store, all of it

    @staticmethod
    def of(volume: Volume, repository: Repository, disk: Disk) -> Attachment | None:
        """None for a volume that is complete. Raises UserError if its origin cannot be read."""
        origin = read_origin(volume.path)
        if origin is None:
            return None
        return Attachment(volume, repository, repository.lazy, origin, disk)

    def tree(self) -> SnapshotTree:
        """The snapshot that was taken over. Raises OSError, CorruptionError if its root cannot be read."""
        with self._opening:
            if self._tree is None:
                self._tree = SnapshotTree(self._repository, self.record.root)
            return self._tree

    def source(self) -> StoreSource:
        """The source of absent bytes and names for the live tree."""
        return StoreSource(
            self._repository, self._names_tree(), ready=self._ready, ahead=self._look_ahead,
            ready_later=self._ready_later, pool=self._decoders,
        )  # fmt: skip

    def _names_tree(self) -> SnapshotTree:
        """The snapshot in which unloaded directories are as they were: of a fork a later one than was taken over."""
        begun = snapshot_hold.held(self._repository)
        if begun is None or begun.root == self.record.root:
            return self.tree()
        return SnapshotTree(self._repository, begun.root)

    def _lacking(self, pointers: Sequence[Pointer]) -> list[Pointer]:
        return self._lazy.lacking(pointers) if self._lazy is not None and not self._is_whole else []

    def _ready(self, pointers: Sequence[Pointer]) -> None:
        lacking = self._lacking(pointers)
        if lacking and self.fetcher is not None:
            self.fetcher.fetch(lacking)

    def _ready_later(self, pointers: Sequence[Pointer]) -> None:
        lacking = self._lacking(pointers)
        if lacking and self.fetcher is not None:
            self.fetcher.fetch_in_background(lacking)

    def _look_ahead(self, pointers: Sequence[Pointer]) -> None:
        lacking = self._lacking(pointers)
        if lacking and self.fetcher is not None:
            self.fetcher.prefetch(lacking)

    @property
    def sources(self) -> list[Source]:
        """The sources; none where nothing needs to be fetched."""
        return self.fetcher.sources if self.fetcher is not None else []

    def states(self) -> list[SourceState]:
        """What is known of the sources."""
        return list(self.fetcher.states.values()) if self.fetcher is not None else []

    def hot(self) -> list[Hot]:
        """What the last life used most, hottest first; empty if no source has a hot list."""
        for source in self.sources:
            try:
                found = source.hot(self.record)
            except (OSError, SnapfsError) as error:
                log.warning("no hot list from %s: %s", source.name, error)
                continue
            if found:
                return found
        return []

    def hold(self, seconds: float = HOLD_SECONDS) -> None:
        """Hold the snapshot at the sources. Those that fail are tried again with the next call."""
        name = hold_name(self.origin)
        for source in self.sources:
            try:
                source.hold(self.record, name, seconds)
            except (OSError, SnapfsError) as error:
                log.warning("%s cannot hold snapshot %d: %s", source.name, self.record.number, error)

    def keep(self) -> None:
        """Make what was fetched so far durable. OSError."""
        if self._lazy is not None:
            self._lazy.places.fetched.sync()

    def backfill(self, rate: float = 0.0, supply: Supply | None = None) -> Generator[int, None, None]:
        """Fetch all that the snapshot needs into the store, in steps; each yields the bytes it fetched. OSError.

        To be begun anew after an OSError. `rate`: see backfill.py. `supply` is called with chunks of large files
        (inode, origin, pieces) as they arrive.
        """
        if self._lazy is None or self.fetcher is None or self._is_whole:
            return
        self._fetch_record()
        backfill = Backfill(
            self._repository, self._lazy, self.fetcher, self.record, self._disk, self.tree(), self._workers, supply,
            rate,
        )  # fmt: skip
        yield from backfill.steps()
        self._is_whole = True

    def newest(self, supply: Supply | None = None) -> Generator[int, None, None]:
        """As `backfill`, what the newest snapshots wrote alone, for a recovery from a crash (newest_objects.py)."""
        if self._lazy is None or self.fetcher is None or self._is_whole:
            return
        newest = NewestObjects(self._repository, self._lazy, self.fetcher, self.record, self._disk, self.tree(), supply)
        yield from newest.steps()

    def _fetch_record(self) -> None:
        """Fetch the copy of the snapshot's record among its objects, to which no pointer leads."""
        number = self.record.last_number
        if self._lazy is None or self.fetcher is None or self._lazy.places.has(number):
            return
        self.fetcher.fetch_in_background([Pointer(number, b"")])
        _, plain = self._lazy.read_uncached(number)
        try:
            copy = snapshot_records.from_fields(msgspec.json.decode(plain))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"object {number:#x}", "the source", f"it is no record: {error}") from None
        if (copy.number, copy.root) != (self.record.number, self.record.root):
            self._lazy.places.fetched.forget(number)
            raise CorruptionError(f"object {number:#x}", "the source", f"it is the record of snapshot {copy.number}")

    def finish(self, pause: Callable[[], None]) -> None:
        """Make the volume an ordinary one, when all is here. Raises OSError; to be called again after one."""
        self.keep()
        self._repository.lazy_history.settle(pause)
        self.hold(0)
        self._disk.unlink("remount:done", os.path.join(self._path, ORIGIN_FILE))
        self._disk.sync_dir("remount:done", self._path)
        self.close()

    def close(self) -> None:
        """End the fetches that are under way, and close the sources."""
        if self.is_open:
            self.is_open = False
            if self.fetcher is not None:
                self.fetcher.close()
            self._decoders.shutdown()
            self._workers.close()
            if self._lazy is not None:
                self._lazy.detach()
