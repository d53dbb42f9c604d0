"""One step of the plan: select what the target lacks, send it, commit; and free space at the target.

Invariants:
1. The snapshots being sent, and the newest common one, are held in the source's store: neither may be collected
   meanwhile, and the next selection is made against the latter.
2. `known` holds only what the target acknowledged in a commit. Where that is uncertain it is empty, the target is
   queried, and at worst an object is offered that is there already.
3. A snapshot whose objects cannot be read is not sent again, unless it turns out to have been dropped meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from functools import partial
from typing import Final

from replicator.agent.agent_status import Link
from replicator.agent.part_sender import Interrupt, PartSender
from replicator.agent.push_plan import Step, StepKind
from replicator.agent.target_session import TargetSession
from replicator.source.selection import Known, Selection
from snapfs.base.blocks import Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.base.volumes.volume_files import HOT_FILE
from snapfs.store.gates.gate_entries import GateEntry, entries_of
from snapfs.store.gates.gates import Gates
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.hint_files import HOT
from snapfs.store.protocol.refusals import Refusal, RefusedError

log = logging.getLogger(__name__)

QUERY_BYTES: Final = 4 << 20
"""From so many bytes on the target is queried first for what it has of them: a round trip costs less than they do."""
COLLECT_AFTER_DROPS: Final = 256
"""Space is freed at object stores after so many: it takes a walk over all tables here, and requests there."""
KNOWN_OBJECTS: Final = 4_000_000
"""From so many objects on (and three times what a snapshot has), `known` is computed again from the target's newest
snapshot: it takes a bit an object, and only grows."""


class Delivery:
    """Takes the steps of one feeder. Used in the loop's thread; what blocks runs in the source's thread."""

    def __init__(self, session: TargetSession, sender: PartSender, interrupt: Interrupt) -> None:
        self._session, self._sender, self._interrupt = session, sender, interrupt
        self._target, self._report = session.target, session.report
        self._thread, self._source = session.thread, session.source
        self.known = Known()
        self._most_known = KNOWN_OBJECTS
        self._sent_hot = b""
        self._gates_there: dict[tuple[int, int], Gates] | None = None
        self._gates_state = (-1, 0, SnapshotNumber(0))
        self._dropped = 0  # snapshots at the target since space was freed there
        self._held: tuple[set[SnapshotNumber], float] = set(), 0.0
        link = f"{session.role.writer_id} {session.report.status.url}"
        self.hold_name = f"push-{hashlib.sha256(link.encode()).hexdigest()[:12]}"

    def forget(self) -> None:
        """Something else may have changed the target: what it has is not known any more."""
        self.known = Known()
        self._gates_there, self._gates_state = None, (-1, 0, SnapshotNumber(0))

    async def deliver(self, step: Step, *, query: bool) -> None:
        """Bring the step's snapshots to the target. `query`: request first what it has, however little is to be sent.

        Raises what `interrupt` raises, CorruptionError, RefusedError, OSError.
        """
        records = [record for number in step.snapshots if (record := self._source.record(number)) is not None]
        await self.hold_base(step.snapshots)
        await self._thread.refresh()
        if len(records) < len(set(step.snapshots)) or not all(map(self._source.exists, step.snapshots)):
            return  # dropped since: another plan
        self._report.set_link(Link.READING)
        started_ns = time.time_ns()
        try:
            revision = await self._send_and_commit(step, records, await self._select(step, records), query)
        except CorruptionError:
            if not await self._still_exist(records):
                return
            self._session.note_unreadable(step.snapshots)
            raise
        self._session.committed(records, self._report.status.sent_bytes, revision)
        self._report.arrived(step.kind, records, started_ns)
        self._session.update_status()
        self._report.changed(True)
        if step.kind is not StepKind.HISTORY:
            await self._send_hot(records[-1])

    async def drop(self, numbers: tuple[SnapshotNumber, ...], rule: str = "") -> None:
        """Drop snapshots at the target, and free the space there after many. `rule`: as `Step.rule`."""
        self._dropped += await self._session.drop(numbers, rule)
        await self._collect()
        self._session.update_status()

    async def hold_base(self, sending: tuple[SnapshotNumber, ...]) -> None:
        """Hold what is being sent, and the newest snapshot that both sides have; renewed in time."""
        source = self._source
        base = self._session.compared.newest_common(source.repository.catalog, same=False)
        wanted = {*sending, *(() if base is None else (base,))}
        seconds, now_s = float(self._session.role.settings.hold) or 60.0, time.monotonic()
        if (wanted, True) == (self._held[0], now_s < self._held[1]):
            return
        why = f"the replication to {self._report.status.name} needs it"
        with contextlib.suppress(OSError):  # a full disk: then it is not held, and the next plan copes with a drop
            await self._thread.run(partial(source.holds.take, self.hold_name, wanted, seconds, why, durable=False))
            self._held = wanted, now_s + seconds / 4

    async def _select(self, step: Step, records: list[SnapshotRecord]) -> Selection:
        if len(self.known.there) > self._most_known:
            self.known = Known()
        if not len(self.known.whole) and step.base is not None:
            base = self._source.record(step.base)
            with contextlib.suppress(CorruptionError):  # then everything is compared with what the target has
                self.known = await self._thread.run(self._source.known_by, [base] if base is not None else [])
            self._most_known = max(KNOWN_OBJECTS, 3 * len(self.known.there))
        return await self._thread.run(self._source.select, records, self.known)

    async def _send_and_commit(
        self, step: Step, records: list[SnapshotRecord], selection: Selection, query: bool
    ) -> int:
        """Returns the target's revision, 0 if it reports none."""
        numbers, history = selection.numbers, step.kind is StepKind.HISTORY
        query |= self._source.stored_bytes(numbers) > QUERY_BYTES or history
        # Some may be another writer's, of the same number.
        query |= min(numbers, default=Number(0)) <= self._session.state.last_number
        await self._send(step, records, selection, query)
        try:
            revision = await self._target.commit(records, history=history)
        except RefusedError as error:
            if error.refusal is not Refusal.INCOMPLETE:
                raise
            log.info("%s lacks more than was known: everything is compared", self._report.status.name)
            self.known = Known()
            selection = await self._thread.run(self._source.select, records, self.known)
            await self._send(step, records, selection, True)
            revision = await self._target.commit(records, history=history)
        self.known.take(selection)
        return revision

    async def _send(self, step: Step, records: list[SnapshotRecord], selection: Selection, query: bool) -> None:
        """Send what the commit needs: the objects that the target lacks, and the manifest."""
        numbers = selection.numbers
        if query:
            numbers = await self._target.lacks(numbers, self._source.content_hash_of)
        interrupt = self._interrupt if step.kind is StepKind.HISTORY else None
        await self._sender.send(step.snapshots[-1], numbers, interrupt)
        await self._set_manifest(step, records, selection)

    async def _set_manifest(self, step: Step, records: list[SnapshotRecord], selection: Selection) -> None:
        """A target that sees only ciphertext gets the list of what is needed, and of what mounts read first."""
        set_manifest = getattr(self._target, "set_manifest", None)
        if set_manifest is not None:
            newest = () if step.kind is StepKind.HISTORY else await self._thread.run(self._source.first, records[-1])
            set_manifest(selection.numbers, newest, whole=not len(self.known.there))

    async def _send_hot(self, record: SnapshotRecord) -> None:
        """Send the list of the volume's most used blocks where it changed and the target keeps it. A hint: errors are
        ignored."""
        send = getattr(self._target, "put_hot", None)
        if send is None:
            return
        with contextlib.suppress(SnapfsError, OSError):
            data = await self._thread.run(_read_hot, self._source.path)
            if data and data != self._sent_hot:
                await send(record.number, data)
                self._sent_hot = data

    async def send_gates(self) -> None:
        """Send along what snapshots that the target has passed here, where it changed and the target keeps it."""
        there, catalog = self._session.compared.there, self._source.repository.catalog
        state = catalog.gate_changes, len(there), self._session.newest_there()
        put = getattr(self._target, "put_gates", None)
        if put is None or state == self._gates_state:
            return
        try:
            if self._gates_there is None:
                self._gates_there = {entry.key: entry.gates for entry in await self._target_gates()}
            entries = await self._thread.run(self._new_gates)
            if entries:
                await put(entries)
                self._gates_there |= {entry.key: entry.gates for entry in entries}
        except RefusedError as error:
            if error.refusal in (Refusal.FENCED, Refusal.UNCLAIMED):
                raise
            # All that is to be replicated is there: for a target that does not take this, nothing else changes.
            log.info("%s does not keep which gates snapshots have passed: %s", self._report.status.name, error)
        self._gates_state = state

    async def _target_gates(self) -> list[GateEntry]:
        found: list[GateEntry] = await getattr(self._target, "gates")()  # noqa: B009 - not every target has it
        return found

    def _new_gates(self) -> list[GateEntry]:
        there, catalog, known = self._session.compared.there, self._source.repository.catalog, self._gates_there or {}
        found = entries_of(catalog.passed_gates(), catalog.root_number)
        return [
            entry for entry in found
            if (root := there.root(entry.snapshot)) is not None and root.number == entry.root
            and known.get(entry.key) != entry.gates
        ]  # fmt: skip

    async def _collect(self) -> None:
        """Free space at a target that cannot compute what its snapshots need, as an object store cannot."""
        collect = getattr(self._target, "collect", None)
        if collect is None or self._dropped < COLLECT_AFTER_DROPS:
            return
        there = self._session.compared.there
        known = [record for record in self._source.records() if there.root(record.number) == record.root]
        here = {record.number for record in known}
        # What snapshots need that were never here is not known; but none of it has a number above their last.
        below = max((record.last_number for record in there.page() if record.number not in here), default=0)
        live = await self._thread.run(self._source.known_by, known)
        self.known = Known()
        freed_bytes = await collect(live.there, Number(below))
        self._dropped = 0
        log.info("%s: %d bytes freed", self._report.status.name, freed_bytes)

    async def _still_exist(self, records: list[SnapshotRecord]) -> bool:
        """After objects could not be read: False if their snapshots were dropped meanwhile, True if damaged."""
        with contextlib.suppress(SnapfsError, OSError):
            await self._thread.refresh()
        return all(self._source.exists(record.number) for record in records)


def _read_hot(volume_path: str) -> bytes:
    """The daemon's newest list of the volume's most used blocks; b"" without one."""
    return HOT.read(os.path.join(volume_path, HOT_FILE)) or b""
