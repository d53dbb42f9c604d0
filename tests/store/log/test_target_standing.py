"""How a target stands, from what the agent reported and what the volume has: the table of all cases."""

from __future__ import annotations

import pytest
from msgspec import structs

from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.store.log.replica_state import ErrorFacts, FencedFacts, Replication, SendingFacts, TargetFacts
from snapfs.store.log.snapshot_records import SealStats, SnapshotRecord
from snapfs.store.log.target_standing import AgentReport, StandingState, judge, worst
from snapfs.store.objects.format import NULL

NOW_S = 10_000
TARGET = ("mirror", "https://mirror/pg")


def records(count: int) -> list[SnapshotRecord]:
    """Snapshot n was cut at second n * 100."""
    return [
        SnapshotRecord(
            SnapshotNumber(number), None, Generation(1), None, number * 100 * 10**9, number * 100 * 10**9, "control",
            NULL, Number(number), SealStats(stored_bytes=1000),
        )
        for number in range(1, count + 1)
    ]  # fmt: skip


def facts(link: str, newest: int | None = None, *, error: str = "", seen_s: int = 0) -> TargetFacts:
    return TargetFacts(
        *TARGET, link, newest, None if newest is None else newest * 100 * 10**9,
        last_error=ErrorFacts(error, 0) if error else None, seen_ns=seen_s * 10**9,
    )  # fmt: skip


def report(
    found: TargetFacts | None, *, lives: bool | None = True, age_s: float = 1.0, most_s: float = 10.0
) -> AgentReport:
    replication = Replication("id", 1, 0, 1, [found] if found is not None else [])
    return AgentReport(replication, lives, age_s, most_s)


NOTHING = AgentReport(None, False, None)


@pytest.mark.parametrize(
    ("last_report", "state", "missing", "lag_s"),
    [
        (report(facts("idle", 5)), StandingState.CURRENT, 0, 0),
        (report(facts("sending", 5)), StandingState.CURRENT, 0, 0),
        (report(facts("idle", 2)), StandingState.BEHIND, 3, NOW_S - 300),
        (report(facts("sending", 4)), StandingState.BEHIND, 1, NOW_S - 500),
        (report(facts("connecting", 4)), StandingState.BEHIND, 1, NOW_S - 500),
        # the agent is dead, and three snapshots are missing: an old report is not the present state
        (report(facts("idle", 2), lives=False), StandingState.STALE, 3, NOW_S - 300),
        (report(facts("idle", 5), lives=False), StandingState.STALE, 0, 0),
        (report(facts("idle", 5), age_s=11.0), StandingState.STALE, 0, 0),
        (report(facts("idle", 5), lives=None, age_s=11.0), StandingState.STALE, 0, 0),
        (report(facts("idle", 5), lives=None), StandingState.CURRENT, 0, 0),
        (report(facts("idle", 5), age_s=-60.0), StandingState.STALE, 0, 0),  # of the future: a clock was set back
        (report(facts("idle", 5), lives=False, age_s=50.0, most_s=60.0), StandingState.CURRENT, 0, 0),
        (report(facts("idle", 5), lives=False, age_s=70.0, most_s=60.0), StandingState.STALE, 0, 0),
        # a target that was never contacted has nothing, whatever its link is called
        (NOTHING, StandingState.NEVER, 5, NOW_S - 100),
        (report(None), StandingState.NEVER, 5, NOW_S - 100),
        (report(facts("connecting")), StandingState.NEVER, 5, NOW_S - 100),
        (report(facts("waiting", error="refused")), StandingState.NEVER, 5, NOW_S - 100),
        (report(facts("idle")), StandingState.NEVER, 5, NOW_S - 100),
        (report(structs.replace(facts("idle", 5), url="https://another/pg")), StandingState.NEVER, 5, NOW_S - 100),
        # one that has answered, and does not now
        (report(facts("waiting", 5, error="timeout")), StandingState.UNREACHABLE, 0, 0),
        (report(facts("waiting", 3, error="timeout")), StandingState.UNREACHABLE, 2, NOW_S - 400),
        (report(facts("waiting", seen_s=9)), StandingState.UNREACHABLE, 5, NOW_S - 100),
        (report(facts("connecting", 5, error="timeout")), StandingState.UNREACHABLE, 0, 0),
        (report(facts("connecting", 5)), StandingState.UNREACHABLE, 0, 0),
        (report(facts("idle", seen_s=9)), StandingState.BEHIND, 5, NOW_S - 100),
        # an agent that started when it was away already: what an earlier one knew to be there was acknowledged
        (
            report(structs.replace(facts("waiting", error="timeout", seen_s=9), had=3)),
            StandingState.UNREACHABLE,
            2,
            NOW_S - 400,
        ),
        (report(structs.replace(facts("fenced", error="b's"), had=5)), StandingState.FENCED, 0, 0),
        (report(structs.replace(facts("refused", error="token"), had=4)), StandingState.REFUSED, 1, NOW_S - 500),
        (
            report(structs.replace(facts("sending", 1), had=4)),
            StandingState.BEHIND,
            4,
            NOW_S - 200,
        ),  # it answered: less is there
        (report(facts("fenced", 3)), StandingState.FENCED, 2, NOW_S - 400),
        (report(facts("fenced", 3), lives=False), StandingState.FENCED, 2, NOW_S - 400),
        (report(facts("refused", 5)), StandingState.REFUSED, 0, 0),
    ],
)
def test_a_target_is_current_only_if_that_is_known(
    last_report: AgentReport, state: StandingState, missing: int, lag_s: float
) -> None:
    """'idle, up to date, lag 0' with a dead agent, with missing snapshots, or of a target never contacted."""
    (standing,) = judge([TARGET], last_report, records(5), NOW_S * 10**9)
    assert (standing.state, standing.missing, standing.lag_s) == (state, missing, lag_s)
    assert standing.behind_bytes == 1000 * missing
    assert bool(standing.why) == (state is not StandingState.CURRENT)
    shown = standing.as_json()
    assert (shown["state"], shown["missing"], shown["lag_s"]) == (state.value, missing, lag_s)
    assert (shown["link"] == "unknown") == (state in (StandingState.STALE, StandingState.NEVER))


def test_the_newest_and_its_age_are_known_though_this_agent_had_no_answer() -> None:
    gone = structs.replace(facts("waiting", error="timeout", seen_s=9), had=3)
    (found,) = judge([TARGET], report(gone), records(5), NOW_S * 10**9)
    assert (found.newest, found.newest_age_s, found.answers) == (3, NOW_S - 300, False)
    (dropped,) = judge([TARGET], report(gone), records(5)[3:], NOW_S * 10**9)
    assert (dropped.newest, dropped.newest_age_s) == (3, None)


def test_nothing_is_sent_to_a_target_that_does_not_take_it() -> None:
    sending = structs.replace(facts("refused", 4, error="token"), sending=SendingFacts(5, 0, 932), bytes_per_s=100)
    (found,) = judge([TARGET], report(sending), records(5), NOW_S * 10**9)
    shown = found.as_json()
    assert (shown["sending"], shown["bytes_per_s"], shown["link"]) == (None, 0, "refused")


def test_what_is_fine_for_a_monitor() -> None:
    (behind,) = judge([TARGET], report(facts("sending", 4)), records(5), 510 * 10**9)
    assert (behind.state, behind.lag_s) == (StandingState.BEHIND, 10)
    assert [behind.is_fine(most) for most in (0, 9, 10, 60)] == [False, False, True, True]
    (stale,) = judge([TARGET], report(facts("idle", 5), lives=False), records(5), 510 * 10**9)
    assert not stale.is_fine(1e9)


def test_a_volume_without_a_snapshot_lacks_none_at_a_target_that_answers() -> None:
    (found,) = judge([TARGET], report(facts("idle", seen_s=9)), [], NOW_S * 10**9)
    assert found.state is StandingState.CURRENT


def test_a_damaged_snapshot_cannot_be_sent_and_is_not_waited_for() -> None:
    damaged = [*records(4), records(5)[4].with_state("damaged")]
    (found,) = judge([TARGET], report(facts("idle", 4)), damaged, NOW_S * 10**9)
    assert (found.state, found.missing) == (StandingState.CURRENT, 0)


def test_the_worst_of_them() -> None:
    both = [TARGET, ("folder", "file:///f")]
    current = AgentReport(Replication("id", 1, 0, 1, [facts("idle", 5)]), True, 1.0)
    assert worst(judge(both, current, records(5), NOW_S * 10**9)) == "never"
    assert worst(judge([TARGET], current, records(5), NOW_S * 10**9)) == "current"
    assert worst([]) == "none"


def test_who_fenced_us_is_reported() -> None:
    fenced = structs.replace(facts("fenced", 3, error="generation 2 is b's"), fenced_by=FencedFacts(2, "b"))
    (found,) = judge([TARGET], report(fenced), records(5), NOW_S * 10**9)
    assert found.why == "generation 2 is b's"
