"""What a bucket gets rid of, and what never: garbage is what no head names at the time of deleting."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import PreconditionError
from obstore.store import MemoryStore

from replicator.source.selection import Known
from replicator.targets.object_store_target import ObjectStoreTarget
from snapfs.base.blocks import Generation
from snapfs.store.bucket import bucket_layout, segment_names, tombstones
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.bucket.tombstones import Tombstone
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.refusals import Refusal, RefusedError
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, parts_of
from tests.fakes.targets.s3_server import start_obstore
from tests.fakes.targets.target_reader import reader_of

HOUR_S = 3600.0


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=21)
    yield made
    made.close()


class World:
    """A bucket, a clock, and the writers that come and go."""

    def __init__(self, source: SourceVolume, tail: int = 256) -> None:
        self.store, self.now_s, self._source, self._tail = MemoryStore(), 1e9, source, tail

    async def writer(self, generation: Generation = GENERATION, writer_id: str = WRITER_ID) -> ObjectStoreTarget:
        """The same writer in another life, or another one."""
        target = ObjectStoreTarget(self.store, lambda: self.now_s, self._tail)
        await target.open(self._source.identity)
        await target.claim(generation, writer_id)
        return target

    async def send(self, target: ObjectStoreTarget, records: list[SnapshotRecord], size: int = 1 << 20) -> None:
        """What it lacks of these."""
        with closing(self._source.open()) as reading:
            numbers = reading.select(records, Known()).numbers
            for part in parts_of(reading, await target.lacks(numbers), size):
                await target.send(part)

    async def deliver(self, target: ObjectStoreTarget, records: list[SnapshotRecord], history: bool = False) -> None:
        await self.send(target, records)
        await target.commit(records, history=history)

    async def hours_pass(self, target: ObjectStoreTarget, hours: int = 3) -> None:
        """With an idle writer, who looks around now and then."""
        for _ in range(hours * 4):
            self.now_s += HOUR_S / 4
            await target.open(self._source.identity)
            await target.claim(GENERATION, WRITER_ID)

    async def check(self, numbers: list[int]) -> None:
        """What was acknowledged is all readable, for any later reader."""
        reader = ObjectStoreTarget(self.store)
        state = await reader.open(self._source.identity)
        assert [record.number for record in state.snapshots] == numbers
        async with reader_of(reader) as objects:
            for number in numbers:
                self._source.assert_equal(objects, number)

    def there(self) -> set[str]:
        return {meta["path"] for batch in obstore.list(self.store) for meta in batch}


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


def named(target: ObjectStoreTarget) -> set[str]:
    return {
        HEAD,
        *target._heads.head.pages,
        *(segment_names.segment_path(name) for name in target._heads.catalog.segments),
    }


# -- nothing that is needed goes


@pytest.mark.parametrize("size", [700, 1 << 20])
def test_what_was_sent_before_a_restart_is_there_hours_after_its_commit(source: SourceVolume, size: int) -> None:
    """A bucket's named segments deleted an hour later: the stretch of history lies within the range of what is there
    already, and was sent before and after a restart."""

    async def story() -> None:
        world = World(source)
        source.grow(9)
        first = await world.writer()
        await world.deliver(first, source.records[-1:])
        await world.send(first, source.records[:8], size)
        again = await world.writer()
        await world.send(again, source.records[:8], size)
        await again.commit(source.records[:8], history=True)
        await world.hours_pass(again)
        source.grow(1)
        await world.deliver(again, source.records[-1:])
        await world.check(list(range(1, 11)))

    run(story())


def test_no_tombstone_and_no_memory_deletes_what_the_head_names(source: SourceVolume) -> None:
    async def story() -> None:
        world = World(source)
        source.grow(3)
        target = await world.writer()
        await world.deliver(target, source.records)
        keys = sorted(named(target) - {HEAD})
        await obstore.put_async(world.store, "garbage/00", tombstones.encode_tombstone(Tombstone(0.0, keys)))
        again = await world.writer()
        for writer in (target, again):
            await world.hours_pass(writer)
        await world.check([1, 2, 3])
        assert named(again) <= world.there()

    run(story())


def test_what_a_tombstone_names_is_sent_again_and_under_another_name(source: SourceVolume) -> None:
    """A delete that is on its way, of a writer that stood still since it read the head, hits nothing that is used."""

    async def story() -> None:
        world = World(source)
        source.grow(2)
        first = await world.writer()
        await world.send(first, source.records)
        strays = sorted(key for key in world.there() if key.startswith(bucket_layout.SEGMENTS))
        await obstore.put_async(world.store, "garbage/00", tombstones.encode_tombstone(Tombstone(world.now_s, strays)))
        second = await world.writer(Generation(2), "another")
        await world.deliver(second, source.records)
        assert named(second).isdisjoint(strays)
        await obstore.delete_async(world.store, strays)
        await world.check([1, 2])

    run(story())


def test_a_damaged_tombstone_forbids_the_use_of_anything(source: SourceVolume) -> None:
    async def story() -> None:
        world = World(source)
        source.grow(1)
        await world.send(await world.writer(), source.records)
        strays = {key for key in world.there() if key.startswith(bucket_layout.SEGMENTS)}
        data = tombstones.encode_tombstone(Tombstone(world.now_s, sorted(strays)))
        await obstore.put_async(world.store, "garbage/00", data.replace(b"keys", b"kezs"))
        second = await world.writer()
        await world.deliver(second, source.records)
        assert named(second).isdisjoint(strays)
        await world.hours_pass(second)
        assert strays.isdisjoint(world.there())
        await world.check([1])

    run(story())


def test_who_comes_back_after_another_writer_believes_nothing_it_knew(source: SourceVolume) -> None:
    """What it had sent and known may have been collected meanwhile."""

    async def story() -> None:
        world = World(source)
        source.grow(4)
        first = await world.writer()
        for record in source.records:
            await world.deliver(first, [record])
        second = await world.writer(Generation(2), "another")
        await second.drop([record.number for record in source.records[:3]])
        with closing(source.open()) as reading:
            live = reading.known_by(source.records[-1:]).there
            needed = reading.select(source.records, Known()).numbers
        assert await second.collect(live) > 0
        for _ in range(8):
            world.now_s += HOUR_S / 4
            await second.claim(Generation(2), "another")
        await first.open(source.identity)
        await first.claim(Generation(3), WRITER_ID)
        lacking = set(await first.lacks(needed))
        fresh = await world.writer(Generation(4), "a-third")
        assert lacking == set(await fresh.lacks(needed)) != set()

    run(story())


# -- everything else does


def test_nothing_stays_for_ever_of_what_crashes_and_lost_races_leave(
    source: SourceVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages and segments of heads that were not put, parts of nothing, hot lists, probes; all after a restart."""

    async def story() -> None:
        world = World(source, tail=3)
        for _ in range(12):
            source.grow(1, steps=4)
        first = await world.writer()
        for record in source.records[:9]:
            await world.deliver(first, [record])
            await first.put_hot(record.number, b"hot")
            world.now_s += 100
        await world.send(first, source.records[9:10], size=600)
        with monkeypatch.context() as patch:
            lose_heads(patch)
            for record in source.records[9:11]:
                with pytest.raises((OSError, RefusedError)):
                    await world.deliver(first, [record])
        with closing(source.open()) as reading:
            for part in parts_of(reading, reading.select(source.records[11:], Known()).numbers, 900):
                await first.send(part)
        await obstore.put_async(world.store, "probe/0123", b"left")
        await obstore.put_async(world.store, "segments/notes.txt", b"a person's own")
        await obstore.put_async(world.store, "mine", b"a person's own")
        second = await world.writer()
        source.grow(1)
        await world.deliver(second, source.records[-1:])
        assert len(world.there() - named(second)) > 10
        await world.hours_pass(second)
        hot = bucket_layout.hot_path(GENERATION, 9)
        assert world.there() - named(second) == {hot, "mine", "segments/notes.txt"}
        await world.check([*range(1, 10), 13])

    run(story())


def test_restarts_more_often_than_the_grace_hold_up_no_removal(source: SourceVolume) -> None:
    async def story() -> None:
        world = World(source)
        source.grow(1)
        await world.send(await world.writer(), source.records, size=500)
        strays = {key for key in world.there() if key.startswith(bucket_layout.SEGMENTS)}
        assert strays
        for _ in range(12):
            target = await world.writer()
            world.now_s += 900
            await target.claim(GENERATION, WRITER_ID)
        assert strays.isdisjoint(world.there())

    run(story())


def lose_heads(patch: pytest.MonkeyPatch) -> None:
    """From now on each put of the head fails, and does nothing."""
    real = obstore.put_async

    async def put_async(store: Any, path: str, data: Any, **more: Any) -> Any:
        if path == HEAD:
            raise ConnectionError("the link broke")
        return await real(store, path, data, **more)

    patch.setattr(obstore, "put_async", put_async)


# -- answers that are lost


def test_a_page_that_is_there_already_is_no_lost_race(source: SourceVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a head that did not arrive is put once more, and replication goes on."""

    async def story() -> None:
        world = World(source, tail=3)
        source.grow(4)
        target = await world.writer()
        await world.deliver(target, source.records[:1])
        for record in source.records[1:]:
            with monkeypatch.context() as patch:
                lose_heads(patch)
                with pytest.raises(OSError, match="link"):
                    await world.deliver(target, [record])
            await world.deliver(target, [record])
        await world.check([1, 2, 3, 4])

    run(story())


@pytest.mark.parametrize("what", ["head.json", "catalog/", "segments/"])
def test_a_put_whose_answer_was_lost_is_recognised(
    source: SourceVolume, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It took effect, was tried again by obstore itself, and refused: that is a success, done once."""

    async def story() -> None:
        world = World(source, tail=3)
        target = await world.writer()
        real = obstore.put_async

        async def put_async(store: Any, path: str, data: Any, **more: Any) -> Any:
            made = await real(store, path, data, **more)
            if path.startswith(what):
                raise PreconditionError("it is there already")
            return made

        monkeypatch.setattr(obstore, "put_async", put_async)
        for at in range(4):
            source.grow(1)
            revision = target._heads.head.revision
            await world.deliver(target, source.records[-1:])
            assert target._heads.head.revision == revision + 1
            await world.check(list(range(1, at + 2)))

    run(story())


# -- what lies there


def test_a_head_that_is_gone_is_damage_and_no_new_volume(source: SourceVolume) -> None:
    async def story() -> None:
        world = World(source)
        source.grow(1)
        await world.deliver(await world.writer(), source.records)
        await obstore.delete_async(world.store, HEAD)
        with pytest.raises(RefusedError, match="head.json is missing") as error:
            await world.writer()
        assert (error.value.refusal, error.value.exit_code) == (Refusal.CORRUPT, 5)
        assert HEAD not in world.there()

    run(story())


def test_a_bucket_of_format_1_is_read_and_goes_on(tmp_path: Path) -> None:
    """Golden: tests/golden/bucket-v1, whose head carries no checksum and whose segments' names no mark."""

    async def story() -> None:
        store = MemoryStore()
        golden = Path(__file__).parents[2] / "golden" / "bucket-v1"
        for path in golden.rglob("*"):
            if path.is_file():
                await obstore.put_async(store, str(path.relative_to(golden)), path.read_bytes())
        clock = itertools.count(1_000_000_000, 1000)
        target = ObjectStoreTarget(store, lambda: float(next(clock)), tail=4)
        identity = await target.identify()
        records = list((await target.open(identity)).snapshots)
        assert [record.number for record in records] == list(range(1, 8))
        await target.claim(GENERATION, WRITER_ID)
        for _ in range(30):
            await target.claim(GENERATION, WRITER_ID)
        await target.drop([records[2].number])
        found = (await ObjectStoreTarget(store).open(identity)).snapshots
        assert [record.number for record in found] == [1, 2, 4, 5, 6, 7]
        assert list(found) == [record for record in records if record.number != 3]
        head = bytes(await (await obstore.get_async(store, HEAD)).bytes_async())
        assert head.startswith(b'{"format":2,"check":"')
        for info in target.segments():
            assert len(await target.read_segment(info.path)) == info.size

    run(story())
