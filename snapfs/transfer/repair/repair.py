"""Repair: what verify finds damaged is restored from wherever its content still is; the rest is reported and marked.

The steps, repeated as long as they make progress (below a page that is repaired there may be more damage):

1. Verify; collect the lost objects (store/repair/repair_candidates.py).
2. Find contents: another copy in the store, a mirror (`fetch`), the live tree and neighbouring snapshots
   (object_recovery.py). The content hash decides about each.
3. Rewrite the segments (store/repository/repair_writer.py). THE COMMIT POINT of each is its rename.

Then the snapshots are marked: those that still need something bad as damaged, those that were marked and now read back
in full as good again. If no damage is left, the kept copies of damaged segments are removed.

Invariants:
1. A content goes into the store only if it has the content hash that the pointer to it demands.
2. A snapshot is never marked good unless all it needs was read back after the last repair of a segment.

A crash anywhere leaves some segments repaired and the old marks; the next repair goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from snapfs.base.blocks import Number
from snapfs.base.errors import SnapfsError, UserError
from snapfs.live.tree import LiveTree
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, SnapshotRecord
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repair import verify
from snapfs.store.repair.damage_report import BadObjects
from snapfs.store.repair.repair_candidates import RepairCandidates, wanted
from snapfs.store.repair.scrub import damaged_by
from snapfs.store.repair.suspects import read_suspects, remove_suspects, write_suspects
from snapfs.store.repair.verify import Progress
from snapfs.store.repair.verify_report import Report
from snapfs.store.repository.repair_writer import RepairContent
from snapfs.store.repository.repository import Repository
from snapfs.transfer.repair.live_chunks import LiveChunks
from snapfs.transfer.repair.live_pages import LivePages
from snapfs.transfer.repair.neighbour_trees import NeighbourTrees
from snapfs.transfer.repair.sibling_pages import SiblingPages

BATCH_BYTES: Final = 64 << 20
"""Contents are gathered up to this before segments are rewritten: the bound of a repair's memory."""

Fetch = Callable[[Pointer], bytes | None]
"""Fetches an object from elsewhere (a mirror); None if it is not there. The result is checked by the caller."""


@dataclass(slots=True)
class RepairReport:
    """What a repair did. `after` is the verification at its end; `done` has a line for each thing done."""

    after: Report
    repaired: int = 0
    segments: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)


def repair(
    repository: Repository,
    chosen: Iterable[SnapshotRecord],
    *,
    tree: LiveTree | None = None,
    fetch: Fetch | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> RepairReport:
    """Repair what these snapshots need and cannot be read; mark them. Any thread; blocks.

    `tree`: the live tree of the volume, if it is at hand. Raises OSError (a full disk): what was repaired stays so.
    """
    return _Repair(repository, [record.number for record in chosen], tree, fetch, threads, progress).run()


def repair_suspects(repository: Repository, parent: SnapshotRecord, tree: LiveTree) -> bool:
    """Before a seal: repair from the live tree what `verify` found damaged and the next snapshot would share with its
    parent. False if that is not possible: then it must not build on the parent. Any thread.

    Raises OSError; CorruptionError, VersionError for a list of suspects that cannot be read.
    """
    lost = _unreadable(repository, read_suspects(repository.store_dir))
    if lost:
        report = Report(bad_objects=len(lost), bad_numbers=lost)
        for contents in _Repair(repository, [parent.number], tree, None, 1, None)._batches(report):
            repository.segment_repair.repair(contents)
        lost = _unreadable(repository, lost)
    needed = wanted(repository, [parent], lost) if lost else {}
    if not lost:
        remove_suspects(repository.store_dir, repository.disk)
    return not needed


def heal(repository: Repository, bad: BadObjects, segments: list[str], *, tree: LiveTree, fetch: Fetch) -> RepairReport:
    """Repair these objects, which were found bad, and mark the snapshots that need what is left. Any thread.

    `segments`: names of those of which nothing can be read; then everything is verified. Raises OSError. `after` of the
    report has what is left.
    """
    records = repository.snapshots()
    if segments:
        return repair(repository, records, tree=tree, fetch=fetch)
    result = RepairReport(Report(bad_objects=len(bad.numbers), bad_numbers=bad.numbers))
    repairing = _Repair(repository, [record.number for record in records], tree, fetch, 1, None)
    for contents in repairing._batches(result.after):
        result.segments += repository.segment_repair.repair(contents)
        result.repaired += len(contents)
    if result.repaired:
        result.done.append(f"repaired {result.repaired} objects; rewrote {', '.join(sorted(set(result.segments)))}")
    left = BadObjects()
    for number in _unreadable(repository, bad.numbers):
        left.add(number, bad.detailed[number].why if number in bad.detailed else "it is bad")
    result.after = Report(bad_objects=len(left.numbers), bad_numbers=left.numbers)
    if left.numbers:
        write_suspects(repository.store_dir, left.numbers, repository.disk)
    for snapshot, why in damaged_by(repository, records, left).items():
        if repository.catalog.recorded_state(snapshot) != DAMAGED:
            repository.mark(snapshot, DAMAGED, why)
            result.done.append(f"marked snapshot {snapshot} as {DAMAGED}")
    return result


def _unreadable(repository: Repository, numbers: Iterable[Number]) -> NumberSet:
    found = NumberSet()
    for number in numbers:
        try:
            repository.objects.read_uncached(number)
        except SnapfsError:
            found.add(number)
    return found


class _Repair:
    """One repair of these snapshots."""

    def __init__(
        self, repository: Repository, numbers: list[int], tree: LiveTree | None, fetch: Fetch | None, threads: int,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self._repository, self._numbers = repository, set(numbers)
        self._tree, self._fetch, self._threads, self._progress = tree, fetch, threads, progress
        self._content_hash_of = repository.objects.content_hash_of

    def run(self) -> RepairReport:
        salvaged = self._repository.segment_repair.salvage_unreadable()
        result = RepairReport(self._verify(), done=salvaged)
        while not result.after.is_good:
            repaired = result.repaired
            for contents in self._batches(result.after):
                result.segments += self._repository.segment_repair.repair(contents)
                result.repaired += len(contents)
            if result.repaired == repaired:
                break
            result.after = self._verify()
        if result.repaired:
            result.done.append(f"repaired {result.repaired} objects; rewrote {', '.join(sorted(set(result.segments)))}")
        self._mark(result)
        self._clear(result)
        return result

    def _records(self) -> list[SnapshotRecord]:
        return [record for record in self._repository.snapshots() if record.number in self._numbers]

    def _verify(self) -> Report:
        return verify.verify(self._repository, self._records(), threads=self._threads, progress=self._progress)

    # -- contents

    def _batches(self, report: Report) -> Iterator[dict[Number, RepairContent]]:
        """The contents that can be found, in batches of about BATCH_BYTES."""
        batch: dict[Number, RepairContent] = {}
        gathered = 0
        for number, content in self._contents(report):
            batch[number] = content
            gathered += len(content.plain)
            if gathered >= BATCH_BYTES:
                yield batch
                batch, gathered = {}, 0
        if batch:
            yield batch

    def _contents(self, report: Report) -> Iterator[tuple[Number, RepairContent]]:
        for record in self._records():
            if record.number in report.lost_records:
                yield record.last_number, RepairContent(ObjectKind.RECORD, _record_copy(record))
        lost = wanted(self._repository, self._records(), report.bad_numbers)
        trees = NeighbourTrees(self._repository)
        for finder in self._finders(lost, trees):
            for number, each in list(lost.items()):
                plain = finder(each)
                if plain is not None:
                    del lost[number]
                    yield number, RepairContent(each.kind, plain)
        if self._tree is not None and any(each.kind != ObjectKind.CHUNK for each in lost.values()):
            yield from LivePages(self._tree, self._repository, lost, trees).find().items()

    def _finders(
        self, lost: dict[Number, RepairCandidates], trees: NeighbourTrees
    ) -> Iterator[Callable[[RepairCandidates], bytes | None]]:
        yield self._copies(lost)
        if self._tree is not None:
            yield LiveChunks(self._tree, trees, self._content_hash_of).find
        yield SiblingPages(trees, self._content_hash_of).find
        if self._fetch is not None:
            yield self._fetched

    def _copies(self, lost: dict[Number, RepairCandidates]) -> Callable[[RepairCandidates], bytes | None]:
        """A finder of other objects of the store with the same content; dedup does not find all of them."""
        content_hashes = {each.pointer.content_hash for each in lost.values()}
        places: dict[bytes, list[Number]] = {}
        for info in self._repository.index.segments() if content_hashes else ():
            with contextlib.suppress(SnapfsError, OSError):
                reader = self._repository.index.reader(info.first)
                for row in reader.rows() if reader is not None else ():
                    if row.content_hash in content_hashes and row.number not in lost:
                        places.setdefault(row.content_hash, []).append(row.number)

        def find(each: RepairCandidates) -> bytes | None:
            for number in places.get(each.pointer.content_hash, ()):
                with contextlib.suppress(SnapfsError, OSError):
                    return self._repository.objects.read_uncached(number)[1]
            return None

        return find

    def _fetched(self, each: RepairCandidates) -> bytes | None:
        assert self._fetch is not None
        with contextlib.suppress(SnapfsError, OSError):
            plain = self._fetch(each.pointer)
            if plain is not None and self._content_hash_of(plain) == each.pointer.content_hash:
                return plain
        return None

    # -- the end

    def _mark(self, result: RepairReport) -> None:
        for record in self._records():
            state = DAMAGED if record.number in result.after.damaged_snapshots else GOOD
            if self._repository.catalog.recorded_state(record.number) != state:
                with contextlib.suppress(UserError):  # dropped meanwhile
                    why = result.after.why(record.number) or "read back in full"
                    self._repository.mark(record.number, state, why)
                    result.done.append(f"marked snapshot {record.number} as {state}")

    def _clear(self, result: RepairReport) -> None:
        everything = {record.number for record in self._repository.snapshots()} <= self._numbers
        if everything and result.after.is_good:
            names = self._repository.segment_repair.clear_damaged()
            if names:
                result.done.append(f"removed {', '.join(names)}: nothing needs them any more")


def _record_copy(record: SnapshotRecord) -> bytes:
    """The copy of a snapshot's record in its segment, without what is only known when the segment is finished."""
    stats = replace(record.stats, stored_bytes=0, seal_seconds=0.0)
    return msgspec.json.encode(snapshot_records.to_fields(replace(record, stats=stats)))
