"""Names of segments in an object store: they hold all that a trailer does (bucket_layout.py has the layout)."""

from __future__ import annotations

import hashlib

from snapfs.base.blocks import Number
from snapfs.store.bucket.bucket_layout import SEGMENTS
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import HEADER_BYTES, ROW_BYTES, TRAILER_BYTES
from snapfs.store.objects.segment_index import SegmentInfo

SENT, MADE = "s", "m"


def segment_name(first: int, last: int, rows: int, size: int, table_hash: bytes, mark: str) -> str:
    """`mark`: SENT or MADE, and the writer's salt."""
    return f"{first:016x}-{last:016x}-{rows}-{size}-{table_hash.hex()[:16]}-{mark}"


def was_sent(name: str) -> bool:
    """Whether a segment came from a writer as it is; not known of the names of format 1."""
    return name.rpartition("-")[2].startswith(SENT)


def segment_path(name: str) -> str:
    return f"{SEGMENTS}/{name}{fmt.SEGMENT_SUFFIX}"


def info_of(name: str) -> SegmentInfo:
    """The fields of a segment's name; `path` is the name. Raises ValueError."""
    first, last, rows, size, _, *mark = name.split("-")
    if len(mark) > 1:
        raise ValueError(f"{name}: no segment has such a name")
    info = SegmentInfo(name, Number(int(first, 16)), Number(int(last, 16)), int(rows), int(size))
    is_possible = 0 < info.first <= info.last < 1 << 64 and 0 < info.count <= info.last - info.first + 1
    if not is_possible or table_start(info) < HEADER_BYTES:
        raise ValueError(f"{name}: there can be no such segment")
    return info


def table_start(info: SegmentInfo) -> int:
    """Where the table begins, which is where the frames end."""
    return info.size - TRAILER_BYTES - info.count * ROW_BYTES


def table_is_good(info: SegmentInfo, table: bytes) -> bool:
    """Whether this is the whole table whose hash is in the name."""
    return hashlib.sha256(table).hexdigest()[:16] == info.path.split("-")[4]
