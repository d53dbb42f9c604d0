"""What a log records of drops: only records of rules and persons, of the very snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.store.log import snapshot_records
from snapfs.store.log.drops import PERSON, POLICY, TARGET, WINDOW, WRITER, Drops
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import SealStats, SnapshotRecord
from snapfs.store.objects.format import Pointer


def record(number: int, generation: int = 1) -> SnapshotRecord:
    return SnapshotRecord(
        SnapshotNumber(number), None, Generation(generation), None, 1, 1, "interval",
        Pointer(Number(number * 10), root(number, generation)), Number(number * 10 + 1), SealStats(),
    )  # fmt: skip


def root(number: int, generation: int = 1) -> bytes:
    return b"%08d%08d" % (generation, number)


class Story:
    """A log that is written line by line."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        SnapshotLog.create(self.path, Disk(), "ab" * 16)
        self.log = SnapshotLog(self.path, Disk(), readonly=False)
        for _ in self.log.follow():
            pass

    def made(self, *numbers: int, generation: int = 1) -> None:
        for number in numbers:
            self.log.append("snapshot", snapshot_records.to_fields(record(number, generation)))

    def dropped(self, *numbers: int, by: str | None = PERSON) -> None:
        for number in numbers:
            self.log.append("dropped", {"snapshot": number, "name": None} | ({} if by is None else {"by": by}))


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    made = Story(tmp_path / "snapshots.log")
    yield made
    made.log.close()


@pytest.fixture
def drops(story: Story) -> Iterator[Drops]:
    found = Drops(story.path, Disk())
    yield found
    found.close()


def allowed_drops(drops: Drops, numbers: list[int], there: list[int] | None = None) -> list[int]:
    wanted = [SnapshotNumber(number) for number in numbers]
    target = [SnapshotNumber(number) for number in (numbers if there is None else there)]
    return sorted(number for number, _ in drops.among(wanted, set(target)))


def test_what_a_log_never_recorded_was_not_dropped(story: Story, drops: Drops) -> None:
    story.made(7)
    assert allowed_drops(drops, [1, 2, 3]) == []
    story.made(8, 9)
    story.dropped(8)
    assert allowed_drops(drops, [1, 2, 3, 8]) == [8]


@pytest.mark.parametrize(
    ("by", "travels"), [(PERSON, True), (POLICY, True), (WRITER, True), (WINDOW, False), (TARGET, False)]
)
def test_who_dropped_it_decides(story: Story, drops: Drops, by: str, travels: bool) -> None:
    story.made(1, 2)
    story.dropped(1, by=by)
    assert allowed_drops(drops, [1]) == ([1] if travels else [])


def test_a_target_with_rules_of_its_own_follows_persons_only(story: Story, drops: Drops) -> None:
    story.made(1, 2, 3)
    story.dropped(1, by=POLICY)
    story.dropped(2)
    wanted, there = [SnapshotNumber(number) for number in (1, 2)], {SnapshotNumber(1), SnapshotNumber(2)}
    assert sorted(drops.among(wanted, there, by_rules=False)) == [(2, root(2))]
    assert allowed_drops(drops, [1, 2]) == [1, 2]
    assert allowed_drops(drops, [], there=[3]) == []
    assert drops._by_rule == set()


def test_a_log_of_an_earlier_version(story: Story, drops: Drops) -> None:
    """Its drops have no `by`. Before a takeover only a standby's window wrote any; after it, rules and persons did."""
    story.made(1, 2, 3)
    story.dropped(1, by=None)
    assert allowed_drops(drops, [1]) == [1]
    story.log.append("remounted", {"snapshot": 3, "generation": 2, "sources": []})
    story.made(4, 5, generation=2)
    story.dropped(4, by=None)
    again = Drops(story.path, Disk())
    assert allowed_drops(again, [1, 4]) == [4]
    again.close()


def test_the_very_snapshot_is_meant(story: Story, drops: Drops) -> None:
    story.made(1)
    story.dropped(1)
    story.made(1, generation=2)
    story.dropped(1)
    found = drops.among([SnapshotNumber(1)], {SnapshotNumber(1)})
    assert found == {(1, root(1)), (1, root(1, 2))}


def test_what_was_forgotten_is_found_again(story: Story, drops: Drops) -> None:
    """A target that has a snapshot no more frees memory here; put back from an older copy, it is reported again."""
    story.made(1, 2, 3)
    story.dropped(1, 2)
    assert allowed_drops(drops, [1, 2]) == [1, 2]
    assert allowed_drops(drops, [], there=[3]) == []
    assert drops._dropped == {}
    story.made(4)
    story.dropped(3)
    assert allowed_drops(drops, [1, 2, 3]) == [1, 2, 3]


def test_what_is_asked_each_second_is_not_read_from_the_log_each_time(
    story: Story, drops: Drops, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.made(5, 6)
    story.dropped(5)
    allowed_drops(drops, [], there=[6])  # 5 is forgotten
    rewinds: list[int] = []
    rewind = drops._log.rewind
    monkeypatch.setattr(drops._log, "rewind", lambda: (rewinds.append(1), rewind())[1])
    for _ in range(5):
        assert allowed_drops(drops, [1, 2, 3], there=[1, 2, 3, 6]) == []
    assert len(rewinds) == 1
