"""A mounted volume's tie to where it came from: the sources, and the fetcher that the store asks for what it lacks.

Made for a volume with an `origin.json`; let go of when everything is here, which that file's removal says durably.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from snapfs.blocks import Disk
from snapfs.errors import CorruptionError, SnapfsError
from snapfs.store import records
from snapfs.store.format import Pointer
from snapfs.store.lazy import LazyObjects
from snapfs.store.repository import Repository
from snapfs.store.snapshot import SnapshotTree
from snapfs.store.wire import Hot
from snapfs.transfer.bringing import Bringing, Supply, Workers
from snapfs.transfer.fetcher import Fetcher, SourceState
from snapfs.transfer.hydrator import StoreSource
from snapfs.transfer.places import late_source
from snapfs.transfer.remount import ORIGIN_FILE, OriginFile, read_origin
from snapfs.transfer.sources import Source
from snapfs.volume import Volume

log = logging.getLogger(__name__)

HOLD_SECONDS = 86400.0
DECODERS = 3
"""Threads that decode what hydration writes. They work outside the interpreter's lock most of the time."""


class Attachment:
    """Any thread, but `close`."""

    def __init__(
        self, volume: Volume, repository: Repository, lazy: LazyObjects | None, origin: OriginFile, disk: Disk
    ) -> None:
        """Without `lazy` all of the past is in the store (a standby's): then nothing is fetched from anywhere."""
        self.origin, self.record = origin, origin.record
        self._path, self._repository, self._lazy, self._disk = volume.path, repository, lazy, disk
        self.fetcher: Fetcher | None = None
        if lazy is not None:
            sources = [late_source(place, origin.access) for place in origin.sources]
            self.fetcher = lazy.source = Fetcher(lazy, sources, wait_s=float(volume.config.hydration.wait))
        self._tree: SnapshotTree | None = None
        self._opening = threading.Lock()
        self.is_open = True
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")
        self._workers = Workers()
        self._is_whole = False  # the snapshot is in the store, all of it

    @staticmethod
    def of(volume: Volume, repository: Repository, disk: Disk) -> Attachment | None:
        """None for a volume that is all here. UserError if its origin cannot be understood."""
        origin = read_origin(volume.path)
        if origin is None:
            return None
        return Attachment(volume, repository, repository.lazy, origin, disk)

    def tree(self) -> SnapshotTree:
        """The snapshot that was taken over. OSError, CorruptionError if its root cannot be had."""
        with self._opening:
            if self._tree is None:
                self._tree = SnapshotTree(self._repository, self.record.root)
            return self._tree

    def source(self) -> StoreSource:
        """What the live tree asks for absent bytes and names."""
        return StoreSource(
            self._repository, self.tree(), ready=self._ready, ahead=self._look_ahead, ready_later=self._ready_later,
            pool=self._decoders,
        )  # fmt: skip

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
        """Where to fetch from; none where nothing needs to be."""
        return self.fetcher.sources if self.fetcher is not None else []

    def states(self) -> list[SourceState]:
        """What is known of the sources."""
        return list(self.fetcher.states.values()) if self.fetcher is not None else []

    def hot(self) -> list[Hot]:
        """What the last life used most, hottest first; empty where no source says."""
        for source in self.sources:
            try:
                found = source.hot(self.record)
            except (OSError, SnapfsError) as error:
                log.warning("no list of what was used most from %s: %s", source.name, error)
                continue
            if found:
                return found
        return []

    def hold(self, seconds: float = HOLD_SECONDS) -> None:
        """Let the sources keep what is still needed; those that do not answer are asked again later."""
        name = f"remount-{self.origin.holder}".replace(":", "-").replace("@", "-")[:60]
        for source in self.sources:
            try:
                source.hold(self.record, name, seconds)
            except (OSError, SnapfsError) as error:
                log.warning("%s cannot hold snapshot %d: %s", source.name, self.record.number, error)

    def keep(self) -> None:
        """Make what was fetched so far durable. OSError."""
        if self._lazy is not None:
            self._lazy.places.fetched.sync()

    def bring_all(self, rate: float = 0.0, supply: Supply | None = None) -> Generator[int, None, None]:
        """Bring what the snapshot needs, so that it is whole here, in steps; each yields the bytes it brought. OSError.

        To be begun anew after an OSError. `rate`: see bringing.py. `supply` takes chunks of large files (inode, origin,
        pieces), as they come.
        """
        if self._lazy is None or self.fetcher is None or self._is_whole:
            return
        self._fetch_record()
        bringing = Bringing(
            self._repository, self._lazy, self.fetcher, self.record, self._disk, self.tree(), self._workers, supply,
            rate,
        )  # fmt: skip
        yield from bringing.steps()
        self._is_whole = True

    def _fetch_record(self) -> None:
        """The copy of the snapshot's record among its objects, which nothing points to."""
        number = self.record.last_number
        if self._lazy is None or self.fetcher is None or self._lazy.places.has(number):
            return
        self.fetcher.fetch_in_background([Pointer(number, b"")])
        _, plain = self._lazy.read_uncached(number)
        try:
            copy = records.from_fields(msgspec.json.decode(plain))
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"object {number:#x}", "the source", f"it is no record: {error}") from None
        if (copy.number, copy.root) != (self.record.number, self.record.root):
            self._lazy.places.fetched.forget(number)
            raise CorruptionError(f"object {number:#x}", "the source", f"it is the record of snapshot {copy.number}")

    def finish(self, pause: Callable[[], None]) -> None:
        """All is here: make it an ordinary volume. OSError; to be called again after one."""
        self.keep()
        self._repository.settle(pause)
        self.hold(0)
        self._disk.unlink("remount:done", os.path.join(self._path, ORIGIN_FILE))
        self._disk.sync_dir("remount:done", self._path)
        self.close()

    def close(self) -> None:
        """Give up what is on its way."""
        if self.is_open:
            self.is_open = False
            if self.fetcher is not None:
                self.fetcher.close()
            self._decoders.shutdown()
            self._workers.close()
            if self._lazy is not None:
                self._lazy.source = None
