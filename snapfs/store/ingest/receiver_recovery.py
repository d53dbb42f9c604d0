"""Recovers a store of received snapshots when it is opened: what was published and has no record in the log.

Invariants:
1. Of a log that is whole, nothing without a record was acknowledged: it becomes parts again.
2. If the log is known to have lost its end, or it is not known how far it went, whole snapshots behind it were
   acknowledged, or may have been: they are committed.
3. A log that has lost more than these is a CorruptionError, and nothing is changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from snapfs.base.blocks import Generation
from snapfs.base.errors import SnapfsError
from snapfs.store.ingest.client_manifest import ClientManifest
from snapfs.store.ingest.closure_check import ClosureCheck
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.repository.unrecorded_snapshots import records_above

if TYPE_CHECKING:
    from snapfs.store.ingest.receiver import Receiver

_Unrecorded = tuple[SnapshotRecord, Sequence[Run] | None]


class ReceiverRecovery:
    """Run once, before anything is received. Snapshots older than `generation`, which writes now, are left out."""

    def __init__(self, receiver: Receiver, generation: Generation) -> None:
        self._receiver, self._generation = receiver, generation
        self._repository = receiver.repository

    def run(self) -> None:
        """Raises OSError, CorruptionError."""
        log, recovered = self._repository.log, self._repository.recovered
        found = self._unrecorded() if log.lost_lines or not log.is_witnessed else []
        if len(found) < log.lost_lines:
            raise log.damage_of_loss()
        log.accept_loss()
        torn = log.cut_torn_tail()
        for record, needs in found:
            self._receiver.commit([record], history=True, fence=lambda: None, needs=needs)
            recovered.append(f"snapshot {record.number} was whole and not in snapshots.log: it is recovered")
        if torn is not None:
            recovered.append(torn)
        self._repository.take_back()
        self._receiver.staging.reload()
        self._open_required()

    def _unrecorded(self) -> list[_Unrecorded]:
        """The snapshots that the log does not know and that are whole, each with the listed needs."""
        found: list[_Unrecorded] = []
        above = self._repository.catalog.last_number
        for record in records_above(self._repository.index, self._repository.objects, above):
            with contextlib.suppress(SnapfsError):
                if self._is_usable(record):
                    found.append((record, self._checked(record)))
        return found

    def _is_usable(self, record: SnapshotRecord) -> bool:
        return self._repository.catalog.is_newer(record) and record.generation >= self._generation

    def _checked(self, record: SnapshotRecord) -> Sequence[Run] | None:
        """What a whole snapshot of an encrypted store needs, as listed. Raises RefusedError if it is not whole."""
        if not self._receiver.is_encrypted:
            ClosureCheck(self._receiver, [record]).run()
            return None
        needs = self._receiver.required.of_snapshot(record.number)
        if needs is None:
            raise refuse(Refusal.INCOMPLETE, f"what snapshot {record.number} needs is not listed")
        ClientManifest(self._receiver, [record], needs, 0).run()
        return needs

    def _open_required(self) -> None:
        if self._receiver.is_encrypted:
            newest = self._repository.catalog.latest()
            line = self._receiver.required.open(self._was_committed, newest.number if newest is not None else 0)
            if line:
                self._repository.recovered.append(line)

    def _was_committed(self, number: int) -> bool:
        recorded = (event.fields["number"] for event in self._repository.events() if event.kind == "snapshot")
        return any(number == each for each in recorded)
