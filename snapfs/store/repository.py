"""The store as the rest of the program sees it, usable from another process as well (`readonly`).

Invariants:
1. A snapshot exists if, and only if, its record is a whole line of snapshots.log and no "dropped" follows.
2. Every object that a snapshot needs lies in a finished segment before its record is written.
3. Object numbers only grow, also over aborted transactions of this process; a number that is in a finished segment is
   never given out again. Snapshot numbers are never given out again.
4. Opening `readonly` changes nothing on disk; what is torn or stray is passed over.

Opening for writing repairs what a crash or a bad disk leaves, and says so in `recovered`: an unfinished `.new` file and
a segment without a record are removed, a torn end of the log is cut off, segments that a merged one replaced are
removed; what can be read of a segment without an end is put into one with an end. More than one segment without a
record cannot come from a crash: the log has lost its end, which is a CorruptionError, and nothing is touched. (In a
mirror's store it can, and the segments become parts again: see staging.py.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from snapfs.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.errors import BusyError, CorruptionError, UserError
from snapfs.store import format as fmt
from snapfs.store import records
from snapfs.store.catalog import Catalog
from snapfs.store.compaction import MIN_DEAD, CollectReport, Compactor
from snapfs.store.dedup import SLOTS, Dedup
from snapfs.store.fetched import Fetched
from snapfs.store.format import Pointer
from snapfs.store.index import SegmentIndex, SegmentInfo
from snapfs.store.lazy import LazyObjects, LazyPlaces
from snapfs.store.log import Event, SnapshotLog
from snapfs.store.mending import Content, Mender, damaged_files
from snapfs.store.numbers import NumberSet
from snapfs.store.objects import Objects
from snapfs.store.publishing import Publisher
from snapfs.store.records import DAMAGED, GOOD, SealStats, SnapshotRecord, StoreIdentity
from snapfs.store.salvage import salvage
from snapfs.store.segment import SegmentWriter
from snapfs.store.staging import StagedPart, is_mirrored, take_back
from snapfs.store.transaction import Encoded, Transaction

__all__ = ["Encoded", "Event", "Repository", "SealStats", "SnapshotRecord", "StoreIdentity", "Transaction"]

SEGMENTS: Final = "segments"
LOG: Final = "snapshots.log"
CACHE_BYTES: Final = 64 << 20
MAX_OPEN_SEGMENTS: Final = 64
_FILL_AT_BEGIN: Final = 4096  # rows of old segments put into the dedup map, about 5 ms
_FILL_AT_APPEND: Final = 8


class Collection:
    """A collection of unneeded objects; see `Repository.collection`."""

    def __init__(self, repository: Repository, compactor: Compactor, horizon: Number) -> None:
        self._repository, self._compactor = repository, compactor
        self.horizon = horizon
        """Newer objects than this one are left alone."""

    def run(
        self, live: NumberSet, pause: Callable[[], None] = lambda: None, min_dead: float = MIN_DEAD
    ) -> CollectReport:
        """Free what is not in `live`: all objects that the snapshots reach; their bases are added here.

        A segment is rewritten if at least `min_dead` of it is dead. `pause` is called between objects, to let others
        run or to raise. Raises OSError, and CorruptionError if damage keeps it from being known what is needed.
        """
        for record in self._repository.snapshots():
            live.add(record.last_number)
        report = self._compactor.collect(live, self.horizon, pause, min_dead)
        self._repository.record_event(
            "collected", removed=report.removed, rewritten=report.rewritten, freed_bytes=report.freed_bytes
        )
        return report


class Repository:
    """One store. Reads and encoding from any thread; one transaction at a time."""

    def __init__(
        self, store_dir: str, identity: StoreIdentity, disk: Disk, readonly: bool, cache_bytes: int, max_open: int,
        clock: Callable[[], int],
    ) -> None:  # fmt: skip
        self.store_dir = store_dir
        self.identity, self.disk, self.readonly, self.clock = identity, disk, readonly, clock
        self.recovered: list[str] = []
        self._lock = threading.RLock()
        self.catalog = Catalog(store_dir, identity.volume_id)
        self._last_given = Number(0)
        self._transaction: Transaction | None = None
        self._compacting = threading.Lock()
        self.log = _open_log(store_dir, disk, readonly, clock)
        try:
            self.index = SegmentIndex(os.path.join(store_dir, SEGMENTS), max_open)
        except BaseException:
            self.log.close()
            raise
        self.objects = Objects(self.index, identity.seed, cache_bytes)
        self.lazy: LazyObjects | None = None
        """Where some objects of the past are still to be fetched: the same as `objects`."""
        if Fetched.exists(store_dir):
            places = LazyPlaces(self.index, Fetched(store_dir, disk, readonly=readonly))
            self.objects = self.lazy = LazyObjects(places, identity.seed, cache_bytes)
        self.dedup = Dedup(self.index, 1 if readonly else SLOTS)
        self._compactor = Compactor(self.index, self.objects, disk, identity.volume_id)

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
    ) -> Repository:
        """Open an existing store. Raises UserError, VersionError, and CorruptionError if it cannot be trusted."""
        repository = Repository(store_dir, identity, disk, readonly, cache_bytes, max_open_segments, clock)
        try:
            repository._load()
        except BaseException:
            repository.close()
            raise
        return repository

    def snapshots(self) -> list[SnapshotRecord]:
        """The existing snapshots, ascending by number, damaged ones included."""
        return self.catalog.snapshots()

    def latest(self) -> SnapshotRecord | None:
        """The newest snapshot, whatever its state."""
        return self.catalog.latest()

    def latest_good(self) -> SnapshotRecord | None:
        """The newest snapshot that is not damaged: what recovery uses."""
        return next((record for record in reversed(self.snapshots()) if record.state == GOOD), None)

    def find(self, ref: str) -> SnapshotRecord:
        """By number or name. Raises UserError if there is none."""
        return self.catalog.find(ref)

    def events(self) -> Iterator[Event]:
        """The whole log, from its beginning. Raises CorruptionError where its chain is broken."""
        return self.log.events()

    def refresh(self) -> None:
        """Take in what another process has appended since."""
        with self._lock:
            try:
                self._follow()
            except CorruptionError:  # the writer may have taken a line back that was seen here: begin anew
                self.log.rewind()
                self.catalog.clear()
                self._follow()
            self.index.refresh()
            self._judge_states()

    def read(self, pointer: Pointer) -> bytes:
        """The plain content of an object, checked against its proof. Thread-safe. Raises CorruptionError, OSError."""
        return self.objects.read(pointer)

    def begin(self, generation: Generation) -> Transaction:
        """Start a snapshot. Raises BusyError if one is under way, UserError if a newer generation has written."""
        assert not self.readonly
        with self._lock:
            if self._transaction is not None:
                raise BusyError("another snapshot is being sealed")
            first = self._next_number(generation)
            header = fmt.Header(self.identity.volume_id, generation, first)
            writer = SegmentWriter(self.index.folder, self.disk, header)
            self._transaction = Transaction(self, writer, generation)
            self.index.unfinished = writer
        self.dedup.fill(_FILL_AT_BEGIN)
        return self._transaction

    def record_event(self, kind: str, **fields: Any) -> None:
        """Add a line to the log, durably. Thread-safe. Raises OSError."""
        self.log.append(kind, fields)

    def drop(self, number: SnapshotNumber) -> None:
        """End a snapshot's existence. Its space comes back by `collection`. Raises UserError, OSError."""
        record = self.find(str(number))
        self.log.append("dropped", {"snapshot": number, "name": record.name})
        self.catalog.remove(number)

    def mark(self, number: SnapshotNumber, state: str, why: str) -> None:
        """Record that a snapshot was found "damaged", or is "good" again. Raises UserError, OSError."""
        if self.catalog.told_state(number) != state:
            self.log.append("damaged" if state == DAMAGED else "repaired", {"snapshot": number, "why": why})
            self.catalog.set_state(number, state)
            self._set_dedup_floor()

    def merge_once(self, pause: Callable[[], None] = lambda: None) -> int:
        """Merge small neighbouring segments, if some are due; returns how many fewer there are. Call until 0.

        `pause` is called between objects, to let others run or to raise. Raises OSError, CorruptionError.
        """
        with self._compacting:
            return self._compactor.merge_once(pause)

    @contextlib.contextmanager
    def collection(self) -> Iterator[Collection]:
        """Within this block: walk what is reachable from `snapshots()`, then `run` with it. Raises BusyError.

        From its beginning on no new snapshot comes to need an object that the existing ones do not.
        """
        if self.lazy is not None:
            raise BusyError("part of this store is still on its way from a mirror: space is collected when it is here")
        with self._compacting:
            with self._lock:
                if self._transaction is not None:
                    raise BusyError("a snapshot is being sealed; space is collected when it is done")
                self.dedup.floor = horizon = self._last_given
            try:
                yield Collection(self, self._compactor, horizon)
            finally:
                self._set_dedup_floor()

    def salvage(self, info: SegmentInfo) -> int:
        """Save what can be read of a damaged segment, which stays beside the new one as `.damaged`.

        Returns how many objects were found, 0 if none; says so in `recovered`. Raises OSError. Done at opening where a
        segment has lost its end or its header; a table that is wrong is only noticed when it is used.
        """
        found = salvage(info, self.identity.volume_id, self.disk, self.objects.full_plain, self.objects.proof_of)
        if found:
            self.index.refresh()
            name = os.path.basename(info.path)
            why = info.damage or "its table is wrong"
            self.recovered.append(f"{name} was damaged ({why}): {found} objects were saved from it")
            self._mark_without_root(name)
        return found

    def mend(self, contents: Mapping[Number, Content]) -> list[str]:
        """Put these contents, checked against their proofs by the caller, in the place of lost objects.

        Returns the segments that were written. Raises OSError.
        """
        with self._compacting:
            written = Mender(self.index, self.objects, self.disk, self.identity.volume_id).mend(contents)
            self.log.append("mended", {"objects": len(contents), "segments": written})
            self._judge_states()
        return written

    def salvage_unreadable(self) -> list[str]:
        """Salvage the segments whose table is wrong, which is only noticed when one is used; a line for each."""
        before = len(self.recovered)
        with self._compacting:
            for info in self.index.segments():
                try:
                    self.index.reader(info.first)
                except CorruptionError:
                    self.salvage(info)
        return self.recovered[before:]

    def clear_damaged(self) -> list[str]:
        """Remove what was kept of damaged segments, since all is good without it; their names. Raises OSError."""
        names = [os.path.basename(path) for path in damaged_files(self.index.folder)]
        for name in names:
            self.disk.unlink("mend:clear", os.path.join(self.index.folder, name))
        if names:
            self.log.append("cleared", {"files": names})
        return names

    def adopt(self, record: SnapshotRecord) -> None:
        """Take over a snapshot of the same volume from elsewhere, whose objects can be fetched. Raises OSError."""
        assert self.lazy is not None
        self.log.append("snapshot", records.to_fields(record))
        self.catalog.add(record)
        with self._lock:
            self._last_given = max(self._last_given, record.last_number)

    def settle(self, pause: Callable[[], None] = lambda: None) -> int:
        """Everything that was at a mirror is here: make ordinary segments of it. How many. Raises OSError."""
        lazy = self.lazy
        if lazy is None:
            return 0
        places = lazy.places
        fetched = places.fetched
        with self._compacting:
            made = fetched.settle(
                self.identity.volume_id, lambda n: n not in places.distrusted and self.index.peek(n) is not None, pause
            )
            self._publish_parts(fetched, made)
            self.log.append("hydrated", {"segments": len(made), "objects": fetched.count})
            places.settled = True
        self.lazy = None
        fetched.remove()
        return len(made)

    def take_part(self, part: StagedPart) -> None:
        """What came from elsewhere in the order of the numbers becomes a segment. Raises OSError, CorruptionError."""
        assert self.lazy is not None
        places = self.lazy.places
        with self._compacting:
            self._publish_parts(places.fetched, [part])
            places.distrusted = {number for number in places.distrusted if not part.first <= number <= part.last}

    def _publish_parts(self, fetched: Fetched, parts: list[StagedPart]) -> None:
        fetched.discard(Publisher(self.index, fetched, self.disk, self.identity.volume_id).publish(parts, ()))

    def check_end(self) -> list[SegmentInfo]:
        """The segments that are newer than the last record. CorruptionError for more than a crash can leave.

        That is one; in a mirror's store, which publishes several before a record, any number.
        """
        strays = [info for info in self.index.segments() if info.first > self.catalog.last_number]
        if len(strays) > 1 and not is_mirrored(self.store_dir):
            raise CorruptionError(
                "snapshots.log",
                self.store_dir,
                f"it has lost its end: {len(strays)} segments are newer than its last record",
            )
        return strays

    def close(self) -> None:
        """Abort what is under way and let go of all files."""
        if self.lazy is not None:
            self.lazy.places.fetched.close()
        if self._transaction is not None:
            self._transaction.abort()
        self.index.close()
        self.log.close()

    def check_invariants(self) -> None:
        self.index.check_invariants()
        self.objects.check_invariants()
        self.catalog.check_invariants()
        assert self.catalog.last_number <= self._last_given

    # For Transaction.

    def appended(self, number: Number, encoded: Encoded) -> None:
        """An object has been written: remember it for dedup, and as a base if it is full."""
        self.dedup.add(encoded.proof, number)
        if not encoded.is_difference:
            self.objects.bases.put(number, encoded.proof, encoded.plain)
        self.dedup.fill(_FILL_AT_APPEND)

    def next_snapshot(self, name: str | None) -> SnapshotNumber:
        """The number for a snapshot of this name. Raises UserError if the name is taken or cannot be one."""
        return self.catalog.next_number(name)

    def publish(self, writer: SegmentWriter, record: SnapshotRecord) -> None:
        """Write the record of a snapshot whose segment is finished: the commit point. Raises OSError."""
        self.log.append("snapshot", records.to_fields(record))
        self.index.add(writer.path)
        self.catalog.add(record)

    def ended(self, next_number: Number) -> None:
        """The transaction is over; its numbers are not given out again."""
        with self._lock:
            self._last_given = max(self._last_given, Number(next_number - 1))
            self.index.unfinished = None
            self._transaction = None

    # Opening.

    def _load(self) -> None:
        self._follow()
        if self.log.is_empty:
            raise CorruptionError("snapshots.log", self.store_dir, "it is empty")
        if not self.readonly:
            self._repair()
        self._last_given = max(self.catalog.last_number, self.index.last_number())
        self._judge_states()

    def _follow(self) -> None:
        for event in self.log.follow():
            self.catalog.apply(event)

    def _repair(self) -> None:
        strays = self.check_end()
        if len(strays) > 1:
            take_back(self.store_dir, self.index.folder, self.disk, self.catalog.last_number)
            self.recovered.append(f"{len(strays)} segments of a snapshot that a mirror had not committed were set back")
            self.index.refresh()
            strays = []
        torn = self.log.cut_torn_tail()
        if torn is not None:
            self.recovered.append(torn)
        for info in strays:
            self._remove(info.path, "it belongs to a snapshot that was not finished")
        for name in sorted(os.listdir(self.index.folder)):
            if name.endswith(fmt.UNFINISHED_SUFFIX):
                self._remove(os.path.join(self.index.folder, name), "it was not finished")
        for info in self.index.refresh():
            self._remove(info.path, "a merged segment has replaced it")
        for info in self.index.segments():
            if info.damage:
                self._try_salvage(info)

    def _remove(self, path: str, why: str) -> None:
        self.disk.unlink("open:remove", path)
        self.recovered.append(f"{os.path.basename(path)} removed: {why}")

    def _try_salvage(self, info: SegmentInfo) -> None:
        try:
            self.salvage(info)
        except OSError as error:  # a full disk: the next opening tries again, and all else can be used meanwhile
            name = os.path.basename(info.path)
            self.recovered.append(f"{name} is damaged ({info.damage}), and saving what is left of it failed: {error}")

    def _mark_without_root(self, name: str) -> None:
        """After a salvage: what lost its root is damaged, whatever the range of its segment says."""
        for record in self.snapshots():
            info = self.index.find(record.root.number)
            if info is not None and os.path.basename(info.path) == name and self.index.peek(record.root.number) is None:
                self.mark(record.number, DAMAGED, f"its root was not among what was saved of {name}")

    def _judge_states(self) -> None:
        for record in self.snapshots():
            why = self._why_damaged(record)
            if self.catalog.set_readable(record.number, why is None) and why is not None:
                self.recovered.append(f"snapshot {record.number} cannot be read: {why}")
        self._set_dedup_floor()

    def _set_dedup_floor(self) -> None:
        """A new snapshot shares no object by its looks that may be the damaged one of an old snapshot."""
        damaged = (record.last_number for record in self.snapshots() if record.state == DAMAGED)
        self.dedup.floor = max(damaged, default=Number(0))

    def _why_damaged(self, record: SnapshotRecord) -> str | None:
        info: SegmentInfo | None = self.index.find(record.root.number)
        if info is None and self.lazy is not None:
            return None
        if info is None:
            return f"the segment with its root, object {record.root.number:#x}, is missing"
        return f"{os.path.basename(info.path)}: {info.damage}" if info.damage else None

    def _next_number(self, generation: Generation) -> Number:
        newest = fmt.generation_of(self._last_given)
        if generation < newest:
            raise UserError(f"generation {newest} has written here already; this is {generation}, which is fenced off")
        if generation == newest and self._last_given:
            return Number(self._last_given + 1)
        return fmt.make_number(generation, 1)


def _open_log(store_dir: str, disk: Disk, readonly: bool, clock: Callable[[], int]) -> SnapshotLog:
    """Raises UserError if this is no store, CorruptionError if it is one and has lost its log."""
    try:
        return SnapshotLog(os.path.join(store_dir, LOG), disk, readonly=readonly, clock=clock)
    except UserError:
        with contextlib.suppress(FileNotFoundError):
            if any(name.endswith(fmt.SEGMENT_SUFFIX) for name in os.listdir(os.path.join(store_dir, SEGMENTS))):
                raise CorruptionError("snapshots.log", store_dir, "it is missing") from None
        raise


def make_folders(store_dir: str, disk: Disk) -> None:
    """Make the folders of a store, durably. Raises FileExistsError if there is a store already."""
    if os.path.exists(os.path.join(store_dir, LOG)):
        raise FileExistsError(errno.EEXIST, "there is a store already", store_dir)
    for path in (store_dir, os.path.join(store_dir, SEGMENTS)):
        with contextlib.suppress(FileExistsError):
            disk.mkdir("create:folder", path)
    disk.sync_dir("create:parent", os.path.dirname(os.path.abspath(store_dir)))
