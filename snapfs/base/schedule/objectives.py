"""Whether an objective holds, as one judgement for status, metrics and alerts. Pure.

Invariants:
1. An rpo is MET only if the newest replicated cut is younger, or nothing changed since it.
2. AT_RISK comes before MISSED: the next replicated cut is expected too late, or too few targets answer to take it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from snapfs.base.schedule.pace import ObjectivePace
from snapfs.base.settings.units import format_seconds


class ObjectiveState(Enum):
    """From fine to broken."""

    NONE = "none"  # none is set
    MET = "met"
    AT_RISK = "at risk"
    MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Reach:
    """Of `targets` targets that the settings name, so many answer; `copies` must. `why`: of those that do not."""

    targets: int
    answering: int
    copies: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    state: ObjectiveState
    why: str = ""


def judge_rpo(rpo_s: float, age_s: float, pace: ObjectivePace | None, reach: Reach) -> Judgement:
    """`age_s`: of the oldest work that too few targets have, at most; 0 if they have everything."""
    if not rpo_s:
        return Judgement(ObjectiveState.NONE)
    why = _risk(rpo_s, age_s, pace, reach)
    if age_s > rpo_s:
        return Judgement(ObjectiveState.MISSED, why or f"the newest replicated cut is {age_s:.1f} s old")
    return Judgement(ObjectiveState.AT_RISK, why) if why else Judgement(ObjectiveState.MET)


def _risk(rpo_s: float, age_s: float, pace: ObjectivePace | None, reach: Reach) -> str:
    """Why it may break, "" if it will not."""
    if reach.targets < reach.copies:
        return f"{reach.targets} targets are named, and {reach.copies} must have a snapshot"
    if reach.answering < reach.copies:
        more = f": {reach.why}" if reach.why else ""
        return f"{reach.answering} of {reach.targets} targets answer, and {reach.copies} must{more}"
    if pace is not None and age_s and not pace.holds:
        expected = f"the newest replicated cut will be {pace.expected_age_s:.1f} s old"
        return f"{expected}, and rpo = {format_seconds(rpo_s)}: {pace.blame}"
    return ""
