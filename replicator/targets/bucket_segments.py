"""The segments of a volume in an object store, as its writer knows them: which objects are there, and in what.

A segment is *named* if the head names it, *staged* if it was sent, or found, and the next commit will name it, and a
*stray* if it was found by listing: what an earlier run of a writer sent and did not commit, or what the head names no
more. A stray becomes staged when objects are requested that are in it and in nothing that is named; a tombstone on it
forbids that.

Invariants:
1. `have` holds only numbers of segments that are named or staged, which no other writer can have changed since.
2. No name is given twice: each holds the writer's salt and a count.
3. What is staged, or being sent, is no garbage of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from replicator.source.selection import Part
from replicator.targets.bucket_requests import BucketRequests
from replicator.targets.target import ContentHashOf
from snapfs.base.blocks import Number
from snapfs.store.bucket import segment_names
from snapfs.store.bucket.catalog_pages import BucketCatalog
from snapfs.store.bucket.segment_names import MADE, SENT, info_of, segment_path
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import BASES_HEAD_BYTES, FRAME_BYTES, ROW_BYTES, TRAILER_BYTES, Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import has_more_bases
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol.object_stream import Item
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse

KNOWN_OBJECTS: Final = 8_000_000


def build_segment(volume_id: str, rows: Sequence[Row], framed: Iterable[bytes], mark: str) -> tuple[str, list[bytes]]:
    """The name and the pieces of a segment of these objects, which ascend and are of one generation of numbers."""
    first, last = rows[0].number, rows[-1].number
    pieces = [fmt.pack_header(fmt.Header(volume_id, fmt.generation_of(first), first)), *framed]
    table, offset = bytearray(), fmt.HEADER_BYTES
    for row in rows:
        table += fmt.pack_row(first, row._replace(offset=offset))
        offset += FRAME_BYTES + row.stored
    table_hash = hashlib.sha256(table).digest()
    trailer = fmt.pack_trailer(fmt.Trailer(offset, len(rows), first, last, table_hash))
    size = offset + len(table) + len(trailer)
    return segment_names.segment_name(first, last, len(rows), size, table_hash, mark), [*pieces, bytes(table), trailer]


def parse_segment(data: bytes, info: SegmentInfo) -> list[tuple[Row, bytes]]:
    """The objects of a segment, each frame checked. Raises CorruptionError, RefusedError."""
    trailer = fmt.unpack_trailer(data[-TRAILER_BYTES:], info.path)
    found = []
    for index in range(trailer.rows):
        row = fmt.unpack_row(trailer.first, data, trailer.table_offset + index * ROW_BYTES)
        framed = data[row.offset : row.offset + FRAME_BYTES + row.stored]
        if not fmt.frame_is_good(framed):
            raise refuse(Refusal.CORRUPT, f"object {row.number:#x} in {info.path} is damaged", number=row.number)
        found.append((row, framed))
    return found


def _differing(rows: Iterable[Row], wanted: NumberSet, content_hash_of: ContentHashOf) -> Number | None:
    """An object that is wanted, and another one there."""
    found = (row.number for row in rows if row.number in wanted and content_hash_of(row.number) != row.content_hash)
    return next(found, None)


class BucketSegments:
    """`salt`: the writer's own."""

    def __init__(self, requests: BucketRequests, salt: str) -> None:
        self._requests, self._salt = requests, salt
        self._given = 0  # names
        self._own: set[str] = set()  # segments of this run
        self._known: set[str] = set()  # segments whose numbers are in `have`
        self._sending: set[str] = set()
        self._strays: dict[str, SegmentInfo] = {}
        self.have = NumberSet()
        self.staged: dict[str, SegmentInfo] = {}

    def forget(self) -> None:
        """The head was changed by another writer: what is there, and what is not garbage to it, is not known."""
        self.forget_numbers()
        self.staged.clear()
        self._strays.clear()

    def forget_numbers(self) -> None:
        """What lives has changed, or it is too much to remember: it is read again when it is needed."""
        self.have, self._known = NumberSet(), set()
        self._own &= self.staged.keys()  # names come for ever, too

    def found(self, paths: Iterable[str], named: Collection[str], tombstones: Collection[str]) -> None:
        """What a listing shows: strays are what was sent, the head does not name, and no tombstone names."""
        for path in paths:
            name = path.rpartition("/")[2].removesuffix(fmt.SEGMENT_SUFFIX)
            if (
                name not in named
                and path not in tombstones
                and segment_names.was_sent(name)
                and name not in self.staged
            ):
                with contextlib.suppress(ValueError):
                    self._strays[name] = info_of(name)

    def mine(self) -> set[str]:
        """The paths of what is staged or on its way: no garbage, though the head does not name it."""
        return {segment_path(name) for name in (*self.staged, *self._sending)}

    def pending_deletes(self, paths: Iterable[str]) -> None:
        """Tombstones are about to name these: they are strays no more."""
        for path in paths:
            self._strays.pop(path.rpartition("/")[2].removesuffix(fmt.SEGMENT_SUFFIX), None)

    # -- which objects are there

    async def lacks(
        self, numbers: NumberSet, catalog: BucketCatalog, content_hash_of: ContentHashOf | None = None
    ) -> NumberSet:
        """Those of the numbers that nothing named or staged holds; strays that hold some become staged.

        With `content_hash_of` what another writer sent is compared: Refusal.DIVERGED if the same number has another
        content; a stray with such an object is not used.
        """
        low, high = min(numbers, default=Number(0)), max(numbers, default=Number(0))
        if content_hash_of is not None:
            await self._compare(numbers, catalog, content_hash_of)
        await self.learn(numbers, catalog)
        for name, info in sorted(self._strays.items()):
            if info.first <= high and info.last >= low:
                await self._adopt(name, info, numbers, content_hash_of)
        found = NumberSet()
        for number in numbers:
            if number not in self.have:
                found.add(number)
        return found

    async def _compare(self, numbers: NumberSet, catalog: BucketCatalog, content_hash_of: ContentHashOf) -> None:
        """Raises "diverged" if what another run sent has a number that we use for something else."""
        low, high = min(numbers, default=Number(0)), max(numbers, default=Number(0))
        for name, info in [*catalog.segments.items(), *self.staged.items()]:
            if name not in self._own and info.first <= high and info.last >= low:
                rows = await self.rows(info)
                if (number := _differing(rows, numbers, content_hash_of)) is not None:
                    why = f"object {number:#x} has another content there: another host wrote this generation, too"
                    raise refuse(Refusal.DIVERGED, f"{why}; name a new target for this one", number=number)
                self._note(name, (row.number for row in rows))

    async def learn(self, numbers: Iterable[Number], catalog: BucketCatalog) -> None:
        """Read the tables of those segments, not read before, that may hold some of these numbers."""
        wanted = list(numbers)
        low, high = min(wanted, default=Number(0)), max(wanted, default=Number(0))
        for name, info in [*catalog.segments.items(), *self.staged.items()]:
            if name not in self._known and info.first <= high and info.last >= low:
                self._note(name, (row.number for row in await self.rows(info)))

    async def _adopt(
        self, name: str, info: SegmentInfo, wanted: NumberSet, content_hash_of: ContentHashOf | None
    ) -> None:
        try:
            rows = await self.rows(info)
            numbers = [row.number for row in rows]
        except RefusedError:  # it is gone, or damaged
            del self._strays[name]
            return
        if content_hash_of is not None and _differing(rows, wanted, content_hash_of) is not None:
            del self._strays[name]
            return
        if any(number in wanted and number not in self.have for number in numbers):
            self.staged[name] = self._strays.pop(name)
            self._note(name, numbers)

    def _note(self, name: str, numbers: Iterable[Number]) -> None:
        for number in numbers:
            self.have.add(number)
        self._known.add(name)

    # -- what is put there

    async def send(self, volume_id: str, part: Part) -> int:
        """Stage a part; the bytes that travelled."""
        if all(number in self.have for number in part.numbers()):
            return 0
        name, size = await self._put(volume_id, part.rows, part.framed, SENT)
        self._note(name, part.numbers())
        return size

    async def make(self, volume_id: str, objects: Sequence[tuple[Row, bytes]]) -> str:
        """A segment made of others, which the head will name at once, or never; its name."""
        rows, framed = [row for row, _ in objects], [piece for _, piece in objects]
        return (await self._put(volume_id, rows, framed, MADE))[0]

    async def _put(self, volume_id: str, rows: Sequence[Row], framed: Sequence[bytes], kind: str) -> tuple[str, int]:
        self._given += 1
        mark = f"{kind}{self._salt}{self._given:x}"
        name, pieces = await asyncio.to_thread(build_segment, volume_id, rows, framed, mark)
        self._sending.add(name)
        try:
            await self._requests.put_once(segment_path(name), b"".join(pieces))
            self._own.add(name)
            if kind == SENT:
                self.staged[name] = info_of(name)
        finally:
            self._sending.discard(name)
        return name, info_of(name).size

    def committed(self) -> None:
        """The head names all that is staged now."""
        self.staged.clear()
        if len(self.have) > KNOWN_OBJECTS:  # a bit each, and objects come for ever: read again when needed
            self.forget_numbers()

    def made(self, name: str, of: Iterable[str]) -> None:
        """The head names this one, in the place of others."""
        gone = set(of)
        if self._known >= gone:
            self._known.add(name)
        if not self._own >= gone:
            self._own.discard(name)
        self._own -= gone

    # -- reading

    async def rows(self, info: SegmentInfo) -> list[Row]:
        """The table of a segment. Raises RefusedError if it is not the one that the name describes."""
        start = segment_names.table_start(info)
        data = await self._requests.get_range(segment_path(info.path), start, info.size - TRAILER_BYTES)
        if not segment_names.table_is_good(info, data):
            raise refuse(Refusal.CORRUPT, f"the table of {info.path} is damaged")
        return [fmt.unpack_row(info.first, data, at) for at in range(0, len(data), ROW_BYTES)]

    async def objects(self, info: SegmentInfo) -> list[tuple[Row, bytes]]:
        """All of it, each object checked."""
        return parse_segment(await self._requests.get(segment_path(info.path)), info)

    async def add_bases(self, info: SegmentInfo, live: NumberSet) -> None:
        """Bases have none themselves, and are kept as they are found: one pass is enough."""
        for row in await self.rows(info):
            if not row.base or row.number not in live:
                continue
            live.add(row.base)
            if has_more_bases(row):
                start = row.offset + FRAME_BYTES
                framed = fmt.pack_frame(row.number, row.base, row.kind, row.encoding, row.ordinal, 0, b"")
                path = segment_path(info.path)
                payload = await self._requests.get_range(path, start, start + min(row.stored, BASES_HEAD_BYTES))
                item = Item(row.content_hash, fmt.unpack_frame(framed), framed + payload)
                for base in item.base_numbers():
                    live.add(base)
