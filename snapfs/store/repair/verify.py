"""Verify: read back everything that snapshots need, once, and report what is bad and which snapshots need it.

`verify` goes in three passes, none of which reads anything twice:
1. The tables of all snapshots are walked, shared pages once; this finds the chunks, and the bases of differences.
2. The chunks and bases are read in the order of their numbers, that is of their places on disk, by several threads.
3. Only if something is bad: the tables are walked again, to find the snapshots, and the first file, that need it.

Invariants:
1. Everything is read from the disk, past the caches of objects and past the page cache (the kernel is asked to forget
   its pages of the segments first), and checked against the content hash in the pointer to it.
2. Every snapshot that cannot be restored in full is named: a bad page counts against each snapshot that reaches it, and
   a bad base against each that needs a difference to it.

It changes nothing; what to do about damage is the caller's business.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from snapfs.base.blocks import Number
from snapfs.base.errors import BusyError, CorruptionError, SnapfsError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES, Pointer, Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repair.damage_report import MAX_DETAILED, BadObject, BadObjects, Needs, bases_of, row_of
from snapfs.store.repair.verify_report import Report
from snapfs.store.repository import required_objects
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.reachability import Visit, Walk
from snapfs.store.tables.snapshot import decode_root

BATCH: Final = 64
"""Objects that a thread reads at a time."""

Progress = Callable[[int, int], None]


def verify(
    repository: Repository,
    records: Iterable[SnapshotRecord],
    *,
    threads: int = 2,
    progress: Progress | None = None,
) -> Report:
    """Read and check all that these snapshots need. `progress(done_bytes, total_bytes)`: the total is an estimate.

    Damage does not raise; it is in the report. BusyError for a store of which a part is still at a mirror.
    """
    if repository.lazy is not None:
        raise BusyError("part of this volume is still on its way from a mirror: it can be verified when all is here")
    repository.index.forget_pages()
    if repository.identity.encrypted:
        return _read_back(repository, list(records))
    return _Verify(repository, list(records), progress or (lambda done, total: None)).run(threads)


def _read_back(repository: Repository, records: list[SnapshotRecord]) -> Report:
    """Of an encrypted store: which snapshots need what is bad is not known, but for their own roots."""
    found = required_objects.read_back(repository, records)
    report = Report(len(records), found.objects, found.stored_bytes, len(found.bad))
    report.damaged_snapshots = [record.number for record in records if record.root.number in found.bad]
    report.lost_records = [record.number for record in records if record.last_number in found.bad]
    for number in sorted(found.bad)[:MAX_DETAILED]:
        report.bad.append(BadObject(number, found.bad[number]))
    for number in found.bad:
        report.bad_numbers.add(number)
    report.chosen = [] if found.bad else [record.number for record in records]
    return report


class _FromDisk:
    """Reads objects past the caches. Counts what it reads."""

    def __init__(self, repository: Repository) -> None:
        self._objects = repository.objects
        self.count = 0
        self.stored_bytes = 0

    def read(self, pointer: Pointer, /) -> bytes:
        row, plain = self._objects.read_uncached(pointer.number)
        self.count += 1
        self.stored_bytes += _stored(row)
        if row.content_hash != pointer.content_hash:
            raise CorruptionError(f"object {pointer.number:#x}", "the store", "it is not the content that was expected")
        return plain


def _stored(row: Row) -> int:
    return FRAME_BYTES + row.stored + ROW_BYTES


class _Verify:
    def __init__(self, repository: Repository, records: list[SnapshotRecord], progress: Progress) -> None:
        self._repository = repository
        self._records = sorted(records, key=lambda record: record.number)
        self._progress = progress
        self._report = Report(len(self._records), chosen=[record.number for record in self._records])
        self._bad = BadObjects()
        self._pages = NumberSet()  # read by the walk
        self._unread = NumberSet()  # leaves and bases
        segments = repository.index.segments()
        self._total_bytes = sum(info.size for info in segments)
        self._mean_bytes = self._total_bytes / max(sum(info.count for info in segments), 1)

    def run(self, threads: int) -> Report:
        self._walk_tables()
        self._check_chain()
        self._read_the_rest(threads)
        if self._bad.numbers:
            self._find_who_needs_them()
        self._progress(self._report.stored_bytes, self._report.stored_bytes)
        return self._report

    def _walk_tables(self) -> None:
        reader = _FromDisk(self._repository)
        walk = Walk(reader, self._failed)
        for record in self._records:
            for visit in walk.visits(record.root):
                self._note(visit)
                self._progress(reader.stored_bytes, self._total_bytes)
        self._report.objects, self._report.stored_bytes = reader.count, reader.stored_bytes

    def _note(self, visit: Visit) -> None:
        """Remember what is still to be read: a leaf, and the bases of anything."""
        try:
            row = row_of(self._repository, visit.pointer)
            bases = bases_of(self._repository, row)
        except (SnapfsError, OSError) as error:
            self._failed(visit.pointer, error)
            return
        (self._unread if visit.is_leaf else self._pages).add(row.number)
        for base in bases:
            self._unread.add(base)

    def _failed(self, pointer: Pointer, error: Exception) -> None:
        if not _has_bad_base(self._repository, pointer.number):
            self._bad.add(pointer.number, str(error))

    def _check_chain(self) -> None:
        """Does each root continue its parent's, and is the copy of each record in its segment readable?"""
        existing = {record.number: record for record in self._repository.snapshots()}
        for record in self._records:
            parent = existing.get(record.parent) if record.parent is not None else None
            try:
                if parent is not None and not self._continues(record, parent):
                    self._report.other_damage.append(f"snapshot {record.number} does not continue {parent.number}")
            except (SnapfsError, OSError) as error:
                roots = {record.root.number, parent.root.number if parent is not None else Number(0)}
                if not any(number in self._bad.numbers for number in roots):
                    self._report.other_damage.append(f"snapshot {record.number}: {error}")
            self._check_copy(record)

    def _check_copy(self, record: SnapshotRecord) -> None:
        try:
            self._repository.objects.read_uncached(record.last_number)
        except (SnapfsError, OSError) as error:
            self._report.lost_records.append(record.number)
            if record.root.number not in self._bad.numbers:
                self._report.other_damage.append(f"snapshot {record.number}: {error}")

    def _continues(self, record: SnapshotRecord, parent: SnapshotRecord) -> bool:
        root = decode_root(record.root, self._repository.read(record.root))
        return root.parent_sha256 == hashlib.sha256(self._repository.read(parent.root)).digest()

    def _read_the_rest(self, threads: int) -> None:
        self._total_bytes = self._report.stored_bytes + round(len(self._unread) * self._mean_bytes)
        numbers = (number for number in self._unread if number not in self._pages)
        waiting: deque[Future[_Batch]] = deque()
        with ThreadPoolExecutor(threads, "verify") as pool:
            try:
                while batch := list(islice(numbers, BATCH)):
                    waiting.append(pool.submit(_read_batch, self._repository, batch))
                    if len(waiting) > 2 * threads:
                        self._take(waiting.popleft().result())
                while waiting:
                    self._take(waiting.popleft().result())
            finally:
                pool.shutdown(cancel_futures=True)

    def _take(self, batch: _Batch) -> None:
        for number, why in batch.bad:
            self._bad.add(number, why)
        self._report.objects += batch.count
        self._report.stored_bytes += batch.stored_bytes
        self._progress(self._report.stored_bytes, max(self._total_bytes, self._report.stored_bytes))

    def _find_who_needs_them(self) -> None:
        needs = Needs(self._repository, self._bad)
        self._report.damaged_snapshots = [record.number for record in self._records if needs.is_affected(record)]
        self._report.bad = sorted(self._bad.detailed.values(), key=lambda bad: bad.number)
        self._report.bad_objects = len(self._bad.numbers)
        self._report.bad_numbers = self._bad.numbers


@dataclass(slots=True)
class _Batch:
    count: int = 0
    stored_bytes: int = 0
    bad: list[tuple[Number, str]] = field(default_factory=list)


def _read_batch(repository: Repository, numbers: list[Number]) -> _Batch:
    batch = _Batch()
    for number in numbers:
        batch.count += 1
        try:
            batch.stored_bytes += _stored(repository.objects.read_uncached(number)[0])
        except (SnapfsError, OSError) as error:
            if not _has_bad_base(repository, number):
                batch.bad.append((number, str(error)))
    return batch


def _has_bad_base(repository: Repository, number: Number) -> bool:
    """Is it a base's fault that this object cannot be read? The base is then read, and reported, by itself."""
    try:
        bases = repository.objects.bases_of(number)
    except (SnapfsError, OSError):
        return False
    for base in bases:
        try:
            repository.objects.read_uncached(base)
        except (SnapfsError, OSError):
            return True
    return False
