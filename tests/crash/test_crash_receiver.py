"""A crash at every labelled act of a mirror that receives: nothing acknowledged is lost, nothing half is visible.

The story runs once for every act, which does not happen: by a kill, a kill in the middle of a write, or a power
cut. In the next life every part and snapshot whose receipt was given is there, whole, and the rest can be sent again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation, Number
from snapfs.store.protocol import messages, number_runs
from snapfs.store.repair.liveness import live_numbers
from snapfs.store.repair.verify import verify
from snapfs.store.repository.repository import Repository
from tests.fakes.disks.crashes import Crash, CrashDisk, PowerCutDisk, run_story
from tests.fakes.histories.history import IDENTITY, History

CREATE = messages.CreateVolume(IDENTITY.volume_id, f"{IDENTITY.seed:016x}")
WRITER_ID = "host-a"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    made = History(tmp_path_factory.mktemp("source") / "store", 8)
    made.scatter()
    made.grow(7, steps=6)
    made.part(made.numbers(*made.records))  # its segments are open from here on
    yield made
    made.close()


class Story:
    """A mirror's volume, and what it has acknowledged."""

    def __init__(self, root: Path, history: History) -> None:
        self.root, self.history = root, history
        self.path = root / "pg"
        self.staged: set[int] = set()
        self.committed: set[int] = set()
        self.dropped: set[int] = set()
        self.claimed = 0
        self.volume: MirrorVolume | None = None

    def copy(self, root: Path) -> Story:
        """The same at another place, before it is opened."""
        made = Story(root, self.history)
        shutil.copytree(self.root, root)
        made.staged, made.committed, made.dropped = set(self.staged), set(self.committed), set(self.dropped)
        made.claimed = self.claimed
        return made

    @property
    def mirror(self) -> MirrorVolume:
        assert self.volume is not None
        return self.volume

    def open(self, disk: Disk) -> None:
        self.volume = MirrorVolume.open(str(self.path), disk)

    def die(self) -> None:
        if self.volume is not None:
            if self.volume.repository.index.unfinished is not None:
                self.volume.repository.index.unfinished.close()
            self.volume.close()
            self.volume = None

    def claim(self, generation: int) -> None:
        self.mirror.claim(Generation(generation), WRITER_ID, "")
        self.claimed = generation

    def put(self, numbers: list[Number]) -> None:
        part = self.mirror.part(Generation(self.claimed), WRITER_ID)
        part.feed(self.history.part(numbers))
        part.finish()
        self.staged |= set(numbers)

    def commit(self, *numbers: int, old: bool = False) -> None:
        records = [record for record in self.history.records if record.number in numbers]
        self.mirror.commit(records, old, Generation(self.claimed), WRITER_ID)
        self.committed |= set(numbers)

    def numbers(self, *numbers: int) -> list[Number]:
        return list(self.history.numbers(*(r for r in self.history.records if r.number in numbers)))

    def check(self) -> None:
        mirror = self.mirror
        mirror.check_invariants()
        assert mirror.generation >= self.claimed
        there = {record.number for record in mirror.repository.snapshots()}
        assert self.committed - self.dropped <= there
        for number in there:
            self.history.assert_equal(mirror.repository, number)
        report = verify(mirror.repository, mirror.repository.snapshots())
        assert report.is_good, report
        if not self.dropped:
            staged = list(number_runs.runs_of(sorted(self.staged)))
            assert not list(mirror.receiver.lacks(staged)), "an acknowledged part is lost"

    def complete(self) -> None:
        """Whatever happened: all can be sent again, and is there then."""
        self.claim(max(self.mirror.generation, 1))
        self.put(self.numbers(1, 2, 3, 4, 5, 6, 7))
        self.commit(*range(1, 8), old=True)
        self.dropped.clear()
        self.check()


def nothing(story: Story) -> None:
    MirrorVolume.create(str(story.path), CREATE, Disk()).close()


def some(story: Story) -> None:
    nothing(story)
    story.open(Disk())
    story.claim(1)
    story.put(story.numbers(1))
    story.commit(1)
    story.put(story.numbers(4))
    story.commit(4)
    story.die()


def push_two(story: Story) -> None:
    story.claim(2)
    story.put(story.numbers(5))
    story.commit(5)
    both = story.numbers(6, 7)
    story.put(both[: len(both) // 2])
    story.put(both[len(both) // 3 :])
    story.commit(6, 7)


def several_segments(story: Story) -> None:
    story.claim(3)
    for at in range(0, len(numbers := story.numbers(5, 6)), 20):
        story.put(numbers[at : at + 20])
    story.commit(5, 6)


def history_between(story: Story) -> None:
    story.claim(1)
    story.put(story.numbers(2, 3))
    story.commit(2, 3, old=True)


def drop_and_collect(story: Story) -> None:
    story.claim(1)
    story.dropped |= {1}
    story.mirror.drop([1], Generation(1), WRITER_ID)
    story.mirror.collect()
    story.put(story.numbers(5))
    story.commit(5)


STORIES = [(some, push_two), (nothing, several_segments), (some, history_between), (some, drop_and_collect)]


@pytest.mark.parametrize("mode", ["kill", "half", "power"])
@pytest.mark.parametrize(("before", "act"), STORIES, ids=lambda part: part.__name__)
def test_a_crash_at_every_act(
    tmp_path: Path, history: History, before: Callable[[Story], None], act: Callable[[Story], None], mode: str
) -> None:
    at, done = 0, False
    prepared = Story(tmp_path / "prepared", history)
    prepared.root.mkdir()
    before(prepared)
    while not done:
        story = prepared.copy(tmp_path / f"{at}" / "mirror")
        disk = PowerCutDisk(story.root, at) if mode == "power" else CrashDisk(at, half=mode == "half")
        done = run_story(story, act, disk)
        if isinstance(disk, PowerCutDisk):
            disk.cut()
        if at % 3 == 0:  # the mirror's folder is mounted before the mirror is there again
            Repository.open(str(story.path / "store"), IDENTITY, Disk()).close()
            story.staged.clear()  # a single segment without a record is removed then
        story.open(Disk())
        story.check()
        story.complete()
        story.die()
        at += 1
    assert at > 10, "the story has acts"


def test_a_crash_while_a_volume_is_made(tmp_path: Path) -> None:
    """Made half it is no volume, and making it again makes it whole."""
    for at in range(60):
        path = tmp_path / str(at) / "pg"
        path.parent.mkdir()
        try:
            MirrorVolume.create(str(path), CREATE, CrashDisk(at)).close()
        except Crash:
            MirrorVolume.create(str(path), CREATE, Disk()).close()
            again = MirrorVolume.open(str(path), Disk())
            assert again.repository.snapshots() == []
            again.close()
        else:
            break
    else:
        pytest.fail("it never came to its end")


def test_live_numbers_are_those_of_the_model(history: History) -> None:
    """The stories would be empty otherwise."""
    assert len(live_numbers(history.repository, history.records)) > 50
