"""Snapshots that are whole in their segments and have no record in snapshots.log: found, checked, rebuilt.

The last object of a snapshot's segment is a copy of its record (format.py: RECORD). So a segment that is newer than
the log is a snapshot, if it checks out. Either a crash came between the fsync of the segment and that of the log, and
no caller was answered; or the log has lost its end, and one was. The two cannot always be distinguished, and need not
be: all that makes the snapshot is durable and verified, so it exists (promise 3), and its caller, which got no
answer, can lose nothing by that. What does not check out is debris, and is renamed: it is never deleted, for it may be
the last copy of something that was acknowledged.

Invariants:
1. A record is only rebuilt from an object that has its content hash, in a segment whose table has its SHA-256 and of
   whose frames each has its checksum; its root reads back, and its numbers are above all in the log.
2. Nothing here changes anything.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import ObjectKind, Row
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_reader import SegmentReader


@dataclass(frozen=True, slots=True)
class Stray:
    """A segment of which the log knows nothing. `record`: of the snapshot that it is; None with the reason `why`."""

    info: SegmentInfo
    record: SnapshotRecord | None
    why: str = ""


def strays(index: SegmentIndex, objects: Objects, last_number: Number) -> list[Stray]:
    """The segments above `last_number`, the highest object number in the log, ascending. Raises OSError."""
    return [_judged(info, index, objects) for info in index.segments() if info.first > last_number]


def records_above(index: SegmentIndex, objects: Objects, last_number: Number) -> list[SnapshotRecord]:
    """The records in the segments whose numbers are above `last_number`, ascending; of a segment that is damaged none.

    That a snapshot is whole is not checked.
    """
    found = []
    for info in index.segments():
        if info.last > last_number and not info.damage:
            with contextlib.suppress(CorruptionError):
                reader = index.reader(info.first)
                rows = [row for row in (reader.rows() if reader is not None else ()) if row.kind == ObjectKind.RECORD]
                found += [record_of(row, objects) for row in rows if row.number > last_number]
    return sorted((record for record in found if record is not None), key=lambda record: record.number)


def record_of(row: Row, objects: Objects) -> SnapshotRecord | None:
    """The record whose copy this object is, None if it cannot be read or is none."""
    with contextlib.suppress(CorruptionError, msgspec.MsgspecError, UnicodeDecodeError, TypeError, ValueError):
        _, plain = objects.read_uncached(row.number)
        record = snapshot_records.from_fields(msgspec.json.decode(plain))
        return record if record.last_number == row.number else None
    return None


def _judged(info: SegmentInfo, index: SegmentIndex, objects: Objects) -> Stray:
    if info.damage:
        return Stray(info, None, info.damage)
    try:
        reader = SegmentReader(info.path)
        reader.check_table()
        last = deque(_checked_rows(reader), maxlen=1)
        row = last[0] if last else None
        record = record_of(row, objects) if row is not None and row.kind == ObjectKind.RECORD else None
        if record is None:
            return Stray(info, None, "it does not end in the record of a snapshot")
        objects.read_uncached(record.root.number)
        if objects.index.locate(record.root.number)[1].content_hash != record.root.content_hash:
            return Stray(info, None, "its root is another one than in its record")
    except CorruptionError as error:
        return Stray(info, None, error.why)
    return Stray(info, replace(record, stats=replace(record.stats, stored_bytes=info.size)))


def _checked_rows(reader: SegmentReader) -> Iterator[Row]:
    """Raises CorruptionError at the first whose frame is damaged."""
    for row in reader.rows():
        framed = reader.frame(row)
        if len(framed) < fmt.FRAME_BYTES or not fmt.frame_is_good(framed):
            raise CorruptionError(f"object {row.number:#x}", reader.path, "wrong checksum")
        yield row
