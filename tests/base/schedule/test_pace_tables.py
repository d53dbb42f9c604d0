"""The cadence that an rpo asks for, the judgement whether it holds, and what is measured for both."""

from __future__ import annotations

import pytest

from snapfs.base.schedule.measurements import Cost, Measurements, SealSample
from snapfs.base.schedule.objectives import ObjectiveState, Reach, judge_rpo
from snapfs.base.schedule.pace import Measured, ObjectivePace, pace

RPO_S, BUDGET = 30.0, 0.1
MIB = 1 << 20


@pytest.mark.parametrize(
    ("measured", "left_s", "why", "holds"),
    [
        # half the rpo is aimed at: 15 s less the lead
        (Measured(0.0, seal_s=0.1, send_s=1.0), 13.9, "rpo = 30s", True),
        (Measured(10.0, seal_s=0.1, send_s=1.0), 3.9, "rpo = 30s", True),
        (Measured(14.0, seal_s=0.1, send_s=1.0), -0.1, "rpo = 30s", True),
        # a burst is a longer lead, and so an earlier cut
        (Measured(2.0, seal_s=0.05, send_s=13.95), -1.0, "rpo = 30s", True),
        # sealing takes more than its share: rarer, but for the rpo (0.8 * 30 = 24 s less the lead)
        (Measured(0.0, seal_s=1.8, send_s=1.0), 18.0, "seal.budget = 10%", True),
        (Measured(0.0, seal_s=4.0, send_s=1.0), 19.0, "widened to what rpo", True),
        # another snapshot is on its way: no cut before its turn has come
        (Measured(9.0, seal_s=0.5, queue_s=6.0, send_s=6.0), 5.5, "needs about 6.0 s more", True),
        # but what is small goes first, and what never ends is not waited for
        (Measured(0.0, seal_s=0.5, queue_s=0.4, send_s=1.0), 13.5, "rpo = 30s", True),
        (Measured(20.0, seal_s=0.5, queue_s=500, send_s=6.0), 4.0, "needs about 500.0 s more", False),
        # it cannot hold
        (Measured(0.0, seal_s=1.0, send_s=31.0), -17.0, "rpo = 30s", False),
        (Measured(0.0, seal_s=31.0, send_s=1.0), -17.0, "rpo = 30s", False),
    ],
)
def test_when_an_rpo_needs_the_next_cut(measured: Measured, left_s: float, why: str, holds: bool) -> None:
    found = pace(RPO_S, BUDGET, measured)
    assert found.left_s == pytest.approx(left_s)
    assert why in found.why
    assert found.holds == holds == (found.expected_age_s <= RPO_S) == (not found.blame)


def test_the_longest_part_is_to_blame() -> None:
    assert pace(RPO_S, BUDGET, Measured(0.0, seal_s=31.0, send_s=1.0)).blame == "the seal takes 31.0 s"
    assert pace(RPO_S, BUDGET, Measured(0.0, seal_s=1.0, send_s=31.0)).blame == "the way to the targets takes 31.0 s"


GOOD_PACE = ObjectivePace(1.0, "", 16.0, 15.0, True)
LATE_PACE = ObjectivePace(1.0, "", 47.0, 15.0, False, "the way to the targets takes 44.0 s")


@pytest.mark.parametrize(
    ("rpo_s", "age_s", "chosen", "reach", "state", "why"),
    [
        (0.0, 1e6, None, Reach(0, 0, 1), ObjectiveState.NONE, ""),
        (30.0, 0.0, GOOD_PACE, Reach(1, 1, 1), ObjectiveState.MET, ""),
        (30.0, 30.0, GOOD_PACE, Reach(1, 1, 1), ObjectiveState.MET, ""),
        (30.0, 31.0, GOOD_PACE, Reach(1, 1, 1), ObjectiveState.MISSED, "31.0 s old"),
        (30.0, 5.0, LATE_PACE, Reach(1, 1, 1), ObjectiveState.AT_RISK, "47.0 s old, and rpo = 30s: the way to"),
        (30.0, 0.0, LATE_PACE, Reach(1, 1, 1), ObjectiveState.MET, ""),
        (30.0, 40.0, LATE_PACE, Reach(1, 1, 1), ObjectiveState.MISSED, "the way to the targets"),
        (30.0, 0.0, GOOD_PACE, Reach(0, 0, 1), ObjectiveState.AT_RISK, "0 targets are named, and 1 must"),
        (30.0, 0.0, GOOD_PACE, Reach(2, 1, 2, "b is stale"), ObjectiveState.AT_RISK, "1 of 2 targets answer"),
        (30.0, 0.0, GOOD_PACE, Reach(2, 1, 1, "b is stale"), ObjectiveState.MET, ""),
    ],
)
def test_whether_an_rpo_holds(
    rpo_s: float, age_s: float, chosen: ObjectivePace | None, reach: Reach, state: ObjectiveState, why: str
) -> None:
    found = judge_rpo(rpo_s, age_s, chosen, reach)
    assert found.state is state
    assert why in found.why


def test_the_time_for_bytes_is_shared_after_what_all_take() -> None:
    cost = Cost((1.0, 1.0))
    assert cost.predict(3) == 4.0
    for took_s, size in ((1.0, 0), (2.0, 10 * MIB), (3.0, 20 * MIB)):
        cost.sample(took_s, size)
    assert cost.predict(0) == 1.0
    assert cost.predict(20 * MIB) == pytest.approx(3.0, rel=0.1)


def test_what_became_slow_is_believed_at_once_and_an_outage_is_forgotten_with_the_next() -> None:
    cost = Cost((1.0, 1.0))
    for _ in range(8):
        cost.sample(0.1, 0)
        cost.sample(1.1, 10 * MIB)
    before_s = cost.predict(10 * MIB)
    assert before_s == pytest.approx(1.1, rel=0.1)
    cost.sample(600.0, 10 * MIB)
    assert cost.predict(10 * MIB) > 100
    cost.sample(1.1, 10 * MIB)
    assert cost.predict(10 * MIB) == pytest.approx(before_s, rel=0.1)


def made(number: int, cut_s: float, seal_s: float = 1.0) -> SealSample:
    return SealSample(number, cut_s, cut_s + seal_s, 0.0, 20 * MIB, 10 * MIB)


def test_what_is_sealed_is_in_the_queue_until_the_targets_have_it() -> None:
    known = Measurements()
    assert (known.pending_bytes, known.queue_s(0), known.stored_share()) == (0, 0.0, 1.0)
    known.sealed(made(1, 0))
    known.sealed(made(2, 10))
    assert (known.pending_bytes, known.stored_share()) == (20 * MIB, 0.5)
    known.replicated(1, 13)
    assert (known.pending_bytes, known.waited_s(14)) == (10 * MIB, 1)
    known.replicated(2, 18)
    assert (known.pending_bytes, known.queue_s(100), known.waited_s(100)) == (0, 0.0, 0.0)


def test_what_is_late_is_expected_to_take_as_long_again() -> None:
    known = Measurements()
    known.sealed(made(1, 0))
    known.replicated(1, 3)
    known.sealed(made(2, 10))  # sealed at 11, and predicted to take 2 s
    assert [round(known.queue_s(now)) for now in (11, 12, 13, 23)] == [2, 1, 0, 10]


def test_the_share_of_sealing_is_of_the_last_minute() -> None:
    known = Measurements()
    for number in range(1, 21):
        known.sealed(made(number, 10.0 * number))
    assert known.seal_share(201) == pytest.approx(6 / 60, abs=0.02)
    assert known.seal_share(300) == 0.0
