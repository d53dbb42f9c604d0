"""Object number to place: the list of segments, and those of them that are open.

Invariants:
1. Segments do not overlap: the one that holds a number is the last whose first number is not above it. Where a crash in
   compaction left an old segment beside the one that replaced it, the replaced one is not in the list.
2. At most `max_open` segments are open, plus those that a thread is reading at this moment.
3. Nothing here is kept on disk: all of it comes from the names and trailers of the segments.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError, UserError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Row
from snapfs.store.objects.segment_reader import RowSource, SegmentReader, read_trailer
from snapfs.store.objects.segment_writer import SegmentWriter

_SCANS: Final = 100


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A segment in the folder. `damage` is why it cannot be read; `last` is then unknown and 0."""

    path: str
    first: Number
    last: Number
    count: int
    size: int
    damage: str | None = None
    table: str = ""
    """The SHA-256 of its table, in hex, as its trailer has it."""


class SegmentIndex:
    """The finished segments of a store, and the unfinished one while there is one. Thread-safe."""

    def __init__(self, folder: str, max_open: int) -> None:
        self.folder, self._max_open = folder, max_open
        self._folder_lock = threading.Lock()  # taken before _lock; held while the folder is read
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int], SegmentInfo]] = {}
        self._open: OrderedDict[Number, SegmentReader] = OrderedDict()
        self._table_checked: set[tuple[int, int]] = set()
        self._infos: list[SegmentInfo] = []
        self._firsts: list[Number] = []
        self._unfinished: SegmentWriter | None = None
        self.refresh()

    @property
    def unfinished(self) -> SegmentWriter | None:
        """The segment of the snapshot in the making, if there is one."""
        return self._unfinished

    def begin_unfinished(self, writer: SegmentWriter) -> None:
        """The objects of this segment are found from now on, too."""
        self._unfinished = writer

    def end_unfinished(self) -> None:
        """The unfinished segment was finished, and added, or abandoned."""
        self._unfinished = None

    def refresh(self) -> list[SegmentInfo]:
        """Read the folder again; returns the segments that another one covers. Raises VersionError."""
        with self._folder_lock:
            found = next((infos for infos in (self._scan() for _ in range(_SCANS)) if infos is not None), None)
            if found is None:
                raise CorruptionError("the list of segments", self.folder, "files in it cannot be opened")
            kept, covered = without_covered(sorted(found, key=lambda info: info.first))
            with self._lock:
                self._infos, self._firsts = kept, [info.first for info in kept]
                current = {info.first: info for info in kept}
                for first in [first for first, reader in self._open.items() if not _is_of(reader, current.get(first))]:
                    del self._open[first]
            return covered

    def segments(self) -> list[SegmentInfo]:
        """All segments, ascending."""
        with self._lock:
            return list(self._infos)

    def forget_pages(self) -> None:
        """Let the kernel forget its pages of all segments. Raises OSError."""
        for info in self.segments():
            with contextlib.suppress(FileNotFoundError, CorruptionError):
                reader = self.reader(info.first)
                if reader is not None:
                    reader.forget_pages()

    def size_bytes(self) -> int:
        """Of all finished segments."""
        with self._lock:
            return sum(info.size for info in self._infos)

    def last_number(self) -> Number:
        """The highest number in any readable segment, 0 if there is none."""
        return max((info.last for info in self.segments()), default=Number(0))

    def find(self, number: Number) -> SegmentInfo | None:
        """The segment whose range holds `number`; one with unknown end counts if it is the nearest below."""
        with self._lock:
            position = bisect_right(self._firsts, number) - 1
            if position < 0:
                return None
            info = self._infos[position]
        return info if info.damage or number <= info.last else None

    def is_empty(self, first: Number, last: Number) -> bool:
        """Whether no segment's range has any of these numbers."""
        with self._lock:
            position = bisect_right(self._firsts, last) - 1
            info = self._infos[position] if position >= 0 else None
        return info is None or (not info.damage and info.last < first)

    def locate(self, number: Number) -> tuple[RowSource, Row]:
        """Where the object is. Raises CorruptionError if no segment holds it."""
        writer = self._unfinished
        if writer is not None and number >= writer.first:
            row = writer.row(number)
            if row is not None:
                return writer, row
        for attempt in range(3):
            try:
                reader = self.reader(number)
            except FileNotFoundError:  # merged into another one since the folder was read
                self.refresh()
                continue
            row = reader.row(number) if reader is not None else None
            if reader is not None and row is not None:
                return reader, row
            if attempt:
                break
            self.refresh()
        raise CorruptionError(f"object {number:#x}", self.folder, "no segment holds it")

    def peek(self, number: Number) -> Row | None:
        """The object's row if it is easily found, None if not. Raises OSError."""
        found = self.look(number)
        return found[1] if found is not None else None

    def look(self, number: Number) -> tuple[RowSource, Row] | None:
        """Where the object is if it is easily found, None if not. Raises OSError."""
        source: RowSource | None
        writer = self._unfinished
        if writer is not None and number >= writer.first:
            source = writer
        else:
            try:
                source = self.reader(number)
            except (FileNotFoundError, CorruptionError):
                return None
        row = source.row(number) if source is not None else None
        return (source, row) if source is not None and row is not None else None

    def rows(self, numbers: Iterable[Number]) -> Iterator[Row]:
        """The rows of those of the ascending numbers that are easily found. Raises OSError."""
        reader: SegmentReader | None = None
        for number in numbers:
            if reader is None or not reader.first <= number <= reader.last:
                reader = None
                with contextlib.suppress(FileNotFoundError, CorruptionError):
                    reader = self.reader(number)
            row = reader.row(number) if reader is not None else None
            if row is not None:
                yield row

    def reader(self, number: Number) -> SegmentReader | None:
        """The open segment around `number`. Raises FileNotFoundError, CorruptionError, VersionError."""
        info = self.find(number)
        if info is None:
            return None
        with self._lock:
            found = self._open.get(info.first)
            if found is not None and _is_of(found, info):
                self._open.move_to_end(info.first)
                return found
        if info.damage:
            raise CorruptionError(f"object {number:#x}", info.path, info.damage)
        opened = self._open_checked(info.path)
        if not _is_of(opened, info):  # another one has taken its place since the folder was read
            self.refresh()
        return self._keep_open(info.first, opened)

    def add(self, path: str) -> None:
        """A segment has been finished."""
        self.replace([], self.inspect(path))

    def replace(self, gone: list[SegmentInfo], made: SegmentInfo | None) -> None:
        """Segments have been replaced by one with a part of their objects, or by none."""
        with self._folder_lock, self._lock:
            firsts = {info.first for info in gone} | ({made.first} if made else set())
            infos = [info for info in self._infos if info.first not in firsts] + ([made] if made else [])
            infos.sort(key=lambda info: info.first)
            self._infos, self._firsts = infos, [info.first for info in infos]
            for first in firsts:
                self._open.pop(first, None)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def check_invariants(self) -> None:
        infos = self.segments()
        for left, right in pairwise(infos):
            assert left.first <= max(left.last, left.first) < right.first, (left, right)
        with self._lock:
            assert len(self._open) <= self._max_open
            assert self._firsts == [info.first for info in self._infos]

    def _keep_open(self, first: Number, reader: SegmentReader) -> SegmentReader:
        evicted = []
        with self._lock:
            self._open[first] = reader
            while len(self._open) > self._max_open:
                evicted.append(self._open.popitem(last=False))
        return reader

    def _open_checked(self, path: str) -> SegmentReader:
        reader = SegmentReader(path)
        key = (reader.size, hash(reader.trailer.table_hash))
        if key not in self._table_checked:
            reader.check_table()
            self._table_checked.add(key)
        return reader

    def _scan(self) -> list[SegmentInfo] | None:
        """What is in the folder; None if a segment was merged into another one meanwhile, maybe one seen before."""
        seen = {}
        try:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(fmt.SEGMENT_SUFFIX))
        except FileNotFoundError:
            raise UserError(f"{self.folder} is missing: this is no store, or it has lost its segments") from None
        for name in names:
            path = os.path.join(self.folder, name)
            try:
                stat = os.stat(path)
                key = (stat.st_ino, stat.st_size)
                known = self._known.get(path)
                seen[path] = (key, known[1] if known is not None and known[0] == key else self.inspect(path))
            except FileNotFoundError:
                return None
        self._known = seen
        return [info for _, info in seen.values()]

    def inspect(self, path: str) -> SegmentInfo:
        """The header and trailer of a segment. Raises OSError, VersionError."""
        name = os.path.basename(path)
        try:
            first = Number(int(name.removesuffix(fmt.SEGMENT_SUFFIX), 16))
        except ValueError:
            raise CorruptionError("a segment's name", path, "it is not a number") from None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            fmt.unpack_header(os.pread(fd, fmt.HEADER_BYTES, 0), path)
            trailer = read_trailer(fd, size, path)
            return SegmentInfo(path, first, trailer.last, trailer.rows, size, table=trailer.table_hash.hex())
        except CorruptionError as error:
            return SegmentInfo(path, first, Number(0), 0, size, error.why)
        finally:
            os.close(fd)


def _is_of(reader: SegmentReader, info: SegmentInfo | None) -> bool:
    return info is not None and (reader.size, reader.last, reader.count) == (info.size, info.last, info.count)


def without_covered(infos: list[SegmentInfo]) -> tuple[list[SegmentInfo], list[SegmentInfo]]:
    """Split ascending segments into those to use and those that lie within the range of an earlier one."""
    kept: list[SegmentInfo] = []
    covered: list[SegmentInfo] = []
    end = -1
    for info in infos:
        if info.first <= end:
            covered.append(info)
        else:
            kept.append(info)
            end = max(end, info.last)
    return kept, covered
