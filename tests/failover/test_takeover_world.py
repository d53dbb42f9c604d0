"""Random hosts, mirrors and partitions, in a short form; the long one is tools/chaos/takeover."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from replicator.targets.object_store_target import ObjectStoreTarget
from snapfs.store.log import snapshot_records
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.tables.snapshot import SnapshotTree
from tests.fakes.replication.push_source import SourceVolume, feeder, inherit
from tests.fakes.replication.takeover_world import story
from tests.fakes.targets.s3_server import start_obstore
from tests.fakes.targets.target_reader import reader_of


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_acknowledged_vanishes_and_no_lock_is_broken(tmp_path: Path, seed: int) -> None:
    done = asyncio.run(story(tmp_path, seed, 40))
    assert done["read"] > 0
    assert done["pushed"] > 0


def test_two_hosts_of_one_generation_are_not_mixed_in_a_bucket(tmp_path: Path) -> None:
    """Both took over through a minority, and gave out the same numbers. The bucket took objects of the one for those of
    the other, and acknowledged snapshots that no host could read (found by tools/chaos/takeover, seed 12)."""

    async def push(source: SourceVolume, store: MemoryStore) -> None:
        made = feeder(source, ObjectStoreTarget(store))
        try:
            await made.feed(once=True)
        finally:
            await made.close()

    async def run() -> None:
        store = MemoryStore()
        source = SourceVolume(tmp_path / "a", 5)
        source.grow(2)
        for name in ("b", "c"):
            shutil.copytree(source.path, tmp_path / name)
        await push(source, store)
        successors = [inherit(source, tmp_path / name, 2) for name in ("b", "c")]
        for at, successor in enumerate(successors):
            successor.history._rng = random.Random(at)
            successor.history.repository.record_event("remounted", snapshot=2, generation=2, sources=[])
            successor.history.grow(3, steps=20, generation=2)
        await push(successors[0], store)
        successors[1].volume.lock()
        successors[1].volume.bump_generation(3)
        successors[1].volume.unlock()
        successors[1].history.grow(1, steps=20, generation=3)
        with pytest.raises(RefusedError) as refused:
            await push(successors[1], store)
        assert refused.value.refusal is Refusal.DIVERGED
        there = ObjectStoreTarget(store)
        state = await there.open(source.identity)
        async with reader_of(there) as reader:
            for record in state.snapshots:
                states = successors[1].history.states
                states[record.number].assert_equals(SnapshotTree(reader, record.root))
            branches = [snapshot_records.from_fields(each.record) for each in there._heads.head.branches]
            assert {record.number for record in branches} == {3, 4, 5}
            for record in branches:
                successors[0].history.states[record.number].assert_equals(SnapshotTree(reader, record.root))
        for each in (source, *successors):
            each.close()

    asyncio.run(run())
