"""The versions of one path over a series of snapshots.

A version is a content: two snapshots in which a path is of the same type with the same bytes (the same target, the same
device) have one version of it, also with another content in between. A folder has one content; what is in it are other
paths. With `attributes`, mode, owner, extended attributes and time of modification (but a folder's) count as well.

Bytes are compared by the pointers of the block maps. Contents of equal size are compared by a sum over (chunk index,
content hash), relative to the first one of that size: the next sum is the last one and what differs between the two
maps. So a file that comes back to what it was is recognised at the cost of what changed.

Invariant: `spans` ascend and do not overlap; only the last one can be open.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

import xxhash

from snapfs.base.blocks import ChunkIndex
from snapfs.store.objects.format import Pointer
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.store.tables.table_compare import diff_map

_MODULUS: Final = 1 << 128


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """`version` was there from snapshot `first` on and not any more in `end`; None: it still is. Positions in the
    series, not numbers of snapshots."""

    version: int
    first: int
    end: int | None


class PathVersions:
    """One path. `note` is called in the order of the snapshots."""

    def __init__(self, path: bytes, *, attributes: bool = False) -> None:
        self.path = path
        self.records: list[InodeRecord] = []
        """Of each version as it was first seen."""
        self.spans: list[VersionSpan] = []
        self._attributes = attributes
        self._known: dict[object, int] = {}
        self._sums: dict[int, tuple[InodeRecord, int]] = {}  # by size: the last file, and its sum

    def key(self, tree: SnapshotTree, record: InodeRecord) -> object:
        """The identity of this content; read from the store, and nothing is noted. Raises CorruptionError."""
        kind = stat.S_IFMT(record.mode)
        key: tuple[object, ...] = (kind,)
        if kind == stat.S_IFREG:
            key = kind, record.size, self._sum(tree, record)
        elif kind != stat.S_IFDIR:
            key = kind, record.target, record.rdev
        if self._attributes:
            time_ns = 0 if kind == stat.S_IFDIR else record.mtime_ns
            key = *key, record.mode, record.uid, record.gid, record.xattrs, time_ns
        return key

    def note(self, at: int, record: InodeRecord, key: object) -> None:
        """From snapshot `at` on the path is this, whose `key` that is."""
        version = self._known.setdefault(key, len(self.records))
        if version == len(self.records):
            self.records.append(record)
        last = self.spans[-1] if self.spans else None
        if last is not None and last.version == version and last.end in (None, at):
            self.spans[-1] = VersionSpan(version, last.first, None)
            return
        self.note_gone(at)
        self.spans.append(VersionSpan(version, at, None))

    def note_gone(self, at: int) -> None:
        """From snapshot `at` on there is no such path, or another version."""
        if self.is_there:
            last = self.spans[-1]
            assert last.first < at
            self.spans[-1] = VersionSpan(last.version, last.first, at)

    @property
    def is_there(self) -> bool:
        """Whether the last of the snapshots has it."""
        return bool(self.spans) and self.spans[-1].end is None

    def spans_of(self, version: int) -> list[VersionSpan]:
        return [span for span in self.spans if span.version == version]

    def _sum(self, tree: SnapshotTree, record: InodeRecord) -> int:
        """Of the content, relative to the first one of this size that the path had."""
        last = self._sums.get(record.size)
        total = 0
        if last is not None:
            before, total = last
            for chunk, old, new in diff_map(tree, before, tree, record):
                total += _weight(chunk, new) - _weight(chunk, old)
        total %= _MODULUS
        self._sums[record.size] = record, total
        return total


def _weight(chunk: ChunkIndex, pointer: Pointer) -> int:
    if not pointer.number:
        return 0
    return xxhash.xxh3_128_intdigest(chunk.to_bytes(8, "little") + pointer.content_hash)
