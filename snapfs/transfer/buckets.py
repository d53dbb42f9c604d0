"""An object store as a source: what snapfs/store/bucket.py describes, read by ranges, and the claim.

What a mount needs first is the head, the last few pages of the catalog, and the end of the newest segment, where the
newest tables are: so many requests whatever is there. After that an object costs a page of a table, unless that is
known, and a range of a segment, which it shares with what lies near it. What lies right before a table comes along
with it: a small segment is one request.

Requests come from any number of threads; several of one caller are under way at the same time.

Invariants:
1. What is told of the head is never older than the question (`origin`, `snapshots`), and no claim succeeds but on the
   head that is there. For objects an older one does, since segments are immutable: when one is gone, or a number is not
   found, the head is read anew.
2. Nothing is changed here but the generation in the head, by a put on condition that it is the head that was judged.
3. What comes went through the parser that a mirror's answers go through (store/stream.py), and is checked by the
   fetcher. What is damaged is named in the log and left out: then it is asked for elsewhere.
4. A request is repeated by itself for RETRY_S at most; the rest is the fetcher's.
5. Memory: GROUP_BYTES of objects a caller (with their bases), what is kept of tables and ends of segments, and the
   names of all segments.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from snapfs.blocks import Generation, Number
from snapfs.store import bucket, bucket_client, codec, stream
from snapfs.store.bucket import HEAD, Catalog, Head, Page
from snapfs.store.bucket_tables import Ends, PageKey, Place, Segments, Tables, rows_of_page
from snapfs.store.format import (
    FRAME_BYTES,
    HEADER_BYTES,
    SHIFT_BASES,
    Encoding,
    Kind,
    Pointer,
    Row,
)
from snapfs.store.index import SegmentInfo
from snapfs.store.objects import has_more_bases
from snapfs.store.records import SnapshotRecord
from snapfs.store.stream import Item
from snapfs.store.wire import MAX_SEALED_HOT_BYTES, Hot, Refusal, RefusedError, Run, refuse, runs_of, unpack_hot
from snapfs.transfer.remote import CONNECT_S, SILENCE_S, Access
from snapfs.transfer.sources import Origin, needs_key

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

log = logging.getLogger(__name__)

REQUESTS: Final = 8
"""Under way at a time, for all callers that have several."""
RETRY_S: Final = 3
PAGES_READ: Final = 3
"""The last so many pages of the catalog: all segments, and if there are so many the newest 4,096 snapshots."""
GAP_BYTES: Final = 64 << 10
"""What lies no farther apart is read in one request, with what is between."""
PIECE_BYTES: Final = 1 << 20
GROUP_BYTES: Final = 8 << 20
TAIL_BYTES: Final = 512 << 10
"""What comes along with a table, of what is before it."""
ENDS_BYTES: Final = 32 << 20
CLAIMS: Final = 20
LOOKS: Final = 4
"""Attempts, where others change the head all the time."""
_WAITS: Final = {"connect_timeout": f"{CONNECT_S:.0f}s", "read_timeout": f"{SILENCE_S:.0f}s", "timeout": "300s"}


class _GoneError(OSError):
    """A segment or page is not there (any more)."""


class _Known(NamedTuple):
    """What was read last."""

    head: Head
    version: UpdateVersion
    segments: Segments
    snapshots: list[SnapshotRecord]

    @property
    def newest(self) -> SnapshotRecord | None:
        return self.snapshots[-1] if self.snapshots else None


class BucketSource:
    """A volume in an object store, named by ``s3://BUCKET/PREFIX`` (gs, az)."""

    is_near = False

    def __init__(self, name: str, store: ObjectStore) -> None:
        """Nothing is asked yet."""
        self.name, self._store = name, store
        self._pool = ThreadPoolExecutor(REQUESTS, "bucket")
        self._tables = Tables(self._read_table, self._pool)
        self._ends = Ends(ENDS_BYTES)
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._pages: dict[str, Page] = {}
        self.requests: Counter[str] = Counter()
        """How many of which kind; requests are what object stores charge for."""

    @staticmethod
    def open(url: str, access: Access) -> BucketSource:
        """UserError for a URL or an access that cannot be."""
        store = bucket_client.open_bucket(
            url, access.options, access.token_file or "", waits=_WAITS, retry_s=RETRY_S, or_token=True
        )
        return BucketSource(url, store)

    # -- what it tells

    def origin(self) -> Origin:
        found = self.opaque_origin()
        if found.identity.opaque:
            raise needs_key(self.name)
        return found

    def opaque_origin(self) -> Origin:
        """The same of a volume that may be encrypted."""
        known = self._look()
        newest = known.newest.generation if known.newest is not None else 1
        return Origin(known.head.identity, Generation(max(known.head.generation, newest)), known.newest)

    def writer(self) -> tuple[str, Generation, str]:
        """Volume, and the generation that was claimed last (0: none), with its holder."""
        head = self._look().head
        return head.volume, Generation(head.generation), head.holder

    def snapshots(self) -> list[SnapshotRecord]:
        """Of a very long history the newest few thousand."""
        return list(self._look().snapshots)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return unpack_hot(self.hot_bytes(record))

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The list as it was sent, which of an encrypted volume is ciphertext."""
        import obstore

        self.requests["list"] += 1
        with self._asking():
            there = {meta["path"]: meta["size"] for batch in obstore.list(self._store, bucket.HOT) for meta in batch}
        path = bucket.newest_hot(there, record.generation, record.number)
        if path is None or there[path] > MAX_SEALED_HOT_BYTES:
            return b""
        with contextlib.suppress(_GoneError):  # another one has taken its place
            return self._read_whole(path)
        return b""

    def keys(self) -> bytes:
        return b""

    def wrapped_keys(self) -> bytes:
        """Of an encrypted volume."""
        return self._look().head.keys.encode()

    # -- objects

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        places = self._locate({pointer.number for pointer in pointers})
        if bases:
            places |= self._locate({place.row.base for place in places.values()} - places.keys())
        sent: set[Number] = set()
        for group in _groups(sorted({pointer.number for pointer in pointers} & places.keys()), places):
            wanted = {*group, *(places[number].row.base for number in group if bases)} & places.keys()
            items = self._items([places[number] for number in wanted if number not in sent])
            if bases:
                more = {base for item in items.values() for base in _bases(item)} - items.keys() - sent
                found = self._locate(more - places.keys()) | {number: places[number] for number in more & places.keys()}
                items |= self._items(found.values())
            sent |= items.keys()
            yield from (items[number] for number in sorted(items))  # bases have lower numbers

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        numbers = (Number(number) for first, last in runs for number in range(first, last + 1))
        places = self._locate(set(numbers)).values()
        found = {place.row.base for place in places}
        heads = [
            Place(place.info, place.row._replace(stored=min(place.row.stored, SHIFT_BASES.size)))
            for place in places if has_more_bases(place.row)
        ]  # fmt: skip
        for place, framed in self._read_all(heads):
            with contextlib.suppress(codec.DecodeError):
                found |= set(_more_bases(place.row, framed[FRAME_BYTES:]))
        return list(runs_of(sorted(found - {0})))

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        """In one request: pages at the end of the segment with the root, which is where those of its snapshot lie."""
        around = self._now().segments.around(record.root.number)
        info = max(around, key=lambda info: (info.last, -info.count), default=None)
        if info is None:
            return
        last = PageKey(info, (info.count - 1) // rows_of_page(info))
        given: set[Number] = {Number(0)}
        for row in self._tables.pages([last])[info.path, last.page].rows():
            framed = self._ends.get(info.path, row.offset, Place(info, row).end)
            is_page = framed is not None and row.kind != Kind.CHUNK and row.number <= record.last_number
            if framed is not None and is_page and row.base in given and not has_more_bases(row):
                item = _parsed(self.name, row, framed)
                if item is not None:
                    given.add(row.number)
                    yield item

    # -- what changes something there

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        for attempt in range(CLAIMS):
            known = self._look() if attempt else self._now()  # an old one is refused by the put
            head = known.head.claimed(generation, holder)
            if (attempt and head == known.head) or (head != known.head and self._replaced(known, head)):
                return
        raise OSError(f"{self.name}: the head is changed by others all the time")

    def _replaced(self, known: _Known, head: Head) -> bool:
        """Put the head in the place of the known one; False if somebody else has changed that."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self.requests["put"] += 1
        with self._lock, self._asking():
            try:
                made = obstore.put(
                    self._store, HEAD, bucket.encode_head(head), mode=known.version, use_multipart=False
                )
            except (PreconditionError, AlreadyExistsError):
                return False
            self._known = known._replace(
                head=head, version=bucket_client.version_of(made["e_tag"], made["version"])
            )
        return True

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        """An object store knows no holds. The newest snapshot is not dropped there but by the next writer."""

    def close(self) -> None:
        self._pool.shutdown(wait=True)  # what waits for something that was cancelled would wait for ever

    # -- the head

    def _now(self) -> _Known:
        """What is known, of any time."""
        known = self._known
        return known if known is not None else self._look()

    def _look(self) -> _Known:
        """What is there now. RefusedError ("not found"), VersionError, CorruptionError, OSError."""
        with self._lock:
            for _ in range(LOOKS):
                read = self._read_head(self._known)
                if read is None:
                    assert self._known is not None
                    return self._known
                try:
                    self._known = self._understood(*read)
                except _GoneError:  # a page that another head does not name any more
                    self._known = None
                    continue
                return self._known
        raise OSError(f"{self.name}: the catalog is changed all the time")

    def _read_head(self, known: _Known | None) -> tuple[Head, UpdateVersion] | None:
        """None if it is the known one."""
        import obstore
        from obstore.exceptions import BaseError, NotFoundError, NotModifiedError

        e_tag = known.version.get("e_tag") if known is not None else None
        self.requests["head"] += 1
        try:
            answer = obstore.get(self._store, HEAD, options={"if_none_match": e_tag} if e_tag else {})
            data = bytes(answer.bytes())
        except NotModifiedError:
            return None
        except (NotFoundError, FileNotFoundError) as error:
            raise bucket_client.no_head(error) from None
        except BaseError as error:
            raise self._failure(error) from None
        meta = answer.meta
        return bucket.decode_head(data), bucket_client.version_of(meta["e_tag"], meta["version"])

    def _understood(self, head: Head, version: UpdateVersion) -> _Known:
        keys = head.pages[-PAGES_READ:]
        new = [key for key in keys if key not in self._pages]
        for key, data in zip(new, self._pool.map(self._read_whole, new), strict=True):
            self._pages[key] = bucket.decode_page(data, key)
        self._pages = {key: self._pages[key] for key in keys}
        paged = Catalog()
        for page in self._pages.values():
            paged.take(page.snapshots, page.segments)
        catalog = paged.with_head(head)
        ordered = [catalog.snapshots[number] for number in sorted(catalog.snapshots)]
        return _Known(head, version, Segments(catalog.segments.values()), ordered)

    # -- finding and reading

    def _locate(self, numbers: set[Number]) -> dict[Number, Place]:
        """Where those are that are there, by what is known of the head, or else by what it is now."""
        wanted = {number for number in numbers if number}
        if not wanted:
            return {}
        known, found = self._now(), {}
        with contextlib.suppress(_GoneError):
            found = self._tables.locate(known.segments, sorted(wanted))
        if len(found) < len(wanted) and self._look() is not known:
            found |= self._tables.locate(self._now().segments, sorted(wanted - found.keys()))
        return found

    def _items(self, places: Iterable[Place]) -> dict[Number, Item]:
        found: dict[Number, Item] = {}
        for place, framed in self._read_all(places):
            item = _parsed(self.name, place.row, framed)
            if item is not None:
                found[place.row.number] = item
        return found

    def _read_all(self, places: Iterable[Place]) -> list[tuple[Place, bytes]]:
        """What lies at these places; where segments were merged meanwhile, at those that it has now."""
        places = list(places)
        try:
            return self._read_pieces(places)
        except _GoneError:
            self._look()
        stored = {place.row.number: place.row.stored for place in places}
        moved = self._tables.locate(self._now().segments, sorted(stored))
        return self._read_pieces(
            [Place(at.info, at.row._replace(stored=stored[number])) for number, at in moved.items()]
        )

    def _read_pieces(self, places: Iterable[Place]) -> list[tuple[Place, bytes]]:
        pieces = list(_pieces(places))
        if len(pieces) < 2:
            return [found for piece in pieces for found in self._read_piece(piece)]
        return [found for read in list(self._pool.map(self._read_piece, pieces)) for found in read]

    def _read_piece(self, piece: list[Place]) -> list[tuple[Place, bytes]]:
        info, start, end = piece[0].info, piece[0].row.offset, max(place.end for place in piece)
        data = self._ends.get(info.path, start, end) or self._read_range(info, start, end)
        return [(place, data[place.row.offset - start : place.end - start]) for place in piece]

    def _read_table(self, info: SegmentInfo, start: int, end: int) -> bytes:
        """A page of a table; with it, what lies before the table, if that is what the page begins with."""
        table = bucket.table_start(info)
        if end - table > TAIL_BYTES:
            return self._read_range(info, start, end)
        before = max(HEADER_BYTES, table - TAIL_BYTES)
        data = self._read_range(info, before, end)
        self._ends.add(info.path, before, data[: table - before])
        return data[start - before :]

    def _read_range(self, info: SegmentInfo, start: int, end: int) -> bytes:
        import obstore

        self.requests["range"] += 1
        with self._asking():
            return bytes(obstore.get_range(self._store, bucket.segment_path(info.path), start=start, end=end))

    def _read_whole(self, key: str) -> bytes:
        import obstore

        self.requests["page"] += 1
        with self._asking():
            return bytes(obstore.get(self._store, key).bytes())

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Failures as those of a source."""
        from obstore.exceptions import BaseError, NotFoundError

        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise _GoneError(f"{self.name}: {bucket_client.words(error)}") from None
        except BaseError as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Exception:
        found = bucket_client.failure(error)
        if isinstance(found, RefusedError):
            return refuse(found.refusal or Refusal.INTERNAL, f"{self.name}: {found}")
        return OSError(f"{self.name}: {bucket_client.words(error)}")


def _groups(numbers: Iterable[Number], places: dict[Number, Place]) -> Iterator[list[Number]]:
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


def _pieces(places: Iterable[Place]) -> Iterator[list[Place]]:
    """What is read in one request each: near each other, at most PIECE_BYTES but for a larger object."""
    ordered = sorted(places, key=lambda place: (place.info.path, place.row.offset))
    for _, of_one in groupby(ordered, key=lambda place: place.info.path):
        piece: list[Place] = []
        for place in of_one:
            start = place.row.offset
            if piece and (place.end - piece[0].row.offset > PIECE_BYTES or start - piece[-1].end > GAP_BYTES):
                yield piece
                piece = []
            piece.append(place)
        yield piece


def _parsed(name: str, row: Row, framed: bytes) -> Item | None:
    """The object, None if it is damaged or another one."""
    parser = stream.StreamParser(allow_absent=False)
    with contextlib.suppress(RefusedError):
        items = [*parser.feed(stream.stream_header() + row.proof + framed)]
        if len(items) == 1 and items[0].frame.number == row.number:
            return items[0]
    log.error("object %#x is damaged at %s; it is not taken", row.number, name)
    return None


def _bases(item: Item) -> tuple[Number, ...]:
    with contextlib.suppress(codec.DecodeError):
        return item.base_numbers()
    return ()


def _more_bases(row: Row, payload: bytes) -> Sequence[Any]:
    """Those that the payload names. Raises codec.DecodeError."""
    if row.encoding == Encoding.SEALED:
        return codec.sealed_bases(payload, row.ordinal)
    return codec.shift_neighbours(payload)
