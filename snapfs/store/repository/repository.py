"""The store as the rest of the program sees it, usable from another process as well (`readonly`).

Invariants:
1. A snapshot exists if, and only if, its record is a whole line of snapshots.log and no "dropped" follows.
2. Every object that a snapshot needs lies in a finished segment before its record is written.
3. Object numbers only grow (sealing.py). Snapshot numbers are never given out again.
4. Opening `readonly` changes nothing on disk; what is torn or stray is passed over.

Opening for writing repairs what a crash or a bad disk leaves, and reports it in `recovered`: an unfinished `.new` file
is removed unless the next seal may go on with it (resume_segment.py), a torn end of the log is cut off, segments that a
merged one replaced are removed; what can be read of a segment without an end is put into one with an end. A segment
without a record is a snapshot if it checks out, and its record is appended; else it is renamed to `.damaged`
(unrecorded_snapshots.py has the reasons). More than one such segment cannot come from a crash, nor can a log that is
shorter than its witness and whose missing lines are not those snapshots: the log has lost its end, which is a
CorruptionError, and nothing is touched. (In a mirror's store there can be many: see `Receiver.recover`; without a
receiver they become parts again: staging.py.)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.lazy.lazy_objects import LazyObjects
from snapfs.store.lazy.reader_cache import PassingObjects
from snapfs.store.log.drops import PERSON
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import GOOD, SealStats, SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.object_encoder import Encoded
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.repository.collection import Collection, collection, merge_once
from snapfs.store.repository.lazy_history import LazyHistory
from snapfs.store.repository.sealing import Sealing
from snapfs.store.repository.segment_repair import SegmentRepair
from snapfs.store.repository.store_folders import LOG, make_folders
from snapfs.store.repository.store_parts import CACHE_BYTES, MAX_OPEN_SEGMENTS, StoreOpening, StoreParts
from snapfs.store.repository.transaction import Transaction

__all__ = ["Encoded", "Event", "Repository", "SealStats", "SnapshotRecord", "StoreIdentity", "Transaction"]

LossWalk = Callable[["Repository", Sequence[SnapshotRecord]], dict[SnapshotNumber, str]]
"""Which of the snapshots lack an object, and what: `missing_objects.lacking`, passed in by the rooms above this one."""


class Repository:
    """One store. Reads and encoding from any thread; one transaction at a time."""

    def __init__(self, parts: StoreParts) -> None:
        """Made by `create` and `open`: recovers what a crash left. Raises as `open`."""
        self._parts, opening = parts, parts.opening
        self.store_dir, self.identity, self.disk = opening.store_dir, opening.identity, opening.disk
        self.readonly, self.clock = opening.readonly, opening.clock
        self.recovered, self.log, self.catalog = parts.recovered, parts.log, parts.catalog
        self.index, self.objects, self.dedup = parts.index, parts.objects, parts.dedup
        self.segment_repair = SegmentRepair(parts)
        left = self._recover()
        self.sealing = Sealing(parts, max(self.catalog.last_number, self.index.last_number()), left)
        self.lazy_history = LazyHistory(parts, self.sealing)

    @staticmethod
    def create(
        store_dir: str, identity: StoreIdentity, disk: Disk, *, clock: Callable[[], int] = time.time_ns
    ) -> Repository:
        """Make an empty store in `store_dir`, which may exist if it is none yet, and open it. Raises OSError."""
        make_folders(store_dir, disk)
        SnapshotLog.create(os.path.join(store_dir, LOG), disk, identity.volume_id, clock)
        return Repository.open(store_dir, identity, disk, clock=clock)

    @staticmethod
    def open(
        store_dir: str,
        identity: StoreIdentity,
        disk: Disk,
        *,
        readonly: bool = False,
        cache_bytes: int = CACHE_BYTES,
        max_open_segments: int = MAX_OPEN_SEGMENTS,
        clock: Callable[[], int] = time.time_ns,
        recovers_parts: bool = False,
        passing: PassingObjects | None = None,
    ) -> Repository:
        """Open an existing store. Raises UserError, VersionError, and CorruptionError if it cannot be trusted.

        `recovers_parts`: the caller sees to what was received and has no record, by `Receiver.recover`. Afterwards, and
        before a takeover, `look_for_loss` finds the snapshots that lack something.
        `passing`: where objects are kept that a source of `lazy` delivers, if that is not to be the store's folder.
        """
        parts = StoreParts(
            StoreOpening(
                store_dir, identity, disk, readonly, cache_bytes, max_open_segments, clock, recovers_parts, passing
            )
        )
        try:
            return Repository(parts)
        except BaseException:
            parts.close()
            raise

    def _recover(self) -> list[str]:
        """Read the log, and repair what a crash left; the unfinished segments that the next seal may continue."""
        parts = self._parts
        parts.follow_log()
        if self.log.is_empty:
            raise CorruptionError(LOG, self.store_dir, "it is empty")
        if self.readonly:
            parts.recovery.add_unrecorded()
            parts.loss.judge()
            return []
        left = parts.recovery.repair()
        self.segment_repair.salvage_damaged()
        parts.loss.judge()
        parts.loss.begin(parts.opening.recovers_parts)
        return left

    @property
    def lazy(self) -> LazyObjects | None:
        """Where some objects of the past are still to be fetched: the same as `objects`."""
        return self._parts.lazy

    def snapshots(self) -> list[SnapshotRecord]:
        """The existing snapshots, ascending by number, damaged ones included.

        They are decoded for each call. `catalog` has them by number, the newest ones, and in pages.
        """
        return self.catalog.snapshots()

    def latest(self) -> SnapshotRecord | None:
        """The newest snapshot, whatever its state."""
        return self.catalog.latest()

    @property
    def created_ns(self) -> int:
        """When the store was made, in ns since 1970; of one without a first event now."""
        with contextlib.suppress(CorruptionError):
            return next((event.time_ns for event in self.log.events()), self.clock())
        return self.clock()

    def latest_good(self) -> SnapshotRecord | None:
        """The newest snapshot that is not damaged: what recovery uses."""
        return next((record for record in self.catalog.newest_first() if record.state == GOOD), None)

    def find(self, ref: str) -> SnapshotRecord:
        """By number or name. Raises UserError if there is none."""
        return self.catalog.find(ref)

    def find_anywhere(self, ref: str) -> SnapshotRecord:
        """As `find`, and snapshots of branches as `BRANCH/N` or `BRANCH` (branches.py): only for reading. UserError."""
        return self.catalog.find_anywhere(ref)

    def events(self) -> Iterator[Event]:
        """The whole log, from its beginning. Raises CorruptionError where its chain is broken."""
        return self.log.events()

    def refresh(self) -> None:
        """Take in what another process has appended since."""
        self._parts.refresh()

    def look_for_loss(self, walk: LossWalk, *, thorough: bool = False) -> bool:
        """Find out whether segments were lost since they were listed, and mark, in memory, the snapshots that lack
        something as damaged; whether that has changed. `walk`: `missing_objects.lacking`. `thorough`: also if there is
        no list. Raises OSError.

        Costs a look into the folder if nothing is missing; else the tables of all snapshots are walked.
        """
        return self._parts.loss.look(lambda records: walk(self, records), thorough=thorough)

    def read(self, pointer: Pointer) -> bytes:
        """The plain content of an object, its hash checked. Thread-safe. Raises CorruptionError, OSError."""
        return self.objects.read(pointer)

    def read_part(self, pointer: Pointer, start: int, size: int) -> bytes:
        """`read(pointer)[start : start + size]`; of a chunk that was written at random only these blocks are read."""
        return self.objects.read_part(pointer, start, size)

    def begin(self, generation: Generation) -> Transaction:
        """Start a snapshot. Raises BusyError if one is under way, UserError if a newer generation has written."""
        return self.sealing.begin(generation)

    def record_checkpoint(self, sign: Callable[[int, str], dict[str, Any]]) -> None:
        """Add a line of kind "checkpoint" with what `sign(lines, head)` makes of the log up to it. Raises OSError."""
        self.log.append("checkpoint", {}, with_head=sign)

    def record_event(self, kind: str, **fields: Any) -> None:
        """Add a line to the log, durably. Thread-safe. Raises OSError."""
        self.catalog.note(self.log.append(kind, fields))

    def drop(self, number: SnapshotNumber, by: str = PERSON, why: str = "") -> None:
        """End a snapshot's existence. Its space comes back by `collection`. Raises UserError, OSError.

        `by` is one of drops.py, and decides whether the record travels to the targets; `why` is for people.
        """
        record = self.find(str(number))
        self.log.append("dropped", {"snapshot": number, "name": record.name, "by": by, "why": why})
        self.catalog.remove(number)

    def mark(self, number: SnapshotNumber, state: str, why: str) -> None:
        """Record that a snapshot was found "damaged", or is "good" again. Raises UserError, OSError."""
        self.segment_repair.mark(number, state, why)

    def merge_once(self, pause: Callable[[], None] = lambda: None) -> int:
        """Merge small neighbouring segments, if some are due; returns how many fewer there are. Call until 0.

        `pause` is called between objects, to let others run or to raise. Raises OSError, CorruptionError.
        """
        return merge_once(self._parts, pause)

    def collection(self) -> AbstractContextManager[Collection]:
        """Within this block: walk what is reachable from `snapshots()`, then `run` with it. Raises BusyError.

        From its beginning on no new snapshot comes to need an object that the existing ones do not.
        """
        return collection(self._parts, self.sealing)

    def check_end(self) -> list[SegmentInfo]:
        """The segments that are newer than the last record. CorruptionError for more than a crash can leave.

        That is one; in a mirror's store, which publishes several before a record, any number.
        """
        return self._parts.recovery.check_end()

    def take_back(self) -> None:
        """Of a mirror's store: what was published and has no record becomes parts again. Raises OSError."""
        self._parts.recovery.take_back()

    def segments_changed(self) -> None:
        """Segments were made or removed; for callers that change them past this class. Never raises."""
        self._parts.loss.list_segments()

    def close(self) -> None:
        """Abort what is under way, and close all files."""
        self.sealing.abort()
        self._parts.close()

    def check_invariants(self) -> None:
        self.index.check_invariants()
        self.objects.check_invariants()
        self.catalog.check_invariants()
        assert self.catalog.last_number <= self.sealing.last_given
