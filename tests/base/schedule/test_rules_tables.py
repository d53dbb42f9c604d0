"""When a snapshot is due, as tables: each rule by itself, the earliest of several, and what bounds them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from snapfs.base.schedule.pace import ObjectivePace
from snapfs.base.schedule.rules import Action, Rule, Situation, due, overdue_s
from snapfs.base.settings.policy import POLICY_TRIGGERS
from snapfs.base.settings.units import Bytes, Seconds
from snapfs.base.settings.volume_settings import SnapshotSettings

OFF = SnapshotSettings()
EVERY_10S = SnapshotSettings(every=Seconds(10))
ALWAYS_10S = SnapshotSettings(every=Seconds(10), skip_unchanged=False)
DIRTY = SnapshotSettings(dirty=Bytes(1000))
LULL = SnapshotSettings(lull=Seconds(2))
LULL_AT_MOST = SnapshotSettings(lull=Seconds(2), at_most=Seconds(60))
DAILY = SnapshotSettings(calendar=("0 3 * * *",))
BOUNDED = SnapshotSettings(every=Seconds(10), dirty=Bytes(1000), at_least=Seconds(5), at_most=Seconds(60))
AT_100 = Situation(now_s=100, since_s=90, changed=True, last_cut_s=90)
RPO = ObjectivePace(left_s=3.0, why="rpo", expected_age_s=10, look_s=15, holds=True)
LATE = replace(RPO, left_s=-1)

CUT, SKIP, WAIT = Action.CUT, Action.SKIP, Action.WAIT


@pytest.mark.parametrize(
    ("settings", "situation", "action", "wait_s", "rule"),
    [
        (OFF, AT_100, WAIT, math.inf, Rule.NONE),
        (OFF, replace(AT_100, pressure=True), CUT, 0, Rule.PRESSURE),
        (OFF, replace(AT_100, pressure=True, busy=True), WAIT, math.inf, Rule.NONE),
        (OFF, replace(AT_100, pressure=True, changed=False), WAIT, math.inf, Rule.NONE),
        (OFF, replace(AT_100, wanted=True), CUT, 0, Rule.EVERY),
        (EVERY_10S, AT_100, CUT, 0, Rule.EVERY),
        (EVERY_10S, replace(AT_100, now_s=500), CUT, 0, Rule.EVERY),
        (EVERY_10S, replace(AT_100, since_s=93), WAIT, 3, Rule.EVERY),
        (EVERY_10S, replace(AT_100, since_s=93, pressure=True), CUT, 0, Rule.PRESSURE),
        (EVERY_10S, replace(AT_100, busy=True), WAIT, math.inf, Rule.NONE),
        (EVERY_10S, replace(AT_100, changed=False), SKIP, 10, Rule.EVERY),
        (ALWAYS_10S, replace(AT_100, changed=False), CUT, 0, Rule.EVERY),
        (DIRTY, replace(AT_100, written_bytes=999), WAIT, math.inf, Rule.NONE),
        (DIRTY, replace(AT_100, written_bytes=1000), CUT, 0, Rule.DIRTY),
        (DIRTY, replace(AT_100, written_bytes=1000, changed=False), WAIT, math.inf, Rule.NONE),
        (LULL, replace(AT_100, quiet_s=0.5), WAIT, 1.5, Rule.LULL),
        (LULL, replace(AT_100, quiet_s=2), CUT, 0, Rule.LULL),
        (LULL, replace(AT_100, quiet_s=2, changed=False), WAIT, math.inf, Rule.NONE),
        (LULL, replace(AT_100, since_s=0, quiet_s=0), WAIT, 2, Rule.LULL),
        (LULL_AT_MOST, replace(AT_100, since_s=41, quiet_s=0), WAIT, 1, Rule.AT_MOST),
        (LULL_AT_MOST, replace(AT_100, since_s=40, quiet_s=0), CUT, 0, Rule.AT_MOST),
        (LULL_AT_MOST, replace(AT_100, since_s=40, changed=False), SKIP, 60, Rule.AT_MOST),
        (DAILY, replace(AT_100, calendar_left_s=7), WAIT, 7, Rule.CALENDAR),
        (DAILY, replace(AT_100, calendar_left_s=-7), CUT, 0, Rule.CALENDAR),
        (DAILY, replace(AT_100, calendar_left_s=-7, changed=False), SKIP, math.inf, Rule.CALENDAR),
        (OFF, replace(AT_100, pace=RPO), WAIT, 3, Rule.OBJECTIVE),
        (OFF, replace(AT_100, pace=LATE), CUT, 0, Rule.OBJECTIVE),
        (ALWAYS_10S, replace(AT_100, since_s=99, pace=LATE, changed=False), SKIP, 10, Rule.OBJECTIVE),
        (BOUNDED, replace(AT_100, since_s=97, last_cut_s=97, written_bytes=2000), WAIT, 2, Rule.DIRTY),
        (BOUNDED, replace(AT_100, since_s=97, last_cut_s=97, written_bytes=2000, pressure=True), CUT, 0, Rule.PRESSURE),
        (BOUNDED, replace(AT_100, since_s=97, last_cut_s=97, wanted=True), CUT, 0, Rule.EVERY),
        (BOUNDED, replace(AT_100, since_s=95, last_cut_s=95, written_bytes=2000), CUT, 0, Rule.DIRTY),
        (BOUNDED, replace(AT_100, since_s=97, last_cut_s=97, pace=LATE), WAIT, 2, Rule.OBJECTIVE),
    ],
)  # fmt: skip
def test_when_to_cut(
    settings: SnapshotSettings, situation: Situation, action: Action, wait_s: float, rule: Rule
) -> None:
    decision = due(settings, situation)
    assert (decision.action, decision.wait_s, decision.rule) == (action, wait_s, rule)
    assert decision.why


def test_rules_are_what_the_record_has_as_the_trigger() -> None:
    """`keep` and the metrics know the triggers of all rules, and no others."""
    assert set(POLICY_TRIGGERS) == {rule.value for rule in Rule} - {Rule.NONE.value, Rule.PRESSURE.value}


@pytest.mark.parametrize(
    ("settings", "age_s", "changed", "rpo_s", "overdue"),
    [
        (OFF, 1000, True, 0, 0),
        (EVERY_10S, 29, True, 0, 0),
        (EVERY_10S, 31, True, 0, 21),
        (EVERY_10S, 31, False, 0, 0),
        (OFF, 31, True, 10, 21),
        (LULL_AT_MOST, 181, True, 0, 121),
        (SnapshotSettings(every=Seconds(1), at_least=Seconds(20)), 31, True, 0, 0),
    ],
)
def test_when_a_snapshot_is_overdue(
    settings: SnapshotSettings, age_s: float, changed: bool, rpo_s: float, overdue: float
) -> None:
    assert overdue_s(settings, age_s, changed, rpo_s) == overdue
