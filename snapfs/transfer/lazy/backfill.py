"""Backfill: fetches all that one snapshot needs into the store, in the order of the object numbers, and into large
files.

First the tables are walked (backfill_survey.py); then the objects are fetched in windows of ascending numbers, several
at a time, and appended to segments. Objects that were fetched alone meanwhile (`FetchedObjects`) are taken in between,
so that the segments have no gaps that would be filled later. Where a chunk belongs in which files was noted with the
tables: its content, at hand since it was checked, is written there, too.

Invariants:
1. Every object was checked against its content hash, with its bases, before it is appended; a difference whose bases
   are in an earlier window, when these are there.
2. Segments become findable when they are durable; until then the objects of the one in the making are found through
   `LazyPlaces.begin_part`. A crash loses that one, and its objects are fetched again.
3. What was fetched in an earlier life is not requested again.
4. Memory: `WINDOWS` windows of at most `MOST_OBJECTS` objects with their contents, a batch of pages. What is needed is
   listed in a file, of some 60 bytes an object (backfill_queue.py).
5. A window has no more bytes than the sources deliver in about `WINDOW_S`, so that other users of the link do not wait
   long, and no more than the caller allows (`rate`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from snapfs.base.blocks import CHUNK_SIZE, Disk, Ino, Number
from snapfs.base.errors import SnapfsError
from snapfs.store.lazy.fetched_objects import finished, has_room
from snapfs.store.lazy.lazy_objects import LazyObjects
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Pointer, Row
from snapfs.store.objects.staging import PartWriter
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import origin_of, sized
from snapfs.transfer.lazy.backfill_queue import BackfillQueue
from snapfs.transfer.lazy.backfill_survey import BackfillSurvey
from snapfs.transfer.sources.fetcher import Fetcher
from snapfs.transfer.sources.object_check import FetchedBatch

LIST: Final = "needed.db"
WINDOWS: Final = 3
FIRST_OBJECTS, MOST_OBJECTS = 32, 96
WINDOW_S: Final = 0.25
SEGMENT_S: Final = 10.0
"""A segment is made durable after so long at the latest, however little is in it: a crash loses no more."""


Supply = Callable[[Ino, bytes, list[tuple[int, bytes]]], None]
"""Called with the inode of a file of the snapshot, its origin (store_source.py), and some chunks of it."""


@dataclass(slots=True)
class _Window:
    """Objects up to the number `last`: those that are being fetched, and those that are `here` and only appended."""

    last: Number
    here: dict[Number, Pointer | None]
    fetched: Future[tuple[FetchedBatch, float]]


class Workers:
    """The threads that fetch and append."""

    def __init__(self) -> None:
        self.fetch = ThreadPoolExecutor(WINDOWS, "backfill")
        self.append = ThreadPoolExecutor(1, "append")

    def close(self) -> None:
        """Join the threads. The fetcher that they use must be closed before."""
        self.fetch.shutdown(cancel_futures=True)
        self.append.shutdown()


class Backfill:
    """The backfill of one snapshot. One thread at a time; `steps` runs once."""

    def __init__(
        self, repository: Repository, lazy: LazyObjects, fetcher: Fetcher, record: SnapshotRecord, disk: Disk,
        tree: SnapshotTree, workers: Workers, supply: Supply | None = None, rate: float = 0.0,
    ) -> None:  # fmt: skip
        """`tree` is that of the snapshot. `rate`: the caller allows so many bytes a second; 0: any."""
        self._repository, self._lazy, self._fetcher = repository, lazy, fetcher
        self._disk = disk
        self._tree, self._supply = tree, supply
        self._fetched = lazy.places.fetched
        self._survey = BackfillSurvey(repository, lazy, fetcher, record, tree, with_places=supply is not None)
        self._workers = workers
        self._under_way: deque[_Window] = deque()
        self._part: _Part | None = None
        self._part_begun_s = 0.0
        self._most = min(max(int(rate / 8) // CHUNK_SIZE, 1), MOST_OBJECTS) if rate else MOST_OBJECTS
        self._objects = min(FIRST_OBJECTS, self._most)

    def steps(self) -> Iterator[int]:
        """Fetch everything, in small steps; each yields how many bytes it fetched. Begin anew after an OSError.
        OSError."""
        with contextlib.ExitStack() as stack:
            needed = BackfillQueue(os.path.join(self._fetched.path, LIST), self._disk)
            stack.callback(needed.close)
            stack.callback(self._abandon)
            stack.callback(self._cancel)
            try:
                yield from self._survey.objects(needed)
                yield from self._survey.bases(needed)
                yield from self._append_windows(needed)
            except (OSError, SnapfsError):
                with contextlib.suppress(OSError, SnapfsError):
                    self._publish()  # what arrived before a source failed for good stays
                raise
            self._publish()

    # -- fetching

    def _append_windows(self, needed: BackfillQueue) -> Iterator[int]:
        under_way, after, more = self._under_way, Number(0), True
        while more or under_way:
            while more and len(under_way) < WINDOWS:
                window = self._window(needed, after)
                more = window is not None
                if window is not None:
                    under_way.append(window)
                    after = window.last
            if under_way:
                yield self._keep(under_way.popleft(), needed)

    def _window(self, needed: BackfillQueue, after: Number) -> _Window | None:
        pointers = needed.after(after, self._objects)
        if not pointers:
            return None
        last = pointers[-1].number
        expected = {pointer.number: pointer for pointer in pointers}
        here = {number: expected.pop(number, None) for number in self._fetched.numbers(after + 1, last)}
        return _Window(last, here, self._workers.fetch.submit(self._fetch, list(expected.values())))

    def _fetch(self, wanted: Sequence[Pointer]) -> tuple[FetchedBatch, float]:
        started = time.monotonic()
        return self._fetcher.fetch_missing(wanted), time.monotonic() - started

    def _keep(self, window: _Window, needed: BackfillQueue) -> int:
        """Append what was fetched and what is here, ascending; returns the bytes fetched."""
        fetched, took_s = window.fetched.result()
        items = fetched.items
        appended = self._workers.append.submit(self._append_all, window, fetched)
        if len(fetched.plains) < len(items):  # appending completes them
            appended.result()
        try:
            if items and self._supply is not None:
                self._put_in_files(needed.places(min(items), max(items)), fetched.plains, self._supply)
        finally:
            appended.result()
        if items:
            wanted = round(self._objects * min(max(WINDOW_S / max(took_s, 1e-4), 0.5), 2))
            self._objects = max(min(wanted, self._most), 1)
        if self._part is not None and time.monotonic() - self._part_begun_s > SEGMENT_S:
            self._publish()
        return sum(len(item.framed) for item in items.values())

    def _append_all(self, window: _Window, fetched: FetchedBatch) -> None:
        for number in sorted({*fetched.items, *window.here}):
            item = fetched.items.get(number)
            if item is None:
                self._take_in(number, window.here[number])
                continue
            if number not in fetched.plains:
                fetched.plains[number] = self._fetcher.check(item)
            self._append(item.row(), item.framed)

    def _put_in_files(
        self, places: Iterable[tuple[Ino, int, Number]], plains: dict[Number, bytes], supply: Supply
    ) -> None:
        for ino, chunks in groupby(places, key=itemgetter(0)):
            record = self._tree.inode(ino)
            assert record is not None
            pieces = [
                (chunk, sized(plains[number], record.size, chunk)) for _, chunk, number in chunks if number in plains
            ]
            if pieces:
                supply(ino, origin_of(record), pieces)

    def _take_in(self, number: Number, expected: Pointer | None) -> None:
        """Append an object that was fetched alone; one that is torn is fetched again."""
        if not self._survey.is_missing(number):
            return
        found = self._fetched.good(number)
        if found is not None and (expected is None or expected.content_hash in (b"", found[0].content_hash)):
            self._append(*found)
        elif expected is not None:
            fetched = self._fetcher.fetch_missing([expected])
            for item in fetched.items.values():
                if not fetched.plains:
                    self._fetcher.check(item)
                self._append(item.row(), item.framed)

    # -- appending

    def _append(self, row: Row, framed: bytes) -> None:
        if self._part is not None and not has_room(self._part, row.number):
            self._publish()
        if self._part is None:
            generation, identity = fmt.generation_of(row.number), self._repository.identity
            self._part = _Part(self._fetched.path, self._disk, identity.volume_id, generation, row.number)
            self._part_begun_s = time.monotonic()
            self._lazy.places.begin_part(self._part)
        self._part.append_framed(row, framed)

    def _publish(self) -> None:
        part = self._part
        if part is not None:
            self._repository.lazy_history.take_part(finished(part, close=False))
            self._part = None
            self._lazy.places.end_part()

    def _cancel(self) -> None:
        for window in self._under_way:
            window.fetched.cancel()

    def _abandon(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._lazy.places.end_part()
            part.abandon()


class _Part(PartWriter):
    """Its descriptor closes when the last reader drops its reference."""

    def __del__(self) -> None:
        self.close()
