"""What a daemon notes of the targets: lines that are true of what each has, and no more of them than there are news."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.settings.audit_settings import AuditSettings
from snapfs.base.volumes.volume_files import REPLICATION_FILE
from snapfs.commands.support.gate_records import ShownGates
from snapfs.control.audit_keeper import REPLICATED_EVERY_S, AuditKeeper
from snapfs.store.gates.number_ranges import Run
from snapfs.store.log.replica_state import REPLICATION, ReplicaReader, Replication, TargetFacts
from tests.fakes.histories.history import IDENTITY, History


class World:
    """A store with five snapshots, a keeper of its log, and what the agent reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = History(folder / "store", 6)
        self.history.grow(5)
        self.repository = self.history.repository
        self.now_s = 0.0
        reader = ReplicaReader(str(folder), IDENTITY.volume_id)
        self._keeper = AuditKeeper(AuditSettings(), str(folder), self.repository, reader, lambda: self.now_s)

    def report(self, *targets: TargetFacts, generation: int = 1) -> None:
        found = Replication(IDENTITY.volume_id, 1, 1, generation, list(targets))
        REPLICATION.write("test", str(self.folder / REPLICATION_FILE), found, Disk())

    def noted(self) -> list[dict[str, Any]]:
        """The lines that come by noting now."""
        before = self._lines()
        self._keeper.note()
        return self._lines()[len(before) :]

    def later(self) -> list[dict[str, Any]]:
        self.now_s += REPLICATED_EVERY_S
        return self.noted()

    def shown(self) -> list[list[str]]:
        """The targets that `list` counts, of each snapshot."""
        gates = ShownGates(self.repository)
        return [gates.facts(each)["gates"]["replicated"]["on"] for each in self.repository.snapshots()]

    def _lines(self) -> list[dict[str, Any]]:
        return [event.fields for event in self.repository.events() if event.kind == "replicated"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.history.close()


def target(name: str, newest: int, *there: Run, **more: Any) -> TargetFacts:
    return TargetFacts(name, f"test://{name}", "idle", newest, 1, there=list(there), complete_through=newest, **more)


def line(name: str, newest: int, there: list[list[int]], **more: Any) -> dict[str, Any]:
    return {"target": name, "snapshot": newest, "there": there} | more


def test_a_line_says_what_is_new_at_a_target_and_what_is_gone(world: World) -> None:
    world.report(target("near", 4, (1, 4)), target("far", 4, (2, 2), (4, 4)))
    assert world.noted() == [line("near", 4, [[1, 4]]), line("far", 4, [[2, 2], [4, 4]])]
    world.report(target("near", 5, (4, 5)), target("far", 4, (2, 2), (4, 4)))
    assert world.noted() == [], "not at once"
    assert world.later() == [line("near", 5, [[5, 5]], gone=[[1, 3]])]
    assert world.later() == [], "nothing is new"
    assert [sorted(world.repository.catalog.copies(SnapshotNumber(number))) for number in range(1, 6)] == [
        [], ["far"], [], ["far", "near"], ["near"]
    ]  # fmt: skip
    world.report(target("near", 5, (4, 5)), TargetFacts("far", "test://far", "idle", 5, 1, complete_through=5))
    assert world.later() == [line("far", 5, [[5, 5]])], "an earlier agent says what is there, and nothing of the rest"


def test_a_report_of_a_life_before_says_nothing_of_what_came_after(world: World) -> None:
    world.history.grow(1, generation=2)
    world.report(target("near", 6, (1, 6)), generation=1)
    assert world.later() == []
    assert world.shown() == [["near"]] * 5 + [[]]
    world.report(target("near", 6, (1, 6)), generation=2)
    assert world.later() == [line("near", 6, [[1, 6]])]
    assert world.shown() == [["near"]] * 6


def test_list_counts_what_is_there_and_not_how_far_a_target_was(world: World) -> None:
    """Dropped there, never sent, or a target that is gone: a copy that is counted invites to drop the last one."""
    world.repository.record_event("replicated", target="old", snapshot=5, there=[[1, 5]])
    assert world.shown() == [["old"]] * 5, "without a report the log says what was known last"
    world.report(target("near", 5, (4, 5)), target("far", 5, (5, 5)))
    assert world.shown() == [[], [], [], ["near"], ["far", "near"]]
    world.report(TargetFacts("near", "test://near", "idle", 5, 1, complete_through=5))
    assert world.shown() == [[], [], [], [], ["near"]], "an earlier agent: its newest is known, and no more"
    world.report(target("near", 0), TargetFacts("far", "test://far", "connecting", had=3))
    assert world.shown() == [[], [], ["far"], [], []]
    words = [ShownGates(world.repository).words(each) for each in world.repository.snapshots()]
    assert words == ["sealed", "sealed", "replicated 1/2", "sealed", "sealed"]


def test_a_report_without_a_list_is_written_as_before() -> None:
    facts = msgspec.to_builtins(TargetFacts("near", "test://near", "idle"))
    assert "there" not in facts
    assert "owed" not in facts
