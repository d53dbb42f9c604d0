"""VOLUME/store/needed of an encrypted store: the objects that must be here, by the writer's manifests.

A server cannot walk the tables of what it cannot decrypt. `RequiredObjects` keeps what the manifests named
(client_manifest.py), so that a missing object can be found later, without any key.

NEEDED: frames of a word (4 bytes: length of the data in the lower 30 bits, format in the two above: 0), a snapshot (8),
XXH3-64 of both and the data (8), and the data: runs of numbers (wire.py), in zstd. The numbers of all frames together,
of which the dead go at a collection, are those that have to be here. Snapshot 0: of all snapshots at the time.

Invariants:
1. A frame is durable before the first record of its commit, and names the last. One at the end whose snapshot is not in
   the log was not committed (all of it): it is cut off at the next opening. So is a torn one, unless the log has a
   later snapshot than the frames before it: then it was whole once, and the file is damaged. Such a file is renamed
   to `needed.damaged`, and `verify` reports it until the writer has sent all that lives once more.
2. It is replaced only by what a collection is going to leave, in one step, before that frees anything. Without the file
   nothing is lost but this knowledge.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Final

import xxhash
import zstandard

from snapfs.base.blocks import Disk, Number
from snapfs.base.errors import CorruptionError, SnapfsError, VersionError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import number_runs
from snapfs.store.protocol.number_runs import Run

if TYPE_CHECKING:
    from snapfs.store.repository.repository import Repository

FILE: Final = "needed"
_DAMAGED: Final = ".damaged"
_FRAME: Final = struct.Struct("<IQ")
_SUM: Final = struct.Struct("<Q")
_HEAD_BYTES: Final = _FRAME.size + _SUM.size
_MOST_BYTES: Final = 1 << 30
_LENGTH: Final = _MOST_BYTES - 1


class RequiredObjects:
    """The file. One thread at a time."""

    def __init__(self, store_dir: str, disk: Disk) -> None:
        self._path, self._disk = os.path.join(store_dir, FILE), disk

    def open(self, was_committed: Callable[[int], bool], newest: int = 0) -> str:
        """Cut off what a crash left at the end; or rename the file if it is damaged, and report it in a line (else "").
        `newest`: the newest snapshot in the log. Raises OSError."""
        if self._is_damaged(newest):
            self._disk.rename("needed:aside", self._path, f"{self._path}{_DAMAGED}")
            self._disk.sync_dir("needed:aside", os.path.dirname(self._path))
            return f"{self._path} was damaged, and is set aside: what has to be here is not known for certain"
        self._cut_uncommitted(was_committed)
        return ""

    @property
    def damage(self) -> str:
        """Why it is not known what has to be here; "" if it is."""
        if os.path.lexists(f"{self._path}{_DAMAGED}"):
            return f"{self._path}{_DAMAGED} is damaged: what has to be here is not known until the writer sends it"
        return ""

    def _is_damaged(self, newest: int) -> bool:
        frames = [(end, snapshot) for _, end, snapshot, _ in self._frames()]
        end = frames[-1][0] if frames else 0
        named = [snapshot for _, snapshot in frames]  # not ascending: history comes after the newest
        try:
            size = os.path.getsize(self._path)
        except FileNotFoundError:
            return False
        if 0 not in named and newest > max(named, default=0):  # 0: all of the time of a collection
            return True
        with open(self._path, "rb") as file:
            file.seek(end)
            head = file.read(_HEAD_BYTES)
        is_followed = len(head) == _HEAD_BYTES and end + _HEAD_BYTES + _FRAME.unpack_from(head)[0] < size
        return is_followed

    def _cut_uncommitted(self, was_committed: Callable[[int], bool]) -> None:
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
                self._disk.pwrite("needed:append", fd, packed_frame(snapshot, numbers), size)
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
        """All that has to be here, as far as it was sent."""
        found = NumberSet()
        for _, _, _, runs in self._frames():
            _add_runs(found, runs)
        return found

    def since_collection(self) -> NumberSet:
        """What was sent with the commits since `keep`."""
        found = NumberSet()
        for _, _, snapshot, runs in self._frames():
            if snapshot:
                _add_runs(found, runs)
        return found

    def by_snapshot(self) -> Iterator[tuple[int, Iterator[int]]]:
        """The numbers of each frame, with the last snapshot of the commit that had them (0: all of that time)."""
        for _, _, snapshot, runs in self._frames():
            yield snapshot, (number for first, last in runs for number in range(first, last + 1))

    def of_snapshot(self, snapshot: int) -> list[Run] | None:
        """What was sent with this snapshot's commit, None if nothing was."""
        return next((runs for _, _, each, runs in self._frames() if each == snapshot), None)

    def keep(self, live: NumberSet) -> None:
        """Before a collection: only this is needed any more, of what was. Raises OSError."""
        left = live if self.damage else (number for number in self.numbers() if number in live)
        self._disk.replace_file("needed:keep", self._path, packed_frame(0, left))
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink("needed:known", f"{self._path}{_DAMAGED}")

    def _frames(self) -> Iterator[tuple[int, int, int, list[Run]]]:
        return read_frames(self._path)


def _add_runs(numbers: NumberSet, runs: Iterable[Run]) -> None:
    for first, last in runs:
        for number in range(first, last + 1):
            numbers.add(number)


def read_frames(path: str) -> Iterator[tuple[int, int, int, list[Run]]]:
    """(start, end, snapshot, runs) of each frame that is whole, up to the first that is not. None without the file.

    Raises VersionError for a frame of a later format that checks out.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        start = 0
        while len(head := file.read(_HEAD_BYTES)) == _HEAD_BYTES:
            word, snapshot = _FRAME.unpack_from(head)
            length, later = word & _LENGTH, word & ~_LENGTH
            data = file.read(length)
            if xxhash.xxh3_64_intdigest(head[: _FRAME.size] + data) != _SUM.unpack_from(head, _FRAME.size)[0]:
                return
            if later:
                raise VersionError(f"{path} has a frame of a later format version: use a newer snapfs")
            packed = zstandard.ZstdDecompressor().decompress(data)
            end = start + _HEAD_BYTES + length
            yield start, end, snapshot, number_runs.unpack_runs(packed, _MOST_BYTES)
            start = end


def packed_frame(snapshot: int, numbers: Iterable[int]) -> bytes:
    data = zstandard.ZstdCompressor(level=3).compress(number_runs.pack_runs(number_runs.runs_of(numbers)))
    head = _FRAME.pack(len(data), snapshot)
    return head + _SUM.pack(xxhash.xxh3_64_intdigest(head + data)) + data


class ManifestVerdict:
    """What reading an encrypted store back showed."""

    def __init__(self) -> None:
        self.objects = 0
        self.stored_bytes = 0
        self.bad: dict[Number, str] = {}

    def note(self, number: Number, why: str) -> None:
        self.bad.setdefault(number, why)


def read_back(repository: Repository, records: Collection[SnapshotRecord]) -> ManifestVerdict:
    """Read every object of an encrypted store, and look for what has to be there. Damage does not raise."""
    found, present = ManifestVerdict(), NumberSet()
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
    needed = RequiredObjects(repository.store_dir, repository.disk)
    must = needed.numbers()
    if needed.damage:
        found.note(Number(0), needed.damage)
    for record in records:
        must.add(record.root.number)
        must.add(record.last_number)
    for number in must:
        if number not in present:
            found.note(number, "it is missing")
    return found
