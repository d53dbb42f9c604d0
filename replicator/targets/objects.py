"""A target in an object store (S3 and kin, by obstore): immutable segments, and a head that moves by a conditional put.

What lies there under which names, and what the head says, is described in snapfs/store/bucket.py.

Invariants:
1. The put of the head is the commit point: it names only segments and pages that are there, whole. A crash before it
   leaves objects that no head names; they are what `lacks` calls staged, and go on being used.
2. A head that was changed by somebody else is never replaced: the put fails, the head is read again, and a newer
   generation in it means "fenced".
3. One request a part and one a commit. The head names at most TAIL entries itself; then they move into pages, which
   are named by their content, so that a page that did not change is not put again. Small segments are merged, by the
   store's own size tiers. The bucket is listed once an opening, to find what is staged.
4. What the head does not name any more is removed after GRACE_SECONDS: a reader may still be at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import ObjectStore

from replicator.source import Part
from replicator.targets.base import Limits, TargetState, Told
from snapfs.blocks import Generation, Number, SnapshotNumber
from snapfs.errors import CorruptionError, SnapfsError, VersionError
from snapfs.store import bucket, bucket_client, compaction, records
from snapfs.store import format as fmt
from snapfs.store.bucket import HEAD, Aside, Catalog, Head, Page, info_of, segment_path
from snapfs.store.format import FRAME_BYTES, MORE_BASES, ROW_BYTES, TRAILER_BYTES, Row
from snapfs.store.index import SegmentInfo
from snapfs.store.numbers import NumberSet
from snapfs.store.objects import has_more_bases
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.stream import Item
from snapfs.store.wire import MODE_DIFFERS, Mode, Refusal, refuse

log = logging.getLogger(__name__)

TAIL: Final = 256
GRACE_SECONDS: Final = 3600.0
HOT_SECONDS: Final = 60.0
MULTIPART_BYTES: Final = 16 << 20
KNOWN_OBJECTS: Final = 8_000_000
_LIMITS: Final = Limits(part_bytes=32 << 20, window_parts=8)
_HEAD_ATTEMPTS: Final = 5


def build_segment(volume_id: str, rows: Sequence[Row], framed: Iterable[bytes]) -> tuple[str, list[bytes]]:
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
    return bucket.segment_name(first, last, len(rows), size, table_hash), [*pieces, bytes(table), trailer]


class ObjectStoreTarget:
    """A volume below the prefix of an obstore store."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time, tail: int = TAIL) -> None:
        self._store, self._clock, self._tail = store, clock, tail
        self._identity: StoreIdentity | None = None
        self._head = Head(1, "", "")
        self._version: obstore.UpdateVersion | None = None
        self._paged = Catalog()  # what the pages name, whatever the head says of it
        self._catalog = Catalog()  # what there is
        self._have = NumberSet()
        self._known: set[str] = set()  # segments whose numbers are in `_have`
        self._staged: dict[str, SegmentInfo] = {}
        self._listed = False
        self._hot, self._hot_due_s = "", 0.0  # the hot list that we put last, and when it may be another one
        self._garbage: list[tuple[float, str]] = []
        self._claim: tuple[Generation, str] | None = None
        self.requests: dict[str, int] = {}
        """How often the store was asked for what; requests are what object stores charge for."""

    @property
    def limits(self) -> Limits:
        return _LIMITS

    async def open(self, identity: StoreIdentity) -> TargetState:
        self._identity = identity
        made = Head(1, identity.volume_id, f"{identity.seed:016x}", opaque=identity.opaque)
        while not await self._read_head() and not await self._try_put_head(made):
            pass  # another one has made it at the same time
        if not self._listed:
            await self._find_staged()
            self._listed = True
        return self._state()

    async def claim(self, generation: Generation, holder: str) -> None:
        self._claim = None
        while True:
            await self._read_head()
            head = self._head.claimed(generation, holder)
            if head != self._head and not await self._try_put_head(head):
                continue
            self._claim = generation, holder
            return

    async def lacks(self, numbers: NumberSet) -> NumberSet:
        await self._learn(numbers)
        found = NumberSet()
        for number in numbers:
            if number not in self._have:
                found.add(number)
        return found

    async def send(self, part: Part) -> int:
        self._check_claimed()
        name, pieces = await asyncio.to_thread(build_segment, self._volume_id, part.rows, part.framed)
        info = info_of(name)
        if name in self._catalog.segments or name in self._staged:
            return 0
        await self._put_segment(name, pieces, info.size)
        self._staged[name] = info
        self._note(name, part.numbers())
        return info.size

    async def commit(
        self, records_: Sequence[SnapshotRecord], *, history: bool = False, told: Told | None = None
    ) -> None:
        self._check_claimed()
        new = [record for record in records_ if not self._is_there(record)]
        if not new:
            return
        newest = max(self._catalog.snapshots, default=SnapshotNumber(0))
        if not history and min(record.number for record in new) < newest:
            raise refuse(Refusal.BAD_REQUEST, f"a snapshot below {newest} is history, and has to be called so")
        for record in new:
            if record.root.number not in self._have or record.last_number not in self._have:
                raise refuse(Refusal.INCOMPLETE, "its root was not sent", missing=[record.root.number])
        fields = [records.to_fields(record) for record in new]
        await self._change(lambda head: bucket.with_changes(head, snapshots=fields, segments=sorted(self._staged)))
        self._staged.clear()
        if len(self._have) > KNOWN_OBJECTS:  # a bit each, and objects come for ever: learnt anew when asked for
            self._have, self._known = NumberSet(), set()
        await self._tidy()

    async def drop(self, numbers: Sequence[SnapshotNumber]) -> None:
        self._check_claimed()
        newest = max(self._catalog.snapshots, default=None)
        wanted = [number for number in numbers if number in self._catalog.snapshots and number != newest]
        if wanted:
            await self._change(lambda head: bucket.with_changes(head, dropped=wanted))
            await self._tidy()

    async def aside(self, after: SnapshotNumber, name: str) -> None:
        self._check_claimed()
        generation = self._head.generation
        foreign = [
            record for record in self._catalog.snapshots.values()
            if record.number > after and record.generation < generation
        ]  # fmt: skip
        told = [Aside(name, records.to_fields(record)) for record in foreign]
        numbers = [record.number for record in foreign]
        if foreign:

            def change(head: Head) -> Head:
                return msgspec.structs.replace(
                    bucket.with_changes(head, dropped=numbers), aside=[*head.aside, *told]
                )

            await self._change(change)

    async def collect(self, live: NumberSet) -> int:
        """Free what is not in `live`, all objects that the snapshots here need; returns bytes freed in the end.

        `live` gains the bases of what is a difference here, though perhaps not at the writer any more: a repair stores
        in full. Called between commits, by the one writer. A segment is rewritten if at least half of it is dead. What
        a branch that was put aside needs is not known to the writer: while there is one, nothing is freed.
        """
        self._check_claimed()
        freed = 0
        infos = self.segments() if not self._head.aside else []
        for info in infos:
            await self._add_bases(info, live)
        for info in infos:
            freed += await self._collect_one(info, live)
        self._have, self._known = NumberSet(), set()
        await self._tidy()
        return freed

    async def _add_bases(self, info: SegmentInfo, live: NumberSet) -> None:
        """Bases have none themselves, and are kept as they are found: one pass is enough."""
        for row in await self.rows(info):
            if not row.base or row.number not in live:
                continue
            live.add(row.base)
            if has_more_bases(row):
                start = row.offset + FRAME_BYTES
                framed = fmt.pack_frame(row.number, row.base, row.kind, row.encoding, row.ordinal, 0, b"")
                payload = await self.read_range(info, start, start + 2 * MORE_BASES.size)
                item = Item(row.proof, fmt.unpack_frame(framed), framed + payload)
                for base in item.base_numbers():
                    live.add(base)

    async def _collect_one(self, info: SegmentInfo, live: NumberSet) -> int:
        rows = await self.rows(info)
        kept = [row for row in rows if row.number in live]
        kept_bytes = sum(FRAME_BYTES + row.stored + ROW_BYTES for row in kept)
        if info.size - kept_bytes < compaction.MIN_DEAD * info.size:
            return 0
        made: list[str] = []
        if kept:
            living = {row.number for row in kept}
            found = _parse_segment(await self.read_segment(info.path), info)
            objects = [each for each in found if each[0].number in living]
            name, pieces = build_segment(self._volume_id, [row for row, _ in objects], [piece for _, piece in objects])
            await self._put_segment(name, pieces, info_of(name).size)
            made = [name]
        await self._change(lambda head: bucket.with_changes(head, segments=made, gone=[info.path]))
        self._garbage.append((self._clock(), segment_path(info.path)))
        return info.size - sum(info_of(name).size for name in made)

    async def keys(self) -> bytes:
        return self._head.keys.encode()

    async def put_keys(self, data: bytes) -> None:
        self._check_claimed()
        await self._change(lambda head: msgspec.structs.replace(head, keys=data.decode()))

    async def put_hot(self, number: SnapshotNumber, data: bytes) -> None:
        """Keep what is used most, in the place of what was kept before; each HOT_SECONDS, since it changes slowly."""
        self._check_claimed()
        path, at_s = bucket.hot_path(self._head.generation, number), self._clock()
        if self._hot and at_s < self._hot_due_s:
            return
        older = await self._list(bucket.HOT) if not self._hot else [self._hot]
        with contextlib.suppress(AlreadyExistsError, FileExistsError):
            await self._put(path, [data])
        self._hot, self._hot_due_s = path, at_s + HOT_SECONDS
        self._garbage += [(self._clock(), each) for each in older if each != path]

    async def free(self, live: NumberSet, snapshots: Sequence[SnapshotNumber]) -> int:
        return await self.collect(live)

    async def close(self) -> None:
        return None

    async def identify(self) -> StoreIdentity:
        """Whose history is here. Raises RefusedError if there is none."""
        try:
            self._count("get")
            answer = await obstore.get_async(self._store, HEAD)
            return _decoded_head(bytes(await answer.bytes_async())).identity
        except (NotFoundError, FileNotFoundError) as error:
            raise bucket_client.no_head(error) from None
        except BaseError as error:
            raise bucket_client.failure(error) from None

    async def rows(self, info: SegmentInfo) -> list[Row]:
        """The table of a segment. Raises RefusedError if it is not the one that the name tells of."""
        start = bucket.table_start(info)
        data = await self._get_range(segment_path(info.path), start, info.size - TRAILER_BYTES)
        if not bucket.table_is_good(info, data):
            raise refuse(Refusal.CORRUPT, f"the table of {info.path} is damaged")
        return [fmt.unpack_row(info.first, data, at) for at in range(0, len(data), ROW_BYTES)]

    async def read_range(self, info: SegmentInfo, start: int, end: int) -> bytes:
        """Bytes of a segment."""
        return await self._get_range(segment_path(info.path), start, end)

    async def read_segment(self, name: str) -> bytes:
        """A whole segment."""
        return await self._get(segment_path(name))

    async def check_invariants(self) -> None:
        """What is in memory is what is there."""
        again = ObjectStoreTarget(self._store)
        again._identity = self._identity
        assert await again._read_head()
        assert again._catalog == self._catalog
        assert again._head == self._head
        for name in self._catalog.segments:
            await again.rows(info_of(name))

    def segments(self) -> list[SegmentInfo]:
        """Those that the head names; `path` is the name."""
        return sorted(self._catalog.segments.values(), key=lambda info: (info.first, info.last))

    # -- the head

    def _state(self) -> TargetState:
        found = self._catalog.snapshots
        ordered = tuple(found[number] for number in sorted(found))
        stored = sum(info.size for info in self._catalog.segments.values())
        return TargetState(Generation(self._head.generation), self._head.holder, ordered, stored_bytes=stored)

    async def _read_head(self) -> bool:
        """Take in the head and the pages that are new; False if there is none."""
        try:
            self._count("get")
            answer = await obstore.get_async(self._store, HEAD)
            data = bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError):
            self._version = None
            return False
        except BaseError as error:
            raise bucket_client.failure(error) from None
        self._version = bucket_client.version_of(answer.meta["e_tag"], answer.meta["version"])
        head = _decoded_head(data)
        self._check_head(head)
        paged = Catalog()
        try:
            for key in head.pages:
                page = bucket.decode_page(await self._get(key), key)
                paged.take(page.snapshots, page.segments)
            self._head, self._paged, self._catalog = head, paged, paged.with_head(head)
        except CorruptionError as error:
            raise refuse(Refusal.CORRUPT, str(error)) from None
        return True

    def _check_head(self, head: Head) -> None:
        assert self._identity is not None
        if head.volume == self._identity.volume_id and head.opaque != self._identity.opaque:
            raise refuse(Refusal.EXISTS, MODE_DIFFERS[Mode.OPAQUE if self._identity.opaque else Mode.PLAIN])
        if head.identity != self._identity:
            raise refuse(Refusal.EXISTS, f"another volume ({head.volume}) is there already: choose another prefix")

    async def _change(self, change: Callable[[Head], Head]) -> None:
        """Replace the head by what `change` makes of it. Raises "fenced" if the claim is another's by then."""
        for _ in range(_HEAD_ATTEMPTS):
            head = msgspec.structs.replace(change(self._head), revision=self._head.revision + 1)
            if await self._try_put_head(head):
                return
            await self._read_head()
            self._check_claimed()
        raise TimeoutError("the head of the object store is changed by somebody else all the time")

    async def _try_put_head(self, head: Head) -> bool:
        try:
            await self._put_head(head)
        except (PreconditionError, AlreadyExistsError, FileExistsError):
            return False
        return True

    async def _put_head(self, head: Head) -> None:
        tail = len(head.snapshots) + len(head.dropped) + len(head.segments) + len(head.gone)
        paged, catalog = self._paged, self._paged.with_head(head)
        if tail > self._tail:
            keys = [await self._put_page(page) for page in catalog.pages()]
            head = msgspec.structs.replace(head, pages=keys, snapshots=[], dropped=[], segments=[], gone=[])
            paged = catalog
        self._count("put")
        try:
            made = await obstore.put_async(
                self._store, HEAD, bucket.encode_head(head), mode=self._version or "create", use_multipart=False
            )
        except (PreconditionError, AlreadyExistsError, FileExistsError):
            raise
        except BaseError as error:
            raise bucket_client.failure(error) from None
        self._garbage += [(self._clock(), key) for key in self._head.pages if key not in head.pages]
        self._version = bucket_client.version_of(made["e_tag"], made["version"])
        self._head, self._paged, self._catalog = head, paged, catalog

    async def _put_page(self, page: Page) -> str:
        key, data = bucket.encode_page(page)
        if key not in self._head.pages:
            await self._put(key, [data])
        return key

    # -- segments

    async def _find_staged(self) -> None:
        """Segments that no head names: parts of a push that was interrupted."""
        for path in await self._list(bucket.SEGMENTS):
            name = path.rpartition("/")[2].removesuffix(fmt.SEGMENT_SUFFIX)
            if name not in self._catalog.segments:
                with contextlib.suppress(ValueError):
                    self._found(name, info_of(name))

    async def _list(self, folder: str) -> list[str]:
        self._count("list")
        try:
            return [meta["path"] async for batch in obstore.list(self._store, folder) for meta in batch]
        except BaseError as error:
            raise bucket_client.failure(error) from None

    def _found(self, name: str, info: SegmentInfo) -> None:
        """A segment that the head does not name: was it merged into another one, or not committed yet?"""
        inside = (
            other.first <= info.first and info.last <= other.last and info.count <= other.count
            for other in self._catalog.segments.values()
        )
        if any(inside):  # if it was not, it is sent again
            self._garbage.append((self._clock(), segment_path(name)))
        else:
            self._staged[name] = info

    async def _learn(self, numbers: NumberSet) -> None:
        """Read the tables of those segments, not read before, that may hold some of these numbers."""
        low, high = min(numbers, default=Number(0)), max(numbers, default=Number(0))
        for name, info in [*self._catalog.segments.items(), *self._staged.items()]:
            if name not in self._known and info.first <= high and info.last >= low:
                self._note(name, (row.number for row in await self.rows(info)))

    def _note(self, name: str, numbers: Iterable[Number]) -> None:
        for number in numbers:
            self._have.add(number)
        self._known.add(name)

    async def _put_segment(self, name: str, pieces: list[bytes], size: int) -> None:
        path = segment_path(name)
        try:
            await self._put(path, pieces, size)
        except (AlreadyExistsError, FileExistsError):
            return  # the answer to an earlier put of the very same was lost

    async def _tidy(self) -> None:
        """Merge what is due, and remove what nobody needs. Nothing of it fails the commit that it comes after."""
        try:
            while run := compaction.due_merge(self.segments()):
                await self._merge(run)
            await self._remove_garbage()
        except (OSError, BaseError, SnapfsError) as error:
            log.warning("object store: tidying up is left for later: %s", error)

    async def _merge(self, run: list[SegmentInfo]) -> None:
        parts = [_parse_segment(await self.read_segment(info.path), info) for info in run]
        merged: dict[int, tuple[Row, bytes]] = {row.number: (row, framed) for part in parts for row, framed in part}
        objects = [merged[number] for number in sorted(merged)]
        rows, framed = [row for row, _ in objects], [piece for _, piece in objects]
        name, pieces = await asyncio.to_thread(build_segment, self._volume_id, rows, framed)
        await self._put_segment(name, pieces, info_of(name).size)
        gone = [info.path for info in run]
        self._known.add(name)
        await self._change(lambda head: bucket.with_changes(head, segments=[name], gone=gone))
        self._garbage += [(self._clock(), segment_path(each)) for each in gone]

    async def _remove_garbage(self) -> None:
        due = [key for at_s, key in self._garbage if at_s + GRACE_SECONDS <= self._clock()]
        self._garbage = [(at_s, key) for at_s, key in self._garbage if at_s + GRACE_SECONDS > self._clock()]
        if due:
            self._count("delete")
            await obstore.delete_async(self._store, due)

    # -- requests

    async def _put(self, key: str, pieces: list[bytes], size: int = 0) -> None:
        self._count("put")
        data = b"".join(pieces)
        try:
            if size > MULTIPART_BYTES:
                await obstore.put_async(self._store, key, data, use_multipart=True, chunk_size=MULTIPART_BYTES)
            else:
                await obstore.put_async(self._store, key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, FileExistsError):
            raise
        except BaseError as error:
            raise bucket_client.failure(error) from None

    async def _get(self, key: str) -> bytes:
        self._count("get")
        try:
            answer = await obstore.get_async(self._store, key)
            return bytes(await answer.bytes_async())
        except (NotFoundError, FileNotFoundError):
            raise refuse(Refusal.NOT_FOUND, f"{key} is missing in the object store, though the head names it") from None
        except BaseError as error:
            raise bucket_client.failure(error) from None

    async def _get_range(self, key: str, start: int, end: int) -> bytes:
        self._count("get")
        try:
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))
        except (NotFoundError, FileNotFoundError):
            raise refuse(Refusal.NOT_FOUND, f"{key} is missing in the object store, though the head names it") from None
        except BaseError as error:
            raise bucket_client.failure(error) from None

    # -- small things

    @property
    def _volume_id(self) -> str:
        assert self._identity is not None, "open comes first"
        return self._identity.volume_id

    def _count(self, kind: str) -> None:
        self.requests[kind] = self.requests.get(kind, 0) + 1

    def _is_there(self, record: SnapshotRecord) -> bool:
        there = self._catalog.snapshots.get(record.number)
        if there is not None and there.root != record.root:
            raise refuse(Refusal.DIVERGED, f"another snapshot {record.number} is there", snapshot=record.number)
        return there is not None

    def _check_claimed(self) -> None:
        if self._claim is None:
            raise refuse(Refusal.UNCLAIMED, "no generation has been claimed")
        if self._claim != (self._head.generation, self._head.holder):
            raise self._fenced(self._claim[0])

    def _fenced(self, generation: Generation) -> Exception:
        return self._head.fenced(generation)


def _parse_segment(data: bytes, info: SegmentInfo) -> list[tuple[Row, bytes]]:
    """The objects of a segment, each frame checked. Raises CorruptionError."""
    trailer = fmt.unpack_trailer(data[-TRAILER_BYTES:], info.path)
    found = []
    for index in range(trailer.rows):
        row = fmt.unpack_row(trailer.first, data, trailer.table_offset + index * ROW_BYTES)
        framed = data[row.offset : row.offset + FRAME_BYTES + row.stored]
        if not fmt.frame_is_good(framed):
            raise refuse(Refusal.CORRUPT, f"object {row.number:#x} in {info.path} is damaged", number=row.number)
        found.append((row, framed))
    return found


def _decoded_head(data: bytes) -> Head:
    try:
        return bucket.decode_head(data)
    except VersionError as error:
        raise refuse(Refusal.VERSION, str(error)) from None
    except CorruptionError as error:
        raise refuse(Refusal.CORRUPT, str(error)) from None
