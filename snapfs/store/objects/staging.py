"""Objects that came from elsewhere and that no snapshot here needs yet: the parts in `incoming/`.

A part is a segment in all but its place and its gaps: `incoming/<first>-<token>.part`, or `.part-unverified` where some
differences could not be decoded on arrival because their bases had not come. `receiver.py` fills and publishes them.

Invariants:
1. A file with one of these endings was complete and durable before it got its name, and is never changed. A crash while
   one is written leaves a `.new` file, which the next opening removes.
2. Parts may overlap in range and in content; an object with one number has one content hash in all of them and in the
   segments.
3. What lies here is no part of any snapshot. To lose a part costs sending it again, and nothing else: so a part that
   cannot be read is removed.
4. A segment above the log's last number belongs to a commit that did not come to its record. `take_back` puts it here
   where it cannot be recovered (receiver.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from snapfs.base.blocks import Disk, Generation, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, Row
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_reader import RowSource, SegmentReader
from snapfs.store.objects.segment_writer import SegmentWriter

FOLDER: Final = "incoming"
SUFFIX: Final = ".part"
UNVERIFIED_SUFFIX: Final = ".part-unverified"
_OPEN_READERS: Final = 32


@dataclass(eq=False, slots=True)
class StagedPart:
    """A part. `unverified`: the differences that were not decoded yet; None if it is not known which these are."""

    path: str
    first: Number
    last: Number
    count: int
    size: int
    unverified: set[Number] | None = field(default_factory=set)

    def is_unverified(self, row: Row) -> bool:
        return row.encoding > Encoding.ZSTD if self.unverified is None else row.number in self.unverified

    def still_unverified(self, numbers: set[Number]) -> None:
        """All others have been decoded now."""
        self.unverified = numbers


class PartWriter(SegmentWriter):
    """A part in the making: a segment whose numbers may have gaps."""

    def __init__(self, folder: str, disk: Disk, volume_id: str, generation: Generation, first: Number) -> None:
        """Raises OSError."""
        self._numbers = array("Q")
        header = fmt.Header(volume_id, generation, first)
        super().__init__(folder, disk, header, "part", f"{first:016x}-{secrets.token_hex(4)}{SUFFIX}")

    def name_unverified(self) -> None:
        """It has differences that are not decoded yet: its name shows that. Before `finish`."""
        self.path = f"{os.path.splitext(self.path)[0]}{UNVERIFIED_SUFFIX}"

    def append_framed(self, row: Row, *pieces: bytes) -> None:
        super().append_framed(row, *pieces)
        self._numbers.append(row.number)

    def row(self, number: Number) -> Row | None:
        index = bisect_left(self._numbers, number)
        if index == len(self._numbers) or self._numbers[index] != number:
            return None
        with self._lock:
            return fmt.unpack_row(self.first, self._row_bytes(index))


class Staging:
    """The parts of one store. Thread-safe."""

    def __init__(self, store_dir: str, disk: Disk) -> None:
        """Make the folder, or open it: unfinished and unreadable parts are removed. Raises OSError."""
        self.folder = os.path.join(store_dir, FOLDER)
        self._disk = disk
        self._lock = threading.Lock()
        self._parts: list[StagedPart] = []  # ascending by first
        self._reach: list[int] = []  # the highest last number up to each
        self._readers: OrderedDict[str, SegmentReader] = OrderedDict()
        self._version = 0  # of the list of parts
        self._last: tuple[int, SegmentReader | None] = 0, None  # where the last object was found, and when
        self.removed: list[str] = []
        if not os.path.isdir(self.folder):
            disk.mkdir("staging:folder", self.folder)
            disk.sync_dir("staging:folder", store_dir)
        self.reload()

    def reload(self) -> None:
        """Read the folder again, while nothing is being received. Raises OSError."""
        found = [part for part in map(self._load, sorted(os.listdir(self.folder))) if part is not None]
        with self._lock:
            self._set(found)

    def parts(self) -> list[StagedPart]:
        """All parts, ascending by their first number."""
        with self._lock:
            return list(self._parts)

    def find(self, number: Number) -> tuple[SegmentReader, Row] | None:
        """Where an object is staged, if it is."""
        version, (known, last) = self._version, self._last
        row = last.row(number) if last is not None and known == version else None
        if last is not None and row is not None:
            return last, row
        for part in self._around(number):
            reader = self._reader(part)
            row = reader.row(number) if reader is not None else None
            if reader is not None and row is not None:
                self._last = version, reader
                return reader, row
        return None

    def part_with(self, number: Number) -> StagedPart | None:
        """A part that holds the object, if one does."""
        for part in self._around(number):
            reader = self._reader(part)
            if reader is not None and reader.row(number) is not None:
                return part
        return None

    def rows(self, part: StagedPart) -> Iterator[tuple[SegmentReader, Row]]:
        """The rows of a part, ascending."""
        reader = SegmentReader(part.path)
        for row in reader.rows():
            yield reader, row

    def add(self, writer: PartWriter, unverified: set[Number]) -> StagedPart:
        """A part has been finished."""
        size = os.stat(writer.path).st_size
        part = StagedPart(writer.path, writer.first, writer.last, writer.count, size, unverified)
        with self._lock:
            self._set([*self._parts, part])
        return part

    def discard(self, parts: Iterable[StagedPart], *, unlink: bool = True) -> None:
        """These are not needed any more (or, without `unlink`, have gone elsewhere). Raises OSError."""
        gone = set(parts)
        with self._lock:
            self._set([part for part in self._parts if part not in gone])
            for part in gone:
                self._readers.pop(part.path, None)
        for part in gone if unlink else ():
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink("part:remove", part.path)

    def close(self) -> None:
        with self._lock:
            self._readers.clear()
            self._last = 0, None

    def check_invariants(self) -> None:
        with self._lock:
            assert self._parts == sorted(self._parts, key=lambda part: part.first)
            assert len(self._readers) <= _OPEN_READERS
            for part in self._parts:
                reader = SegmentReader(part.path)
                reader.check_table()
                assert (reader.first, reader.last, reader.count) == (part.first, part.last, part.count)

    def _around(self, number: Number) -> list[StagedPart]:
        """The parts whose range holds the number."""
        found = []
        with self._lock:
            at = bisect_left(self._parts, number + 1, key=lambda part: part.first) - 1
            while at >= 0 and self._reach[at] >= number:
                if self._parts[at].last >= number:
                    found.append(self._parts[at])
                at -= 1
        return found

    def _reader(self, part: StagedPart) -> SegmentReader | None:
        with self._lock:
            reader = self._readers.get(part.path)
            if reader is not None:
                self._readers.move_to_end(part.path)
                return reader
        try:
            reader = SegmentReader(part.path)
        except FileNotFoundError:  # published a moment ago
            return None
        with self._lock:
            self._readers[part.path] = reader
            gone = [self._readers.popitem(last=False) for _ in range(len(self._readers) - _OPEN_READERS)]
        del gone  # their files close without the lock
        return reader

    def _set(self, parts: Iterable[StagedPart]) -> None:
        self._parts = sorted(parts, key=lambda part: part.first)
        self._reach = list(accumulate((part.last for part in self._parts), max))
        self._version += 1

    def _load(self, name: str) -> StagedPart | None:
        path = os.path.join(self.folder, name)
        if name.endswith((SUFFIX, UNVERIFIED_SUFFIX)):
            try:
                reader = SegmentReader(path)
                reader.check_table()
                unverified: set[Number] | None = None if name.endswith(UNVERIFIED_SUFFIX) else set()
                return StagedPart(path, reader.first, reader.last, reader.count, reader.size, unverified)
            except CorruptionError as error:
                self.removed.append(f"{name} removed: {error.why}")
        self._disk.unlink("staging:clean", path)
        return None


class Union:
    """Where an object is, staged or in the store's segments: the places of `Objects` for what is being received."""

    def __init__(self, staging: Staging, index: SegmentIndex) -> None:
        self._staging, self._index = staging, index
        self.suspects: set[Number] = set()
        """Objects in segments that were found damaged: to be sent again, as if they were not there."""

    def row(self, number: Number) -> Row | None:
        """The object's row, None if it is not here."""
        found = self._staging.find(number)
        if found is not None:
            return found[1]
        return self._index.peek(number) if number not in self.suspects else None

    def locate(self, number: Number) -> tuple[RowSource, Row]:
        """Raises CorruptionError if it is nowhere."""
        return self._staging.find(number) or self._index.locate(number)

    def find(self, number: Number) -> SegmentInfo | None:
        return self._index.find(number)

    def is_empty(self, first: Number, last: Number) -> bool:
        """Whether it is cheap to know that none of these numbers is here."""
        parts = any(part.first <= last and first <= part.last for part in self._staging.parts())
        return not parts and self._index.is_empty(first, last)


def is_mirrored(store_dir: str) -> bool:
    """Whether snapshots have been received into this store."""
    return os.path.isdir(os.path.join(store_dir, FOLDER))


def take_back(store_dir: str, segments_dir: str, disk: Disk, last_number: Number) -> int:
    """Make parts again of the segments above `last_number`, the highest that the log knows; returns how many."""
    strays = [name for name in sorted(os.listdir(segments_dir)) if _is_stray(name, last_number)]
    folder = os.path.join(store_dir, FOLDER)
    if not strays or not is_mirrored(store_dir):
        return 0
    for name in strays:
        staged = f"{name.removesuffix(fmt.SEGMENT_SUFFIX)}-{secrets.token_hex(4)}{SUFFIX}"
        disk.rename("staging:take-back", os.path.join(segments_dir, name), os.path.join(folder, staged))
    disk.sync_dir("staging:take-back", folder)
    disk.sync_dir("staging:take-back", segments_dir)
    return len(strays)


def _is_stray(name: str, last_number: Number) -> bool:
    try:
        return name.endswith(fmt.SEGMENT_SUFFIX) and int(name.removesuffix(fmt.SEGMENT_SUFFIX), 16) > last_number
    except ValueError:
        return False
