"""Segments that were lost, and the snapshots that lack something for it or whose root is damaged.

Invariants:
1. The list of segments (segment_list.py) is not written where that would hide a loss.
2. What is judged here is in memory only: a snapshot is damaged for as long as what it lacks is not there.
3. New snapshots share no object by its content hash that may be the damaged one of an old snapshot (`Dedup.set_floor`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from snapfs.base.blocks import Disk, Number, SnapshotNumber
from snapfs.store.log.catalog import Catalog
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.dedup import Dedup
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_list import SegmentEntry, SegmentManifest, entries_of, missing

Walk = Callable[[Sequence[SnapshotRecord]], dict[SnapshotNumber, str]]
"""Which of the snapshots lack an object, and what."""
_LOOKS: Final = 3


class SegmentLoss:
    """What one store has lost. `is_lazy`: some objects are still to be fetched, so nothing can be missed."""

    def __init__(
        self, store_dir: str, disk: Disk, catalog: Catalog, index: SegmentIndex, dedup: Dedup, recovered: list[str],
        readonly: bool, is_lazy: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._catalog, self._index, self._dedup, self._recovered = catalog, index, dedup, recovered
        self._readonly, self._is_lazy = readonly, is_lazy
        self._manifest = SegmentManifest(store_dir, disk)
        self._missing: frozenset[SegmentEntry] = frozenset()  # were here and are not, as long as a snapshot lacks them
        self._lacking: dict[SnapshotNumber, str] = {}
        self._looked_at: frozenset[SegmentEntry] | None = None
        self._judged: tuple[frozenset[tuple[Any, ...]], dict[SnapshotNumber, str], bool] | None = None
        self._judged_changes = 0  # of the catalog; what was judged, and by what, of the last time

    def begin(self, recovers_parts: bool) -> None:
        """At an opening for writing: what is listed and not there is missing."""
        listed = self._manifest.read()
        self._missing = missing(listed, self._index.segments())
        if listed is not None or not recovers_parts:  # else the caller looks first
            self.list_segments()

    def collected(self) -> None:
        """All that snapshots need has been found and kept: whatever segment is gone, nothing misses it."""
        if not self._lacking:
            self._missing = frozenset()
        self.list_segments()

    def look(self, walk: Walk, *, thorough: bool = False) -> bool:
        """Find out whether segments were lost since they were listed, and mark, in memory, the snapshots that lack
        something as damaged; whether that has changed. `walk`: `missing_objects.lacking`. `thorough`: also if there is
        no list. Raises OSError.

        Costs a look into the folder if nothing is missing; else the tables of all snapshots are walked.
        """
        if self._is_lazy():
            return False
        for _ in range(_LOOKS):  # beside a writer that is merging, the list may be older than the folder
            listed = self._manifest.read()
            self._index.refresh()
            here = entries_of(self._index.segments())
            gone = missing((listed or frozenset()) | self._missing, self._index.segments())
            if not gone or not self._readonly:
                break
        if here == self._looked_at and gone == self._missing:
            return False
        is_walked = bool(gone) or bool(self._lacking) or (listed is None and thorough)
        found = walk(self._catalog.snapshots()) if is_walked else {}
        changed, self._lacking = found != self._lacking, found
        self._missing, self._looked_at = gone if found else frozenset(), here
        self.judge()
        self.list_segments()
        return changed

    def list_segments(self) -> None:
        """Keep the list of segments up to date. Never raises."""
        may_write = bool(self._missing) or not self._lacking  # else the list would hide that something was lost
        if may_write and not self._readonly and not self._is_lazy():
            self._manifest.write(entries_of(self._index.segments()) | self._missing)

    def judge(self) -> None:
        """Note which snapshots lack their root. Looks at those that are new, unless segments went or what is known of
        loss is another: of the others that a new segment came takes nothing away."""
        changes = self._catalog.changes
        for number, root in self._to_judge():
            why = self._why_damaged(number, root)
            if self._catalog.set_readable(number, why is None) and why is not None:
                self._recovered.append(f"snapshot {number} cannot be read: {why}")
        self._judged_changes = changes
        self.set_dedup_floor()

    def _to_judge(self) -> list[tuple[SnapshotNumber, Number]]:
        segments = frozenset((info.first, info.last, info.path, info.damage) for info in self._index.segments())
        was, self._judged = self._judged, (segments, self._lacking, self._is_lazy())
        new = self._catalog.changed_since(self._judged_changes)
        if was is None or new is None or was[1:] != self._judged[1:] or was[0] - segments:
            return self._catalog.roots()
        if any(damage for *_, damage in segments - was[0]):
            return self._catalog.roots()
        numbers = sorted(new.union(self._catalog.unreadable()))
        return [(number, root.number) for number in numbers if (root := self._catalog.root(number)) is not None]

    def set_dedup_floor(self) -> None:
        """A new snapshot shares no object by its looks that may be the damaged one of an old snapshot."""
        self._dedup.set_floor(max((record.last_number for record in self._catalog.damaged()), default=Number(0)))

    def _why_damaged(self, number: SnapshotNumber, root: Number) -> str | None:
        if number in self._lacking:
            return self._lacking[number]
        info: SegmentInfo | None = self._index.find(root)
        if info is None and self._is_lazy():
            return None
        if info is None:
            return f"the segment with its root, object {root:#x}, is missing"
        return f"{os.path.basename(info.path)}: {info.damage}" if info.damage else None
