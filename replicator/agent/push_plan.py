"""What to send next: from what the source and a target have, the next step. Pure; the agent acts on the answer.

A step is one commit at the target: one snapshot, or a stretch of history. Its difference is made against everything
the target is known to hold, which is what `base` and the snapshots below it need.

Invariants:
1. The same situation gives the same step, so that a push that was interrupted comes to the same step again.
2. The newest snapshot comes first: while the target lacks it, history waits. But where the snapshots between are
   so few and small that the link carries them within `IN_ORDER_SECONDS`, they are sent in order: the target then
   has them in time, and nothing has to be filled in later.
3. A target never gets a snapshot that is damaged here, nor one of an older generation than its newest.
4. No step is larger than the target takes in one commit.
5. What a target once had and dropped by a policy of its own is not sent again. What it never had, since it was damaged
   here, is sent when it is mended.
6. What is absent here is dropped there only if a record of the log drops it here (store/log/drops.py).
7. Where there are rules for a target ([replication.target.retention]), they alone decide what goes there, and what a
   person dropped here: the rules of this host do not. What they would drop at once is not sent as history. A member of
   a group's cut stays as long as the rules of another member keep its part at the same place (group_members.py).
8. What the writer before us left behind when we took over from an earlier snapshot becomes a branch, also if we have
   nothing of these numbers any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from snapfs.base.blocks import Generation, SnapshotNumber
from snapfs.base.settings.retention import drop_reason, going, judge
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.store.log.drops import Dropped
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord

IN_ORDER_SECONDS: Final = 1.0
HISTORY_BYTES: Final = 256 << 20
"""Of one stretch of history: its objects are sent, and committed, together."""


class StepKind(Enum):
    """What a step is for."""

    NEXT = "next"  # the snapshot after the target's newest
    NEWEST = "newest"  # the newest, over those between: one combined difference
    HISTORY = "history"  # what was passed over before
    DROP = "drop"  # what the source's log has drop records of
    DIVERGED = "diverged"  # the target has snapshots that the source never saw
    DONE = "done"


@dataclass(frozen=True, slots=True)
class TargetView:
    """What a target has, and how it is to be fed.

    `snapshots`: number to root content hash. `rate_bytes_per_s`: what the link carried lately, 0 if that is not known.
    `history`: fill in what was passed over. `follow_drops`: drop there what was dropped here. `dropped`: what the
    source's log records of that, of the snapshots that the target has. `kept`: those that it would not drop.
    """

    snapshots: dict[SnapshotNumber, bytes]
    generation: Generation
    rate_bytes_per_s: float = 0.0
    history: bool = True
    follow_drops: bool = False
    dropped: Dropped = frozenset()
    kept: frozenset[SnapshotNumber] = frozenset()
    left_behind: frozenset[SnapshotNumber] = frozenset()
    """Those of older generations, above the snapshot that this volume went on from."""
    held: frozenset[SnapshotNumber] = frozenset()
    most_snapshots: int = 1000
    failed: frozenset[SnapshotNumber] = frozenset()
    """Those that turned out unreadable here while they were being sent."""
    unwanted: frozenset[SnapshotNumber] = frozenset()
    """Those that the target's own rules would drop at once: they are not sent as history."""
    complete_through: SnapshotNumber = SnapshotNumber(0)
    """Up to here it has had everything: what it lacks of that it has dropped itself, and does not want again."""
    owed: frozenset[SnapshotNumber] = frozenset()
    """But for these, which could not be read here then."""


@dataclass(frozen=True, slots=True)
class Step:
    """`snapshots` are to be sent and committed together, ascending; `base` is the newest common one below the last.

    `rule`: of a DROP by the rules for this target, those rules.
    """

    kind: StepKind
    snapshots: tuple[SnapshotNumber, ...] = ()
    base: SnapshotNumber | None = None
    rule: str = ""

    @property
    def sends(self) -> bool:
        return self.kind in (StepKind.NEXT, StepKind.NEWEST, StepKind.HISTORY)


def plan(source: Sequence[SnapshotRecord], target: TargetView) -> Step:
    """The next step for this target."""
    here = {record.number: record.root.content_hash for record in source}
    left = [number for number in target.left_behind if here.get(number) != target.snapshots.get(number)]
    diverged = [*(record.number for record in source if _differs(record, target)), *left]
    newest_there = max(target.snapshots, default=SnapshotNumber(0))
    newest_here = max((record.number for record in source), default=SnapshotNumber(0))
    if diverged or (source and newest_there > newest_here):
        foreign = tuple(sorted(number for number in target.snapshots if number > newest_here or number in diverged))
        return Step(StepKind.DIVERGED, foreign, common(source, target, min(foreign)))
    usable = [record for record in source if record.state == GOOD and record.number not in target.failed]
    lacking = [record for record in usable if record.number not in target.snapshots]
    ahead = [record for record in lacking if record.number > newest_there]
    if ahead:
        return _catch_up(source, target, ahead)
    wanted = [
        record for record in lacking
        if record.number not in target.unwanted
        and (record.number > target.complete_through or record.number in target.owed)
    ]  # fmt: skip
    if target.history and wanted:
        return _fill(source, target, wanted)
    return _drops(target, newest_there)


def unwanted(
    source: Iterable[SnapshotRecord], there: Iterable[SnapshotRecord], rules: RetentionSettings, now_ns: int,
    held: Mapping[SnapshotNumber, str],
) -> frozenset[SnapshotNumber]:  # fmt: skip
    """What the rules for a target would drop there, if it had all that either side has."""
    every = {record.number: record for record in (*source, *there)}
    return frozenset(going(judge(every.values(), rules, now_ns, held)))


def expired(
    there: Iterable[SnapshotRecord], rules: RetentionSettings, now_ns: int, held: Mapping[SnapshotNumber, str],
    stay: frozenset[SnapshotNumber], most: int,
) -> Step:  # fmt: skip
    """The drop of what the rules for a target do not keep there. `held`: by people; `stay`: what it would not drop.

    Its newest snapshot stays in any case.
    """
    found = sorted(there, key=lambda record: record.number)
    newest = {record.number: "it is the newest there" for record in found[-1:]}
    gone = [number for number in going(judge(found, rules, now_ns, {**held, **newest})) if number not in stay][:most]
    return Step(StepKind.DROP, tuple(gone), rule=drop_reason(rules)) if gone else Step(StepKind.DONE)


def common(source: Sequence[SnapshotRecord], target: TargetView, below: SnapshotNumber) -> SnapshotNumber | None:
    """The newest snapshot below `below` that both have."""
    found = (record.number for record in source if record.number < below and record.number in target.snapshots)
    return max(found, default=None)


def _differs(record: SnapshotRecord, target: TargetView) -> bool:
    root = target.snapshots.get(record.number)
    return root is not None and root != record.root.content_hash


def _catch_up(source: Sequence[SnapshotRecord], target: TargetView, ahead: list[SnapshotRecord]) -> Step:
    first, last = ahead[0].number, ahead[-1].number
    if len(ahead) == 1:
        kind = StepKind.NEXT if target.snapshots else StepKind.NEWEST
        return Step(kind, (last,), common(source, target, last))
    in_time = sum(record.stats.stored_bytes for record in ahead) <= target.rate_bytes_per_s * IN_ORDER_SECONDS
    if target.history and target.snapshots and in_time:
        return Step(StepKind.NEXT, (first,), common(source, target, first))
    return Step(StepKind.NEWEST, (last,), common(source, target, last))


def _fill(source: Sequence[SnapshotRecord], target: TargetView, lacking: list[SnapshotRecord]) -> Step:
    """The newest stretch first: what is more recent is more likely to be needed."""
    chosen: list[SnapshotNumber] = []
    total = 0
    for record in reversed(lacking):
        total += record.stats.stored_bytes
        if chosen and (total > HISTORY_BYTES or len(chosen) >= target.most_snapshots):
            break
        chosen.append(record.number)
    chosen.reverse()
    return Step(StepKind.HISTORY, tuple(chosen), common(source, target, chosen[-1]))


def _drops(target: TargetView, newest_there: SnapshotNumber) -> Step:
    gone = [number for number, root in target.dropped if target.snapshots.get(number) == root]
    stay = target.held | target.kept | {newest_there}
    wanted = tuple(sorted(number for number in gone if number not in stay)[: target.most_snapshots])
    return Step(StepKind.DROP, wanted) if target.follow_drops and wanted else Step(StepKind.DONE)
