"""Opening a store: repairs what a crash or a bad disk left, before anything is written.

Invariants:
1. A reader changes nothing: what the next opening for writing will recover, it takes into its catalog only.
2. A segment without a record is a snapshot if it checks out, and its record is appended; else it is renamed to
   `.damaged` (unrecorded_snapshots.py has the reasons). It is never deleted.
3. More than one such segment cannot come from a crash, nor can a log that is shorter than its witness and whose missing
   lines are not those snapshots: the log has lost its end. That is a CorruptionError, and nothing is changed.
4. In a mirror's store there can be many (`Receiver.recover`); without a receiver they become parts again (staging.py).
"""

from __future__ import annotations

import os
from dataclasses import replace

from snapfs.base.blocks import Disk, Number
from snapfs.base.errors import CorruptionError
from snapfs.base.file_lock import lock_owner
from snapfs.base.volumes.volume_files import VOLUME_LOCK
from snapfs.store.log import snapshot_records
from snapfs.store.log.catalog import Catalog
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.staging import is_mirrored, take_back
from snapfs.store.repository.resume_segment import can_be_resumed
from snapfs.store.repository.salvage import DAMAGED_SUFFIX
from snapfs.store.repository.store_folders import LOG
from snapfs.store.repository.unrecorded_snapshots import strays


class StoreRecovery:
    """The recovery of one store. `recovered` takes a line for people for each repair."""

    def __init__(
        self, store_dir: str, volume_id: str, disk: Disk, log: SnapshotLog, catalog: Catalog, index: SegmentIndex,
        objects: Objects, recovered: list[str], recovers_parts: bool,
    ) -> None:  # fmt: skip
        """`recovers_parts`: the caller takes care of what was received and has no record (`Receiver.recover`)."""
        self._store_dir, self._volume_id, self._disk = store_dir, volume_id, disk
        self._log, self._catalog, self._index, self._objects = log, catalog, index, objects
        self._recovered, self._recovers_parts = recovered, recovers_parts

    def check_end(self) -> list[SegmentInfo]:
        """The segments that are newer than the last record. CorruptionError for more than a crash can leave.

        That is one; in a mirror's store, which publishes several before a record, any number.
        """
        found = [info for info in self._index.segments() if info.first > self._catalog.last_number]
        if len(found) > 1 and not is_mirrored(self._store_dir):
            raise CorruptionError(
                LOG,
                self._store_dir,
                f"it has lost its end: {len(found)} segments are newer than its last record",
            )
        return found

    def add_unrecorded(self) -> None:
        """For a reader: what the next opening for writing will recover is there already, if no process writes now."""
        lost = self._log.lost_lines
        if lost or (self._is_idle() and not is_mirrored(self._store_dir)):
            found = [] if is_mirrored(self._store_dir) else self._unrecorded()
            if len(found) < lost:
                raise self._log.damage_of_loss()
            for record in found:
                self._catalog.add(record)

    def _is_idle(self) -> bool:
        """Whether it is certain that no process has the volume for writing."""
        try:
            return lock_owner(os.path.join(os.path.dirname(self._store_dir), VOLUME_LOCK)) is None
        except OSError:
            return False

    def _unrecorded(self) -> list[SnapshotRecord]:
        """The snapshot that is whole and newer than the log, if there is one. Raises as `check_end`."""
        self.check_end()
        found = strays(self._index, self._objects, self._catalog.last_number)
        return [each.record for each in found if each.record is not None and self._catalog.is_newer(each.record)]

    def repair(self) -> list[str]:
        """Before the first write: repair what a crash left; the unfinished segments that the next seal may continue."""
        if is_mirrored(self._store_dir):
            self._repair_mirrored()
        else:
            self._recover_unrecorded()
            self._log.witness()
        left = []
        for name in sorted(os.listdir(self._index.folder)):
            path = os.path.join(self._index.folder, name)
            if name.endswith(fmt.UNFINISHED_SUFFIX) and self._is_next(path):
                left.append(path)
            elif name.endswith(fmt.UNFINISHED_SUFFIX):
                self._remove(path, "it was not finished")
        for info in self._index.refresh():
            self._remove(info.path, "a merged segment has replaced it")
        return left

    def _is_next(self, path: str) -> bool:
        """Whether the next seal may continue an unfinished segment (resume_segment.py); a mirror has none."""
        known = max(self._catalog.last_number, *(info.last for info in self._index.segments()), Number(0))
        return not is_mirrored(self._store_dir) and can_be_resumed(path, self._volume_id, known)

    def _repair_mirrored(self) -> None:
        if self._recovers_parts:
            return
        if self._log.lost_lines:
            raise self._log.damage_of_loss()
        self.take_back()

    def take_back(self) -> None:
        """Of a mirror's store: what was published and has no record becomes parts again. Raises OSError."""
        count = take_back(self._store_dir, self._index.folder, self._disk, self._catalog.last_number)
        if count:
            self._recovered.append(f"{count} segments of a snapshot that was not committed are parts again")
            self._index.refresh()
        self._cut_torn_tail()
        self._log.witness()

    def _recover_unrecorded(self) -> None:
        self.check_end()
        found = strays(self._index, self._objects, self._catalog.last_number)
        whole = [each.record for each in found if each.record is not None and self._catalog.is_newer(each.record)]
        if len(whole) < self._log.lost_lines:
            raise self._log.damage_of_loss()
        self._log.accept_loss()
        self._cut_torn_tail()
        for record in whole:
            fields, head_of = snapshot_records.to_fields(record), snapshot_records.head_of
            event = self._log.append("snapshot", fields, record.seal_time_ns, with_head=head_of)
            self._catalog.add(replace(record, log_head=event.fields["log_head"]))
            self._recovered.append(f"snapshot {record.number} was whole and not in snapshots.log: it is recovered")
        for each in found:
            if each.record not in whole:
                self._quarantine(each.info, each.why or "its number is that of another snapshot")

    def _cut_torn_tail(self) -> None:
        torn = self._log.cut_torn_tail()
        if torn is not None:
            self._recovered.append(torn)

    def _quarantine(self, info: SegmentInfo, why: str) -> None:
        name = os.path.basename(info.path)
        self._disk.rename("open:aside", info.path, info.path + DAMAGED_SUFFIX)
        self._disk.sync_dir("open:aside", self._index.folder)
        self._index.refresh()
        self._recovered.append(f"{name} is no whole snapshot ({why}), and is set aside as {name}{DAMAGED_SUFFIX}")

    def _remove(self, path: str, why: str) -> None:
        self._disk.unlink("open:remove", path)
        self._recovered.append(f"{os.path.basename(path)} removed: {why}")
