"""The client's manifest of an encrypted store: what its writer lists as needed by its snapshots, and whether it is
here.

It takes the place of the walk through the tables at a commit, for the server cannot read them. What was listed is kept
in `store/needed` (required_objects.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapfs.base.blocks import Number
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import ObjectKind
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.objects import has_more_bases
from snapfs.store.protocol import wire
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.refusals import Refusal, refuse

if TYPE_CHECKING:
    from snapfs.store.ingest.receiver import Receiver


class ClientManifest:
    """All that snapshots of an encrypted store need, as their writer lists it. Changes nothing."""

    def __init__(
        self, receiver: Receiver, candidates: list[SnapshotRecord], needs: Sequence[Run] | None, ground: int
    ) -> None:
        self._receiver, self._candidates, self._needs, self._ground = receiver, candidates, needs, ground
        self._missing: list[Number] = []
        self.needed = NumberSet()
        self.numbers = NumberSet()
        """What the writer named, and the roots and records."""

    def run(self) -> ClientManifest:
        """Raises RefusedError if anything is missing."""
        self._check_ground()
        for record in self._candidates:
            self._look(record.root.number, ObjectKind.ENCRYPTED)
            self._look(record.last_number, ObjectKind.RECORD)
        for first, last in self._needs or ():
            for number in range(first, last + 1):
                self._look(Number(number))
                if len(self._missing) >= wire.MISSING_LISTED:
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
        """Nothing is known to be whole but by what is listed."""

    def _check_ground(self) -> None:
        if self._ground and not any(r.number == self._ground for r in self._receiver.repository.snapshots()):
            why = f"snapshot {self._ground} is not here, as the writer thinks: this is another copy than it knows"
            raise refuse(Refusal.INCOMPLETE, why, snapshot=self._ground)

    def _look(self, number: Number, kind: ObjectKind | None = None) -> None:
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
            snapshot=number, missing=[int(each) for each in missing[: wire.MISSING_LISTED]],
        )  # fmt: skip
