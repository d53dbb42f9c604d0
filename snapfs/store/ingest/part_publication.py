"""From staged parts to segments, at a commit: which parts the snapshots need, and what of them is left out.

Invariant: a difference that could not be decoded on arrival is decoded here before it counts. One that still cannot,
and that no snapshot of the commit needs, stays in its part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.publisher import Publisher
from snapfs.store.objects.staging import StagedPart
from snapfs.store.protocol.refusals import Refusal, refuse

if TYPE_CHECKING:
    from snapfs.store.ingest.receiver import Receiver


class PartPublication:
    """The parts of one receiver that one commit needs. Under the receiver's lock."""

    def __init__(self, receiver: Receiver, needed: NumberSet) -> None:
        self._receiver, self._needed = receiver, needed

    def run(self) -> list[StagedPart]:
        """Make segments of the parts; returns those that were copied, and can go. RefusedError, OSError."""
        parts, leave_out = self._choose()
        repository, staging = self._receiver.repository, self._receiver.staging
        publisher = Publisher(repository.index, staging, self._receiver.disk, repository.identity.volume_id)
        try:
            return publisher.publish(parts, leave_out)
        except CorruptionError as error:
            self._receiver.forget_parts([part for part in parts if part.path == error.where])
            raise refuse(Refusal.INCOMPLETE, f"the mirror's disk damaged a part: {error}; send it again") from None

    def _choose(self) -> tuple[list[StagedPart], set[Number]]:
        """The parts with at least one needed object, and what of them is undecodable and not needed."""
        parts, leave_out = [], set[Number]()
        for part in self._receiver.staging.parts():
            rows = [row for _, row in self._receiver.staging.rows(part)]
            if any(row.number in self._needed for row in rows):
                parts.append(part)
                leave_out |= self._undecodable(part, rows)
        return parts, leave_out

    def _undecodable(self, part: StagedPart, rows: list[Row]) -> set[Number]:
        bad = {row.number for row in rows if part.is_unverified(row) and not self._verify(row, part)}
        part.still_unverified(bad)
        return bad

    def _verify(self, row: Row, part: StagedPart) -> bool:
        """Decode a difference that could not be decoded on arrival. Raises RefusedError if it is needed and bad."""
        objects, union = self._receiver.objects, self._receiver.union
        lacking = [number for number in objects.bases_of(row.number) if union.row(number) is None]
        try:
            if not lacking:
                objects.read_uncached(row.number)
                return True
        except CorruptionError as error:
            self._receiver.forget_parts([part])
            raise refuse(Refusal.CORRUPT, f"{error}; send it again", number=row.number) from None
        if row.number in self._needed:
            why = f"object {row.number:#x} needs others that are not there"
            raise refuse(Refusal.INCOMPLETE, why, missing=[*lacking])
        return False
