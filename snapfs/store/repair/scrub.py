"""Scrub: everything stored is read back and checked little by little, over days, and over restarts.

A pass reads the objects in the order of their numbers, up to the highest there was when it began. How far it is lies in
`store/scrub.json`, which is replaced after each step. An object is checked by decoding it: its frame's checksum, and
the content hash in the segment's table. At the end of a pass the tables of the snapshots are walked, which checks that
each pointer leads to an object with the content hash it names; then these snapshots are verified.

Invariants:
1. Everything is read from the disk: the kernel forgets its pages of a segment before the pass comes to it.
2. What is bad is returned by the step that finds it. The caller repairs it; the pass goes on.
3. The file is a hint: without it, or with one that cannot be read, a pass begins anew. It is not synced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from snapfs.base.blocks import Disk, Number, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.base.json_file import JsonFile
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES, Pointer
from snapfs.store.repair.damage_report import BadObjects, Needs, bases_of, row_of
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.reachability import Walk

FILE: Final = "scrub.json"
Pause = Callable[[int], None]
"""Called with the bytes that were read since the last call."""


class ScrubState(msgspec.Struct, frozen=True):
    """The file. Numbers are those of objects; the pass has read all up to `through`, and ends at `until`.

    `worked_ns`: when the last step ended, UTC since 1970. `objects`, `stored_bytes`: read in this pass. `bad`: how many
    objects it found bad.
    """

    begun_ns: int
    until: int
    through: int = 0
    worked_ns: int = 0
    objects: int = 0
    stored_bytes: int = 0
    bad: int = 0
    format: int = 1


SCRUB: Final = JsonFile("scrub", ScrubState, advice="a new pass begins")


@dataclass(slots=True)
class ScrubStep:
    """What one step did. `segments`: those of which not even the table can be read."""

    read_bytes: int = 0
    bad: BadObjects = field(default_factory=BadObjects)
    segments: list[str] = field(default_factory=list)
    ended: bool = False


class Scrub:
    """The scrub of one store. One thread at a time."""

    def __init__(self, repository: Repository, disk: Disk, clock: Callable[[], int] = time.time_ns) -> None:
        self._repository, self._disk, self._clock = repository, disk, clock
        self._path = os.path.join(repository.store_dir, FILE)
        self._forgotten: set[int] = set()  # segments, by their first number, whose pages the kernel has forgotten
        self.state = self._read() or self._begun()

    def step(self, limit_bytes: int, pause: Pause) -> ScrubStep:
        """Read about so many bytes on. Raises OSError if the state cannot be written."""
        step = ScrubStep()
        through, objects = self.state.through, 0
        for number in self._numbers(step):
            size = self._check(number, step)
            through, objects, step.read_bytes = number, objects + 1, step.read_bytes + size
            pause(size)
            if step.read_bytes >= limit_bytes:
                break
        else:
            step.ended, through = True, self.state.until
        before = self.state
        self.state = msgspec.structs.replace(
            before, through=through, worked_ns=self._clock(), objects=before.objects + objects,
            stored_bytes=before.stored_bytes + step.read_bytes, bad=before.bad + len(step.bad.numbers),
        )  # fmt: skip
        self._write()
        return step

    def records(self) -> list[SnapshotRecord]:
        """The good snapshots that this pass covers."""
        return [
            each for each in self._repository.snapshots() if each.state == GOOD and each.last_number <= self.state.until
        ]

    def begin(self) -> None:
        """Begin the next pass. Raises OSError."""
        self._forgotten.clear()
        worked_ns = self.state.worked_ns
        self.state = msgspec.structs.replace(self._begun(), worked_ns=worked_ns)
        self._write()

    def _begun(self) -> ScrubState:
        return ScrubState(self._clock(), max(self._repository.index.last_number(), 1))

    def _numbers(self, step: ScrubStep) -> Iterator[Number]:
        """Those that are left, ascending."""
        for info in self._repository.index.segments():
            if info.last <= self.state.through or info.first > self.state.until:
                continue
            try:
                reader = self._repository.index.reader(info.first)
                if reader is None:
                    continue
                if info.first not in self._forgotten:
                    self._forgotten.add(info.first)
                    reader.check_table()
                    reader.forget_pages()
                yield from (row.number for row in reader.rows() if self.state.through < row.number <= self.state.until)
            except FileNotFoundError:  # merged into another one, whose turn may be over: the next pass has it
                continue
            except (SnapfsError, OSError):
                step.segments.append(os.path.basename(info.path))

    def _check(self, number: Number, step: ScrubStep) -> int:
        """How many bytes the object takes in its segment, 0 if it is gone or bad."""
        try:
            row, _ = self._repository.objects.read_uncached(number)
            return FRAME_BYTES + row.stored + ROW_BYTES
        except (SnapfsError, OSError) as error:
            if self._repository.index.peek(number) is not None:  # else it was collected meanwhile
                step.bad.add(number, str(error))
            return 0

    def _read(self) -> ScrubState | None:
        try:
            return SCRUB.read(self._path)
        except (OSError, SnapfsError):
            return None

    def _write(self) -> None:
        self._disk.replace_unsynced("scrub:state", self._path, SCRUB.encode(self.state))


def table_findings(
    repository: Repository, records: Iterable[SnapshotRecord], pause: Callable[[], None]
) -> dict[SnapshotNumber, str]:
    """Those of the snapshots whose tables lead to something that is not there, or is another content, each with why."""
    bad, chosen = BadObjects(), list(records)

    def failed(pointer: Pointer, error: Exception) -> None:
        bad.add(pointer.number, str(error))

    walk = Walk(repository, failed)
    for record in chosen:
        for visit in walk.visits(record.root):
            pause()
            try:
                bases_of(repository, row_of(repository, visit.pointer))
            except (SnapfsError, OSError) as error:
                failed(visit.pointer, error)
    return damaged_by(repository, chosen, bad)


def damaged_by(repository: Repository, records: Iterable[SnapshotRecord], bad: BadObjects) -> dict[SnapshotNumber, str]:
    """Those of the snapshots that need one of the bad objects, each with why."""
    if not bad.numbers:
        return {}
    needs, first = Needs(repository, bad), min(bad.detailed)
    why = bad.detailed[first].why
    return {record.number: why for record in records if needs.is_affected(record)}
