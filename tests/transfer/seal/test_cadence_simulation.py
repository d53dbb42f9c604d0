"""The cadence that an rpo asks for, driven with recorded loads over slow links in simulated time: the bound holds, or
the status says that it does not."""

from __future__ import annotations

import pytest

from snapfs.base.schedule.objectives import ObjectiveState
from snapfs.base.settings.units import Seconds
from snapfs.base.settings.volume_settings import SnapshotSettings
from tests.fakes.replication.cadence_world import TICK_S, Load, World

MIB = 1 << 20
LONG_S = 300.0
LOADS = {name: Load.recorded(name) for name in ("pgbench", "bursts", "idle")}
PEAK = Load(1.0, (20.0 * MIB,), 0.2, 0.4 / (20 * MIB), 0.3)
"""Sealing takes two fifths of the time, whatever the interval."""


def worst(world: World) -> float:
    return max(world.ages_s)


@pytest.mark.parametrize(
    ("name", "rpo_s"), [("pgbench", 30.0), ("pgbench", 300.0), ("bursts", 5.0), ("bursts", 30.0), ("idle", 5.0)]
)
def test_the_rpo_holds_over_a_good_link(name: str, rpo_s: float) -> None:
    """A peak may look as if it did not fit (pgbench fills its tables with 330 MB/s)."""
    world = World(LOADS[name], rpo_s, lambda now: 100.0 * MIB).run(LONG_S)
    assert worst(world) <= rpo_s
    assert ObjectiveState.MISSED not in world.states
    assert world.states.count(ObjectiveState.AT_RISK) < 0.2 * len(world.states)


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("more", [1.5, 4.0])
def test_the_rpo_holds_over_a_link_that_is_hardly_fast_enough(name: str, more: float) -> None:
    """So many times what is stored in the long run; what a burst takes is more than its half of the rpo."""
    load = LOADS[name]
    rate = max(load.mean_rate * load.stored_share * more, 64 << 10)
    world = World(load, 60.0, lambda now: rate).run(LONG_S)
    assert worst(world) <= 60.0


@pytest.mark.parametrize("name", LOADS)
def test_idle_times_have_no_cuts(name: str) -> None:
    """No more than one for each stretch of writing and each half rpo of it."""
    load = LOADS[name]
    world = World(load, 30.0, lambda now: 100.0 * MIB).run(LONG_S)
    assert len(world.cuts) <= LONG_S / 15.0 * 1.5


def test_nothing_is_cut_while_nothing_is_written() -> None:
    quiet = World(Load(1.0, (0.0,), 0.1, 0.0, 1.0), 30.0, lambda now: 1.0 * MIB).run(LONG_S)
    assert quiet.cuts == []
    assert set(quiet.states) == {ObjectiveState.MET}


def test_what_is_written_now_and_then_is_cut_now_and_then() -> None:
    rare = Load(60.0, (0.0, 0.0, 0.0, 0.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.1, 0.0, 1.0)
    world = World(rare, 30.0, lambda now: 1.0 * MIB).run(LONG_S)
    assert 1 <= len(world.cuts) <= 6  # one minute of writing
    assert worst(world) <= 30.0


def test_at_peak_load_cuts_become_rarer_until_the_rpo_would_break() -> None:
    peak = World(PEAK, 30.0, lambda now: 100.0 * MIB).run(LONG_S)
    eager = World(PEAK, 30.0, lambda now: 100.0 * MIB, budget=1.0).run(LONG_S)
    assert worst(peak) <= 30.0
    assert worst(peak) > worst(eager) > 0
    assert len(peak.cuts) < len(eager.cuts)


def test_sealing_stays_within_its_budget_where_the_rpo_bears_it() -> None:
    costly = Load(1.0, (100_000.0,), 1.5, 0.0, 1.0)  # a seal of 1.5 s: each 15 s at most
    world = World(costly, 60.0, lambda now: 100.0 * MIB).run(LONG_S)
    assert sum(world.seals_s) / LONG_S <= 0.1
    tight = World(costly, 30.0, lambda now: 100.0 * MIB).run(LONG_S)
    assert sum(tight.seals_s) / LONG_S <= 0.11
    assert worst(tight) <= 30.0


def is_silent(world: World, rpo_s: float) -> list[float]:
    """Times at which the rpo was broken, and the status said that it is met."""
    return [
        at * TICK_S
        for at, (age_s, state) in enumerate(zip(world.ages_s, world.states, strict=True))
        if age_s > rpo_s and state is not ObjectiveState.MISSED
    ]


@pytest.mark.parametrize("name", ["pgbench", "bursts"])
def test_a_link_that_is_too_slow_is_never_silent(name: str) -> None:
    load = LOADS[name]
    rate = load.mean_rate * load.stored_share * 0.5
    world = World(load, 30.0, lambda now: rate).run(LONG_S)
    assert worst(world) > 30.0  # nobody could have held it
    assert is_silent(world, 30.0) == []
    first_missed = world.states.index(ObjectiveState.MISSED)
    assert ObjectiveState.AT_RISK in world.states[:first_missed]
    assert any("the way to the targets" in why for why in world.whys)


def test_a_link_that_is_too_slow_is_not_given_more_than_it_can_take() -> None:
    """What waits is sent with the next: no cut for each half rpo that nobody would ever see."""
    load = LOADS["pgbench"]
    world = World(load, 30.0, lambda now: load.mean_rate * load.stored_share * 0.2).run(LONG_S)
    assert len(world.cuts) <= LONG_S / (0.8 * 30.0) + 2


def test_after_an_outage_the_rpo_holds_again_soon() -> None:
    load, back_s = LOADS["pgbench"], 200.0
    rate = load.mean_rate * load.stored_share * 8
    world = World(load, 30.0, lambda now: 0.0 if 50.0 < now < back_s else rate).run(500.0)
    assert is_silent(world, 30.0) == []
    assert world.states[int(190 / TICK_S)] is ObjectiveState.MISSED
    later = slice(int((back_s + 120.0) / TICK_S), None)
    assert max(world.ages_s[later]) <= 30.0
    assert ObjectiveState.MISSED not in world.states[later]


def test_a_link_that_becomes_slow_is_believed_at_once() -> None:
    load = Load(1.0, (2.0 * MIB,), 0.1, 0.01 / MIB, 0.3)
    rate = load.mean_rate * load.stored_share
    world = World(load, 60.0, lambda now: rate * (20.0 if now < 100.0 else 2.0)).run(LONG_S)
    assert worst(world) <= 60.0


def test_at_least_holds_an_rpo_back_and_the_status_says_so() -> None:
    settings = SnapshotSettings(at_least=Seconds(120.0))
    world = World(LOADS["pgbench"], 30.0, lambda now: 100.0 * MIB, settings=settings).run(LONG_S)
    assert worst(world) > 30.0
    assert is_silent(world, 30.0) == []
    assert all(later - earlier >= 120.0 for earlier, later in zip(world.cuts, world.cuts[1:], strict=False))
