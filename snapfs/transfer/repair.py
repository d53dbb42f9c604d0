"""Repair: what verify finds bad is brought back from wherever its content still is, and the rest is told and marked.

The steps, again and again as long as they get anywhere (below a page that comes back there may be more that is bad):

1. Verify; search for what is wanted (store/wanted.py).
2. Find contents: another copy in the store, a mirror (`fetch`), the live tree and neighbouring snapshots (recall.py).
   The proof decides about each.
3. Mend the segments (store/mending.py). THE COMMIT POINT of each is its rename.

Then the snapshots are marked: those that still need something bad as damaged, those that were marked and now read back
in full as good again. If nothing at all is bad any more, what was kept of damaged segments is removed.

Invariants:
1. A content goes into the store only if it has the proof that the pointer to it demands.
2. A snapshot is never marked good unless all it needs was read back after the last mending.

A crash anywhere leaves some segments mended and the marks of before; the next repair goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from snapfs.blocks import Number
from snapfs.errors import SnapfsError, UserError
from snapfs.live.tree import LiveTree
from snapfs.store import check, records
from snapfs.store.check import Progress, Report
from snapfs.store.format import Kind, Pointer
from snapfs.store.mending import Content
from snapfs.store.records import DAMAGED, GOOD, SnapshotRecord
from snapfs.store.repository import Repository
from snapfs.store.wanted import Wanted, wanted
from snapfs.transfer.recall import Chunks, Present, Siblings, Trees

MEND_BYTES: Final = 64 << 20
"""Contents are gathered up to this before segments are rewritten: the bound of a repair's memory."""

Fetch = Callable[[Pointer], bytes | None]
"""Gets an object from elsewhere (a mirror), None if it is not to be had there. It need not be checked."""


@dataclass(slots=True)
class RepairReport:
    """What a repair did. `after` is the verification at its end; `done` has a line for each thing done."""

    after: Report
    mended: int = 0
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
    """Bring back what these snapshots need and cannot be read; mark them. Any thread; blocks.

    `tree` is the live tree of the volume, if it is at hand. Raises OSError (a full disk): what was mended stays so.
    """
    return _Repair(repository, [record.number for record in chosen], tree, fetch, threads, progress).run()


class _Repair:
    def __init__(
        self, repository: Repository, numbers: list[int], tree: LiveTree | None, fetch: Fetch | None, threads: int,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self._repository, self._numbers = repository, set(numbers)
        self._tree, self._fetch, self._threads, self._progress = tree, fetch, threads, progress
        self._proof_of = repository.objects.proof_of

    def run(self) -> RepairReport:
        salvaged = self._repository.salvage_unreadable()
        result = RepairReport(self._verify(), done=salvaged)
        while not result.after.is_good:
            mended = result.mended
            for contents in self._batches(result.after):
                result.segments += self._repository.mend(contents)
                result.mended += len(contents)
            if result.mended == mended:
                break
            result.after = self._verify()
        if result.mended:
            result.done.append(
                f"brought back {result.mended} objects; rewrote {', '.join(sorted(set(result.segments)))}"
            )
        self._mark(result)
        self._clear(result)
        return result

    def _records(self) -> list[SnapshotRecord]:
        return [record for record in self._repository.snapshots() if record.number in self._numbers]

    def _verify(self) -> Report:
        return check.verify(self._repository, self._records(), threads=self._threads, progress=self._progress)

    # -- contents

    def _batches(self, report: Report) -> Iterator[dict[Number, Content]]:
        """What can be found, in portions."""
        batch: dict[Number, Content] = {}
        gathered = 0
        for number, content in self._contents(report):
            batch[number] = content
            gathered += len(content.plain)
            if gathered >= MEND_BYTES:
                yield batch
                batch, gathered = {}, 0
        if batch:
            yield batch

    def _contents(self, report: Report) -> Iterator[tuple[Number, Content]]:
        for record in self._records():
            if record.number in report.lost_records:
                yield record.last_number, Content(Kind.RECORD, _record_copy(record))
        lost = wanted(self._repository, self._records(), report.bad_numbers)
        trees = Trees(self._repository)
        for finder in self._finders(lost, trees):
            for number, each in list(lost.items()):
                plain = finder(each)
                if plain is not None:
                    del lost[number]
                    yield number, Content(each.kind, plain)
        if self._tree is not None and any(each.kind != Kind.CHUNK for each in lost.values()):
            yield from Present(self._tree, self._repository, lost, trees).find().items()

    def _finders(self, lost: dict[Number, Wanted], trees: Trees) -> Iterator[Callable[[Wanted], bytes | None]]:
        yield self._copies(lost)
        if self._tree is not None:
            yield Chunks(self._tree, trees, self._proof_of).find
        yield Siblings(trees, self._proof_of).find
        if self._fetch is not None:
            yield self._fetched

    def _copies(self, lost: dict[Number, Wanted]) -> Callable[[Wanted], bytes | None]:
        """Other objects of the store with the same content; dedup does not find all of them."""
        proofs = {each.pointer.proof for each in lost.values()}
        places: dict[bytes, list[Number]] = {}
        for info in self._repository.index.segments() if proofs else ():
            with contextlib.suppress(SnapfsError, OSError):
                reader = self._repository.index.reader(info.first)
                for row in reader.rows() if reader is not None else ():
                    if row.proof in proofs and row.number not in lost:
                        places.setdefault(row.proof, []).append(row.number)

        def find(each: Wanted) -> bytes | None:
            for number in places.get(each.pointer.proof, ()):
                with contextlib.suppress(SnapfsError, OSError):
                    return self._repository.objects.read_uncached(number)[1]
            return None

        return find

    def _fetched(self, each: Wanted) -> bytes | None:
        assert self._fetch is not None
        with contextlib.suppress(SnapfsError, OSError):
            plain = self._fetch(each.pointer)
            if plain is not None and self._proof_of(plain) == each.pointer.proof:
                return plain
        return None

    # -- the end

    def _mark(self, result: RepairReport) -> None:
        for record in self._records():
            state = DAMAGED if record.number in result.after.damaged_snapshots else GOOD
            if self._repository.catalog.told_state(record.number) != state:
                with contextlib.suppress(UserError):  # dropped meanwhile
                    why = result.after.why(record.number) or "read back in full"
                    self._repository.mark(record.number, state, why)
                    result.done.append(f"marked snapshot {record.number} as {state}")

    def _clear(self, result: RepairReport) -> None:
        everything = {record.number for record in self._repository.snapshots()} <= self._numbers
        if everything and result.after.is_good:
            names = self._repository.clear_damaged()
            if names:
                result.done.append(f"removed {', '.join(names)}: nothing needs them any more")


def _record_copy(record: SnapshotRecord) -> bytes:
    """The copy of a snapshot's record as its segment has it: what was known before the segment was finished."""
    stats = replace(record.stats, stored_bytes=0, seal_seconds=0.0)
    return msgspec.json.encode(records.to_fields(replace(record, stats=stats)))
