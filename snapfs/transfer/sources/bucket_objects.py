"""Objects of a volume in an object store: found in the segments' tables, read by ranges, checked for their frames.

An object costs a page of a table, unless that is known, and a range of a segment, which it shares with what lies near
it. What lies right before a table is read along with it: a small segment is one request.

Invariants:
1. Where a segment is gone or a number is not found, the head is read anew: segments may have been merged.
2. What is read goes through the parser that a mirror's answers go through (store/protocol/object_stream.py), and is
   checked by the fetcher. A damaged object is named in the log and left out: then another source is tried.
3. Memory: GROUP_BYTES of objects a caller (with their bases), and what is kept of tables and of the ends of segments.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import groupby
from typing import Any, Final

from snapfs.base.blocks import Number
from snapfs.store.bucket import segment_names
from snapfs.store.bucket.bucket_tables import Ends, ObjectLocation, PageKey, Tables, rows_of_page
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import codec, payload_types
from snapfs.store.objects.format import BASES_HEAD_BYTES, FRAME_BYTES, HEADER_BYTES, ObjectKind, Row
from snapfs.store.objects.objects import has_more_bases
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol import object_stream
from snapfs.store.protocol.number_runs import Run, runs_of
from snapfs.store.protocol.object_stream import Item
from snapfs.store.protocol.refusals import RefusedError
from snapfs.transfer.sources.bucket_reader import BucketReader, GoneError
from snapfs.transfer.sources.known_head import BucketHead

log = logging.getLogger(__name__)

GAP_BYTES: Final = 64 << 10
"""Objects that lie no farther apart are read in one request, with what is between."""
PIECE_BYTES: Final = 1 << 20
GROUP_BYTES: Final = 8 << 20
TAIL_BYTES: Final = 512 << 10
"""How much of what lies before a table is read along with it."""
ENDS_BYTES: Final = 32 << 20
_CONTENT = (ObjectKind.CHUNK, ObjectKind.BLOCK)


class BucketObjects:
    """Finds and reads objects. Any thread; requests of one caller are under way at the same time in `pool`."""

    def __init__(self, reader: BucketReader, head: BucketHead, pool: Executor) -> None:
        self._reader, self._head, self._pool = reader, head, pool
        self.tables = Tables(self._read_table, pool)
        self.ends = Ends(ENDS_BYTES)

    def objects(self, numbers: set[Number], *, bases: bool) -> Iterator[Item]:
        """Those of the objects that are there, ascending; with `bases` each after the full objects it is a difference
        to. Raises OSError."""
        places = self.locate(numbers)
        if bases:
            places |= self.locate({place.row.base for place in places.values()} - places.keys())
        sent: set[Number] = set()
        for group in _groups(sorted(numbers & places.keys()), places):
            wanted = {*group, *(places[number].row.base for number in group if bases)} & places.keys()
            items = self._items([places[number] for number in wanted if number not in sent])
            if bases:
                more = {base for item in items.values() for base in _bases(item)} - items.keys() - sent
                found = self.locate(more - places.keys()) | {number: places[number] for number in more & places.keys()}
                items |= self._items(found.values())
            sent |= items.keys()
            yield from (items[number] for number in sorted(items))  # bases have lower numbers

    def bases(self, numbers: set[Number]) -> list[Run]:
        """The full objects that these objects are differences to. Raises OSError."""
        places = self.locate(numbers).values()
        found = {place.row.base for place in places}
        heads = [
            ObjectLocation(place.info, place.row._replace(stored=min(place.row.stored, BASES_HEAD_BYTES)))
            for place in places if has_more_bases(place.row)
        ]  # fmt: skip
        for place, framed in self._read_all(heads):
            with contextlib.suppress(payload_types.DecodeError):
                found |= set(_more_bases(place.row, framed[FRAME_BYTES:]))
        return list(runs_of(sorted(found - {0})))

    def table_pages(self, record: SnapshotRecord) -> Iterator[Item]:
        """Pages of the snapshot's tables, by one request: those at the end of the segment that has the root."""
        around = self._head.known().segments.around(record.root.number)
        info = max(around, key=lambda info: (info.last, -info.count), default=None)
        if info is None:
            return
        last = PageKey(info, (info.count - 1) // rows_of_page(info))
        given: set[Number] = {Number(0)}
        for row in self.tables.pages([last])[info.path, last.page].rows():
            framed = self.ends.get(info.path, row.offset, ObjectLocation(info, row).end)
            is_page = framed is not None and row.kind not in _CONTENT and row.number <= record.last_number
            if framed is not None and is_page and row.base in given and not has_more_bases(row):
                item = _parsed(self._reader.name, row, framed)
                if item is not None:
                    given.add(row.number)
                    yield item

    # -- finding

    def locate(self, numbers: set[Number]) -> dict[Number, ObjectLocation]:
        """Where the objects are that are there, by the known head, or else by the one that is there now."""
        wanted = {number for number in numbers if number}
        if not wanted:
            return {}
        known, found = self._head.known(), {}
        with contextlib.suppress(GoneError):
            found = self.tables.locate(known.segments, sorted(wanted))
        if len(found) < len(wanted) and self._head.read() is not known:
            found |= self.tables.locate(self._head.known().segments, sorted(wanted - found.keys()))
        return found

    def _read_table(self, info: SegmentInfo, start: int, end: int) -> bytes:
        """A page of a table. If the table begins with it, what lies before the table is read and kept as well."""
        table = segment_names.table_start(info)
        if end - table > TAIL_BYTES:
            return self._reader.read_range(info, start, end)
        before = max(HEADER_BYTES, table - TAIL_BYTES)
        data = self._reader.read_range(info, before, end)
        self.ends.add(info.path, before, data[: table - before])
        return data[start - before :]

    # -- reading

    def _items(self, places: Iterable[ObjectLocation]) -> dict[Number, Item]:
        found: dict[Number, Item] = {}
        for place, framed in self._read_all(places):
            item = _parsed(self._reader.name, place.row, framed)
            if item is not None:
                found[place.row.number] = item
        return found

    def _read_all(self, places: Iterable[ObjectLocation]) -> list[tuple[ObjectLocation, bytes]]:
        """The bytes at these places; where segments were merged meanwhile, at the places of the same objects now."""
        places = list(places)
        try:
            return self._read_pieces(places)
        except GoneError:
            self._head.read()
        stored = {place.row.number: place.row.stored for place in places}
        moved = self.tables.locate(self._head.known().segments, sorted(stored))
        return self._read_pieces(
            [ObjectLocation(at.info, at.row._replace(stored=stored[number])) for number, at in moved.items()]
        )

    def _read_pieces(self, places: Iterable[ObjectLocation]) -> list[tuple[ObjectLocation, bytes]]:
        pieces = list(_pieces(places))
        if len(pieces) < 2:
            return [found for piece in pieces for found in self._read_piece(piece)]
        return [found for read in list(self._pool.map(self._read_piece, pieces)) for found in read]

    def _read_piece(self, piece: list[ObjectLocation]) -> list[tuple[ObjectLocation, bytes]]:
        info, start, end = piece[0].info, piece[0].row.offset, max(place.end for place in piece)
        data = self.ends.get(info.path, start, end) or self._reader.read_range(info, start, end)
        return [(place, data[place.row.offset - start : place.end - start]) for place in piece]


def _groups(numbers: Iterable[Number], places: dict[Number, ObjectLocation]) -> Iterator[list[Number]]:
    """Ascending, each of about GROUP_BYTES."""
    group: list[Number] = []
    size = 0
    for number in numbers:
        group.append(number)
        size += places[number].row.stored
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pieces(places: Iterable[ObjectLocation]) -> Iterator[list[ObjectLocation]]:
    """Objects that one request reads: near each other, at most PIECE_BYTES but for a larger object."""
    ordered = sorted(places, key=lambda place: (place.info.path, place.row.offset))
    for _, of_one in groupby(ordered, key=lambda place: place.info.path):
        piece: list[ObjectLocation] = []
        for place in of_one:
            start = place.row.offset
            if piece and (place.end - piece[0].row.offset > PIECE_BYTES or start - piece[-1].end > GAP_BYTES):
                yield piece
                piece = []
            piece.append(place)
        yield piece


def _parsed(name: str, row: Row, framed: bytes) -> Item | None:
    """The object; None if its frame is damaged or is that of another object."""
    parser = object_stream.StreamParser(allow_absent=False)
    with contextlib.suppress(RefusedError):
        items = [*parser.feed(object_stream.stream_header() + row.content_hash + framed)]
        if len(items) == 1 and items[0].frame.number == row.number:
            return items[0]
    log.error("object %#x is damaged at %s; it is not taken", row.number, name)
    return None


def _bases(item: Item) -> tuple[Number, ...]:
    with contextlib.suppress(payload_types.DecodeError):
        return item.base_numbers()
    return ()


def _more_bases(row: Row, payload: bytes) -> Sequence[Any]:
    """The bases that the payload names. Raises codec.DecodeError."""
    return codec.base_numbers(row.encoding, row.ordinal, row.base, payload)[1:]
