"""store/segments.list: which segments there are, so that a lost one is not taken for one that never was.

A JsonFile: of each segment its first and last number, rows, size in bytes and the SHA-256 of its table, as its trailer
has it. It is written after each change of the segments, and not synced: after a power cut it may be of an older time.

Invariants:
1. A store whose segments are those of its manifest, or more, has all that it had: nothing else is looked at.
2. Where they differ, or the manifest cannot be read, it proves nothing: a collection may have been cut off between its
   unlinks and the manifest. Then the tables of the snapshots are walked, and what they need is looked for
   (missing_objects.py).
3. What is missing stays in the manifest for as long as a snapshot lacks something.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError
from snapfs.base.json_file import JsonFile
from snapfs.store.objects.segment_index import SegmentInfo

FILE: Final = "segments.list"


class SegmentEntry(NamedTuple):
    """A segment. `table`: the SHA-256 of its table, in hex."""

    first: int
    last: int
    rows: int
    size: int
    table: str


class _Segments(msgspec.Struct, frozen=True):
    segments: list[SegmentEntry]
    format: int = 1


MANIFEST: Final = JsonFile("list of segments", _Segments)


class SegmentManifest:
    """Of one store. The caller serialises."""

    def __init__(self, store_dir: str, disk: Disk) -> None:
        self._disk, self._path = disk, os.path.join(store_dir, FILE)
        self._written: frozenset[SegmentEntry] | None = None

    def read(self) -> frozenset[SegmentEntry] | None:
        """What was written last, None if that is not known. Raises VersionError, OSError."""
        with contextlib.suppress(CorruptionError):
            found = MANIFEST.read(self._path)
            return None if found is None else frozenset(found.segments)
        return None

    def write(self, entries: frozenset[SegmentEntry]) -> None:
        """Not durable. Never raises."""
        if entries == self._written:
            return
        with contextlib.suppress(OSError):
            self._disk.replace_unsynced("segments:list", self._path, MANIFEST.encode(_Segments(sorted(entries))))
            self._written = entries


def missing(listed: frozenset[SegmentEntry] | None, infos: Sequence[SegmentInfo]) -> frozenset[SegmentEntry]:
    """Those that are not there any more as they were, and have not been merged into a larger one."""
    here = entries_of(infos)
    gone = (listed or frozenset()) - here
    return frozenset(entry for entry in gone if not any(_is_merged(entry, each) for each in here))


def _is_merged(entry: SegmentEntry, into: SegmentEntry) -> bool:
    return into.first <= entry.first and entry.last <= into.last and into.last - into.first > entry.last - entry.first


def entries_of(infos: Iterable[SegmentInfo]) -> frozenset[SegmentEntry]:
    """Of those that are not damaged."""
    return frozenset(
        SegmentEntry(info.first, info.last, info.count, info.size, info.table) for info in infos if not info.damage
    )
