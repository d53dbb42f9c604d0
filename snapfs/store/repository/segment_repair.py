"""Repairs of damaged segments: what can be read of one is saved, and lost objects are put into new ones.

Invariants:
1. A damaged segment is kept beside the one that replaces it, as `.damaged`, until all is good without it.
2. A snapshot whose root was not saved is marked as damaged in the log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from snapfs.base.blocks import Number, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.log.snapshot_records import DAMAGED
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.repository.repair_writer import RepairContent, RepairWriter, damaged_files
from snapfs.store.repository.salvage import salvage
from snapfs.store.repository.store_parts import StoreParts


class SegmentRepair:
    """The repairs of one store that is open for writing. Any thread."""

    def __init__(self, parts: StoreParts) -> None:
        self._parts = parts

    def salvage_damaged(self) -> None:
        """At opening: save what can be read of the segments that have lost their end or their header."""
        for info in self._parts.index.segments():
            if info.damage:
                self._try_salvage(info)

    def salvage_unreadable(self) -> list[str]:
        """Salvage the segments whose table is wrong, which is only noticed when one is used; a line for each."""
        before = len(self._parts.recovered)
        with self._parts.compacting:
            for info in self._parts.index.segments():
                try:
                    self._parts.index.reader(info.first)
                except CorruptionError:
                    self.salvage(info)
        return self._parts.recovered[before:]

    def salvage(self, info: SegmentInfo) -> int:
        """Save what can be read of a damaged segment, which stays beside the new one as `.damaged`.

        Returns how many objects were found, 0 if none; reports it in `recovered`. Raises OSError.
        """
        parts, objects = self._parts, self._parts.objects
        found = salvage(info, parts.identity.volume_id, parts.disk, objects.full_plain, objects.content_hash_of)
        if found:
            parts.index.refresh()
            name = os.path.basename(info.path)
            why = info.damage or "its table is wrong"
            parts.recovered.append(f"{name} was damaged ({why}): {found} objects were saved from it")
            self._mark_without_root(name)
        return found

    def _try_salvage(self, info: SegmentInfo) -> None:
        try:
            self.salvage(info)
        except OSError as error:  # a full disk: the next opening tries again, and all else can be used meanwhile
            why = f"is damaged ({info.damage}), and saving what is left of it failed: {error}"
            self._parts.recovered.append(f"{os.path.basename(info.path)} {why}")

    def _mark_without_root(self, name: str) -> None:
        """After a salvage: what lost its root is damaged, whatever the range of its segment."""
        index = self._parts.index
        for number, root in self._parts.catalog.roots():
            info = index.find(root)
            if info is not None and os.path.basename(info.path) == name and index.peek(root) is None:
                self.mark(number, DAMAGED, f"its root was not among what was saved of {name}")

    def mark(self, number: SnapshotNumber, state: str, why: str) -> None:
        """Record that a snapshot was found "damaged", or is "good" again. Raises UserError, OSError."""
        parts = self._parts
        if parts.catalog.recorded_state(number) != state:
            parts.log.append("damaged" if state == DAMAGED else "repaired", {"snapshot": number, "why": why})
            parts.catalog.set_state(number, state)
            parts.loss.set_dedup_floor()

    def repair(self, contents: Mapping[Number, RepairContent]) -> list[str]:
        """Put these contents, checked against their content hashes by the caller, in the place of lost objects.

        Returns the segments that were written. Raises OSError.
        """
        parts = self._parts
        with parts.compacting:
            written = RepairWriter(parts.index, parts.objects, parts.disk, parts.identity.volume_id).repair(contents)
            # "mended" is the kind of line that logs of all versions have for a repair
            parts.log.append("mended", {"objects": len(contents), "segments": written})
            parts.loss.list_segments()
            parts.loss.judge()
        return written

    def clear_damaged(self) -> list[str]:
        """Remove what was kept of damaged segments, since all is good without it; their names. Raises OSError."""
        parts = self._parts
        names = [os.path.basename(path) for path in damaged_files(parts.index.folder)]
        for name in names:
            parts.disk.unlink("repair:clear", os.path.join(parts.index.folder, name))
        if names:
            parts.log.append("cleared", {"files": names})
        return names
