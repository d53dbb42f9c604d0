"""The rules for one target: short here, long there, or the other way round."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from replicator.agent.agent_status import StatusFile
from replicator.agent.feeder import Feeder
from replicator.agent.push_plan import Step, StepKind, expired
from replicator.source.group_members import GroupTargets, is_beside, members_beside
from replicator.targets.folder_target import DirectoryTarget
from replicator.volumes.folder_lock import FolderLock
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.settings.replication_settings import ReplicationSettings, TargetSettings, target_name
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.base.volumes import group_file
from snapfs.store.log.drops import PERSON, POLICY
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, CutFacts, GroupCut
from snapfs.transfer.retention import named_holds
from tests.fakes.replication.push_source import SourceVolume, feeder

LAST_2 = RetentionSettings(last=2, minimum_good=1)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=13)
    yield made
    made.close()


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    return DirectoryTarget(str(tmp_path / "target"))


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 120))


async def push(source: SourceVolume, target: DirectoryTarget, rules: RetentionSettings | None = None) -> list[Step]:
    """Push until there is nothing to do; the steps."""
    made, steps = feeder(source, target, retention=rules), list[Step]()
    take = made.take

    async def noted(step: Step) -> None:
        steps.append(step)
        await take(step)

    made.take = noted  # type: ignore[method-assign]
    try:
        await made.run_once()
    finally:
        await made.close()
    return steps


async def there(source: SourceVolume, target: DirectoryTarget) -> list[int]:
    return [record.number for record in (await target.open(source.identity)).snapshots]


def test_a_target_keeps_what_its_own_rules_keep(source: SourceVolume, target: DirectoryTarget) -> None:
    """And its log has the rule."""

    async def story() -> None:
        source.grow(4)
        await push(source, target)
        source.grow(1)
        await push(source, target, LAST_2)
        assert await there(source, target) == [4, 5]
        assert len(source.history.repository.snapshots()) == 5
        assert target.opened is not None
        drops = [event.fields for event in target.opened.repository.events() if event.kind == "dropped"]
        assert {each["by"] for each in drops} == {"target"}
        assert all(each["why"].startswith("retention: no rule keeps it (last = 2") for each in drops)
        assert await push(source, target, LAST_2) == []
        await target.close()

    run(story())


def test_what_would_go_at_once_is_not_sent(source: SourceVolume, target: DirectoryTarget) -> None:
    async def story() -> None:
        source.grow(6)
        sent = [step.snapshots for step in await push(source, target, LAST_2)]
        assert sent == [(6,), (5,)]
        assert await there(source, target) == [5, 6]
        await target.close()

    run(story())


def test_rules_here_take_nothing_from_a_target_that_has_its_own(source: SourceVolume, target: DirectoryTarget) -> None:
    """A person's drop does; without rules of its own a target follows both."""

    async def story() -> None:
        source.grow(6)
        await push(source, target)
        source.history.repository.drop(SnapshotNumber(1), POLICY, "retention")
        source.history.repository.drop(SnapshotNumber(2), PERSON)
        await push(source, target, RetentionSettings(last=100))
        assert await there(source, target) == [1, 3, 4, 5, 6]
        await push(source, target)
        assert await there(source, target) == [3, 4, 5, 6]
        await target.close()

    run(story())


def test_what_a_target_has_is_reported_by_number(source: SourceVolume, target: DirectoryTarget, tmp_path: Path) -> None:
    """Not by how far it was once: `complete_through` says nothing of what was dropped there, or was never sent."""

    async def story() -> None:
        source.grow(4)
        made = feeder(source, target)
        assert made.status.facts(0, 0).known_there().runs() == []
        await made.run_once()
        assert made.status.there == ((1, 4),)
        assert target.opened is not None
        target.opened.expire(2)  # by itself
        await made.run_once()
        assert (made.status.complete_through, made.status.there) == (4, ((3, 4),))
        source.history.repository.drop(SnapshotNumber(3), PERSON)
        source.grow(1)
        await made.run_once()
        assert made.status.there == ((4, 5),)
        await made.close()
        source.grow(1)
        ruled = feeder(source, target, retention=LAST_2)
        await ruled.run_once()
        assert ruled.status.there == ((5, 6),)
        target.opened.repository.mark(SnapshotNumber(5), DAMAGED, "a test")
        await ruled.run_once()
        assert ruled.status.there == ((6, 6),), "a damaged copy is none"
        await ruled.close()
        added = DirectoryTarget(str(tmp_path / "added"))
        recent = feeder(source, added, ReplicationSettings(history=False))
        await recent.run_once()
        assert recent.status.there == ((6, 6),)
        await recent.close()
        await added.close()
        await target.close()

    run(story())


def test_what_was_damaged_here_is_sent_when_it_is_mended(source: SourceVolume, target: DirectoryTarget) -> None:
    """Though the target has had everything else: the next agent knows it, too."""

    async def story() -> None:
        source.grow(3)
        source.history.repository.mark(SnapshotNumber(2), DAMAGED, "a test")
        status_file = StatusFile(str(source.path), source.identity.volume_id, [], Disk())
        made = feeder(source, target)
        await made.run_once()
        assert (made.status.complete_through, made.status.owed) == (3, ((2, 2),))
        status_file._targets.append(made.status)
        status_file.write(urgent=True)
        await made.close()
        source.history.repository.mark(SnapshotNumber(2), GOOD, "a test")
        again = feeder(source, target)
        StatusFile(str(source.path), source.identity.volume_id, [again.status], Disk())
        assert again.status.there == ((1, 1), (3, 3)), "until it has answered, what was known of it last"
        await again.run_once()
        assert await there(source, target) == [1, 2, 3]
        assert (again.status.there, again.status.owed) == (((1, 3),), ())
        await again.close()
        await target.close()

    run(story())


def test_what_a_person_holds_here_stays_there(source: SourceVolume, target: DirectoryTarget) -> None:
    async def story() -> None:
        source.grow(5)
        await push(source, target)
        store = source.history.repository
        named_holds.hold(store, store.find("2"), "the audit", None)
        await push(source, target, LAST_2)
        assert await there(source, target) == [2, 4, 5]
        named_holds.release(store, SnapshotNumber(2))
        await push(source, target, LAST_2)
        assert await there(source, target) == [4, 5]
        await target.close()

    run(story())


def test_a_lock_goes_before_the_rules(source: SourceVolume, target: DirectoryTarget) -> None:
    """The link comes to rest, and its status has what stays until when."""

    async def story() -> None:
        source.grow(4)
        await push(source, target)
        await target.close()
        FolderLock(str(target.path), Disk()).set(3600.0, shorten=False)
        made = feeder(source, target, retention=LAST_2)
        await made.run_once()
        kept = made.status.kept
        assert [(each.number, each.reason) for each in kept] == [(1, "locked"), (2, "locked")]
        assert all(each.until_ns for each in kept)
        assert await there(source, target) == [1, 2, 3, 4]
        await made.close()

    run(story())


def test_the_newest_there_stays_whatever_else_does(source: SourceVolume) -> None:
    """Where the newest is not good to the rules, as one without the state that they want."""
    source.grow(2)
    records = source.history.repository.snapshots()
    step = expired([each.with_state("damaged") for each in records], LAST_2, 0, {}, frozenset(), 100)
    assert step.kind is StepKind.DONE
    assert expired(
        records, RetentionSettings(last=1, minimum_good=1), 0, {}, frozenset({records[0].number}), 9
    ) == Step(StepKind.DONE)


class Members:
    """Two volumes in a group, with a target each at one place; every snapshot is a cut of both."""

    def __init__(self, folder: Path) -> None:
        self.sources = [SourceVolume(folder / name, seed) for name, seed in (("pg", 3), ("web", 4))]
        (folder / "backup").mkdir()
        self.places = [DirectoryTarget(str(folder / "backup" / name)) for name in ("pg", "web")]
        ids = tuple((source.path.name, source.identity.volume_id) for source in self.sources)
        members = tuple(
            group_file.GroupVolume(source.path.name, str(source.path), ids[at][1])
            for at, source in enumerate(self.sources)
        )
        group_file.create(group_file.Group("shop", members), Disk())
        for source, place in zip(self.sources, self.places, strict=True):
            toml = source.path / "volume.toml"
            toml.write_text(f'{toml.read_text()}\n[[replication.target]]\nurl = "file://{place.path}"\n')
        self._cuts, self._ids = 0, ids
        self.groups = GroupTargets()

    def cut(self, count: int) -> None:
        for _ in range(count):
            self._cuts += 1
            for source in self.sources:
                source.history.grow(1, 3, cut=CutFacts(group=GroupCut("shop", f"{self._cuts:032x}", self._ids)))

    def feeder(self, at: int, rules: RetentionSettings) -> Feeder:
        """As the agent makes it."""
        source, settings = self.sources[at], TargetSettings(url=f"file://{self.places[at].path}", retention=rules)
        made = feeder(source, self.places[at], retention=rules)
        made.session.role = replace(
            made.session.role, groups=self.groups, members=partial(members_beside, source.identity.volume_id, settings)
        )
        self.groups.register((source.identity.volume_id, target_name(settings)), made.session.kept_cuts)
        return made

    async def there(self, at: int) -> list[int]:
        return await there(self.sources[at], self.places[at])


def test_a_member_of_a_group_stays_at_a_target_while_another_members_rules_keep_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNAPFS_GROUPS", str(tmp_path / "groups"))
    members = Members(tmp_path)

    async def story() -> None:
        members.cut(6)
        for source, place in zip(members.sources, members.places, strict=True):
            await push(source, place)
        short = members.feeder(0, LAST_2)
        await short.run_once()
        assert await members.there(0) == [1, 2, 3, 4, 5, 6], "what the other one keeps is not known"
        longer = members.feeder(1, RetentionSettings(last=4, minimum_good=1))
        await longer.run_once()
        assert await members.there(1) == [3, 4, 5, 6], "what only the sake of the others keeps does not count"
        await short.run_once()
        assert await members.there(0) == [3, 4, 5, 6]
        members.cut(1)
        await longer.run_once()
        await short.run_once()
        assert [await members.there(0), await members.there(1)] == [[4, 5, 6, 7]] * 2
        group_file.delete("shop", Disk())
        members.cut(1)
        await short.run_once()
        assert await members.there(0) == [7, 8], "without the definition nobody keeps anything"
        for each in (short, longer):
            await each.close()
        for place in members.places:
            await place.close()

    try:
        run(story())
    finally:
        for source in members.sources:
            source.close()


@pytest.mark.parametrize(
    ("one", "other", "beside"),
    [
        ("https://mirror:8700/pg", "https://mirror:8700/web", True),
        ("https://mirror:8700/pg", "https://second:8700/web", False),
        ("file:///backup/pg", "file:///backup/web/", True),
        ("file:///backup/pg", "file:///archive/web", False),
        ("s3://bucket/shop/pg", "s3://bucket/shop/web", True),
    ],
)
def test_members_are_at_one_place_by_name_or_side_by_side(one: str, other: str, beside: bool) -> None:
    assert is_beside(TargetSettings(url=one, name="a"), TargetSettings(url=other, name="b")) is beside
    assert is_beside(TargetSettings(url=one, name="near"), TargetSettings(url=other, name="near"))
