"""What a volume is in an object store (S3 and kin): the names of the objects, and the head. No I/O.

Below the prefix of the URL:
    head.json                the only object that is ever replaced, by a put on condition that it is still the one read
    catalog/<SHA-256>.zst    immutable pages (JSON, zstd) of what the head does not name itself
    segments/<name>.seg      immutable segments (format.py), each of one part, or of several merged ones
    hot/<name>               what was used most (wire.py: HOT LIST) when a snapshot came: a hint. The name is generation
                             (4 hex digits) and number (16) of the snapshot, joined by "-"; only the newest is kept

A segment's name tells all that its trailer does: first and last number (16 hex digits each), rows, size in bytes, and
the first 16 hex digits of its table's SHA-256, joined by "-". So a reader that knows the names finds any object with
ranged reads of tables alone. The ranges of two segments may overlap: an object is in any of those whose range has its
number, and if in several it is the same in all.

HEAD: {"format": 1, "volume", "seed" (hex), "generation", "holder", "revision", "pages": [keys], "snapshots": [fields
of records], "dropped": [numbers], "segments": [names], "gone": [names], "aside": [{"branch", "record"}]}; of an
encrypted volume also {"opaque": true, "keys": keys.json as text}, the seed is 0 then. The snapshots and segments there
are: those of all pages, less `dropped` and `gone`, plus those of the head. What was put aside is in the history no
more; its objects stay.

PAGE: {"snapshots": [fields of records], "segments": [names]}. In the order of the head's `pages`: those of snapshots,
each of 2^PAGE_BITS numbers, ascending; at the end one with all segments. Who wants the newest snapshots and any object
reads the last few pages, however long the history is.

Invariants:
1. The put of the head is the commit point: it names only segments and pages that are there, whole. Whoever replaces it
   does so on condition that it is the one he read; so the claim of a generation in it fences off all others.
2. Everything else is immutable. What no head names any more is removed an hour later, at the earliest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Any, Final

import msgspec
import zstandard
from msgspec import Meta

from snapfs.blocks import Generation, Number, SnapshotNumber
from snapfs.errors import CorruptionError, VersionError
from snapfs.store import format as fmt
from snapfs.store import records
from snapfs.store.format import HEADER_BYTES, ROW_BYTES, TRAILER_BYTES
from snapfs.store.index import SegmentInfo
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.wire import Refusal, RefusedError, decode_record, refuse

FORMAT: Final = 1
HEAD: Final = "head.json"
SEGMENTS: Final = "segments"
HOT: Final = "hot"
PAGE_BITS: Final = 12
SCHEMES: Final = ("s3", "gs", "az")
_PAGE_BYTES: Final = 1 << 30


class Aside(msgspec.Struct, frozen=True):
    """A snapshot that is no part of the history any more."""

    branch: str
    record: dict[str, Any]


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """head.json."""

    format: int
    volume: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    seed: Annotated[str, Meta(pattern="^[0-9a-f]{1,16}$")]
    generation: Annotated[int, Meta(ge=0, le=0xFFFF)] = 0
    holder: Annotated[str, Meta(max_length=256)] = ""
    revision: int = 0
    pages: list[str] = []
    snapshots: list[dict[str, Any]] = []
    dropped: list[int] = []
    segments: list[str] = []
    gone: list[str] = []
    aside: list[Aside] = []
    opaque: bool = False
    keys: str = ""

    @property
    def identity(self) -> StoreIdentity:
        return StoreIdentity(self.volume, int(self.seed, 16), self.opaque)

    def claimed(self, generation: Generation, holder: str) -> Head:
        """The head in which this generation is claimed. RefusedError ("fenced") if a newer one, or another holder of
        this one, is the writer."""
        if generation < self.generation or (generation == self.generation and self.holder not in ("", holder)):
            raise self.fenced(generation)
        return msgspec.structs.replace(self, generation=generation, holder=holder)

    def fenced(self, generation: Generation) -> Exception:
        """What to tell whoever claimed `generation`, and is the writer no more."""
        return refuse(
            Refusal.FENCED, f"generation {self.generation} of {self.holder} writes there; {generation} is fenced off",
            generation=self.generation, holder=self.holder,
        )  # fmt: skip


class Page(msgspec.Struct, omit_defaults=True):
    """catalog/...: a part of what the head names."""

    snapshots: list[dict[str, Any]] = []
    segments: list[str] = []


class _Format(msgspec.Struct):
    format: int


def decode_head(data: bytes) -> Head:
    """Raises VersionError for a later format, CorruptionError for anything else that is none."""
    try:
        told = msgspec.json.decode(data, type=_Format).format
        if told > FORMAT:
            raise VersionError(f"{HEAD} there has format {told}; this snapfs reads up to {FORMAT}: use a newer snapfs")
        return msgspec.json.decode(data, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptionError(HEAD, "the object store", str(error)) from None


def encode_head(head: Head) -> bytes:
    return msgspec.json.encode(head)


def decode_page(data: bytes, key: str) -> Page:
    """Raises CorruptionError."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(data, _PAGE_BYTES)
        if page_key(plain) != key:
            raise ValueError("its content is not what its name says")
        return msgspec.json.decode(plain, type=Page)
    except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise CorruptionError(key, "the object store", str(error)) from None


def encode_page(page: Page) -> tuple[str, bytes]:
    """Its key, and the object."""
    plain = msgspec.json.encode(page)
    return page_key(plain), zstandard.ZstdCompressor(level=3).compress(plain)


def page_key(plain: bytes) -> str:
    return f"catalog/{hashlib.sha256(plain).hexdigest()}.zst"


def segment_name(first: int, last: int, rows: int, size: int, table_hash: bytes) -> str:
    return f"{first:016x}-{last:016x}-{rows}-{size}-{table_hash.hex()[:16]}"


def segment_path(name: str) -> str:
    return f"{SEGMENTS}/{name}{fmt.SEGMENT_SUFFIX}"


def info_of(name: str) -> SegmentInfo:
    """What a segment's name tells; `path` is the name. Raises ValueError."""
    first, last, rows, size, _ = name.split("-")
    info = SegmentInfo(name, Number(int(first, 16)), Number(int(last, 16)), int(rows), int(size))
    is_possible = 0 < info.first <= info.last < 1 << 64 and 0 < info.count <= info.last - info.first + 1
    if not is_possible or table_start(info) < HEADER_BYTES:
        raise ValueError(f"{name}: there can be no such segment")
    return info


def hot_path(generation: int, number: int) -> str:
    return f"{HOT}/{generation:04x}-{number:016x}"


def newest_hot(paths: Iterable[str], generation: int, number: int) -> str | None:
    """The list that came with this snapshot, or else the last one before it. Names sort as what they name."""
    names = {path.rpartition("/")[2]: path for path in paths}
    most = hot_path(generation, number).rpartition("/")[2]
    found = max((name for name in names if name <= most), default=None)
    return names[found] if found is not None else None


def table_start(info: SegmentInfo) -> int:
    """Where the table begins, which is where the frames end."""
    return info.size - TRAILER_BYTES - info.count * ROW_BYTES


def table_is_good(info: SegmentInfo, table: bytes) -> bool:
    """Whether this is the whole table that the name tells of."""
    return hashlib.sha256(table).hexdigest()[:16] == info.path.rpartition("-")[2]


@dataclass(slots=True)
class Catalog:
    """All that a head and its pages name."""

    snapshots: dict[SnapshotNumber, SnapshotRecord] = field(default_factory=dict)
    segments: dict[str, SegmentInfo] = field(default_factory=dict)

    def with_head(self, head: Head) -> Catalog:
        """What there is, if these are the pages of this head. Raises CorruptionError."""
        found = Catalog(dict(self.snapshots), dict(self.segments))
        for number in head.dropped:
            found.snapshots.pop(SnapshotNumber(number), None)
        for name in head.gone:
            found.segments.pop(name, None)
        found.take(head.snapshots, head.segments)
        return found

    def take(self, snapshots: Iterable[dict[str, Any]], segments: Iterable[str]) -> None:
        """Raises CorruptionError."""
        try:
            for fields in snapshots:
                record = decode_record(fields)
                self.snapshots[record.number] = record
            self.segments.update((name, info_of(name)) for name in segments)
        except (RefusedError, ValueError) as error:
            raise CorruptionError("the catalog", "the object store", str(error)) from None

    def pages(self) -> list[Page]:
        """Everything, cut in such a way that most pages stay as they are when something is added at the end."""
        ordered = sorted(self.snapshots)
        found = [
            Page([records.to_fields(self.snapshots[number]) for number in numbers])
            for _, numbers in groupby(ordered, key=lambda number: number >> PAGE_BITS)
        ]
        return [*found, Page([], sorted(self.segments))] if self.segments else found


def with_changes(
    head: Head,
    snapshots: Sequence[dict[str, Any]] = (),
    segments: Sequence[str] = (),
    dropped: Sequence[int] = (),
    gone: Sequence[str] = (),
) -> Head:
    """The head with this added. What it names itself and what is taken away cancel out."""
    away, lost = set(dropped), set(gone)
    kept = [fields for fields in head.snapshots if fields["number"] not in away]
    names = [name for name in head.segments if name not in lost]
    own = {fields["number"] for fields in head.snapshots}, set(head.segments)
    return msgspec.structs.replace(
        head,
        snapshots=[*kept, *snapshots],
        segments=[*names, *(name for name in segments if name not in names)],
        dropped=[*head.dropped, *(number for number in dropped if number not in own[0])],
        gone=[*head.gone, *(name for name in gone if name not in own[1])],
    )
