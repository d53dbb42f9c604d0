"""A host that took over pushes what is new there, long before all that was before has come to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.targets.folder_target import DirectoryTarget
from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.base.volumes.volume import Volume
from snapfs.store.repository.repository import Repository
from snapfs.transfer.lazy import remount, snapshot_choice
from snapfs.transfer.lazy.attachment import Attachment
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import SourceVolume, feeder
from tests.fakes.targets.target_reader import reader_of


@pytest.fixture
def old(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "old", seed=3)
    made.grow(3, steps=150)
    yield made
    made.close()


class Successor(SourceVolume):
    """The volume on another host, where next to nothing of it is yet."""

    def __init__(self, old: SourceVolume, path: Path) -> None:
        remount.remount(str(path), [str(old.path)], Disk())
        vars(self).update(vars(old))
        self.path = path
        self.volume = Volume.open(str(path), Disk())
        self.history.repository = Repository.open(self.volume.store_dir, self.identity, Disk())
        attachment = Attachment.of(self.volume, self.history.repository, Disk())
        assert attachment is not None
        self.attachment = attachment

    def grow(self, snapshots: int = 1, steps: int = 12) -> None:
        self.history.grow(snapshots, steps, generation=2)

    def become_whole(self) -> None:
        for _ in self.attachment.backfill():
            pass
        self.attachment.finish(lambda: None)

    def close(self) -> None:
        self.attachment.close()
        super().close()


@pytest.fixture
def new(old: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Successor]:
    monkeypatch.setattr(snapshot_choice, "FIRST_BYTES", 1)
    repository = old.history.repository
    made = Successor(old, tmp_path / "new")
    yield made
    made.close()
    old.history.repository = repository


def push(source: SourceVolume, target: DirectoryTarget) -> None:
    async def story() -> None:
        made = feeder(source, target)
        made.waits.first_s, made.waits.longest_s = 0.001, 0.01
        try:
            await made.run_once()
            there = await target.open(source.identity)
            newest = there.snapshots[-1]
            assert newest == source.records[-1]
            async with reader_of(target) as reader:
                source.assert_equal(reader, newest.number)
        finally:
            await made.close()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))


def test_what_is_new_goes_to_who_has_what_was_before(old: SourceVolume, new: Successor, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    first, old.history.repository = old.history.repository, _of(old)
    push(old, DirectoryTarget(target))
    old.history.repository.close()
    old.history.repository = first
    new.grow(2)
    came = new.attachment.states()[0].bytes
    push(new, DirectoryTarget(target))
    assert new.attachment.states()[0].bytes == came, "nothing was fetched for it"
    new.become_whole()
    new.grow(1)
    push(new, DirectoryTarget(target))


def _of(volume: SourceVolume) -> Repository:
    return Repository.open(volume.volume.store_dir, volume.identity, Disk(), readonly=True)


def test_who_lacks_what_was_before_waits_for_it(new: Successor, tmp_path: Path) -> None:
    new.grow(1)
    target = DirectoryTarget(str(tmp_path / "target"))
    with pytest.raises(SnapfsError):
        push(new, target)
    new.become_whole()
    push(new, target)
