"""When a drill is due, as a table."""

from __future__ import annotations

import math
from datetime import UTC

import pytest

from snapfs.base.errors import UserError
from snapfs.base.schedule.drill_times import drill_overdue_s, due_in_s, retry_s
from snapfs.base.schedule.verify_times import verify_overdue_s
from snapfs.base.settings import config
from snapfs.base.settings.proof_settings import DrillSettings, VerifySettings
from snapfs.base.settings.units import Seconds

HOUR, DAY = 3600.0, 86400.0
NOON = 20_000 * DAY + 12 * HOUR
WEEKLY, NIGHTLY = DrillSettings(every=Seconds(7 * DAY)), DrillSettings(at=("0 4 * * *",))
BOTH = DrillSettings(every=Seconds(2 * HOUR), at=("0 4 * * *",))

TABLE = [
    ("no rule", DrillSettings(), 0, math.inf),
    ("never drilled: at once", WEEKLY, 0, 0.0),
    ("a day ago", WEEKLY, NOON - DAY, 6 * DAY),
    ("overdue", WEEKLY, NOON - 9 * DAY, -2 * DAY),
    ("never drilled: the next time of the calendar", NIGHTLY, 0, 16 * HOUR),
    ("this morning", NIGHTLY, NOON - 7 * HOUR, 16 * HOUR),
    ("it passed meanwhile: once", NIGHTLY, NOON - 3 * DAY, -2 * DAY - 8 * HOUR),
    ("the earlier one wins", BOTH, NOON - HOUR, HOUR),
]


@pytest.mark.parametrize(("settings", "last_s", "left_s"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_due(settings: DrillSettings, last_s: float, left_s: float) -> None:
    assert due_in_s(settings, last_s, NOON - 60, NOON, UTC) == left_s


LATE = [
    ("no rule", DrillSettings(), 0, 0.0),
    ("never drilled, in a volume of ten days", WEEKLY, 0, 3 * DAY - 600),
    ("a day ago", WEEKLY, NOON - DAY, 0.0),
    ("due, and perhaps under way", WEEKLY, NOON - 7 * DAY - 600, 0.0),
    ("two days late", WEEKLY, NOON - 9 * DAY, 2 * DAY - 600),
    ("never drilled by the calendar", NIGHTLY, 0, 9 * DAY + 8 * HOUR - 600),
    ("this morning", NIGHTLY, NOON - 7 * HOUR, 0.0),
]


@pytest.mark.parametrize(("settings", "last_s", "late_s"), [row[1:] for row in LATE], ids=[row[0] for row in LATE])
def test_late(settings: DrillSettings, last_s: float, late_s: float) -> None:
    assert drill_overdue_s(settings, last_s, NOON - 10 * DAY, NOON, UTC) == late_s


@pytest.mark.parametrize(
    ("share", "last_s", "late_s"),
    [
        ("off", 0, 0.0),
        ("10%", 0, 10 * DAY),  # of a volume of thirty days
        ("10%", NOON - 20 * DAY, 0.0),
        ("10%", NOON - 21 * DAY, DAY),
        ("100%", NOON - 1.5 * DAY, 0.0),
    ],
)
def test_a_pass_over_the_store_is_late(share: str, last_s: float, late_s: float) -> None:
    assert verify_overdue_s(VerifySettings(share=share), last_s, NOON - 30 * DAY, NOON) == pytest.approx(late_s)


def test_one_that_cannot_be_run_is_not_tried_without_a_pause() -> None:
    assert [retry_s(each) for each in (WEEKLY, NIGHTLY, DrillSettings(every=Seconds(60)))] == [HOUR, HOUR, 60.0]


def test_settings_that_cannot_be() -> None:
    wrong = [
        ({"drill": {"every": "1d"}}, "needs a check"),
        ({"drill": {"at": ["soon"], "check": "files"}}, "five fields"),
        ({"drill": {"target": "near"}}, "no target near: there are none, at drill.target"),
        ({"drill": {"every": "1s", "check": "files"}}, "at least 1m, at drill.every"),
        ({"verify": {"share": "all"}}, 'write a share as in "10%", or "off"'),
        ({"verify": {"share": "101%"}}, "more than 100% a day"),
    ]
    for tables, why in wrong:
        with pytest.raises(UserError, match=why):
            config.decode(tables, "volume.toml")
    found = config.decode({"verify": {"share": "2.5%"}, "drill": {"at": ["0 4 * * 0"], "check": "files"}}, "v")
    assert found.verify.share_a_day == 0.025
    assert VerifySettings().share_a_day == 0
