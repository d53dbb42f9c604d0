"""When a snapshot is due without a request: pure decisions. The caller acts on the answer; nothing here reads a clock.

A rule says in how many seconds a cut is due, if it has an opinion; the earliest wins, within `at_least` and `at_most`.

Invariants:
1. The same situation gives the same decision.
2. With an interval or an rpo set, a change is never older than that when its cut comes due.
3. Where nothing changed no rule cuts, unless `skip_unchanged` is off and it is the interval or the calendar.
4. A lack of memory and the bound of replication go before all rules, `at_least` too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from snapfs.base.schedule.pace import ObjectivePace
from snapfs.base.settings.units import format_bytes, format_seconds
from snapfs.base.settings.volume_settings import SnapshotSettings


class Action(Enum):
    CUT = "cut"
    SKIP = "skip"  # the time has come and there is nothing to cut: begin the next interval
    WAIT = "wait"


class Rule(Enum):
    """What decided. The value is the trigger in the record of the snapshot."""

    NONE = "none"
    EVERY = "interval"
    DIRTY = "dirty"
    LULL = "lull"
    CALENDAR = "calendar"
    OBJECTIVE = "objective"
    AT_MOST = "at_most"
    PRESSURE = "pressure"


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on. Times are seconds of one steady clock."""

    now_s: float
    since_s: float  # when the current interval began: the last cut, or the last decision to skip
    changed: bool  # since the last cut
    busy: bool = False  # a snapshot is on its way
    pressure: bool = False  # the bound of what may be dirty is reached
    wanted: bool = False  # requests wait for one, or will (replication.mode bounded)
    written_bytes: int = 0  # since the last cut
    quiet_s: float = 0.0  # since something was written last
    calendar_left_s: float = math.inf  # until the next time of the calendar; negative if one has passed
    last_cut_s: float = -math.inf  # of the last cut, also of one on demand
    pace: ObjectivePace | None = None  # what the rpo asks for, if one is set


@dataclass(frozen=True, slots=True)
class Decision:
    """`wait_s`: until it is worth another call; math.inf: only when the situation changes otherwise."""

    action: Action
    wait_s: float
    rule: Rule = Rule.NONE
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Opinion:
    rule: Rule
    left_s: float
    why: str


_PRESSED = Decision(Action.CUT, 0.0, Rule.PRESSURE, "the bound of what may be dirty is reached")
_WANTED = Decision(Action.CUT, 0.0, Rule.EVERY, "replication.bound: what may be answered waits for it")


def due(settings: SnapshotSettings, situation: Situation) -> Decision:
    """Whether an unrequested snapshot is due now."""
    if situation.busy:
        return Decision(Action.WAIT, math.inf, Rule.NONE, "a snapshot is on its way")
    if situation.changed and (situation.pressure or situation.wanted):
        return _PRESSED if situation.pressure else _WANTED
    first = min(_opinions(settings, situation), key=lambda each: each.left_s, default=None)
    if first is None:
        return Decision(Action.WAIT, math.inf, Rule.NONE, _nothing(settings))
    wait_s, why = first.left_s, first.why
    floor_s = situation.last_cut_s + settings.at_least - situation.now_s if settings.at_least else -math.inf
    if floor_s > max(wait_s, 0.0):
        wait_s, why = floor_s, f"{why}, and at_least = {format_seconds(settings.at_least)} since the last cut"
    if wait_s > 0:
        return Decision(Action.WAIT, wait_s, first.rule, why)
    if not situation.changed and (settings.skip_unchanged or first.rule not in (Rule.EVERY, Rule.CALENDAR)):
        return Decision(Action.SKIP, _next_look_s(settings, situation), first.rule, "nothing changed")
    return Decision(Action.CUT, 0.0, first.rule, why)


def _opinions(settings: SnapshotSettings, now: Situation) -> Iterator[_Opinion]:
    age_s = now.now_s - now.since_s
    if settings.every:
        yield _Opinion(Rule.EVERY, settings.every - age_s, f"every {format_seconds(settings.every)}")
    if settings.calendar and now.calendar_left_s < math.inf:
        yield _Opinion(Rule.CALENDAR, now.calendar_left_s, "a time of the calendar")
    if now.pace is not None:
        yield _Opinion(Rule.OBJECTIVE, now.pace.left_s, now.pace.why)
    if settings.at_most:
        why = f"at_most = {format_seconds(settings.at_most)} with a change"
        yield _Opinion(Rule.AT_MOST, settings.at_most - age_s, why)
    if settings.dirty and now.changed and now.written_bytes >= settings.dirty:
        yield _Opinion(Rule.DIRTY, -math.inf, f"dirty = {format_bytes(settings.dirty)} is written")
    if settings.lull and now.changed:
        yield _Opinion(Rule.LULL, settings.lull - now.quiet_s, f"a lull of {format_seconds(settings.lull)}")


def _nothing(settings: SnapshotSettings) -> str:
    return "nothing is due" if has_rules(settings) else "no rule is set: snapshots are made on demand"


def has_rules(settings: SnapshotSettings) -> bool:
    """Whether any rule of the settings asks for cuts (an rpo is besides)."""
    return bool(settings.every or settings.dirty or settings.lull or settings.calendar or settings.at_most)


def _next_look_s(settings: SnapshotSettings, now: Situation) -> float:
    """When it is worth to look again after a skip."""
    spans = [float(each) for each in (settings.every, settings.at_most) if each]
    if now.pace is not None:
        spans.append(now.pace.look_s)
    return min(spans, default=math.inf)


def needs_looks(settings: SnapshotSettings) -> bool:
    """Whether a rule depends on what is written from moment to moment."""
    return bool(settings.dirty or settings.lull)


OVERDUE = 3
"""So many intervals without a snapshot are a fault and no delay."""


def overdue_s(settings: SnapshotSettings, age_s: float, changed: bool, rpo_s: float = 0.0) -> float:
    """Since when a snapshot of what changed is due, where the newest one is so old; 0 while all is well."""
    spans = [float(each) for each in (settings.every, settings.at_most, rpo_s) if each]
    every_s = min(spans, default=0.0)
    if spans:
        every_s = max(every_s, float(settings.at_least))
    return age_s - every_s if every_s and changed and age_s > OVERDUE * every_s else 0.0
