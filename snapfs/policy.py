"""When to cut and what to keep: pure decisions. Who asks acts on the answer; nothing here reads a clock or a disk.

Invariants:
1. The same situation gives the same answer.
2. A snapshot that has a name, or that somebody asked for, is never expired; nor is the newest one.
3. With an interval set, a change is never older than the interval when its cut comes due.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from snapfs.blocks import SnapshotNumber
from snapfs.config import SnapshotSettings


class Action(Enum):
    CUT = "cut"
    SKIP = "skip"  # the interval has passed and there is nothing to cut: begin the next interval
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on. Times are seconds of one steady clock."""

    now_s: float
    since_s: float  # when the current interval began: the last cut, or the last decision to skip
    changed: bool  # since the last cut
    busy: bool = False  # a snapshot is on its way
    pressure: bool = False  # the bound of what may be dirty is reached


@dataclass(frozen=True, slots=True)
class Decision:
    action: Action
    wait_s: float  # until it is worth asking again; math.inf: only when the situation changes otherwise


def due(settings: SnapshotSettings, situation: Situation) -> Decision:
    """Whether a snapshot that nobody asked for is to be made now."""
    if situation.busy:
        return Decision(Action.WAIT, math.inf)
    if situation.pressure and situation.changed:
        return Decision(Action.CUT, 0.0)
    if not settings.every:
        return Decision(Action.WAIT, math.inf)
    left_s = situation.since_s + settings.every - situation.now_s
    if left_s > 0:
        return Decision(Action.WAIT, left_s)
    if settings.skip_unchanged and not situation.changed:
        return Decision(Action.SKIP, float(settings.every))
    return Decision(Action.CUT, 0.0)


class Expirable(Protocol):
    """The part of a snapshot record that expiry looks at."""

    @property
    def number(self) -> SnapshotNumber: ...
    @property
    def name(self) -> str | None: ...
    @property
    def trigger(self) -> str: ...


def expired(snapshots: Iterable[Expirable], keep: int) -> list[SnapshotNumber]:
    """The snapshots made by the interval that are more than the newest `keep` of them, oldest first. 0 keeps all."""
    ordered = sorted(snapshots, key=lambda snapshot: snapshot.number)
    own = [s.number for s in ordered if s.trigger == "interval" and s.name is None]
    newest = ordered[-1].number if ordered else None
    return [number for number in own[: max(len(own) - keep, 0)] if number != newest] if keep else []
