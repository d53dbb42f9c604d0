"""Makes a store out of another one's segments: a clone of one snapshot, or a new log for an old store.

Invariants:
1. The new snapshots.log, put in its place by one rename, is the commit point: before it there is no store (or the old
   one), after it a whole one.
2. A clone shares bytes and no lifetime: its segments are hard links, or copies where links cannot be had, and each
   store only ever unlinks its own names.
3. What the other process merges or collects meanwhile does no harm: where a segment vanishes, linking begins anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError
from snapfs.store.log import snapshot_records
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import ObjectKind
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.staging import is_mirrored
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import LOG, SEGMENTS, make_folders

_NO_LINKS: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)
_ATTEMPTS: Final = 10


class SharedSegments(NamedTuple):
    """How many segments two stores share by links, and how many had to be copied, with their bytes."""

    linked: int
    copied: int
    copied_bytes: int


def share(
    source: Repository,
    record: SnapshotRecord,
    store_dir: str,
    volume_id: str,
    disk: Disk,
    clock: Callable[[], int] = time.time_ns,
) -> SharedSegments:
    """Make a store in `store_dir` that holds this one snapshot, under the same number and name.

    The seed stays that of the source: the content hashes are made with it. Raises OSError; UserError if segments keep
    vanishing.
    """
    make_folders(store_dir, disk)
    folder = os.path.join(store_dir, SEGMENTS)
    for _ in range(_ATTEMPTS):
        try:
            needed = [info.path for info in source.index.segments() if info.first <= record.last_number]
            copied = [size for path in needed if (size := _link_or_copy(path, folder, disk)) is not None]
            break
        except FileNotFoundError:
            for name in os.listdir(folder):
                disk.unlink("clone:again", os.path.join(folder, name))
            source.refresh()
    else:
        raise UserError(f"{source.store_dir} changes faster than it can be cloned; try again")
    disk.sync_dir("clone:folder", folder)
    fields = {**snapshot_records.to_fields(record), "origin": source.identity.volume_id}
    log = os.path.join(store_dir, LOG)
    SnapshotLog.create(log, disk, volume_id, clock, [Event("cloned", clock(), fields)])
    return SharedSegments(len(needed) - len(copied), len(copied), sum(copied))


def _link_or_copy(path: str, folder: str, disk: Disk) -> int | None:
    """The bytes that were copied; None if the two are one file."""
    target = os.path.join(folder, os.path.basename(path))
    try:
        disk.link("clone:segment", path, target)
        return None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "rb") as source, open(target, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            disk.fsync("clone:copy", copy.fileno())
            return copy.tell()


def rebuild_log(
    store_dir: str, identity: StoreIdentity, disk: Disk, clock: Callable[[], int] = time.time_ns
) -> list[SnapshotRecord]:
    """Write a new snapshots.log from what is left of the old one and the copies of the records in the segments.

    For a log that is missing, broken in its middle or without its end. What it held beyond its first damage is lost,
    but for the snapshots: they come back, also those that were dropped in that part and not yet collected. The old log
    stays beside it as `snapshots.log.damaged`. Returns the snapshots found again. Raises OSError, VersionError.
    """
    path = os.path.join(store_dir, LOG)
    kept = _good_events(path, identity, disk)
    known = {event.fields["number"] for event in kept if event.kind in ("snapshot", "cloned")}
    found = [record for record in _records_in_segments(store_dir, identity) if record.number not in known]
    if os.path.exists(path):
        disk.replace_file("rebuild:keep", f"{path}.damaged", _content(path))
    mirrored = is_mirrored(store_dir)  # then the time is that of receipt (locks.py), which is not known any more
    recorded = [
        Event("snapshot", clock() if mirrored else record.seal_time_ns, snapshot_records.to_fields(record))
        for record in found
    ]
    note: dict[str, Any] = {"kept_lines": len(kept), "found_snapshots": len(found)}
    SnapshotLog.create(path, disk, identity.volume_id, clock, [*kept, *recorded, Event("rebuilt", clock(), note)])
    return found


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _good_events(path: str, identity: StoreIdentity, disk: Disk) -> list[Event]:
    """The log up to its first damage, but for its first line."""
    events: list[Event] = []
    try:
        log = SnapshotLog(path, disk, readonly=True)
    except UserError:
        return events
    try:
        for event in log.follow():
            events.append(event)
    except CorruptionError:
        events = events[:-1]  # where a chain breaks the line before may be the one that was changed
    finally:
        log.close()
    if events and events[0].fields["volume"] != identity.volume_id:
        raise UserError(f"{path} is the log of another volume ({events[0].fields['volume']})")
    return events[1:]


def _records_in_segments(store_dir: str, identity: StoreIdentity) -> list[SnapshotRecord]:
    index = SegmentIndex(os.path.join(store_dir, SEGMENTS), max_open=8)
    try:
        objects = Objects(index, identity.seed, cache_bytes=0)
        found = {}
        for info in index.segments():
            for record in _records_in(info, index, objects):
                found[record.number] = record
        return [found[number] for number in sorted(found)]
    finally:
        index.close()


def _records_in(info: SegmentInfo, index: SegmentIndex, objects: Objects) -> Iterator[SnapshotRecord]:
    with contextlib.suppress(CorruptionError):
        reader = index.reader(info.first)
        for row in reader.rows() if reader is not None else ():
            if row.kind == ObjectKind.RECORD:
                with contextlib.suppress(CorruptionError, msgspec.MsgspecError, KeyError, TypeError, ValueError):
                    _, plain = objects.read_uncached(row.number)
                    yield snapshot_records.from_fields(msgspec.json.decode(plain))
