"""When to cut and what to keep, as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from snapfs.blocks import SnapshotNumber
from snapfs.config import Seconds, SnapshotSettings
from snapfs.policy import Action, Decision, Situation, due, expired

OFF = SnapshotSettings()
EVERY_10S = SnapshotSettings(every=Seconds(10))
ALWAYS_10S = SnapshotSettings(every=Seconds(10), skip_unchanged=False)
NOW = Decision(Action.CUT, 0.0)
NEVER = Decision(Action.WAIT, math.inf)
AT_100 = Situation(now_s=100, since_s=90, changed=True)


@pytest.mark.parametrize(
    ("settings", "situation", "decision"),
    [
        (OFF, AT_100, NEVER),
        (OFF, replace(AT_100, pressure=True), NOW),
        (OFF, replace(AT_100, pressure=True, busy=True), NEVER),
        (OFF, replace(AT_100, pressure=True, changed=False), NEVER),
        (EVERY_10S, AT_100, NOW),
        (EVERY_10S, replace(AT_100, now_s=500), NOW),
        (EVERY_10S, replace(AT_100, since_s=93), Decision(Action.WAIT, 3)),
        (EVERY_10S, replace(AT_100, since_s=93, pressure=True), NOW),
        (EVERY_10S, replace(AT_100, busy=True), NEVER),
        (EVERY_10S, replace(AT_100, changed=False), Decision(Action.SKIP, 10)),
        (ALWAYS_10S, replace(AT_100, changed=False), NOW),
    ],
)
def test_when_to_cut(settings: SnapshotSettings, situation: Situation, decision: Decision) -> None:
    assert due(settings, situation) == decision


@dataclass(frozen=True)
class Past:
    number: SnapshotNumber
    trigger: str = "interval"
    name: str | None = None


def past(*numbers: int) -> list[Past]:
    return [Past(SnapshotNumber(number)) for number in numbers]


@pytest.mark.parametrize(
    ("snapshots", "keep", "gone"),
    [
        ([], 1, []),
        (past(1, 2, 3), 0, []),
        (past(1, 2, 3), 3, []),
        (past(1, 2, 3), 2, [1]),
        (past(3, 1, 2), 1, [1, 2]),
        ([*past(1, 2), Past(SnapshotNumber(3), "control")], 1, [1]),
        ([Past(SnapshotNumber(1), "control"), *past(2, 3)], 1, [2]),
        ([Past(SnapshotNumber(1), name="kept"), *past(2, 3)], 1, [2]),
    ],
)
def test_what_to_keep(snapshots: list[Past], keep: int, gone: list[int]) -> None:
    assert expired(snapshots, keep) == gone
