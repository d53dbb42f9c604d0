"""Where objects are, in segments that can only be read by ranges over a network: bisects through pages of their tables.

A small table is one page; of a large one so many pages are read as a search needs, usually one: numbers ascend without
repetition, so first and last number and the count of rows give nearly where a number is. Searches go in step, and the
pages that they need next are read at the same time.

Invariants:
1. Nothing is read twice while it is in the cache, of `CACHE_BYTES`, nor by two threads at the same time.
2. Of a search each step leaves fewer rows, whatever the pages hold.
3. A row that is given out lies within its segment's frames. Whether what lies there is that object is checked by its
   frame.
4. What has turned out damaged counts as empty, and is not kept: the objects are then not here.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import accumulate
from typing import Final, NamedTuple

from snapfs.base.blocks import Number
from snapfs.store.bucket.segment_names import table_is_good, table_start
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, HEADER_BYTES, MAX_OBJECT_BYTES, ROW_BYTES, Row
from snapfs.store.objects.segment_index import SegmentInfo

log = logging.getLogger(__name__)

PAGE_ROWS: Final = 1600
WHOLE_ROWS: Final = 4 * PAGE_ROWS
"""A table up to this length is one page, and checked against the segment's name."""
CACHE_BYTES: Final = 32 << 20
GUESSES: Final = 4
"""Steps of a search that guess; after them it halves."""

ReadRange = Callable[[SegmentInfo, int, int], bytes]


class PageKey(NamedTuple):
    """A page of a segment's table."""

    info: SegmentInfo
    page: int

    @property
    def rows(self) -> range:
        """The places of its rows in the table."""
        size = rows_of_page(self.info)
        return range(self.page * size, min((self.page + 1) * size, self.info.count))

    @property
    def span(self) -> tuple[int, int]:
        """Its bytes in the segment, from and to."""
        start, rows = table_start(self.info), self.rows
        return start + rows.start * ROW_BYTES, start + rows.stop * ROW_BYTES


class ObjectLocation(NamedTuple):
    """Where an object is."""

    info: SegmentInfo
    row: Row

    @property
    def end(self) -> int:
        """Of its payload, in the segment."""
        return self.row.offset + FRAME_BYTES + self.row.stored


def rows_of_page(info: SegmentInfo) -> int:
    return info.count if info.count <= WHOLE_ROWS else PAGE_ROWS


class TablePage:
    """Rows, ascending. Without any where the page is damaged."""

    def __init__(self, key: PageKey, data: bytes) -> None:
        self.key, self._data = key, data
        self.count = len(data) // ROW_BYTES

    def number(self, place: int) -> int:
        return self.key.info.first + fmt.row_delta(self._data, place * ROW_BYTES)

    def row(self, place: int) -> Row | None:
        """None where there cannot be such an object."""
        info, row = self.key.info, fmt.unpack_row(self.key.info.first, self._data, place * ROW_BYTES)
        fits = row.offset >= HEADER_BYTES and row.offset + FRAME_BYTES + row.stored <= table_start(info)
        return row if fits and row.stored <= MAX_OBJECT_BYTES and row.number <= info.last else None

    def find(self, number: int) -> Row | None:
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            found = self.number(middle)
            if found == number:
                return self.row(middle)
            low, high = (middle + 1, high) if found < number else (low, middle)
        return None

    def rows(self) -> Iterator[Row]:
        for place in range(self.count):
            row = self.row(place)
            if row is not None:
                yield row


Search = Generator[PageKey, TablePage, ObjectLocation | None]


def search(info: SegmentInfo, number: int) -> Search:
    """Find an object in one segment: requests pages, and returns the place, None if it is not there. Pure."""
    low, high = (-1, info.first - 1), (info.count, info.last + 1)  # (row, its number), both known not to be it
    steps = 0
    while True:
        first = max(low[0] + 1, high[0] - (high[1] - number))
        last = min(high[0] - 1, low[0] + (number - low[1]))
        if first > last:
            return None
        guess = low[0] + (high[0] - low[0]) * (number - low[1]) // max(high[1] - low[1], 1)
        guess = min(max(guess, first), last) if steps < GUESSES else (first + last) // 2
        page = yield PageKey(info, guess // rows_of_page(info))
        steps += 1
        if not page.count:
            return None
        if number < page.number(0):
            high = page.key.rows.start, page.number(0)
        elif number > page.number(page.count - 1):
            low = page.key.rows.stop - 1, page.number(page.count - 1)
        else:
            row = page.find(number)
            return ObjectLocation(info, row) if row is not None else None


class Ends:
    """The last frames of segments, which came along with their tables; the oldest go first. Any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._bytes = 0

    def add(self, path: str, start: int, data: bytes) -> None:
        """`data` lies in the segment from `start` on."""
        with self._lock:
            _, gone = self._known.pop(path, (0, b""))
            self._known[path] = start, data
            self._bytes += len(data) - len(gone)
            while self._bytes > self._most:
                _, (_, gone) = self._known.popitem(last=False)
                self._bytes -= len(gone)

    def get(self, path: str, start: int, end: int) -> bytes | None:
        with self._lock:
            first, data = self._known.get(path, (end, b""))
        return data[start - first : end - first] if first <= start and end <= first + len(data) else None

    def check_invariants(self) -> None:
        with self._lock:
            assert self._bytes == sum(len(data) for _, data in self._known.values()) <= self._most


class Segments:
    """The segments there are, to be searched by number."""

    def __init__(self, infos: Iterable[SegmentInfo]) -> None:
        self.infos = sorted(infos, key=lambda info: (info.first, info.last))
        self._firsts = [info.first for info in self.infos]
        self._ends = list(accumulate((info.last for info in self.infos), max))  # the highest up to here

    def around(self, number: int) -> list[SegmentInfo]:
        """Those whose range has it, where it is most likely first."""
        place, found = bisect_right(self._firsts, number) - 1, []
        while place >= 0 and self._ends[place] >= number:
            if self.infos[place].last >= number:
                found.append(self.infos[place])
            place -= 1
        return sorted(found, key=lambda info: (info.last - info.first + 1) / info.count)


class Tables:
    """Any thread. `read` reads a range of a segment; `pool` has threads for it."""

    def __init__(self, read: ReadRange, pool: Executor, cache_bytes: int = CACHE_BYTES) -> None:
        self._read, self._pool, self._most = read, pool, cache_bytes
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int], TablePage] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[tuple[str, int], Future[TablePage]] = {}

    def locate(self, segments: Segments, numbers: Iterable[int]) -> dict[Number, ObjectLocation]:
        """Where those of the objects are that are there. Raises what `read` raises."""
        found: dict[Number, ObjectLocation] = {}
        waiting: dict[Number, tuple[Search, PageKey]] = {}
        for number in numbers:
            self._step(Number(number), _look(segments, number), None, found, waiting)
        while waiting:
            now, waiting = waiting, {}
            pages = self.pages({key for _, key in now.values()})
            for number, (going, key) in now.items():
                self._step(number, going, pages[key.info.path, key.page], found, waiting)
        return found

    @staticmethod
    def _step(
        number: Number, going: Search, page: TablePage | None, found: dict[Number, ObjectLocation],
        waiting: dict[Number, tuple[Search, PageKey]],
    ) -> None:  # fmt: skip
        try:
            key = next(going) if page is None else going.send(page)
        except StopIteration as end:
            if end.value is not None:
                found[number] = end.value
        else:
            waiting[number] = going, key

    def pages(self, keys: Iterable[PageKey]) -> dict[tuple[str, int], TablePage]:
        """These pages, those that are not known read at the same time."""
        mine: list[PageKey] = []
        waits: dict[tuple[str, int], Future[TablePage]] = {}
        with self._lock:
            for key in keys:
                name = key.info.path, key.page
                known, coming = self._cache.get(name), self._under_way.get(name)
                if known is not None:
                    self._cache.move_to_end(name)
                    coming = Future()
                    coming.set_result(known)
                elif coming is None:
                    coming = self._under_way[name] = Future()
                    mine.append(key)
                waits[name] = coming
        for key in mine[1:]:
            try:
                self._pool.submit(self._bring, key)
            except RuntimeError:  # closed meanwhile
                self._bring(key)
        if mine:
            self._bring(mine[0])  # this thread would only wait
        return {name: waiting.result() for name, waiting in waits.items()}

    def _bring(self, key: PageKey) -> None:
        name, start_end = (key.info.path, key.page), key.span
        try:
            page = self.learn(key, self._read(key.info, *start_end))
        except BaseException as error:
            with self._lock:
                coming = self._under_way.pop(name)
            coming.set_exception(error)
        else:
            with self._lock:
                coming = self._under_way.pop(name)
            coming.set_result(page)

    def learn(self, key: PageKey, data: bytes) -> TablePage:
        """Take in the bytes of a page."""
        is_whole = len(key.rows) == key.info.count
        if len(data) != len(key.rows) * ROW_BYTES or (is_whole and not table_is_good(key.info, data)):
            log.error("the table of segment %s is damaged: what is in it counts as missing", key.info.path)
            return TablePage(key, b"")
        page = TablePage(key, data)
        with self._lock:
            if (key.info.path, key.page) not in self._cache:
                self._cache[key.info.path, key.page] = page
                self._bytes += len(data)
            while self._bytes > self._most and len(self._cache) > 1:
                _, gone = self._cache.popitem(last=False)
                self._bytes -= gone.count * ROW_BYTES
        return page

    def check_invariants(self) -> None:
        with self._lock:
            assert self._bytes == sum(page.count * ROW_BYTES for page in self._cache.values())
            assert self._bytes <= self._most or len(self._cache) == 1


def _look(segments: Segments, number: int) -> Search:
    """Through all segments that may have it."""
    for info in segments.around(number):
        place = yield from search(info, number)
        if place is not None:
            return place
    return None
