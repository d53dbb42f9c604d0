"""The control command `verify`: read back what snapshots need, and repair it on request.

Invariants:
1. A snapshot that turns out damaged is marked so, and is no longer the parent of the next one, which would inherit what
   cannot be read.
2. What was read back and is good has passed the gate `verified`, which is recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import trio

from snapfs.control.command_state import BusyWork
from snapfs.control.control_commands import Command, Verb
from snapfs.control.service_parts import ServiceParts
from snapfs.control.snapshot_commands import find
from snapfs.store.gates.gates import VERIFIED
from snapfs.store.log.snapshot_records import DAMAGED
from snapfs.store.repair import verify
from snapfs.store.repair.gate_lines import verified_fields
from snapfs.store.repair.verify_report import Report
from snapfs.store.repository.repository import SnapshotRecord

log = logging.getLogger(__name__)


class VerifyCommands:
    """Runs it on one mounted volume."""

    def __init__(self, parts: ServiceParts, busy: BusyWork) -> None:
        self._parts, self._busy = parts, busy

    def verbs(self) -> dict[str, Verb]:
        usage, repairing = "verify [REF...] [repair]", frozenset({"repair"})
        return {"verify": Verb(usage, self._verify, range(0, 1000), flags=repairing)}

    async def _verify(self, command: Command) -> Mapping[str, Any]:
        repository = self._parts.repository
        records = [find(repository, reference) for reference in command.arguments] or repository.snapshots()
        if "repair" in command.flags:
            return await self._repair(records, whole=not command.arguments)
        report = await trio.to_thread.run_sync(lambda: verify.verify(repository, records, threads=1))
        for number in report.damaged_snapshots:
            await trio.to_thread.run_sync(repository.mark, number, DAMAGED, report.why(number))
        await self._build_on_no_damage(report)
        await self._record(report, whole=not command.arguments)
        return report.facts()

    async def _record(self, report: Report, *, whole: bool) -> None:
        """The gate of what was read back and is good."""
        repository = self._parts.repository
        fields = verified_fields(repository, report, whole=whole)
        if fields is not None:
            await trio.to_thread.run_sync(lambda: repository.record_event(VERIFIED, **fields))

    async def _build_on_no_damage(self, report: Report) -> None:
        snapshotter = self._parts.snapshotter
        async with snapshotter.turn():
            if snapshotter.parent is not None and snapshotter.parent.number in report.damaged_snapshots:
                snapshotter.start_over()

    async def _repair(self, records: list[SnapshotRecord], *, whole: bool) -> Mapping[str, Any]:
        from snapfs.transfer.repair.repair import repair  # hardly ever needed, and long to import
        from snapfs.transfer.repair.repair_targets import RepairTargets

        parts, remarks = self._parts, list[str]()
        with self._busy.doing("repair"):
            targets = RepairTargets(parts.volume, remarks.append)
            try:
                result = await trio.to_thread.run_sync(
                    lambda: repair(
                        parts.repository, records, tree=parts.tree, fetch=targets.fetch, progress=self._busy.progress
                    )
                )
            finally:
                targets.close()
        done = [*remarks, *result.done]
        for line in done:
            log.warning("repair: %s", line)
        await self._build_on_no_damage(result.after)
        await self._record(result.after, whole=whole)
        facts = {**result.after.facts(), "repaired_objects": result.repaired, "repaired": done}
        return {**facts, "mended": result.repaired}  # the name until 0.1; goes with 0.3
