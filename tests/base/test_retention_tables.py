"""What the rules keep, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.settings import config
from snapfs.base.settings.retention import Verdict, drop_reason, facts, going, judge, reason
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.base.settings.units import Seconds


@dataclass(frozen=True)
class Past:
    number: SnapshotNumber
    cut_time_ns: int
    name: str | None = None
    state: str = "good"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e9)


def past(*times: str, damaged: tuple[int, ...] = (), named: tuple[int, ...] = ()) -> list[Past]:
    """Numbered from 1 on, cut at these times (UTC)."""
    return [
        Past(
            SnapshotNumber(number), at(text), "name" if number in named else None,
            "damaged" if number in damaged else "good",
        )
        for number, text in enumerate(times, 1)
    ]  # fmt: skip


NOW = at("2026-12-31T00:00")
HOURS = past("2026-11-29T20:10", "2026-11-29T20:50", "2026-11-29T21:05", "2026-11-29T23:00", "2026-11-29T23:59")
YEARS = past("2023-06-01", "2024-12-30", "2024-12-31", "2025-01-01", "2026-03-01", "2026-03-02")


def rules(minimum_good: int = 1, within: float = 0, **counts: int) -> RetentionSettings:
    return RetentionSettings(minimum_good=minimum_good, within=Seconds(within), **counts)


@pytest.mark.parametrize(
    ("snapshots", "given", "gone"),
    [
        ([], rules(last=1), []),
        (HOURS, RetentionSettings(), []),
        (HOURS, rules(last=2), [1, 2, 3]),
        (HOURS, rules(last=9), []),
        (HOURS, rules(last=1, minimum_good=3), [1, 2]),
        (HOURS, rules(within=3600), [1, 2, 3]),
        (HOURS, rules(within=3540), [1, 2, 3]),
        (HOURS, rules(within=3539), [1, 2, 3, 4]),
        (HOURS, rules(hourly=1), [1, 2, 3, 4]),
        (HOURS, rules(hourly=2), [1, 2, 4]),  # 22 o'clock has none, and does not count
        (HOURS, rules(hourly=3), [1, 4]),
        (HOURS, rules(hourly=1, last=2), [1, 2, 3]),
        (HOURS, rules(daily=5), [1, 2, 3, 4]),
        (YEARS, rules(daily=2), [1, 2, 3, 4]),
        (YEARS, rules(weekly=1), [1, 2, 3, 4, 5]),  # 2026-03-02 is a Monday
        (YEARS, rules(weekly=3), [1, 2, 3]),  # 2024-12-30 to 2025-01-05 is one week
        (YEARS, rules(weekly=4), [2, 3]),
        (YEARS, rules(monthly=2), [1, 2, 3, 5]),
        (YEARS, rules(monthly=3), [1, 2, 5]),
        (YEARS, rules(yearly=2), [1, 2, 3, 5]),
        (YEARS, rules(yearly=9), [2, 5]),
        (YEARS, rules(yearly=1, monthly=2, daily=1), [1, 2, 3, 5]),
        (past("2026-01-01", "2026-01-02", "2026-01-03", named=(1,)), rules(last=1), [2]),
        # The clock was ahead for a while: 2 and 3 count as of the day of 4, are no longer young than that, and take no
        # day's place; that of the newest counts as now.
        (past("2026-01-01", "2027-05-01", "2027-05-02", "2026-01-03", "2026-01-09"), rules(within=3600), [1, 2, 3, 4]),
        (past("2026-01-01", "2027-05-01", "2027-05-02", "2026-01-03", "2026-01-04"), rules(daily=3), [2]),
        (past("2026-12-29", "2026-12-30T23:30", "2027-05-02"), rules(within=3600), [1]),
        # A damaged one takes no good one's place, in any rule.
        (past("2026-01-01", "2026-01-02", "2026-01-03", damaged=(3,)), rules(last=1), [1]),
        (past("2026-01-01T01", "2026-01-01T02", "2026-01-01T03", damaged=(2, 3)), rules(daily=1), [2]),
        (past("2026-01-01", "2026-01-02", "2026-01-03", damaged=(2, 3)), rules(last=1, minimum_good=2), [2]),
        # A clock that was wrong for a moment: the present stays as near to now as it is.
        (past("2026-12-30T22", "2026-12-30T23", "2099-01-01"), rules(within=5400), [1]),
        (past("2026-12-30T22", "1970-01-01", "2026-12-30T23"), rules(within=5400), [2]),
    ],
)  # fmt: skip
def test_what_goes(snapshots: list[Past], given: RetentionSettings, gone: list[int]) -> None:
    assert going(judge(snapshots, given, NOW)) == gone


def test_each_is_shown_with_what_keeps_it() -> None:
    stay, lock = {SnapshotNumber(2): "it is held by me"}, {SnapshotNumber(1): NOW}
    found = judge(HOURS, rules(last=1, hourly=2), NOW, stay, lambda number: lock.get(number, 0))
    assert [reason(each, str) for each in found] == [
        f"locked there until {NOW}; no rule keeps it", "it is held by me", "hourly 2026-11-29T21", "no rule keeps it",
        "last, hourly 2026-11-29T23",
    ]  # fmt: skip
    assert going(found) == [4]
    assert facts(found[3]) == {
        "number": 4, "action": "drop", "rules": [], "protected": None, "locked_until_ns": None,
    }  # fmt: skip
    assert facts(found[0])["locked_until_ns"] == NOW
    assert (
        reason(judge(past("2026-03-04", "2026-03-05"), rules(weekly=1, minimum_good=2), NOW)[0], str) == "minimum_good"
    )
    assert Verdict(SnapshotNumber(1), ()).goes
    assert drop_reason(rules(last=2, within=7200)) == (
        "retention: no rule keeps it (last = 2, within = 2h, minimum_good = 1)"
    )


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.booleans(), st.booleans()), max_size=40),
    st.builds(
        RetentionSettings, last=st.integers(0, 3), within=st.sampled_from([Seconds(0), Seconds(5000)]),
        hourly=st.integers(0, 4), daily=st.integers(0, 4), weekly=st.integers(0, 3), minimum_good=st.integers(1, 4),
    ),
)  # fmt: skip
def test_a_plan_that_was_acted_on_plans_nothing_more(
    made: list[tuple[int, bool, bool]], given: RetentionSettings
) -> None:
    """And it leaves the good ones that it must."""
    snapshots = [
        Past(SnapshotNumber(number), time_s * 10**9, "name" if named else None, "good" if good else "damaged")
        for number, (time_s, good, named) in enumerate(made, 1)
    ]
    gone = set(going(judge(snapshots, given, NOW)))
    left = [each for each in snapshots if each.number not in gone]
    assert going(judge(left, given, NOW)) == []
    good_before, good_after = (sum(each.state == "good" for each in some) for some in (snapshots, left))
    assert good_after >= min(good_before, given.minimum_good)
    assert good_before == 0 or [each for each in snapshots if each.state == "good"][-1] in left


def test_two_settings_that_both_decide_are_refused() -> None:
    with pytest.raises(UserError, match="both say what to keep"):
        config.decode({"snapshots": {"keep": 3}, "retention": {"daily": 1}}, "volume.toml")
    assert config.decode({"snapshots": {"keep": 3}}, "volume.toml").snapshots.keep == 3


def test_a_target_has_rules_of_its_own() -> None:
    tables = {"replication": {"target": [{"url": "file:///x", "retention": {"last": 2, "within": "1h"}}]}}
    (target,) = config.decode(tables, "volume.toml").replication.target
    assert (target.retention.last, target.retention.within, target.retention.minimum_good) == (2, 3600, 3)
    again = config.encode(config.decode(tables, "volume.toml"))
    assert config.decode(again, "again").replication.target == (target,)
    with pytest.raises(UserError, match=r"unknown setting `?lsat`?"):
        config.decode({"retention": {"lsat": 1}}, "volume.toml")
