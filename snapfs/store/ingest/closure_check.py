"""Is a snapshot whole here? Found out by walking its tables from the root, beyond what is known to be whole.

Invariants:
1. Nothing is changed, but for objects that turn out damaged: they count as missing from then on, and can come again.
2. An object counts as here only if its row is found and has the content hash that the pointer to it has, and the bases
   that it needs are here too. Contents were checked when they arrived; those of pages are read once more by the walk.
3. What a refusal names are numbers that are to be sent, the first of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import ObjectKind, Pointer, Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import has_more_bases
from snapfs.store.protocol import wire
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.tables.reachability import Walk

if TYPE_CHECKING:
    from snapfs.store.ingest.receiver import Receiver


class ClosureCheck:
    """Finds all that snapshots need beyond what is known to be whole. Changes nothing."""

    def __init__(self, receiver: Receiver, candidates: list[SnapshotRecord]) -> None:
        self._receiver, self._candidates = receiver, candidates
        self._missing: list[Number] = []
        self._damage = ""
        self.needed = NumberSet()
        """All numbers found: of objects, of their bases, of the records themselves."""
        self._seen = _Beyond(receiver.whole)
        self._walk = Walk(receiver.objects, self._failed, self._seen)

    def run(self) -> ClosureCheck:
        """Raises RefusedError if anything is missing."""
        for record in self._candidates:
            for visit in self._walk.visits(record.root):
                self._look(visit.pointer)
            self._look_for_record(record)
            if self._missing:
                self._refuse(record)
        return self

    def merge_into(self, whole: NumberSet) -> None:
        for number in self._seen:
            whole.add(number)

    def _look(self, pointer: Pointer) -> None:
        row = self._locate(pointer.number)
        if row is not None and row.content_hash != pointer.content_hash:
            why = f"object {pointer.number:#x} is not the one that the snapshot needs: this is another history"
            raise refuse(Refusal.DIVERGED, why, number=pointer.number)

    def _look_for_record(self, record: SnapshotRecord) -> None:
        row = self._locate(record.last_number)
        if row is not None and row.kind != ObjectKind.RECORD:
            raise refuse(Refusal.BAD_REQUEST, f"object {row.number:#x} is no record of a snapshot", number=row.number)

    def _locate(self, number: Number) -> Row | None:
        row = self._receiver.union.row(number)
        if row is None:
            self._missing.append(number)
            return None
        self.needed.add(number)
        for base in self._bases(row):
            if self.needed.add(base) and self._receiver.union.row(base) is None:
                self._missing.append(base)
        return row

    def _bases(self, row: Row) -> tuple[Number, ...]:
        if not has_more_bases(row):
            return (row.base,) if row.base else ()
        try:
            return self._receiver.objects.bases_of(row.number)
        except CorruptionError as error:
            self._failed(Pointer(row.number, row.content_hash), error)
            return ()

    def _failed(self, pointer: Pointer, error: Exception) -> None:
        """A page could not be read: missing itself (`_look` reports it), for want of a base, or damaged."""
        if isinstance(error, OSError):
            raise error
        if self._receiver.union.row(pointer.number) is not None:
            self._damage = str(error)
            self._missing += self._receiver.mark_suspect(pointer.number)

    def _refuse(self, record: SnapshotRecord) -> None:
        missing = sorted(set(self._missing))
        why = self._damage or f"{len(missing)} objects are not there, {missing[0]:#x} the first of them"
        raise refuse(
            Refusal.INCOMPLETE, f"snapshot {record.number} is not whole here: {why}", snapshot=record.number,
            missing=[int(number) for number in missing[: wire.MISSING_LISTED]],
        )  # fmt: skip


class _Beyond(NumberSet):
    """A set that begins with another one's numbers, and holds only what is added."""

    def __init__(self, ground: NumberSet) -> None:
        super().__init__()
        self._ground = ground

    def add(self, number: int) -> bool:
        return number not in self._ground and super().add(number)
