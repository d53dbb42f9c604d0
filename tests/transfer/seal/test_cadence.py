"""What the cadence gathers for its decisions: clocks, calendars, lulls, and the replicas. Time is injected."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from snapfs.base.errors import UserError
from snapfs.base.schedule.rules import Action, Rule
from snapfs.base.settings.config import decode
from snapfs.base.settings.units import Bytes, Seconds
from snapfs.base.settings.volume_settings import ObjectiveSettings, SnapshotSettings
from snapfs.transfer.seal.cadence import Cadence, CutNote, Replicas

NOON_S = 1_774_526_400.0  # 2026-03-26 12:00:00 UTC
HOUR_S = 3600.0


@dataclass
class World:
    """A live tree, the replicas and the clocks of one volume."""

    now_s: float = 0.0
    start_s: float = NOON_S
    changed: bool = False
    written: int = 0
    newest: int = 0

    def has_changes(self) -> bool:
        return self.changed

    def pressure(self) -> bool:
        return False

    def write(self, size: int = 1) -> None:
        self.changed, self.written = True, self.written + size

    def cadence(self, settings: SnapshotSettings, rpo_s: float = 0.0, newest_cut_s: float | None = None) -> Cadence:
        return Cadence(
            settings, self, ObjectiveSettings(rpo=Seconds(rpo_s)), written=lambda: self.written,
            replicas=Replicas(lambda: self.newest), clock=lambda: self.now_s,
            newest_cut_ns=int(newest_cut_s * 1e9) if newest_cut_s is not None else None,
            wall_clock=lambda: self.start_s + self.now_s,
        )  # fmt: skip

    def step(self, cadence: Cadence) -> tuple[Action, Rule]:
        """Decide, and do what was decided; a seal takes no time."""
        decision = cadence.decide(False, False)
        if decision.action is Action.SKIP:
            cadence.skipped()
        elif decision.action is Action.CUT:
            self.seal(cadence)
        return decision.action, decision.rule

    def seal(self, cadence: Cadence, number: int = 1) -> None:
        cut = CutNote(self.now_s, 0.0, self.written)
        self.changed = False
        cadence.sealed(number, cut, 100)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")


DAILY = SnapshotSettings(calendar=("0 3 * * *", "30 13 * * *"))


def test_each_time_of_the_calendar_cuts_once() -> None:
    world = World()
    cadence = world.cadence(DAILY)
    world.write()
    assert world.step(cadence) == (Action.WAIT, Rule.CALENDAR)
    assert cadence.decision.wait_s == 1.5 * HOUR_S
    world.now_s = 1.5 * HOUR_S
    assert world.step(cadence) == (Action.CUT, Rule.CALENDAR)
    world.write()
    assert world.step(cadence) == (Action.WAIT, Rule.CALENDAR)
    assert cadence.decision.wait_s == 13.5 * HOUR_S


def test_times_that_passed_while_unmounted_are_made_up_for_once() -> None:
    world = World(changed=True)
    cadence = world.cadence(DAILY, newest_cut_s=NOON_S - 100 * HOUR_S)
    assert world.step(cadence) == (Action.CUT, Rule.CALENDAR)
    world.write()
    assert world.step(cadence)[0] is Action.WAIT


def test_a_time_of_the_calendar_is_skipped_when_nothing_changed() -> None:
    world = World(now_s=0)
    cadence = world.cadence(DAILY)
    world.now_s = 2 * HOUR_S
    assert world.step(cadence) == (Action.SKIP, Rule.CALENDAR)
    world.write()
    assert world.step(cadence)[0] is Action.WAIT


def test_a_clock_that_is_put_back_does_not_silence_the_calendar() -> None:
    world = World(changed=True)
    cadence = world.cadence(DAILY)
    world.start_s = NOON_S - 1000 * HOUR_S
    assert world.step(cadence)[0] is Action.WAIT
    assert cadence.decision.wait_s <= 24 * HOUR_S


@pytest.mark.parametrize(
    ("day", "waits_h"), [("2026-03-28", 14), ("2026-03-29", 14.5), ("2026-10-24", 14.5), ("2026-10-25", 14.5)]
)
def test_the_calendar_follows_daylight_saving_time(monkeypatch: pytest.MonkeyPatch, day: str, waits_h: float) -> None:
    """From noon of that day to 02:30 of the next, in hours; where there is no 02:30 it comes at 03:00."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    monkeypatch.setenv("TZ", "Europe/Berlin")
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=ZoneInfo("Europe/Berlin"))
    world = World(changed=True, start_s=noon.timestamp())
    cadence = world.cadence(SnapshotSettings(calendar=("30 2 * * *",)))
    world.step(cadence)
    assert cadence.decision.wait_s == waits_h * HOUR_S


@pytest.mark.parametrize("text", ["", "* * * *", "61 * * * *", "0 3 * * * *", "0 0 31 2 *", "never"])
def test_what_is_no_time_of_cron_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UserError, match="at snapshots.calendar"):
        decode({"snapshots": {"calendar": [text]}}, "volume.toml")


def test_a_lull_begins_with_the_last_write() -> None:
    world = World()
    cadence = world.cadence(SnapshotSettings(lull=Seconds(2)))
    for now_s in (1.0, 2.0, 3.0):
        world.now_s = now_s
        world.write()
        assert world.step(cadence)[0] is Action.WAIT
    world.now_s = 4.9
    assert world.step(cadence)[0] is Action.WAIT
    world.now_s = 5.0
    assert world.step(cadence) == (Action.CUT, Rule.LULL)


def test_what_is_written_counts_from_the_last_cut_also_of_one_on_demand() -> None:
    world = World()
    cadence = world.cadence(SnapshotSettings(dirty=Bytes(1000), at_least=Seconds(10)))
    world.write(900)
    world.seal(cadence)
    world.write(900)
    assert world.step(cadence)[0] is Action.WAIT
    world.write(100)
    assert world.step(cadence) == (Action.WAIT, Rule.DIRTY)
    assert cadence.decision.wait_s == 10
    world.now_s = 10.0
    assert world.step(cadence) == (Action.CUT, Rule.DIRTY)


def test_a_snapshot_that_failed_leaves_the_age_of_what_it_had() -> None:
    """Nothing is reported as sealed: the next decision is the same, however long the attempt took."""
    world = World(changed=True)
    cadence = world.cadence(SnapshotSettings(every=Seconds(10)))
    world.now_s = 12.0
    assert cadence.decide(False, False).action is Action.CUT
    world.now_s = 20.0
    assert cadence.decide(False, False).action is Action.CUT


def test_with_an_rpo_a_change_from_before_the_mount_is_as_old_as_the_newest_snapshot() -> None:
    world = World(changed=True)
    assert world.step(world.cadence(SnapshotSettings(), 30.0, NOON_S - 100)) == (Action.CUT, Rule.OBJECTIVE)
    world = World(changed=True)
    assert world.step(world.cadence(SnapshotSettings(), 30.0, NOON_S))[0] is Action.WAIT


def test_with_an_rpo_nothing_is_made_while_nothing_changes() -> None:
    world = World()
    cadence = world.cadence(SnapshotSettings(), 30.0)
    acts = set()
    for second in range(600):
        world.now_s = float(second)
        acts.add(world.step(cadence)[0])
    assert acts == {Action.WAIT, Action.SKIP}
