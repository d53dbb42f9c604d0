"""Drops travel as records of the log, and only as such: whatever else takes a snapshot out of a store, targets keep it.

The issue's wording: "Siblings: rollback, clone, restored or re-created volumes, standby, a truncated log, compaction".
The failover itself, on real mounts, is tests/failover/test_failover_keeps_history.py.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target import Target
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.log.drops import WINDOW
from snapfs.store.protocol.refusals import RefusedError
from snapfs.store.repair.duplicate_store import rebuild_log
from snapfs.store.tables.snapshot import SnapshotTree
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import SourceVolume, feeder, inherit
from tests.fakes.targets.s3_server import start_obstore
from tests.fakes.targets.target_reader import reader_of


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=12)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    return DirectoryTarget(str(tmp_path / "target"))


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


async def push(source: SourceVolume, target: Target) -> None:
    made = feeder(source, target)
    try:
        await made.run_once()
    finally:
        await made.close()


async def history(source: SourceVolume, target: DirectoryTarget) -> list[tuple[int, int]]:
    """Number and generation of each snapshot there."""
    state = await target.open(source.identity)
    return [(record.number, record.generation) for record in state.snapshots]


def test_a_standbys_window_is_no_drop(source: SourceVolume, target: DirectoryTarget) -> None:
    async def story() -> None:
        source.grow(4)
        await push(source, target)
        for number in (1, 2):
            source.history.repository.drop(SnapshotNumber(number), WINDOW)
        await push(source, target)
        assert [number for number, _ in await history(source, target)] == [1, 2, 3, 4]
        await target.close()

    run(story())


def test_a_rebuilt_log_drops_nothing_of_what_is_gone(source: SourceVolume, target: DirectoryTarget) -> None:
    """Snapshots whose segments are lost do not come back into the log, and stay at the target."""

    async def story() -> None:
        source.grow(4)
        await push(source, target)
        source.close()
        lost = source.records[1].last_number
        info = source.history.repository.index.find(lost)
        assert info is not None
        Path(info.path).unlink()
        Path(source.volume.store_dir, "snapshots.log").unlink()
        found = rebuild_log(source.volume.store_dir, source.identity, Disk())
        assert 2 not in [record.number for record in found]
        await push(source, target)
        assert [number for number, _ in await history(source, target)] == [1, 2, 3, 4]
        await target.close()

    run(story())


def test_a_log_that_lost_its_end_takes_nothing_from_the_target(source: SourceVolume, target: DirectoryTarget) -> None:
    async def story() -> None:
        source.grow(4)
        await push(source, target)
        source.close()
        log = Path(source.volume.store_dir, "snapshots.log")
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]))
        with pytest.raises(CorruptionError, match="lost its end"):  # noticed before the target is even queried
            await push(source, target)
        assert [number for number, _ in await history(source, target)] == [1, 2, 3, 4]
        await target.close()

    run(story())


def test_a_copy_of_an_older_time_drops_only_its_own(
    source: SourceVolume, target: DirectoryTarget, tmp_path: Path
) -> None:
    """A volume restored from a backup goes on, and drops snapshots whose numbers are others' at the target. It is
    refused as another history, and nothing is dropped."""

    async def story() -> None:
        source.grow(2)
        shutil.copytree(source.path, tmp_path / "copy")
        source.grow(3)
        await push(source, target)
        restored = inherit(source, tmp_path / "copy", 2)
        restored.history._state.change(restored.history._rng, 3)
        restored.grow(6)
        for number in (3, 4, 5):
            restored.history.repository.drop(SnapshotNumber(number))
        with pytest.raises(RefusedError, match="another history"):
            await push(restored, target)
        assert [number for number, _ in await history(restored, target)] == [1, 2, 3, 4, 5]
        restored.close()
        await target.close()

    run(story())


def test_what_a_takeover_left_behind_becomes_a_branch_and_is_not_mixed_in(
    source: SourceVolume, target: DirectoryTarget, tmp_path: Path
) -> None:
    """B went on from snapshot 2, and has dropped its own 3 and 4 before it ever reached a target with A's 3 and 4."""

    async def story() -> None:
        source.grow(2)
        shutil.copytree(source.path, tmp_path / "successor")
        source.grow(2)
        await push(source, target)
        successor = inherit(source, tmp_path / "successor", 2)
        successor.history.repository.record_event("remounted", snapshot=2, generation=2, sources=[])
        successor.history.grow(3, generation=2)
        for number in (3, 4):
            successor.history.repository.drop(SnapshotNumber(number))
        await push(successor, target)
        assert await history(successor, target) == [(1, 1), (2, 1), (5, 2)]
        assert target.opened is not None
        assert sorted(number for _, number in target.opened.branches) == [3, 4]
        successor.close()
        await target.close()

    run(story())


def test_a_drop_reaches_a_target_that_was_put_back_from_an_older_copy(
    source: SourceVolume, target: DirectoryTarget, tmp_path: Path
) -> None:
    async def story() -> None:
        source.grow(3)
        await push(source, target)
        await target.close()
        shutil.copytree(target.path, tmp_path / "older")
        source.history.repository.drop(SnapshotNumber(1))
        made = feeder(source, target)
        await made.run_once()
        assert [number for number, _ in await history(source, target)] == [2, 3]
        await target.close()
        shutil.rmtree(target.path)
        shutil.move(tmp_path / "older", target.path)
        await made.run_once()
        assert [number for number, _ in await history(source, target)] == [2, 3]
        await made.close()

    run(story())


def test_a_buckets_space_comes_back_beside_snapshots_that_were_never_here(
    source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a takeover a bucket has older snapshots that the new host cannot look into: all that they may need stays,
    and what the new host made and dropped since is freed."""

    async def story() -> None:
        monkeypatch.setattr("replicator.agent.delivery.COLLECT_AFTER_DROPS", 3)
        store = MemoryStore()
        source.grow(4, steps=20)
        await push(source, ObjectStoreTarget(store))
        for number in (1, 2, 3):
            source.history.repository.drop(SnapshotNumber(number), WINDOW)  # as if they had never been here
        with closing(source.open()) as reading:
            assert [record.number for record in reading.records()] == [4]
        target = ObjectStoreTarget(store)
        made = feeder(source, target)
        for _ in range(8):
            source.grow(1, steps=25)
            await made.run_once()
        before = (await target.open(source.identity)).stored_bytes or 0
        for number in range(5, 12):
            source.history.repository.drop(SnapshotNumber(number))
        await made.run_once()
        state = await target.open(source.identity)
        assert [record.number for record in state.snapshots] == [1, 2, 3, 4, 12]
        assert (state.stored_bytes or 0) < before
        async with reader_of(target) as reader:
            for record in state.snapshots:
                source.history.states[record.number].assert_equals(SnapshotTree(reader, record.root))
        await made.close()

    run(story())
