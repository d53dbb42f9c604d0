"""Rewrites segments: merges many small neighbours, and leaves out what no snapshot needs any more.

Invariants:
1. A segment is never changed. A new one takes the place of one or several neighbours by a rename over the first of them
   (it has that one's first number, hence its name); the others are unlinked after that is durable.
2. Objects keep their numbers, encodings and bytes; each frame's checksum is verified as it is copied. A segment with a
   damaged frame is left as it is.
3. A full object lives as long as a living difference needs it.
4. While a collection is open, dedup finds no object from before it; so what the walk found dead stays dead. It begins
   only when no snapshot is being sealed.

A crash before the rename leaves a `.new` file; one before the unlinks leaves segments that the merged one covers. The
next opening for writing removes both, and until then a reader uses the merged one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from snapfs.base.blocks import Disk, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES, Encoding, Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import Objects, has_more_bases
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.objects.segment_writer import SegmentWriter

FAN_IN: Final = 8
"""Neighbours of one size tier that are merged at a time; each byte is rewritten once per tier."""
SMALLEST_TIER: Final = 64 << 10
LARGEST_MERGED: Final = 256 << 20
MIN_DEAD: Final = 0.5
"""Share of dead bytes from which on a segment is rewritten: at most as much is copied as is freed."""


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What a collection did; sizes in bytes."""

    removed: int = 0
    rewritten: int = 0
    freed_bytes: int = 0
    skipped: tuple[str, ...] = ()


def tier(size: int) -> int:
    """0 for segments up to 64 KiB, one more for each eightfold of that."""
    found, limit = 0, SMALLEST_TIER
    while size > limit:
        found, limit = found + 1, limit * FAN_IN
    return found


def due_merge(infos: Iterable[SegmentInfo]) -> list[SegmentInfo]:
    """The FAN_IN oldest neighbours of the lowest size tier that has so many, [] if there are none. Pure."""
    runs: list[tuple[int, list[SegmentInfo]]] = []
    for key, group in groupby(infos, key=_merge_key):
        run = list(group)[:FAN_IN]
        if key is not None and len(run) == FAN_IN and _fits(run):
            runs.append((key[0], run))
    return min(runs, key=lambda found: found[0])[1] if runs else []


def _merge_key(info: SegmentInfo) -> tuple[int, int] | None:
    """Neighbours with equal keys may be merged; None never."""
    if info.damage or info.size > LARGEST_MERGED // FAN_IN:
        return None
    return tier(info.size), fmt.generation_of(info.first)


def _fits(run: list[SegmentInfo]) -> bool:
    return run[-1].last - run[0].first <= fmt.MAX_DELTA


class Compactor:
    """Rewrites segments of one store. One thread at a time."""

    def __init__(self, index: SegmentIndex, objects: Objects, disk: Disk, volume_id: str) -> None:
        self._index, self._objects, self._disk, self._volume_id = index, objects, disk, volume_id

    def merge_once(self, pause: Callable[[], None]) -> int:
        """Merge the neighbours that are due, if any; returns how many segments there are fewer.

        `pause` is called between objects, many times. Raises OSError, and CorruptionError if one of them is damaged;
        the segments are then as before.
        """
        run = due_merge(self._index.segments())
        if not run:
            return 0
        self._rewrite(run, lambda row: True, pause, "merge")
        return len(run) - 1

    def collect(
        self, live: NumberSet, horizon: Number, pause: Callable[[], None], min_dead: float = MIN_DEAD
    ) -> CollectReport:
        """Free the space of objects up to `horizon` that are not in `live`, which gains the bases of those that are.

        Raises OSError, and CorruptionError, before anything is done, if a segment with living objects cannot be read:
        what they need is not known then. A segment with a damaged object is left as it is and named in the report.
        """
        self._check_readable(live)
        self._add_bases(live, pause)
        report = CollectReport()
        for info in self._index.segments():
            if info.last <= horizon:
                pause()
                report = self._collect_one(info, live, pause, min_dead, report)
        return report

    def _collect_one(
        self, info: SegmentInfo, live: NumberSet, pause: Callable[[], None], min_dead: float, report: CollectReport
    ) -> CollectReport:
        kept, dead_bytes = (0, info.size) if info.damage else self._tally(info, live)
        if not kept:
            self._index.replace([info], None)
            self._remove([info], "collect")
            return replace(report, removed=report.removed + 1, freed_bytes=report.freed_bytes + info.size)
        if dead_bytes < min_dead * info.size:
            return report
        try:
            made = self._rewrite([info], lambda row: row.number in live, pause, "collect")
        except CorruptionError as error:
            return replace(report, skipped=(*report.skipped, str(error)))
        freed = report.freed_bytes + info.size - made.size
        return replace(report, rewritten=report.rewritten + 1, freed_bytes=freed)

    def _check_readable(self, live: NumberSet) -> None:
        infos = self._index.segments()
        ends = [*[info.first for info in infos][1:], Number(1 << 64)]
        for info, end in zip(infos, ends, strict=False):
            if info.damage and any(info.first <= number < end for number in live):
                raise CorruptionError("a segment", info.path, f"{info.damage}; what snapshots need is not known then")

    def _add_bases(self, live: NumberSet, pause: Callable[[], None]) -> None:
        """Bases are full objects, which have none: one pass over all rows is enough."""
        for info in self._index.segments():
            if info.damage:
                continue
            pause()
            for row in self._rows(info):
                if row.encoding > Encoding.ZSTD and row.number in live:
                    live.add(row.base)
                    if has_more_bases(row):
                        for base in self._objects.bases_of(row.number):
                            live.add(base)

    def _tally(self, info: SegmentInfo, live: NumberSet) -> tuple[int, int]:
        """(living objects, bytes of the dead ones)."""
        kept = dead_bytes = 0
        for row in self._rows(info):
            if row.number in live:
                kept += 1
            else:
                dead_bytes += FRAME_BYTES + row.stored + ROW_BYTES
        return kept, dead_bytes

    def _rows(self, info: SegmentInfo) -> Iterator[Row]:
        return self._reader(info).rows()

    def _reader(self, info: SegmentInfo) -> SegmentReader:
        reader = self._index.reader(info.first)
        assert reader is not None
        return reader

    def _rewrite(
        self, run: list[SegmentInfo], wanted: Callable[[Row], bool], pause: Callable[[], None], label: str
    ) -> SegmentInfo:
        """Put a new segment in the place of `run`. On any failure before that, all is as it was."""
        header = fmt.Header(self._volume_id, fmt.generation_of(run[0].first), run[0].first)
        writer = SegmentWriter(self._index.folder, self._disk, header, label)
        try:
            for info in run:
                self._copy(self._reader(info), writer, wanted, pause)
            writer.finish()
        except Exception:
            writer.abandon_unnamed()
            self._index.refresh()
            raise
        finally:
            writer.close()
        made = self._index.inspect(writer.path)
        self._index.replace(run, made)
        self._remove(run[1:], label)
        return made

    def _copy(
        self, reader: SegmentReader, writer: SegmentWriter, wanted: Callable[[Row], bool], pause: Callable[[], None]
    ) -> None:
        for row in reader.rows():
            if wanted(row):
                pause()
                framed = reader.frame(row)
                if len(framed) < FRAME_BYTES or not fmt.frame_is_good(framed):
                    raise CorruptionError(
                        f"object {row.number:#x}", reader.path, f"wrong checksum at byte {row.offset}"
                    )
                writer.append_framed(row, framed)

    def _remove(self, infos: list[SegmentInfo], label: str) -> None:
        for info in infos:
            self._disk.unlink(f"{label}:unlink", info.path)
