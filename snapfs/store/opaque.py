"""An opaque store, which cannot be looked into: what its writer says that it must hold, and whether it does.

`Told` takes the place of the walk through the tables at a commit. `Needed` is the file `store/needed`, which keeps what
was told, so that what is missing can be found out later, without any key.

NEEDED: frames of length of the data (4 bytes), a snapshot (8), XXH3-64 of both and the data (8), and the data: runs of
numbers (wire.py), in zstd. The numbers of all frames together, of which the dead go at a collection, are those that
have to be here. Snapshot 0: of all snapshots at the time.

Invariants:
1. A frame is durable before the first record of its commit, and names the last. One at the end whose snapshot is not in
   the log was not committed (all of it): it is cut off at the next opening.
2. It is replaced only by what a collection is going to leave, in one step, before that frees anything. Without the file
   nothing is lost but this knowledge.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import xxhash
import zstandard

from snapfs.blocks import Disk, Number
from snapfs.errors import CorruptionError, SnapfsError
from snapfs.store import wire
from snapfs.store.format import FRAME_BYTES, ROW_BYTES, Kind
from snapfs.store.numbers import NumberSet
from snapfs.store.objects import has_more_bases
from snapfs.store.records import SnapshotRecord
from snapfs.store.wire import Refusal, Run, refuse

if TYPE_CHECKING:
    from snapfs.store.receiving import Receiver
    from snapfs.store.repository import Repository

FILE: Final = "needed"
_FRAME: Final = struct.Struct("<IQ")
_SUM: Final = struct.Struct("<Q")
_HEAD_BYTES: Final = _FRAME.size + _SUM.size
_MOST_BYTES: Final = 1 << 30


class Told:
    """All that snapshots of an opaque store need, as their writer tells it. Changes nothing."""

    def __init__(
        self, receiver: Receiver, candidates: list[SnapshotRecord], needs: Sequence[Run] | None, ground: int
    ) -> None:
        self._receiver, self._candidates, self._needs, self._ground = receiver, candidates, needs, ground
        self._missing: list[Number] = []
        self.needed = NumberSet()
        self.numbers = NumberSet()
        """What the writer named, and the roots and records."""

    def run(self) -> Told:
        """Raises RefusedError if anything is missing."""
        self._check_ground()
        for record in self._candidates:
            self._look(record.root.number, Kind.SEALED)
            self._look(record.last_number, Kind.RECORD)
        for first, last in self._needs or ():
            for number in range(first, last + 1):
                self._look(Number(number))
                if len(self._missing) >= wire.MISSING_TOLD:
                    self._refuse()
        if self._missing:
            self._refuse()
        if self._needs is None:
            for part in self._receiver.staging.parts():
                for _, row in self._receiver.staging.rows(part):
                    self.needed.add(row.number)
                    self.numbers.add(row.number)
        return self

    def merge_into(self, whole: NumberSet) -> None:
        """Nothing is known to be whole but by what is told."""

    def _check_ground(self) -> None:
        if self._ground and not any(r.number == self._ground for r in self._receiver.repository.snapshots()):
            why = f"snapshot {self._ground} is not here, as the writer thinks: this is another copy than it knows"
            raise refuse(Refusal.INCOMPLETE, why, snapshot=self._ground)

    def _look(self, number: Number, kind: Kind | None = None) -> None:
        row = self._receiver.union.row(number)
        if row is None:
            self._missing.append(number)
            return
        if kind is not None and row.kind != kind:
            raise refuse(Refusal.BAD_REQUEST, f"object {number:#x} is not what its snapshot needs", number=number)
        self.numbers.add(number)
        self.needed.add(number)
        if not row.base:
            return
        more = self._receiver.objects.bases_of(number) if has_more_bases(row) else (row.base,)
        for base in more:
            self.numbers.add(base)
            if self.needed.add(base) and self._receiver.union.row(base) is None:
                self._missing.append(base)

    def _refuse(self) -> None:
        missing = sorted(set(self._missing))
        number = self._candidates[-1].number
        raise refuse(
            Refusal.INCOMPLETE, f"snapshot {number} is not whole here: {missing[0]:#x} and others are not there",
            snapshot=number, missing=[int(each) for each in missing[: wire.MISSING_TOLD]],
        )  # fmt: skip


class Needed:
    """The file. One thread at a time."""

    def __init__(self, store_dir: str, disk: Disk) -> None:
        self._path, self._disk = os.path.join(store_dir, FILE), disk

    def open(self, was_committed: Callable[[int], bool]) -> None:
        """Cut off what a crash left at the end. Raises OSError."""
        newest = deque(((start, end, snapshot) for start, end, snapshot, _ in self._frames()), maxlen=1)
        start, good, last = newest[0] if newest else (0, 0, 0)
        if last and not was_committed(last):
            good = start
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(self._path) > good:
                fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    self._disk.truncate("needed:cut", fd, good)
                    self._disk.fdatasync("needed:cut", fd)
                finally:
                    os.close(fd)

    def append(self, snapshot: int, numbers: Iterable[int]) -> None:
        """Durable on return. Raises OSError; then nothing was added."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            try:
                self._disk.pwrite("needed:append", fd, _packed(snapshot, numbers), size)
                self._disk.fdatasync("needed:append", fd)
            except OSError:
                with contextlib.suppress(OSError):
                    self._disk.truncate("needed:undo", fd, size)
                raise
        finally:
            os.close(fd)
        if not size:
            self._disk.sync_dir("needed:file", os.path.dirname(self._path))

    def numbers(self) -> NumberSet:
        """All that has to be here, as far as it was told."""
        found = NumberSet()
        for _, _, _, runs in self._frames():
            for first, last in runs:
                for number in range(first, last + 1):
                    found.add(number)
        return found

    def keep(self, live: NumberSet) -> None:
        """Before a collection: only this is needed any more, of what was. Raises OSError."""
        left = (number for number in self.numbers() if number in live)
        self._disk.replace_file("needed:keep", self._path, _packed(0, left))

    def _frames(self) -> Iterator[tuple[int, int, int, list[Run]]]:
        """(start, end, snapshot, runs) of each that is whole, up to the first that is not."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            start = 0
            while len(head := file.read(_HEAD_BYTES)) == _HEAD_BYTES:
                length, snapshot = _FRAME.unpack_from(head)
                data = file.read(min(length, _MOST_BYTES))
                if xxhash.xxh3_64_intdigest(head[: _FRAME.size] + data) != _SUM.unpack_from(head, _FRAME.size)[0]:
                    return
                packed = zstandard.ZstdDecompressor().decompress(data)
                end = start + _HEAD_BYTES + length
                yield start, end, snapshot, wire.unpack_runs(packed, _MOST_BYTES)
                start = end


def _packed(snapshot: int, numbers: Iterable[int]) -> bytes:
    data = zstandard.ZstdCompressor(level=3).compress(wire.pack_runs(wire.runs_of(numbers)))
    head = _FRAME.pack(len(data), snapshot)
    return head + _SUM.pack(xxhash.xxh3_64_intdigest(head + data)) + data


class Verdict:
    """What reading an opaque store back showed."""

    def __init__(self) -> None:
        self.objects = 0
        self.stored_bytes = 0
        self.bad: dict[Number, str] = {}

    def note(self, number: Number, why: str) -> None:
        self.bad.setdefault(number, why)


def read_back(repository: Repository, records: Collection[SnapshotRecord]) -> Verdict:
    """Read every object of an opaque store, and look for what has to be there. Damage does not raise."""
    found, present = Verdict(), NumberSet()
    for info in repository.index.segments():
        try:
            reader = repository.index.reader(info.first)
            rows = list(reader.rows()) if reader is not None else []
        except SnapfsError as error:
            found.note(info.first, str(error))
            continue
        for row in rows:
            try:
                repository.objects.read_uncached(row.number)
                found.objects += 1
                found.stored_bytes += FRAME_BYTES + row.stored + ROW_BYTES
                present.add(row.number)
            except (CorruptionError, OSError) as error:
                found.note(row.number, str(error))
    must = Needed(repository.store_dir, repository.disk).numbers()
    for record in records:
        must.add(record.root.number)
        must.add(record.last_number)
    for number in must:
        if number not in present:
            found.note(number, "it is missing")
    return found
