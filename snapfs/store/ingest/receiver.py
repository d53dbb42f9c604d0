"""Receives objects from other hosts into a store: each is verified on arrival, a snapshot is taken whole or not at all.

Invariants:
1. Correctness rests on (number, content hash) alone. What is in the store is passed over; the same number with another
   content hash is refused ("diverged"); nothing is inferred from ranges or from what was there once.
2. An object is decoded with its bases and checked against its content hash before it counts. One whose base has not
   come yet is staged as unverified, and decoded before the commit of what needs it.
3. `commit` finds every object that the snapshots need by walking their tables (or, of an encrypted store, by what its
   writer lists: client_manifest.py), bases included, before it changes anything; what an earlier commit found whole is
   not walked again. Then segments, durably, then record after record: THE COMMIT POINT of each snapshot is its line in
   snapshots.log. A crash before it leaves parts, or segments that `staging.take_back` turns into parts again; one after
   it, parts whose objects are all committed.
4. `fence` is checked immediately before the first change, under the lock that every change of who may write takes too.
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

from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.ingest.client_manifest import ClientManifest
from snapfs.store.ingest.closure_check import ClosureCheck
from snapfs.store.ingest.commit_checks import missing_of
from snapfs.store.ingest.part_publication import PartPublication
from snapfs.store.ingest.part_receiver import Fence, PartReceiver
from snapfs.store.ingest.receiver_recovery import ReceiverRecovery
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.staging import StagedPart, Staging, Union
from snapfs.store.protocol import number_runs, wire
from snapfs.store.protocol.messages import Limits
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.repair.missing_objects import lacking
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.required_objects import RequiredObjects

__all__ = ["Fence", "PartReceiver", "Receiver"]


class Receiver:
    """Takes objects and snapshots into a repository that has no other writer. Thread-safe."""

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
        """Held while the set of snapshots and segments has to stay as it is, for long."""
        self.lock = threading.RLock()
        """Held by whatever changes snapshots, staged parts, or who may write."""
        self.received_ns: dict[SnapshotNumber, int] = {}
        """When each snapshot was committed here, by its line in the log; of those that this object saw."""
        self.required = RequiredObjects(repository.store_dir, disk)
        self.whole = NumberSet()
        """Objects that are here together with all that is below them."""

    def recover(self, generation: Generation = Generation(0)) -> None:
        """Before anything else: what was published, and has no record in the log, is committed or is parts again.

        Snapshots that are older than `generation`, which writes now, are not committed. Raises OSError, and
        CorruptionError for a log that has lost more than what is here; then nothing was changed.
        """
        with self.turn, self.lock:
            ReceiverRecovery(self, generation).run()
            self.look_for_loss(thorough=True)

    def look_for_loss(self, *, thorough: bool = False) -> None:
        """Before this store is served, or a writer taken over from: find the snapshots that lack something, so that
        they are reported as damaged, and what they need comes again with the next one that needs it. Raises OSError.

        Not while segments are being changed: no request waits for that.
        """
        if not self.turn.acquire(blocking=False):
            return
        try:
            if self.repository.look_for_loss(lacking, thorough=thorough):
                self.forget_whole()
        finally:
            self.turn.release()

    def forget_whole(self) -> None:
        """Objects are lost, or are about to be removed: nothing is known to be whole."""
        self.whole = NumberSet()

    def note_whole(self, whole: NumberSet) -> None:
        """These are all objects that are here together with all that is below them."""
        self.whole = whole

    def lacks(self, runs: Sequence[Run]) -> Iterator[Run]:
        """Of these numbers, those that are neither committed nor staged. Raises RefusedError for too many."""
        if sum(last - first + 1 for first, last in runs) > wire.MAX_LACKS_NUMBERS:
            raise refuse(Refusal.TOO_LARGE, f"more than {wire.MAX_LACKS_NUMBERS} numbers in one request")
        return number_runs.runs_of(
            number for first, last in runs for number in self._lacks(Number(first), Number(last))
        )

    def _lacks(self, first: Number, last: Number) -> Iterable[int]:
        if self.union.is_empty(first, last):
            return range(first, last + 1)
        return (number for number in range(first, last + 1) if self.union.row(Number(number)) is None)

    def has(self, number: Number, content_hash: bytes) -> bool:
        """Is this object here? Raises RefusedError if a committed one has its number and another content.

        Of a staged one only that part is lost: its sender's numbers came to nothing in a power cut.
        """
        row = self.union.row(number)
        if row is None or row.content_hash == content_hash:
            return row is not None
        self._unstage(number)
        row = self.union.row(number)
        if (
            row is None or row.content_hash == content_hash or self.is_encrypted
        ):  # encrypted by another key, or of another encoding
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

        Where it is cut off between two records, those before are committed, and it can be done again. Of an encrypted
        store `needs` are the numbers that they need, as listed, and `ground` a snapshot that has to be here.
        """
        with self.turn:
            fence()
            missing = missing_of(self.repository, candidates, history=history)
            if missing:
                found: ClosureCheck | ClientManifest = (
                    ClientManifest(self, missing, needs, ground).run()
                    if self.is_encrypted
                    else ClosureCheck(self, missing).run()
                )
                with self.lock:
                    fence()
                    self._make_visible(missing, found)
            return missing

    def mark_suspect(self, number: Number) -> list[Number]:
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
                    self.union.suspects.add(each)
                break  # of a bad base the differences to it are no fault
        return bad

    def suspect(self, numbers: Iterable[Number]) -> list[Number]:
        """Those of them that cannot be read have to come again before a snapshot that needs them is made visible."""
        with self.turn:
            found = [bad for number in numbers for bad in self.mark_suspect(number)]
            if found:
                self.forget_whole()
            return found

    def forget_stale(self, max_age_seconds: float, now: float | None = None) -> int:
        """Remove parts older than this, and those with nothing new in them; returns how many. Raises OSError."""
        now = time.time() if now is None else now
        with self.turn, self.lock:
            stale = [part for part in self.staging.parts() if self._is_stale(part, now - max_age_seconds)]
            self.forget_parts(stale)
            return len(stale)

    def close(self) -> None:
        self.staging.close()

    def check_invariants(self) -> None:
        self.repository.check_invariants()
        self.staging.check_invariants()
        self.objects.check_invariants()

    @property
    def is_encrypted(self) -> bool:
        return self.repository.identity.encrypted

    def _make_visible(self, missing: list[SnapshotRecord], found: ClosureCheck | ClientManifest) -> None:
        copied = PartPublication(self, found.needed).run()
        if isinstance(found, ClientManifest):
            self.required.append(missing[-1].number, found.numbers)
        for record in missing:
            event = self.repository.log.append("snapshot", snapshot_records.to_fields(record))
            self.received_ns[record.number] = event.time_ns
            self.repository.catalog.add(record)
            self.repository.sealing.reserve(record.last_number)
        self.repository.segments_changed()
        found.merge_into(self.whole)
        self.union.suspects.clear()
        with contextlib.suppress(OSError):  # what cannot be removed is dead weight, and goes another time
            self.staging.discard(copied)

    def _is_stale(self, part: StagedPart, before: float) -> bool:
        try:
            if os.stat(part.path).st_mtime < before:
                return True
            return all(self.repository.index.peek(row.number) is not None for _, row in self.staging.rows(part))
        except (CorruptionError, FileNotFoundError):
            return True

    def forget_parts(self, parts: list[StagedPart]) -> None:
        """Remove these parts, which cannot be used or are not needed."""
        self.staging.discard(parts)
        for part in parts:
            self.objects.forget_from(part.first)

    def _unstage(self, number: Number) -> bool:
        """Forget the parts with this object; False if there are none."""
        with self.lock:
            found = self.staging.part_with(number) is not None
            while (part := self.staging.part_with(number)) is not None:
                self.forget_parts([part])
            return found
