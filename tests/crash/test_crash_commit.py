"""A crash at every labelled act of the store, each in turn: what was promised is there, and nothing half.

Each story runs once for every act, which does not happen: because of a kill, a kill in the middle of a write, or a
power cut. Then the store is opened again, and
- every snapshot whose commit returned is there and reads back; the one under way is there as a whole or not at all;
- the chain of the log holds, no stray file is left, and the next snapshot can be made.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, Disk, Generation, SnapshotNumber
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repository.compaction import FAN_IN
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.store.repository.salvage import DAMAGED_SUFFIX
from tests.fakes.disks.crashes import Crash, CrashDisk, PowerCutDisk, run_story

IDENTITY = StoreIdentity("12" * 16, 77)
NOISE = random.Random(3).randbytes(8 * CHUNK_SIZE)

Content = dict[Pointer, bytes]


class Story:
    """A repository, and what its committed snapshots hold."""

    def __init__(self, store_dir: Path) -> None:
        self.store_dir = store_dir
        self.committed: dict[int, Content] = {}
        self.under_way: Content = {}
        self.dropping: set[int] = set()
        self.opened: Repository | None = None

    @property
    def repository(self) -> Repository:
        assert self.opened is not None
        return self.opened

    def open(self, disk: Disk) -> None:
        self.opened = Repository.open(str(self.store_dir), IDENTITY, disk, cache_bytes=0)

    def snap(self, seed: int, chunks: int = 3) -> None:
        transaction = self.repository.begin(Generation(1))
        base = next(iter(self.committed[max(self.committed)])) if self.committed else None
        content = {}
        for i in range(chunks):
            plain = NOISE[i * 9000 : i * 9000 + 9000] + b"%d" % seed + NOISE[:2000]
            content[transaction.append(transaction.encode_chunk(plain, base))] = plain
        page = b"root of %d" % seed * 20
        root = transaction.put_page(ObjectKind.ROOT, page, None)
        self.under_way = {**content, root: page}
        record = transaction.commit(root, parent=None, name=None, cut_time_ns=seed, trigger="manual")
        self.committed[record.number] = self.under_way

    def drop(self, number: int) -> None:
        self.dropping.add(number)
        self.repository.drop(SnapshotNumber(number))
        del self.committed[number]

    def live(self) -> NumberSet:
        live = NumberSet()
        for content in self.committed.values():
            for pointer in content:
                live.add(pointer.number)
        return live

    def die(self) -> None:
        """Let go of the descriptors as the end of a process does, and of nothing else."""
        if self.opened is not None:
            if self.opened.index.unfinished is not None:
                self.opened.index.unfinished.close()
            self.opened.index.close()
            self.opened.log.close()
            self.opened = None

    def check(self) -> None:
        """After a reopening: as at the head of this file."""
        found = {record.number: record for record in self.repository.snapshots()}
        assert all(record.state == "good" for record in found.values())
        assert set(self.committed) - self.dropping <= set(found)
        for number in set(found) - set(self.committed):
            record = found[number]
            if number not in self.dropping:
                assert record.root in self.under_way, "only the one under way may be there besides"
                self.committed[number] = self.under_way
        for number in set(found) & set(self.committed):
            for pointer, plain in self.committed[number].items():
                assert self.repository.read(pointer) == plain
        assert list(self.repository.events())
        segments = {Path(info.path).name for info in self.repository.index.segments()}
        files = {path.name for path in (self.store_dir / "segments").iterdir() if path.suffix != DAMAGED_SUFFIX}
        left = {name for name in files if name.endswith(".new")}  # what the next snapshot goes on with
        assert files - left == segments
        assert len(left) <= 1
        assert all(name > max(segments, default="") for name in left)
        self.repository.check_invariants()


def prepare(story: Story) -> None:
    Repository.create(str(story.store_dir), IDENTITY, Disk()).close()
    story.open(Disk())
    story.snap(1)
    story.snap(2)
    story.die()


def prepare_many(story: Story) -> None:
    prepare(story)
    story.open(Disk())
    for i in range(3, FAN_IN + 2):
        story.snap(i)
    story.die()


def prepare_stray(story: Story) -> None:
    """A store that opening repairs: a torn line, whose snapshot is whole in its segment, and an unfinished segment."""
    prepare(story)
    log = story.store_dir / "snapshots.log"
    log.write_bytes(log.read_bytes()[:-7])
    (story.store_dir / "segments" / "0001000000000100.new").write_bytes(b"half")


def prepare_torn(story: Story) -> None:
    """A store with a segment that has lost its end, and is put in order at opening."""
    prepare(story)
    path = min((story.store_dir / "segments").iterdir())
    path.write_bytes(path.read_bytes()[:-60])


def commit_two(story: Story) -> None:
    story.snap(3, chunks=60)
    story.snap(4)


def drop_and_note(story: Story) -> None:
    story.repository.record_event("mounted")
    story.drop(1)
    story.snap(5)


def merge(story: Story) -> None:
    assert story.repository.merge_once() > 0
    story.snap(20)


def collect(story: Story) -> None:
    story.drop(2)
    story.drop(3)
    with story.repository.collection() as collection:
        collection.run(story.live(), min_dead=0.1)
    story.snap(30)


STORIES: list[tuple[Callable[[Story], None], Callable[[Story], None]]] = [
    (prepare, commit_two),
    (prepare, drop_and_note),
    (prepare_many, merge),
    (prepare_many, collect),
    (prepare_stray, commit_two),
    (prepare_torn, commit_two),
]


@pytest.mark.parametrize("mode", ["kill", "half", "power"])
@pytest.mark.parametrize(("before", "act"), STORIES, ids=lambda part: part.__name__)
def test_a_crash_at_every_act(
    tmp_path: Path, before: Callable[[Story], None], act: Callable[[Story], None], mode: str
) -> None:
    at, done = 0, False
    prepared = Story(tmp_path / "prepared")
    before(prepared)
    while not done:
        story = Story(tmp_path / f"{at}" / "store")
        shutil.copytree(prepared.store_dir, story.store_dir)
        story.committed = dict(prepared.committed)
        disk = PowerCutDisk(story.store_dir, at) if mode == "power" else CrashDisk(at, half=mode == "half")
        done = run_story(story, act, disk)
        if isinstance(disk, PowerCutDisk):
            disk.cut()
        story.open(Disk())
        story.check()
        story.snap(99)
        story.check()
        story.die()
        at += 1
    assert at > 5, "the story has acts"


def test_a_crash_while_a_store_is_created_leaves_nothing_that_is_taken_for_one(tmp_path: Path) -> None:
    for at in range(20):
        store_dir = str(tmp_path / f"{at}")
        try:
            Repository.create(store_dir, IDENTITY, CrashDisk(at)).close()
        except Crash:
            whole = (tmp_path / f"{at}" / "snapshots.log").exists()
            (Repository.open if whole else Repository.create)(store_dir, IDENTITY, Disk()).close()
        else:
            break
    else:
        pytest.fail("it never came to its end")
