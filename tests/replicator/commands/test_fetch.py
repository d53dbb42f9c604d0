"""The way back from an object store: everything returns, or what does not is named."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from replicator.commands.fetch import FetchReport, fetch
from replicator.targets.bucket_garbage import GRACE_SECONDS
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target_factory import make_target
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.settings.replication_settings import TargetSettings
from snapfs.store.protocol.refusals import Refusal, RefusedError
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.agent_process import assert_mirrored
from tests.fakes.replication.push_source import SourceVolume, feeder
from tests.fakes.targets.mirror_process import REPLICATOR
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server, start_obstore


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=23)
    yield made
    made.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


async def pushed(source: SourceVolume, store: MemoryStore) -> None:
    made = feeder(source, ObjectStoreTarget(store))
    await made.run_once()
    await made.close()


async def fetched(store: MemoryStore, folder: Path) -> FetchReport:
    return await fetch(ObjectStoreTarget(store), str(folder), Disk())


def test_everything_comes_back_and_then_only_what_is_new(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        store = MemoryStore()
        source.grow(11)
        await pushed(source, store)
        first = await fetched(store, tmp_path / "back")
        assert (first.snapshots, first.new, first.damaged, first.incomplete) == (11, 11, [], {})
        assert_mirrored(source, tmp_path / "back")
        again = await fetched(store, tmp_path / "back")
        assert (again.snapshots, again.new, again.fetched_bytes) == (11, 0, 0)
        source.grow(2)
        await pushed(source, store)
        later = await fetched(store, tmp_path / "back")
        assert (later.snapshots, later.new) == (13, 2)
        assert 0 < later.fetched_bytes < first.fetched_bytes
        assert_mirrored(source, tmp_path / "back")

    run(story())


def test_what_is_damaged_there_is_named_and_holds_up_nothing_else(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        store = MemoryStore()
        for _ in range(3):
            source.grow(1, steps=30)
            await pushed(source, store)
        last = ObjectStoreTarget(store)
        await last.open(source.identity)
        info = last.segments()[-1]
        path = f"segments/{info.path}.seg"
        data = bytearray(bytes(await (await obstore.get_async(store, path)).bytes_async()))
        data[90] ^= 1
        await obstore.put_async(store, path, bytes(data))
        found = await fetched(store, tmp_path / "back")
        assert len(found.damaged) == 1
        assert list(found.incomplete) == [3]
        assert_mirrored(source, tmp_path / "back", [1, 2])

    run(story())


def test_nothing_there_is_reported(tmp_path: Path) -> None:
    async def story() -> None:
        with pytest.raises(RefusedError) as error:
            await fetched(MemoryStore(), tmp_path / "back")
        assert error.value.refusal is Refusal.NOT_FOUND
        assert not (tmp_path / "back").exists()

    run(story())


def test_the_command_brings_a_volume_back_from_s3(
    source: SourceVolume, tmp_path: Path, snapfs: Callable[..., Any]
) -> None:
    with s3_server() as endpoint:
        source.grow(4)
        options = {**OPTIONS, "endpoint": endpoint}

        async def story() -> None:
            made = feeder(source, make_target(TargetSettings(f"s3://{BUCKET}/pg", options=options)))
            await made.run_once()
            await made.close()

        run(story())
        words = [word for name, value in options.items() for word in ("--option", f"{name}={value}")]
        command = [*REPLICATOR, "fetch", f"s3://{BUCKET}/pg", str(tmp_path / "back"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("4 snapshots, 4 of them new")
        wrong = [*REPLICATOR, "fetch", "file:///x", "y"]
        nothing = subprocess.run(wrong, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (nothing.returncode, "is no object store" in nothing.stderr) == (3, True)
    assert_mirrored(source, tmp_path / "back")
    assert "all good" in snapfs("verify", tmp_path / "back").stdout


def test_what_was_dropped_gives_its_space_back(
    source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        monkeypatch.setattr("replicator.agent.delivery.COLLECT_AFTER_DROPS", 3)
        store = MemoryStore()
        target = ObjectStoreTarget(store)
        made = feeder(source, target)
        for _ in range(12):
            source.grow(1, steps=25)
            await made.run_once()
        before = sum(info.size for info in target.segments())
        for number in range(2, 11):
            source.history.repository.drop(SnapshotNumber(number))
        await made.run_once()
        assert sum(info.size for info in target.segments()) < before
        source.grow(1, steps=25)
        await made.run_once()
        await made.close()
        found = await fetched(store, tmp_path / "back")
        assert (found.damaged, found.incomplete) == ([], {})
        assert_mirrored(source, tmp_path / "back", [1, 11, 12, 13])

    run(story())


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("tail", [4, 20])
def test_pages_merges_drops_and_removals_lose_nothing(
    source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: int
) -> None:
    """Entries move into pages, segments are merged and rewritten, and what no head names is really removed."""

    async def story() -> None:
        monkeypatch.setattr("replicator.agent.delivery.COLLECT_AFTER_DROPS", 5)
        store, clock = MemoryStore(), Clock()
        target = ObjectStoreTarget(store, clock, tail)
        made = feeder(source, target)
        for number in range(1, 60):
            source.grow(1, steps=4)
            if number > 20 and number % 2:
                source.history.repository.drop(SnapshotNumber(number - 10))
            await made.run_once()
            await target.check_invariants()
            clock.now_s += GRACE_SECONDS / 5
        assert target.requests["delete"] > 0
        assert len(target.segments()) < 30
        await made.close()
        found = await fetched(store, tmp_path / "back")
        assert (found.damaged, found.incomplete) == ([], {})
        assert_mirrored(source, tmp_path / "back")

    run(story())
