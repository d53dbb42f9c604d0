"""Pages of the catalog: what the head does not name itself, in immutable objects named by their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import msgspec
import zstandard

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.bucket.bucket_layout import CATALOG
from snapfs.store.bucket.head_object import Head
from snapfs.store.bucket.segment_names import info_of
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol.refusals import RefusedError
from snapfs.store.protocol.wire_fields import decode_record

PAGE_BITS: Final = 12

_PAGE_BYTES: Final = 1 << 30


class Page(msgspec.Struct, omit_defaults=True):
    """catalog/...: a part of what the head names."""

    snapshots: list[dict[str, Any]] = []
    segments: list[str] = []
    salt: str = ""


def decode_page(data: bytes, key: str) -> Page:
    """Raises CorruptionError."""
    try:
        if zstandard.frame_content_size(data) > _PAGE_BYTES:
            raise ValueError("no page is so large")
        plain = zstandard.ZstdDecompressor().decompress(data, _PAGE_BYTES)
        if page_key(plain) != key:
            raise ValueError("its content does not have the hash in its name")
        return msgspec.json.decode(plain, type=Page)
    except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise CorruptionError(key, "the object store", str(error)) from None


def encode_page(page: Page) -> tuple[str, bytes]:
    """Its key, and the object."""
    plain = msgspec.json.encode(page)
    return page_key(plain), zstandard.ZstdCompressor(level=3).compress(plain)


def unsalted(page: Page) -> bytes:
    """The same for two pages with the same entries."""
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(page, salt=""))).digest()


def page_key(plain: bytes) -> str:
    return f"{CATALOG}/{hashlib.sha256(plain).hexdigest()}.zst"


@dataclass(slots=True)
class BucketCatalog:
    """All that a head and its pages name."""

    snapshots: dict[SnapshotNumber, SnapshotRecord] = field(default_factory=dict)
    segments: dict[str, SegmentInfo] = field(default_factory=dict)
    received_ns: dict[SnapshotNumber, int] = field(default_factory=dict)
    """When each snapshot was committed, by the store's clock; not known of those of earlier versions."""

    def with_head(self, head: Head) -> BucketCatalog:
        """What there is, if these are the pages of this head. Raises CorruptionError."""
        found = BucketCatalog(dict(self.snapshots), dict(self.segments), dict(self.received_ns))
        for number in head.dropped:
            found.snapshots.pop(SnapshotNumber(number), None)
            found.received_ns.pop(SnapshotNumber(number), None)
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
                if isinstance(received_ns := fields.get("received_ns"), int):
                    self.received_ns[record.number] = received_ns
            self.segments.update((name, info_of(name)) for name in segments)
        except (RefusedError, ValueError) as error:
            raise CorruptionError("the catalog", "the object store", str(error)) from None

    def pages(self) -> list[Page]:
        """Everything, cut in such a way that most pages stay as they are when something is added at the end."""
        ordered = sorted(self.snapshots)
        found = [
            Page([self._fields(number) for number in numbers])
            for _, numbers in groupby(ordered, key=lambda number: number >> PAGE_BITS)
        ]
        return [*found, Page([], sorted(self.segments))] if self.segments else found

    def _fields(self, number: SnapshotNumber) -> dict[str, Any]:
        return entry(self.snapshots[number], self.received_ns.get(number))


def entry(record: SnapshotRecord, received_ns: int | None) -> dict[str, Any]:
    """A snapshot as the head and the pages name it."""
    fields = snapshot_records.to_fields(record)
    return fields if received_ns is None else {**fields, "received_ns": received_ns}
