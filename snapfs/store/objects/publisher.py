"""Makes segments of a store out of parts: by a rename where nothing else is in their range, else by merging.

Invariants:
1. Segments do not overlap. A part that lies alone between two segments becomes a segment by a rename. Of any other, the
   objects within a segment's range are merged into a new version of it, which takes its place by a rename, as in
   compaction; those between segments get segments of their own.
2. Nothing that was in a segment is lost, but for frames whose checksum is wrong: of these a part may have a good copy.
3. Nothing here is a commit point: objects without a record are dead weight, which collection frees. The parts that were
   copied are removed by the caller when the record is durable; after a crash before that, both exist, and agree.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import merge
from itertools import groupby
from typing import Final, NamedTuple, Protocol

from snapfs.base.blocks import Disk, Generation, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Row
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.objects.segment_writer import SegmentWriter
from snapfs.store.objects.staging import StagedPart

LARGEST_WRITTEN: Final = 64 << 20
"""Of the segments between others that are written here; compaction makes larger ones of them."""

_Entry = tuple[SegmentReader, Row]
_Border = SegmentInfo | StagedPart


class _Zone(NamedTuple):
    """A stretch of numbers: within a segment, or between two, in one generation."""

    position: int
    info: SegmentInfo | None
    generation: Generation


class Parts(Protocol):
    """Where parts lie: the staging of a mirror, or what a lazy mount has fetched."""

    @property
    def folder(self) -> str: ...

    def rows(self, part: StagedPart, /) -> Iterator[_Entry]:
        """The rows of a part, ascending."""

    def discard(self, parts: Iterable[StagedPart], /, *, unlink: bool) -> None:
        """These are in segments now; without `unlink` they went there themselves."""


class Publisher:
    """Publishes parts of one store. The caller lets nothing else write segments meanwhile."""

    def __init__(self, index: SegmentIndex, staging: Parts, disk: Disk, volume_id: str) -> None:
        self._index, self._staging, self._disk, self._volume_id = index, staging, disk, volume_id

    def publish(self, parts: list[StagedPart], leave_out: Collection[Number]) -> list[StagedPart]:
        """Make all their objects, but for `leave_out`, findable in the store. Returns the parts that were copied.

        Raises OSError, and CorruptionError for a damaged part, which `where` names; what was done until then does no
        harm, and it can be done again.
        """
        infos = [info for info in self._index.segments() if not info.damage]
        alone = [] if leave_out else [part for part in parts if _is_alone(part, parts, infos)]
        copied = [part for part in parts if part not in alone]
        borders: list[_Border] = [*infos, *alone]
        borders.sort(key=lambda border: border.first)
        for zone, entries in groupby(self._entries(copied, leave_out), key=_zones(borders)):
            (self._merge if zone.info is not None else self._write)(zone, entries)
        self._rename(alone)
        return copied

    def _entries(self, parts: Iterable[StagedPart], leave_out: Collection[Number]) -> Iterator[_Entry]:
        entries = merge(*map(self._staging.rows, parts), key=_number)
        return _each_once((reader, row) for reader, row in entries if row.number not in leave_out)

    def _merge(self, zone: _Zone, entries: Iterator[_Entry]) -> None:
        assert zone.info is not None
        old = SegmentReader(zone.info.path)
        both = _each_once(merge(entries, ((old, row) for row in old.rows()), key=_number))  # of two, the new one
        self._index.replace([zone.info], self._index.inspect(self._copy(both, zone.info.first, old.header.generation)))

    def _write(self, zone: _Zone, entries: Iterator[_Entry]) -> None:
        for entry in entries:
            path = self._copy(_chain(entry, entries), entry[1].number, zone.generation, LARGEST_WRITTEN)
            self._index.add(path)

    def _copy(self, entries: Iterable[_Entry], first: Number, generation: Generation, limit: int = 1 << 62) -> str:
        header = fmt.Header(self._volume_id, generation, first)
        writer = SegmentWriter(self._index.folder, self._disk, header, "publish")
        try:
            for reader, row in entries:
                framed = reader.frame(row)
                if len(framed) >= FRAME_BYTES and fmt.frame_is_good(framed):
                    writer.append_framed(row, framed)
                elif reader.path.startswith(self._staging.folder):
                    raise CorruptionError(f"object {row.number:#x}", reader.path, "wrong checksum")
                if writer.size >= limit or row.number - first >= fmt.MAX_DELTA - (1 << 31):
                    break
            writer.finish()
        except BaseException:
            writer.abandon_unnamed()
            raise
        finally:
            writer.close()
        return writer.path

    def _rename(self, parts: list[StagedPart]) -> None:
        if not parts:
            return
        targets = [os.path.join(self._index.folder, fmt.segment_name(part.first)) for part in parts]
        moved: list[tuple[str, str]] = []
        try:
            for part, target in zip(parts, targets, strict=True):
                self._disk.rename("publish:part", part.path, target)
                moved.append((target, part.path))
            self._disk.sync_dir("publish:segments", self._index.folder)
            self._disk.sync_dir("publish:incoming", self._staging.folder)
        except OSError:
            for target, place in moved:  # so that it can be done again: the staging looks for them where they were
                self._disk.rename("publish:undo", target, place)
            raise
        for target in targets:
            self._index.add(target)
        self._staging.discard(parts, unlink=False)


def _number(entry: _Entry) -> Number:
    return entry[1].number


def _chain(first: _Entry, rest: Iterator[_Entry]) -> Iterator[_Entry]:
    yield first
    yield from rest


def _each_once(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """The first of those with equal numbers."""
    last = -1
    for entry in entries:
        if entry[1].number != last:
            last = entry[1].number
            yield entry


def _overlap(part: StagedPart, other: _Border) -> bool:
    return part.first <= other.last and other.first <= part.last


def _is_alone(part: StagedPart, parts: list[StagedPart], infos: list[SegmentInfo]) -> bool:
    at = bisect_right(infos, part.last, key=lambda info: info.first) - 1
    if at >= 0 and _overlap(part, infos[at]):
        return False
    return not any(_overlap(part, other) for other in parts if other is not part)


def _zones(borders: list[_Border]) -> Callable[[_Entry], _Zone]:
    firsts = [border.first for border in borders]

    def zone_of(entry: _Entry) -> _Zone:
        number = entry[1].number
        position = bisect_right(firsts, number) - 1
        border = borders[position] if position >= 0 else None
        inside = border if border is not None and number <= border.last else None
        assert not isinstance(inside, StagedPart), "a part that overlaps another is not alone"
        return _Zone(position, inside, fmt.generation_of(number))

    return zone_of
