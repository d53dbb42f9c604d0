"""Where objects are found in a store that does not have all of its past yet: segments, what was fetched, the source.

`attach` puts this in the place of a repository's own index for reads by number. Encoding against a base, dedup and
compaction go on to see the segments (and what was fetched) alone: nothing is fetched for them.

Invariants:
1. An object is fetched by its pointer only: number and content hash. What comes is checked before it is kept, and kept
   before it is given out.
2. What is here is never requested again; what is on its way is waited for (fetcher.py).
3. Without a source, an object that is not here is an OSError, never another content.
4. What comes in the order of the numbers (backfill.py) is a segment at once, or one in the making (`begin_part`). One
   of these that turns out damaged is `suspects`: it is fetched anew, and `settle` puts that in its place.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Sequence
from typing import Protocol

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.lazy.fetched_objects import FetchedObjects
from snapfs.store.objects.format import Pointer, Row
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_reader import RowSource
from snapfs.store.objects.staging import PartWriter


class Fetch(Protocol):
    """What brings objects here."""

    def fetch(self, pointers: Sequence[Pointer], /) -> None:
        """Return when all of them are in `FetchedObjects`. OSError, CorruptionError."""

    def prefetch(self, pointers: Sequence[Pointer], /) -> None:
        """Begin to bring them, and return at once."""


class LazyPlaces:
    """`Places` of segments and of what was fetched."""

    def __init__(self, index: SegmentIndex, fetched: FetchedObjects) -> None:
        self.index, self.fetched = index, fetched
        self._open_part: PartWriter | None = None
        self.suspects: set[Number] = set()
        self.settled = False

    def locate(self, number: Number) -> tuple[RowSource, Row]:
        """Raises CorruptionError if it is not here."""
        return self._look(number) or self.index.locate(number)

    def has(self, number: Number) -> bool:
        """Whether it is here, as far as that is known without reading it."""
        return self._look(number) is not None

    def find(self, number: Number) -> SegmentInfo | None:
        return self.index.find(number)

    def has_segment_of(self, number: Number) -> bool:
        """Whether it is in a segment, undamaged as far as that is known."""
        return number not in self.suspects and self.index.peek(number) is not None

    def begin_part(self, part: PartWriter) -> None:
        """This is the segment in the making of what comes in the order of the numbers: its objects are found."""
        self._open_part = part

    def end_part(self) -> None:
        """The part has become a segment, or is given up."""
        self._open_part = None

    def settle(self) -> None:
        """All of it is in segments now: nothing else is looked into any more."""
        self.settled = True

    def trust(self, first: Number, last: Number) -> None:
        """The objects from `first` to `last` came anew, and are in a segment."""
        self.suspects = {number for number in self.suspects if not first <= number <= last}

    def mark_suspect(self, number: Number) -> None:
        """What is here of it cannot be used: it counts as missing."""
        self.fetched.forget(number)
        if self.index.peek(number) is not None:
            self.suspects.add(number)

    def _look(self, number: Number) -> tuple[RowSource, Row] | None:
        found = self.index.look(number) if number not in self.suspects else None
        if found is not None or self.settled:
            return found
        writer = self._open_part
        row = writer.row(number) if writer is not None else None
        if writer is not None and row is not None:
            return _OpenPartReader(writer, self.index), row
        row = self.fetched.find(number)
        return (_FetchedSource(self.fetched), row) if row is not None else None


class _OpenPartReader:
    """The place of an object in a segment in the making, which may become one at any time."""

    def __init__(self, writer: PartWriter, index: SegmentIndex) -> None:
        self._writer, self._index, self.path = writer, index, writer.path

    def row(self, number: Number) -> Row | None:
        return self._writer.row(number)

    def frame(self, row: Row) -> bytes:
        try:
            return self._writer.frame(row)
        except OSError:  # it is closed
            source, row = self._index.locate(row.number)
            return source.frame(row)


class _FetchedSource:
    """A fetched object's place, as a segment is one."""

    def __init__(self, fetched: FetchedObjects) -> None:
        self._fetched, self.path = fetched, fetched.path

    def row(self, number: Number) -> Row | None:
        return self._fetched.find(number)

    def frame(self, row: Row) -> bytes:
        return self._fetched.frame(row)


class LazyObjects(Objects):
    """Objects of which some have still to be fetched."""

    def __init__(self, places: LazyPlaces, seed: int, cache_bytes: int) -> None:
        super().__init__(places, seed, cache_bytes)
        self.places = places
        self._source: Fetch | None = None

    @property
    def source(self) -> Fetch | None:
        """What brings the objects that are not here; None while nothing does."""
        return self._source

    def attach(self, source: Fetch) -> None:
        """From now on objects that are not here are fetched by it."""
        self._source = source

    def detach(self) -> None:
        """From now on an object that is not here is an OSError."""
        self._source = None

    def read(self, pointer: Pointer) -> bytes:
        """Raises CorruptionError, and OSError also where it cannot be fetched."""
        try:
            with contextlib.suppress(CorruptionError):  # it was in a segment that came to nothing, for want of room
                return self._read(pointer)
            return self._read(pointer)
        except (OSError, sqlite3.Error):
            if not self.places.settled:
                raise
            return super().read(pointer)  # it has become a segment meanwhile

    def read_part(self, pointer: Pointer, start: int, size: int) -> bytes:
        if self.places.settled:
            return super().read_part(pointer, start, size)
        return self.read(pointer)[start : start + size]

    def _read(self, pointer: Pointer) -> bytes:
        number = pointer.number
        if self.bases.get(number) or self.recent.get(number) or self._is_here(number):
            try:
                return super().read(pointer)
            except CorruptionError as error:
                self._fetch_again(pointer, error)
        else:
            self._must_source().fetch([pointer])
        return super().read(pointer)

    def _fetch_again(self, pointer: Pointer, error: CorruptionError) -> None:
        """What is here of it is damaged. Raises `error` if no source has it."""
        if self.source is None or self.places.settled:
            raise error
        bases: tuple[Number, ...] = ()
        with contextlib.suppress(CorruptionError):
            bases = self.bases_of(pointer.number)
        for number in (*bases, pointer.number):  # which of them it is does not matter
            self.places.mark_suspect(number)
            self.forget_one(number)
        try:
            self.source.fetch([pointer])
        except OSError:
            raise error from None

    def _is_here(self, number: Number) -> bool:
        return self.places.settled or self.places.has(number)

    def lacking(self, pointers: Sequence[Pointer]) -> list[Pointer]:
        """Those that would have to be fetched."""
        if self.places.settled:
            return []
        return [
            pointer for pointer in pointers
            if pointer.number and not self.recent.get(pointer.number) and not self.places.has(pointer.number)
        ]  # fmt: skip

    def _must_source(self) -> Fetch:
        if self.source is None:
            raise OSError(errno.EIO, "an object of the store is still at the mirror it came from, and none is attached")
        return self.source
