"""An open target: what it has, whether this host is its writer, and the next step towards what the volume has.

Invariants:
1. A target is opened only if it is the one that was pushed to before, or is known to be new (known_targets.py).
2. A generation is claimed only if no other host took over meanwhile: a higher number alone is no right to write
   (snapfs/store/log/claims.py).
3. What an older copy of the target lacks is sent again: `complete_through` falls to 0. It is known by its newest
   snapshot, or by its revision, which is remembered with each opening and each commit, and grows with each commit.
4. A claim sends the volume's other targets (`TargetRole.peers`). It is made again when one of them became known since,
   or got an id (`peers_are_current`): a takeover through this target alone has to know where else to look.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from replicator.agent.link_report import LinkReport
from replicator.agent.push_plan import Step, StepKind, TargetView, expired, unwanted
from replicator.agent.snapshot_difference import Compared
from replicator.agent.source_thread import SourceThread
from replicator.source.group_members import GroupTargets, MemberTarget
from replicator.source.known_targets import Memory
from replicator.targets.target import Target, TargetState
from snapfs.base.blocks import Generation, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.settings.replication_settings import ReplicationSettings
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.store.gates.number_ranges import NumberRanges
from snapfs.store.log.claims import ClaimWriter, Takeover, is_fenced, last_of, went_on_from
from snapfs.store.log.group_cuts import kept_for_others
from snapfs.store.log.holds import HoldRecord, to_send
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse

log = logging.getLogger(__name__)
HOLDS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class TargetRole:
    """What the volume's configuration and folder hold about one target.

    `memory`: its id, as it was pushed to before; without it any target is taken, or created. `peers`: the other targets
    of the volume, computed in the source's thread before each claim. `retention`: the rules for this target. `groups`,
    `members`: what keeps its part of a group's cut there (replicator/source/group_members.py); the second blocks.
    """

    settings: ReplicationSettings
    writer_id: str
    memory: Memory | None = None
    peers: Callable[[], Peers | None] = field(default=lambda: None)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    groups: GroupTargets = field(default_factory=GroupTargets)
    members: Callable[[], list[MemberTarget]] = list


class TargetSession:
    """One feeder's open target, and what it has. Used in the loop's thread; what blocks runs in the source's thread."""

    def __init__(self, thread: SourceThread, target: Target, report: LinkReport, role: TargetRole) -> None:
        self.target, self.report, self.role = target, report, role
        self.thread, self.source = thread, thread.source
        self.state = TargetState(self.source.volume.generation, role.writer_id, ())
        """As of the last opening or commit, without the snapshots: they are in `compared`."""
        self.compared = Compared()
        self.kept: dict[SnapshotNumber, LockedSnapshot] = {}
        """Snapshots that the target refused to drop."""
        self._unreadable: dict[SnapshotNumber, int] = {}
        """Snapshots of the source that could not be read, each with the catalog's changes by then: they are not sent
        until something happens to them."""
        self._takeovers: tuple[Takeover, ...] = ()
        self.seems_older = False
        """A commit showed that an older copy of the target is there now: it has to be opened again."""
        self._sent_peers: Peers | None = None  # with the last claim
        self._judged: tuple[SnapshotNumber, int] | None = None
        """The newest snapshot there, and how many there were, when the rules for this target dropped nothing."""

    async def open(self) -> None:
        """Read what the target has. Raises UserError if it is not the one that was pushed to, RefusedError, OSError."""
        state = await self._opened()
        self.compared.opened(state.snapshots)
        self.state = replace(state, snapshots=())
        self._judged = None
        self._note_older_copy()
        self._forget_kept()
        status = self.report.status
        status.seen_ns = time.time_ns()
        status.complete_through = min(status.complete_through, self.newest_there())
        status.had = 0
        self.update_status()  # what it has counts from here on, also if it does not let us write

    async def claim(self) -> Generation:
        """Become the target's writer. Raises RefusedError if another host took over, OSError."""
        source, there, writer_id = self.source, self.state, self.role.writer_id
        generation = source.volume.generation
        self._takeovers = await self.thread.run(source.takeovers)
        ours = ClaimWriter(generation, writer_id, last_of(self._takeovers))
        if is_fenced(ours, there.generation, there.writer_id):
            who = there.writer_id or "an unknown host"  # after its log was rebuilt from segments
            why = f"generation {there.generation} is {who}'s, who took over from us (generation {generation})"
            base = went_on_from(ours, there.successions)
            raise refuse(Refusal.FENCED, why, generation=there.generation, writer_id=there.writer_id, went_on_from=base)
        last = self._takeovers[-1].snapshot if self._takeovers else 0
        peers = await self.thread.run(self.role.peers)
        await self.target.claim(generation, writer_id, last, peers)
        self._sent_peers = peers
        self.state = replace(there, generation=generation, writer_id=writer_id)
        self.report.status.fenced_by = None
        return generation

    async def peers_are_current(self) -> bool:
        """Whether the last claim sent what is known of the other targets now. Raises OSError."""
        return await self.thread.run(self.role.peers) == self._sent_peers

    async def plan(self) -> Step:
        """The next step, from what both sides have now."""
        step = await self.compared.next_step(self.source.repository.catalog, self._view)
        if step.kind is StepKind.DONE:
            step = await self._expired()
        self.update_status()
        return step

    async def send_holds(self) -> bool:
        """Send what people decided to hold, and to hold no more, as far as the target does not know it; whether there
        was any: what is to be dropped may be another then."""
        there = self.state.people
        ours = self.source.hold_records()
        if there is None:
            self._note_no_holds(ours)
            return False
        records = to_send(ours, there, time.time_ns())
        for first in range(0, len(records), HOLDS_AT_ONCE):
            held = await self.target.put_holds(records[first : first + HOLDS_AT_ONCE])
            self.state = replace(self.state, held=held)
        if records:
            self.state = replace(self.state, people=(*there, *records))
            self._judged = None
        return bool(records)

    def _note_no_holds(self, ours: Sequence[HoldRecord]) -> None:
        note = "an earlier version serves it, which does not keep what `snapfs hold` holds"
        if self.report.status.note != note and any(record.keeps(time.time_ns()) for record in ours):
            self.report.note_for_people(note)

    async def branch_off(self, step: Step) -> None:
        """The target has snapshots that this volume never had. Those of an older generation become a branch there.

        Raises UserError if they are of our generation or a later one.
        """
        generation, status = self.source.volume.generation, self.report.status
        foreign = [record for number in step.snapshots if (record := self.compared.there.get(number)) is not None]
        if any(record.generation >= generation for record in foreign):
            raise UserError(
                f"{status.url} has snapshot {foreign[0].number}, which is not in the history of "
                f"{self.source.path}: this volume was restored from a copy, or another one pushes there: give "
                "this one another url"
            )
        name = f"before-generation-{generation}"
        await self.target.branch_off(step.base or SnapshotNumber(0), name)
        status.newest_there = 0  # it has fewer now because of this request
        log.warning("%s: %d snapshots this volume never had are a branch now, %s", status.name, len(foreign), name)
        await self.open()

    async def drop(self, numbers: Sequence[SnapshotNumber], rule: str = "") -> int:
        """Drop snapshots at the target, by the rules for it or since they were dropped here; how many are gone."""
        kept = {each.number: each for each in await self.target.drop(numbers, rule)}
        self._note_kept(kept)
        gone = set(numbers) - set(kept)
        for number in gone:
            self.compared.remove(number)
        return len(gone)

    def committed(self, records: list[SnapshotRecord], sent_bytes: int, revision: int) -> None:
        """The target has acknowledged these, for which so many bytes were sent, and reports this revision (0: none)."""
        status = self.report.status
        self.seems_older |= 0 < revision <= status.revision
        status.revision = max(status.revision, revision)
        for record in records:
            self.compared.put(record)
        there = self.state
        self.state = replace(
            there, last_number=there.last_number and max(there.last_number, records[-1].last_number),
            stored_bytes=None if there.stored_bytes is None else there.stored_bytes + sent_bytes,
        )  # fmt: skip

    def note_complete(self) -> None:
        """There is nothing more to send. If an empty target comes in this one's place, it gets everything again."""
        status, catalog, there = self.report.status, self.source.repository.catalog, self.compared.there
        complete = self.newest_there() if self.role.settings.history else SnapshotNumber(0)
        skipped = {record.number for record in catalog.damaged()} | self._failed()
        owed = NumberRanges.of(number for number in skipped if number <= complete and number not in there)
        status.complete_through, status.owed = complete, tuple(owed.runs())

    def note_unreadable(self, numbers: Iterable[SnapshotNumber]) -> None:
        """These could not be read here."""
        changes = self.source.repository.catalog.changes
        self._unreadable |= dict.fromkeys(numbers, changes)

    def _failed(self) -> frozenset[SnapshotNumber]:
        """Those that could not be read, and to which nothing happened since."""
        since = self.source.repository.catalog.changed_since
        for number, changes in list(self._unreadable.items()):
            changed = since(changes)
            if changed is None or number in changed:
                del self._unreadable[number]
        return frozenset(self._unreadable)

    def newest_there(self) -> SnapshotNumber:
        return self.compared.there.newest() or SnapshotNumber(0)

    def update_status(self) -> None:
        """Compute what the status has to show from what is here and there."""
        status, there, catalog = self.report.status, self.compared.there, self.source.repository.catalog
        number = self.compared.newest_common(catalog)
        status.newest = there.get(number) if number is not None else None
        status.snapshots, status.stored_bytes = len(there), self.state.stored_bytes
        present = self.compared.present(catalog)
        status.there = status.there if present is None else tuple(present.runs())
        status.behind, status.behind_bytes = None, 0
        for record in catalog.pages(number or 0):
            if record.state == GOOD:
                status.behind = status.behind or record
                status.behind_bytes += record.stats.stored_bytes

    async def _opened(self) -> TargetState:
        identity, memory = self.source.repository.identity, self.role.memory
        if memory is None:
            return await self.target.open(identity)
        make = await self.thread.run(memory.may_make)
        try:
            state = await self.target.open(identity, make=make)
        except RefusedError as error:
            if make or error.refusal is not Refusal.NOT_FOUND:
                raise
            raise memory.missing("there is no target, or none for this token") from None
        note = await self.thread.run(partial(memory.judge, state.target_id, is_empty=not state.snapshots))
        if note:
            self.report.note_for_people(note)
        return state

    def _note_older_copy(self) -> None:
        """A target that has less than it had was restored from an older copy."""
        status, there = self.report.status, self.state
        newest = self.newest_there()
        if self.seems_older or there.revision < status.revision or newest < status.newest_there:
            status.complete_through = SnapshotNumber(0)
            had = f"its newest snapshot was {status.newest_there} and is {newest}"
            if newest >= status.newest_there:
                had = "its log is shorter than it was"
            self.report.note_for_people(f"it was put back from an older copy ({had}): what it lacks is sent again")
        status.revision, status.newest_there, self.seems_older = there.revision, newest, False

    def _note_kept(self, kept: dict[SnapshotNumber, LockedSnapshot]) -> None:
        """The target does not drop these. Replication goes on; the next opening requests their drop again."""
        status = self.report.status
        self.kept |= kept
        status.kept = tuple(self.kept[number] for number in sorted(self.kept))
        if kept:
            first = min(kept)
            log.info("%s does not drop %d snapshots: %d is %s", status.name, len(kept), first, kept[first].reason)

    def _forget_kept(self) -> None:
        """All but those whose lock has not ended."""
        now_ns = time.time_ns()
        self.kept = {number: each for number, each in self.kept.items() if each.until_ns > now_ns}
        self._note_kept({})

    async def _view(self, numbers: Sequence[SnapshotNumber], absent: list[SnapshotNumber]) -> TargetView:
        """The target for `push_plan.plan`, of these of its snapshots; `absent`: those that are not here."""
        there, settings, status = self.compared.there, self.role.settings, self.report.status
        rules, dropped = self.role.retention, frozenset[tuple[SnapshotNumber, bytes]]()
        if absent:
            dropped = await self.thread.run(partial(self.source.dropped, absent, there, by_rules=not rules.is_on))
        return TargetView(
            snapshots={number: root.content_hash for number in numbers if (root := there.root(number)) is not None},
            generation=self.state.generation, dropped=dropped, kept=frozenset(self.kept),
            left_behind=self._left_behind(numbers), rate_bytes_per_s=status.rate.at(time.monotonic()),
            history=settings.history, follow_drops=settings.drops == "follow", held=self.state.held,
            most_snapshots=self.target.limits.commit_snapshots, failed=self._failed(),
            complete_through=status.complete_through, unwanted=await self._unwanted(numbers),
            owed=frozenset(map(SnapshotNumber, NumberRanges(status.owed))),
        )  # fmt: skip

    async def _unwanted(self, numbers: Sequence[SnapshotNumber]) -> frozenset[SnapshotNumber]:
        """What the rules for this target would drop; of a view of all that is there: history is planned with one."""
        rules, there = self.role.retention, self.compared.there
        if not rules.is_on or len(numbers) < len(there):
            return frozenset()
        held = await self.thread.run(self.source.held_by_people)
        here, records = self.source.repository.catalog.snapshots(), there.page()
        grouped = await self._kept_for_groups([*here, *records])
        return unwanted(here, records, rules, time.time_ns(), {**grouped, **held})

    async def _expired(self) -> Step:
        """The drop of what the rules for this target do not keep. Raises CorruptionError where holds cannot be read."""
        rules, there = self.role.retention, self.compared.there
        judged = self.newest_there(), len(there)
        if not rules.is_on or judged == self._judged:
            return Step(StepKind.DONE)
        held = await self.thread.run(self.source.held_by_people)
        stay, most = self.state.held | frozenset(self.kept), self.target.limits.commit_snapshots
        records = there.page()
        grouped = await self._kept_for_groups(records)
        step = expired(records, rules, time.time_ns(), {**grouped, **held}, stay, most)
        self._judged = judged if step.kind is StepKind.DONE else None
        return step

    async def _kept_for_groups(self, records: Sequence[SnapshotRecord]) -> dict[SnapshotNumber, str]:
        """Those whose cut other members keep a part of here. Raises OSError, SnapfsError: then nothing goes."""
        if all(record.cut.group is None for record in records):
            return {}
        members = await self.thread.run(self.role.members)
        return kept_for_others(records, self.role.groups.others(members))

    def kept_cuts(self) -> frozenset[str] | None:
        """The cuts of groups whose part the rules for this target keep there, whatever other members keep; None before
        it was opened."""
        if not self.compared.is_open:
            return None
        records, stay = self.compared.there.page(), self.state.held | frozenset(self.kept)
        gone: frozenset[SnapshotNumber] = frozenset()
        if self.role.retention.is_on:
            gone = frozenset(expired(records, self.role.retention, time.time_ns(), {}, stay, len(records)).snapshots)
        kept = (record for record in records if record.number not in gone)
        return frozenset(record.cut.group.cut for record in kept if record.cut.group is not None)

    def _left_behind(self, numbers: Sequence[SnapshotNumber]) -> frozenset[SnapshotNumber]:
        if not self._takeovers:
            return frozenset()
        records = [record for number in numbers if (record := self.compared.there.get(number)) is not None]
        return frozenset(
            record.number for record in records
            if any(each.left_behind(record.generation, record.number) for each in self._takeovers)
        )  # fmt: skip
