"""What to send next: from what the source and a target have, the next step. Pure; the agent acts on the answer.

A step is one commit at the target: one snapshot, or a stretch of history. Its difference is made against everything
the target is known to hold, which is what `base` and the snapshots below it need.

Invariants:
1. The same situation gives the same step, so that whoever is interrupted comes to the same step again.
2. The newest snapshot comes first: while the target lacks it, history waits. But where the snapshots between are
   so few and small that the link carries them within `in_order_s`, they are sent in order: the target then has them
   in time, and nothing has to be filled in later.
3. A target never gets a snapshot that is damaged here, nor one of an older generation than its newest.
4. No step is larger than the target takes in one commit.
5. What a target once had and dropped by a policy of its own is not sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from snapfs.blocks import Generation, SnapshotNumber
from snapfs.store.records import GOOD, SnapshotRecord

IN_ORDER_SECONDS: Final = 1.0
HISTORY_BYTES: Final = 256 << 20
"""Of one stretch of history: its objects are sent, and committed, together."""


class Kind(Enum):
    """What a step is for."""

    NEXT = "next"  # the snapshot after the target's newest
    NEWEST = "newest"  # the newest, over those between: one combined difference
    HISTORY = "history"  # what was passed over before
    DROP = "drop"  # what the source does not have any more
    DIVERGED = "diverged"  # the target has snapshots that the source never saw
    DONE = "done"


@dataclass(frozen=True, slots=True)
class TargetView:
    """What a target has, and how it is to be fed.

    `snapshots`: number to root proof. `rate_bytes_per_s`: what the link carried lately, 0 if that is not known.
    `history`: fill in what was passed over. `follow_drops`: drop there what was dropped here.
    """

    snapshots: dict[SnapshotNumber, bytes]
    generation: Generation
    rate_bytes_per_s: float = 0.0
    history: bool = True
    follow_drops: bool = False
    held: frozenset[SnapshotNumber] = frozenset()
    most_snapshots: int = 1000
    failed: frozenset[SnapshotNumber] = frozenset()
    """Those that turned out unreadable here while they were being sent."""
    complete_through: SnapshotNumber = SnapshotNumber(0)
    """Up to here it has had everything: what it lacks of that it has dropped itself, and does not want again."""


@dataclass(frozen=True, slots=True)
class Step:
    """`snapshots` are to be sent and committed together, ascending; `base` is the newest common one below the last."""

    kind: Kind
    snapshots: tuple[SnapshotNumber, ...] = ()
    base: SnapshotNumber | None = None

    @property
    def sends(self) -> bool:
        return self.kind in (Kind.NEXT, Kind.NEWEST, Kind.HISTORY)


def plan(source: Sequence[SnapshotRecord], target: TargetView) -> Step:
    """The next step for this target."""
    diverged = [record.number for record in source if _differs(record, target)]
    newest_there = max(target.snapshots, default=SnapshotNumber(0))
    newest_here = max((record.number for record in source), default=SnapshotNumber(0))
    if diverged or (source and newest_there > newest_here):
        foreign = tuple(sorted(number for number in target.snapshots if number > newest_here or number in diverged))
        return Step(Kind.DIVERGED, foreign, common(source, target, min(foreign)))
    usable = [record for record in source if record.state == GOOD and record.number not in target.failed]
    lacking = [record for record in usable if record.number not in target.snapshots]
    ahead = [record for record in lacking if record.number > newest_there]
    if ahead:
        return _catch_up(source, target, ahead)
    wanted = [record for record in lacking if record.number > target.complete_through]
    if target.history and wanted:
        return _fill(source, target, wanted)
    return _drops(source, target, newest_there)


def common(source: Sequence[SnapshotRecord], target: TargetView, below: SnapshotNumber) -> SnapshotNumber | None:
    """The newest snapshot below `below` that both have."""
    found = (record.number for record in source if record.number < below and record.number in target.snapshots)
    return max(found, default=None)


def _differs(record: SnapshotRecord, target: TargetView) -> bool:
    root = target.snapshots.get(record.number)
    return root is not None and root != record.root.proof


def _catch_up(source: Sequence[SnapshotRecord], target: TargetView, ahead: list[SnapshotRecord]) -> Step:
    first, last = ahead[0].number, ahead[-1].number
    if len(ahead) == 1:
        kind = Kind.NEXT if target.snapshots else Kind.NEWEST
        return Step(kind, (last,), common(source, target, last))
    in_time = sum(record.stats.stored_bytes for record in ahead) <= target.rate_bytes_per_s * IN_ORDER_SECONDS
    if target.history and target.snapshots and in_time:
        return Step(Kind.NEXT, (first,), common(source, target, first))
    return Step(Kind.NEWEST, (last,), common(source, target, last))


def _fill(source: Sequence[SnapshotRecord], target: TargetView, lacking: list[SnapshotRecord]) -> Step:
    """The newest stretch first: what is more recent is more likely to be asked for."""
    chosen: list[SnapshotNumber] = []
    total = 0
    for record in reversed(lacking):
        total += record.stats.stored_bytes
        if chosen and (total > HISTORY_BYTES or len(chosen) >= target.most_snapshots):
            break
        chosen.append(record.number)
    chosen.reverse()
    return Step(Kind.HISTORY, tuple(chosen), common(source, target, chosen[-1]))


def _drops(source: Sequence[SnapshotRecord], target: TargetView, newest_there: SnapshotNumber) -> Step:
    existing = {record.number for record in source}
    gone = [number for number in target.snapshots if number not in existing and number != newest_there]
    if not (target.follow_drops and existing and gone):
        return Step(Kind.DONE)
    wanted = tuple(sorted(number for number in gone if number not in target.held)[: target.most_snapshots])
    return Step(Kind.DROP, wanted) if wanted else Step(Kind.DONE)
