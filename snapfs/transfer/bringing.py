"""Brings all that one snapshot needs into the store, in the order of the object numbers; into large files on the way.

First the tables are gone through, which brings their pages and tells what else is needed; then the objects come in
windows of ascending numbers, several on their way at a time, and are appended to segments as they lie. What somebody
asked for meanwhile (`Fetched`) is taken in between, so that the segments have no gaps that would be filled later. Where
a chunk belongs in which files was noted with the tables: its content, at hand since it was checked, is put there, too.

Invariants:
1. Every object was checked against its proof, with its bases, before it is appended; a difference whose bases come in
   an earlier window, when these are there.
2. Segments become findable when they are durable; before that what is in the one in the making is found too
   (`LazyPlaces.arriving`). A crash loses that one, and it is brought anew.
3. What was brought in an earlier life is not asked for again.
4. Memory: `WINDOWS` windows of at most `MOST_OBJECTS` objects with their contents, a batch of pages. What is needed is
   listed in a file, of some 60 bytes an object.
5. A window is no more than the sources deliver in about `WINDOW_S`, so that nothing that shares their link waits long,
   and no more than is wanted of who begins (`rate`).
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

from snapfs.blocks import CHUNK_SIZE, Disk, Ino, Number
from snapfs.errors import SnapfsError
from snapfs.store import format as fmt
from snapfs.store import radix
from snapfs.store.fetched import finished, has_room
from snapfs.store.format import Pointer, Row
from snapfs.store.lazy import LazyObjects
from snapfs.store.numbers import NumberSet
from snapfs.store.reach import Children, Role, Visit
from snapfs.store.records import SnapshotRecord
from snapfs.store.repository import Repository
from snapfs.store.snapshot import SnapshotTree
from snapfs.store.staging import PartWriter
from snapfs.store.wire import runs_of
from snapfs.transfer.fetcher import Brought, Fetcher
from snapfs.transfer.hydrator import origin_of, sized
from snapfs.transfer.needed import Leaf, Needed

LIST: Final = "needed.db"
PAGES_AT_ONCE: Final = 256
BASES_AT_ONCE: Final = 1 << 15
WINDOWS: Final = 3
FIRST_OBJECTS, MOST_OBJECTS = 32, 96
WINDOW_S: Final = 0.25
SEGMENT_S: Final = 10.0
"""A segment is made durable after so long at the latest, however little is in it: a crash loses no more."""


Supply = Callable[[Ino, bytes, list[tuple[int, bytes]]], None]
"""Takes the inode of a file of the snapshot, its origin (hydrator.py), and some chunks of it."""


@dataclass(slots=True)
class _Window:
    """Numbers up to `last`: those that are brought, and those that are here and only taken in, needed or not."""

    last: Number
    here: dict[Number, Pointer | None]
    brought: Future[tuple[Brought, float]]


class Workers:
    """The threads that bring and append."""

    def __init__(self) -> None:
        self.bring = ThreadPoolExecutor(WINDOWS, "bring")
        self.append = ThreadPoolExecutor(1, "append")

    def close(self) -> None:
        """Wait for them; the fetcher that they use is closed."""
        self.bring.shutdown(cancel_futures=True)
        self.append.shutdown()


class Bringing:
    """Of one snapshot; used by one thread at a time, and once."""

    def __init__(
        self, repository: Repository, lazy: LazyObjects, fetcher: Fetcher, record: SnapshotRecord, disk: Disk,
        tree: SnapshotTree, workers: Workers, supply: Supply | None = None, rate: float = 0.0,
    ) -> None:  # fmt: skip
        """`tree` is that of the snapshot. `rate`: no more bytes a second than that will be asked for; 0: no matter."""
        self._repository, self._lazy, self._fetcher = repository, lazy, fetcher
        self._record, self._disk = record, disk
        self._tree, self._supply = tree, supply
        self._fetched = lazy.places.fetched
        self._workers = workers
        self._under_way: deque[_Window] = deque()
        self._part: _Part | None = None
        self._part_begun_s = 0.0
        self._most = min(max(int(rate / 8) // CHUNK_SIZE, 1), MOST_OBJECTS) if rate else MOST_OBJECTS
        self._objects = min(FIRST_OBJECTS, self._most)

    def steps(self) -> Iterator[int]:
        """Does it, in small steps; each yields how many bytes it brought. Begin anew after an OSError. OSError."""
        with contextlib.ExitStack() as stack:
            needed = Needed(os.path.join(self._fetched.path, LIST))
            stack.callback(needed.close)
            stack.callback(self._abandon)
            stack.callback(self._cancel)
            try:
                yield from self._survey(needed)
                yield from self._add_bases(needed)
                yield from self._bring(needed)
            except (OSError, SnapfsError):
                with contextlib.suppress(OSError, SnapfsError):
                    self._publish()  # what came until a source failed for good stays
                raise
            self._publish()

    # -- what is needed

    def _survey(self, needed: Needed) -> Iterator[int]:
        children, seen = Children(self._repository), NumberSet()
        pending = [Visit(self._record.root, Role.ROOT)]
        while pending:
            batch = [visit for visit in pending[-PAGES_AT_ONCE:] if seen.add(visit.pointer.number)]
            del pending[-PAGES_AT_ONCE:]
            self._fetcher.fetch_in_background(self._lazy.lacking([visit.pointer for visit in batch]))
            found: list[Leaf] = []
            for visit in batch:
                found.append(Leaf(visit.pointer, visit.ino, -1))
                if visit.role is Role.MAP and visit.level == 1:
                    found += self._leaves(visit)
                    continue
                for child in children.of(visit):
                    if child.is_leaf:
                        found.append(Leaf(child.pointer, child.ino, child.start))
                    else:
                        pending.append(child)
            missing = self._missing(found)
            needed.add(leaf.pointer for leaf in missing)
            if self._supply is not None:
                needed.add_places(leaf for leaf in missing if leaf.ino and leaf.chunk >= 0)
            yield 0

    def _leaves(self, visit: Visit) -> list[Leaf]:
        """What a last page of a block map points to, of which there are very many."""
        rows = radix.load_rows(self._tree.pages, visit.pointer, visit.level)
        return [Leaf(row, visit.ino, chunk) for chunk, row in enumerate(rows, visit.start) if row.number]

    def _missing(self, leaves: list[Leaf]) -> list[Leaf]:
        numbers = [leaf.pointer.number for leaf in leaves] or [Number(0)]
        if self._repository.index.is_empty(min(numbers), max(numbers)):
            return leaves
        return [leaf for leaf in leaves if self._is_missing(leaf.pointer.number)]

    def _is_missing(self, number: Number) -> bool:
        """Not in a segment, that is; what is just fetched is to go into one."""
        return number in self._lazy.places.distrusted or self._repository.index.peek(number) is None

    def _add_bases(self, needed: Needed) -> Iterator[int]:
        after = Number(0)
        while pointers := needed.after(after, BASES_AT_ONCE):
            runs = list(runs_of(pointer.number for pointer in pointers))
            for first, last in self._fetcher.bases(runs):
                bases = (Number(number) for number in range(first, last + 1))
                needed.add(Pointer(number, b"") for number in bases if self._is_missing(number))
            after = pointers[-1].number
            yield 0

    # -- bringing it

    def _bring(self, needed: Needed) -> Iterator[int]:
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

    def _window(self, needed: Needed, after: Number) -> _Window | None:
        pointers = needed.after(after, self._objects)
        if not pointers:
            return None
        last = pointers[-1].number
        expected = {pointer.number: pointer for pointer in pointers}
        here = {number: expected.pop(number, None) for number in self._fetched.numbers(after + 1, last)}
        return _Window(last, here, self._workers.bring.submit(self._ask, list(expected.values())))

    def _ask(self, wanted: Sequence[Pointer]) -> tuple[Brought, float]:
        started = time.monotonic()
        return self._fetcher.bring(wanted), time.monotonic() - started

    def _keep(self, window: _Window, needed: Needed) -> int:
        """Append what came and what is here, ascending; bytes brought."""
        brought, took_s = window.brought.result()
        items = brought.items
        appended = self._workers.append.submit(self._append_all, window, brought)
        if len(brought.plains) < len(items):  # which it completes
            appended.result()
        try:
            if items and self._supply is not None:
                self._put_in_files(needed.places(min(items), max(items)), brought.plains, self._supply)
        finally:
            appended.result()
        if items:
            wanted = round(self._objects * min(max(WINDOW_S / max(took_s, 1e-4), 0.5), 2))
            self._objects = max(min(wanted, self._most), 1)
        if self._part is not None and time.monotonic() - self._part_begun_s > SEGMENT_S:
            self._publish()
        return sum(len(item.framed) for item in items.values())

    def _append_all(self, window: _Window, brought: Brought) -> None:
        for number in sorted({*brought.items, *window.here}):
            item = brought.items.get(number)
            if item is None:
                self._take_in(number, window.here[number])
                continue
            if number not in brought.plains:
                brought.plains[number] = self._fetcher.check(item)
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
        """An object that was fetched alone; one that was torn is brought again."""
        if not self._is_missing(number):
            return
        found = self._fetched.good(number)
        if found is not None and (expected is None or expected.proof in (b"", found[0].proof)):
            self._append(*found)
        elif expected is not None:
            brought = self._fetcher.bring([expected])
            for item in brought.items.values():
                if not brought.plains:
                    self._fetcher.check(item)
                self._append(item.row(), item.framed)

    # -- keeping it

    def _append(self, row: Row, framed: bytes) -> None:
        if self._part is not None and not has_room(self._part, row.number):
            self._publish()
        if self._part is None:
            generation, identity = fmt.generation_of(row.number), self._repository.identity
            self._part = _Part(self._fetched.path, self._disk, identity.volume_id, generation, row.number)
            self._part_begun_s = time.monotonic()
            self._lazy.places.arriving = self._part
        self._part.append_framed(row, framed)

    def _publish(self) -> None:
        part = self._part
        if part is not None:
            self._repository.take_part(finished(part, close=False))
            self._part = self._lazy.places.arriving = None

    def _cancel(self) -> None:
        for window in self._under_way:
            window.brought.cancel()

    def _abandon(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._lazy.places.arriving = None
            part.abandon()


class _Part(PartWriter):
    """Its descriptor closes when the last reader lets go of it."""

    def __del__(self) -> None:
        self.close()
