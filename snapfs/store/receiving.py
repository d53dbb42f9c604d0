"""The store's door for objects that come from elsewhere: every one verified on arrival, a snapshot whole or not at all.

Invariants:
1. Correctness rests on (number, proof) alone. What is in the store is passed over; the same number with another proof
   is refused ("diverged"); nothing is inferred from ranges or from what was there once.
2. An object is decoded with its bases and checked against its proof before it counts. One whose base has not come yet
   is staged as unverified, and decoded before the commit of whatever needs it.
3. `commit` finds every object that the snapshots need by walking their tables (or, of an opaque store, by what its
   writer tells: opaque.py), bases included, before it changes anything; what an earlier commit found whole is not
   walked again. Then segments, durably, then record after record: THE COMMIT POINT of each snapshot is its line in
   snapshots.log. A crash before it leaves parts, or segments that `staging.take_back` turns into parts again; one after
   it, parts whose objects are all committed.
4. `fence` is asked immediately before the first change, under the lock that every change of who may write takes too.
   Two locks, taken in this order: `turn`, for as long as a commit, a drop or a collection takes; `lock`, for the
   instant of effect. So a claim waits for what is being published, and not for what is being looked through.
5. Memory: the caches, and for each part being received its buffers and 8 bytes an object.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from snapfs.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.errors import CorruptionError, UserError
from snapfs.store import records, wire
from snapfs.store.arriving import Fence, PartReceiver
from snapfs.store.format import Row
from snapfs.store.numbers import NumberSet
from snapfs.store.objects import Objects
from snapfs.store.opaque import Needed, Told
from snapfs.store.publishing import Publisher
from snapfs.store.records import SnapshotRecord
from snapfs.store.repository import Repository
from snapfs.store.staging import StagedPart, Staging, Union
from snapfs.store.wholeness import Search
from snapfs.store.wire import Limits, Refusal, Run, refuse

__all__ = ["Fence", "PartReceiver", "Receiver"]


class Receiver:
    """Takes objects and snapshots into a repository that nobody else writes. Thread-safe."""

    def __init__(
        self, repository: Repository, disk: Disk, *, cache_bytes: int = 32 << 20, limits: Limits | None = None
    ) -> None:
        """Opens or makes the staging folder. Raises OSError."""
        self.repository, self.disk = repository, disk
        self.limits = limits or Limits()
        self.staging = Staging(repository.store_dir, disk)
        self.union = Union(self.staging, repository.index)
        self.objects = Objects(self.union, repository.identity.seed, cache_bytes)
        self.turn = threading.RLock()
        """Held by whoever needs the set of snapshots and segments to stay as it is, for long."""
        self.lock = threading.RLock()
        """Held by whatever changes snapshots, staged parts, or who may write."""
        self.received_ns: dict[SnapshotNumber, int] = {}
        """When each snapshot was committed here, as its line in the log says; of those that this object saw."""
        self.told = Needed(repository.store_dir, disk)
        if self.is_opaque:
            self.told.open(self._was_committed)
        self.whole = NumberSet()
        """Objects that are here together with all that is below them."""

    def lacks(self, runs: Sequence[Run]) -> Iterator[Run]:
        """Of these numbers, those that are neither committed nor staged. Raises RefusedError for too many."""
        if sum(last - first + 1 for first, last in runs) > wire.MAX_LACKS_NUMBERS:
            raise refuse(Refusal.TOO_LARGE, f"more than {wire.MAX_LACKS_NUMBERS} numbers in one request")
        return wire.runs_of(number for first, last in runs for number in self._lacks(Number(first), Number(last)))

    def _lacks(self, first: Number, last: Number) -> Iterable[int]:
        if self.union.is_empty(first, last):
            return range(first, last + 1)
        return (number for number in range(first, last + 1) if self.union.row(Number(number)) is None)

    def has(self, number: Number, proof: bytes) -> bool:
        """Is this object here? Raises RefusedError if a committed one has its number and another content.

        Of a staged one only that part is lost: its sender's numbers came to nothing in a power cut.
        """
        row = self.union.row(number)
        if row is None or row.proof == proof:
            return row is not None
        self._unstage(number)
        row = self.union.row(number)
        if row is None or row.proof == proof or self.is_opaque:  # sealed by another key, or of another encoding
            return row is not None
        why = f"object {number:#x} has another content here: this is another history"
        raise refuse(Refusal.DIVERGED, why, number=number)

    def part(self, generation: Generation, fence: Fence) -> PartReceiver:
        """Begin to receive a part from the writer of this generation."""
        return PartReceiver(self, generation, fence)

    def commit(
        self,
        candidates: list[SnapshotRecord],
        *,
        history: bool,
        fence: Fence,
        needs: Sequence[Run] | None = None,
        ground: int = 0,
    ) -> list[SnapshotRecord]:
        """Make the snapshots visible that are not there; returns those. Raises RefusedError, OSError.

        Where it is cut off between two records, those before are committed, and it can be done again. Of an opaque
        store `needs` are the numbers that they need, as told, and `ground` a snapshot that has to be here.
        """
        with self.turn:
            fence()
            missing = [record for record in _ascending(candidates) if not self._is_there(record)]
            self._check_order(missing, history)
            if missing:
                found: Search | Told = (
                    Told(self, missing, needs, ground).run() if self.is_opaque else Search(self, missing).run()
                )
                with self.lock:
                    fence()
                    self._make_visible(missing, found)
            return missing

    def distrust(self, number: Number) -> list[Number]:
        """An object cannot be read: it, or a base of it, is taken for missing from now on; returns which."""
        bad = []
        try:
            candidates = [*self.objects.bases_of(number), number]
        except CorruptionError:
            candidates = [number]
        for each in candidates:
            try:
                self.objects.read_uncached(each)
            except CorruptionError:
                bad.append(each)
                if not self._unstage(each):
                    self.union.distrusted.add(each)
                break  # of a bad base the differences to it are no fault
        return bad

    def suspect(self, numbers: Iterable[Number]) -> list[Number]:
        """Those of them that cannot be read have to come again before a snapshot that needs them is made visible."""
        with self.turn:
            found = [bad for number in numbers for bad in self.distrust(number)]
            if found:
                self.whole = NumberSet()
            return found

    def forget_stale(self, max_age_seconds: float, now: float | None = None) -> int:
        """Remove parts older than this, and those with nothing new in them; returns how many. Raises OSError."""
        now = time.time() if now is None else now
        with self.turn, self.lock:
            stale = [part for part in self.staging.parts() if self._is_stale(part, now - max_age_seconds)]
            self._forget(stale)
            return len(stale)

    def close(self) -> None:
        self.staging.close()

    def check_invariants(self) -> None:
        self.repository.check_invariants()
        self.staging.check_invariants()
        self.objects.check_invariants()

    @property
    def is_opaque(self) -> bool:
        return self.repository.identity.opaque

    def _was_committed(self, number: int) -> bool:
        told = (event.fields["number"] for event in self.repository.events() if event.kind == "snapshot")
        return any(number == each for each in told)

    def _make_visible(self, missing: list[SnapshotRecord], found: Search | Told) -> None:
        copied = self._publish(found)
        if isinstance(found, Told):
            self.told.append(missing[-1].number, found.numbers)
        for record in missing:
            event = self.repository.log.append("snapshot", records.to_fields(record))
            self.received_ns[record.number] = event.time_ns
            self.repository.catalog.add(record)
            self.repository.ended(Number(record.last_number + 1))
        found.merge_into(self.whole)
        self.union.distrusted.clear()
        with contextlib.suppress(OSError):  # what cannot be removed is dead weight, and goes another time
            self.staging.discard(copied)

    def _publish(self, found: Search | Told) -> list[StagedPart]:
        parts, leave_out = self._needed(found.needed)
        try:
            return Publisher(
                self.repository.index, self.staging, self.disk, self.repository.identity.volume_id
            ).publish(parts, leave_out)
        except CorruptionError as error:
            self._forget([part for part in parts if part.path == error.where])
            raise refuse(Refusal.INCOMPLETE, f"the mirror's disk damaged a part: {error}; send it again") from None

    def _needed(self, needed: NumberSet) -> tuple[list[StagedPart], set[Number]]:
        """The parts with at least one of these objects, and what of them is undecodable and not needed."""
        parts, leave_out = [], set()
        for part in self.staging.parts():
            rows = [row for _, row in self.staging.rows(part)]
            if not any(row.number in needed for row in rows):
                continue
            parts.append(part)
            for row in rows:
                if part.is_unverified(row) and not self._verify(row, part, row.number in needed):
                    leave_out.add(row.number)
            part.unverified = set(part.unverified or ()) & leave_out
        return parts, leave_out

    def _verify(self, row: Row, part: StagedPart, needed: bool) -> bool:
        """Decode a difference that could not be decoded on arrival. Raises RefusedError if it is needed and bad."""
        lacking = [number for number in self.objects.bases_of(row.number) if self.union.row(number) is None]
        try:
            if not lacking:
                self.objects.read_uncached(row.number)
                return True
        except CorruptionError as error:
            self._forget([part])
            raise refuse(Refusal.CORRUPT, f"{error}; send it again", number=row.number) from None
        if needed:
            raise refuse(
                Refusal.INCOMPLETE, f"object {row.number:#x} needs others that are not there", missing=[*lacking]
            )
        return False

    def _is_stale(self, part: StagedPart, before: float) -> bool:
        try:
            if os.stat(part.path).st_mtime < before:
                return True
            return all(self.repository.index.peek(row.number) is not None for _, row in self.staging.rows(part))
        except (CorruptionError, FileNotFoundError):
            return True

    def _forget(self, parts: list[StagedPart]) -> None:
        self.staging.discard(parts)
        for part in parts:
            self.objects.forget_from(part.first)

    def _unstage(self, number: Number) -> bool:
        """Forget the parts with this object; False if there are none."""
        with self.lock:
            found = self.staging.part_with(number) is not None
            while (part := self.staging.part_with(number)) is not None:
                self._forget([part])
            return found

    def _is_there(self, record: SnapshotRecord) -> bool:
        """Is it committed? Raises RefusedError if another one has its number."""
        if record.name is not None:
            _check_name(record.name)
        try:
            found = self.repository.find(str(record.number))
        except UserError:
            return False
        if (found.number, found.root, found.last_number) != (record.number, record.root, record.last_number):
            what = f"another snapshot {found.number} (generation {found.generation})"
            raise refuse(Refusal.DIVERGED, f"{what} is here: put it aside, or see who wrote it", snapshot=found.number)
        return True

    def _check_order(self, missing: list[SnapshotRecord], history: bool) -> None:
        newest = self.repository.latest()
        if newest is None or not missing or history or missing[0].number > newest.number:
            return
        why = f"snapshot {missing[0].number} is older than the newest here, {newest.number}, and not sent as history"
        raise refuse(Refusal.BAD_REQUEST, why, snapshot=newest.number)


def _ascending(candidates: list[SnapshotRecord]) -> list[SnapshotRecord]:
    numbers = [record.number for record in candidates]
    names = [record.name for record in candidates if record.name is not None]
    if numbers != sorted(set(numbers)) or len(names) != len(set(names)):
        raise refuse(Refusal.BAD_REQUEST, "the snapshots of a commit ascend by number, each name once")
    return candidates


def _check_name(name: str) -> None:
    try:
        records.check_name(name)
    except UserError as error:
        raise refuse(Refusal.BAD_REQUEST, str(error)) from None
