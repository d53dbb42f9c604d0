"""One suite for every kind of target: what target.py promises, on a folder, object stores (memory, S3) and a mirror."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from obstore.store import MemoryStore

from replicator.source.selection import Known, Part
from replicator.targets.encrypted_target import EncryptedTarget
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target import Target
from replicator.targets.target_factory import AnyTarget, make_target
from snapfs.base.blocks import Generation, SnapshotNumber
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.settings.replication_settings import TargetSettings
from snapfs.store.log.holds import HoldRecord, to_send
from snapfs.store.log.locks import Stays
from snapfs.store.log.peers import Peer, Peers
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.protocol.refusals import Refusal, RefusedError
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, parts_of
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server, start_obstore
from tests.fakes.targets.target_reader import ServedTarget, reader_of

MakeTarget = Callable[[], Target]
KINDS = ["directory", "memory", "s3", "http", "sealed directory", "sealed memory", "sealed http"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorProcess]:
    process = MirrorProcess(tmp_path_factory.mktemp("mirror") / "root")
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path, source: SourceVolume) -> MakeTarget:
    """Makes one more connection to the same, at first empty, target."""
    encrypted, _, kind = request.param.rpartition(" ")
    inner = maker_of(kind, request, tmp_path)
    if not encrypted:
        return inner
    source.encrypt()
    key = str(tmp_path / "owners.key")
    return lambda: EncryptedTarget(inner(), source.new_keys(key), "the target")


def maker_of(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AnyTarget]:
    if kind == "directory":
        return lambda: DirectoryTarget(str(tmp_path / "target"))
    if kind == "memory":
        store = MemoryStore()
        return lambda: ObjectStoreTarget(store)
    if kind == "http":
        mirror: MirrorProcess = request.getfixturevalue("mirror")
        name = re.sub("[^a-z0-9_-]", "-", tmp_path.name.lower())
        token = tmp_path / "token"
        token.write_text(mirror.admin)
        access = MirrorAccess(str(token))
        return lambda: ServedTarget(f"http://127.0.0.1:{mirror.port}/{name}", access, mirror.root / name)
    url = f"s3://{BUCKET}/{tmp_path.name}"
    settings = TargetSettings(url, options={**OPTIONS, "endpoint": request.getfixturevalue("endpoint")})
    return lambda: make_target(settings)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=5)
    yield made
    made.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


async def deliver(
    target: Target, source: SourceVolume, records: list[SnapshotRecord], known: Known | None = None,
    *, history: bool = False, size: int = 4096,
) -> Known:  # fmt: skip
    """Send what is not known and commit; what is known then."""
    known = known or Known()
    with closing(source.open()) as reading:
        selection = reading.select(records, known)
        parts = parts_of(reading, selection.numbers, size)
    await send_all(target, parts)
    if isinstance(target, EncryptedTarget):
        target.set_manifest(selection.numbers, ())
    await target.commit(records, history=history)
    known.take(selection)
    return known


async def send_all(target: Target, parts: list[Part]) -> None:
    """As many at a time as the target takes."""
    room = asyncio.Semaphore(target.limits.window_parts)

    async def send(part: Part) -> None:
        async with room:
            await target.send(part)

    await asyncio.gather(*(send(part) for part in parts))


def reported_by(peers: Peers, writer_id: str) -> Peers:
    return msgspec.structs.replace(peers, writer_id=writer_id)


def refused(error: pytest.ExceptionInfo[RefusedError]) -> Refusal | None:
    return error.value.refusal


def test_a_target_remembers_the_peers_of_its_newest_writer(make: MakeTarget, source: SourceVolume) -> None:
    """A takeover reports when a target that it could not reach may know more: so each target knows its peers."""
    first = Peers([Peer("https://second:8700/pg", "second", "ab" * 16), Peer("file:///backup", "disk")], 1)

    async def recorded() -> Peers | None:
        again = make()
        found = (await again.open(source.identity)).peers
        await again.close()
        return found

    async def story() -> None:
        target = make()
        assert (await target.open(source.identity)).peers is None
        await target.claim(GENERATION, WRITER_ID)
        await target.claim(GENERATION, WRITER_ID, 0, Peers())
        assert (await target.open(source.identity)).peers is None
        await target.claim(GENERATION, WRITER_ID, 0, first)
        revision = (await target.open(source.identity)).revision
        await target.claim(GENERATION, WRITER_ID, 0, first)  # sent again: nothing changes
        state = await target.open(source.identity)
        assert (state.peers, state.revision) == (reported_by(first, WRITER_ID), revision)
        await target.close()
        assert await recorded() == reported_by(first, WRITER_ID)
        later = make()
        await later.open(source.identity)
        await later.claim(Generation(GENERATION + 1), "host-b", 7)  # a takeover, which reports nothing
        await later.close()
        assert await recorded() == reported_by(first, WRITER_ID)
        later = make()
        await later.open(source.identity)
        await later.claim(Generation(GENERATION + 1), "host-b", 7, Peers())
        await later.close()
        assert await recorded() == Peers(writer_id="host-b")

    run(story())


def test_snapshots_arrive_one_after_the_other(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        target = make()
        state = await target.open(source.identity)
        assert (state.snapshots, state.newest) == ((), None)
        await target.claim(GENERATION, WRITER_ID)
        known = Known()
        for _ in range(12):
            source.grow()
            await deliver(target, source, source.records[-1:], known)
        state = await target.open(source.identity)
        assert list(state.snapshots) == source.records
        assert (state.generation, state.writer_id) == (GENERATION, WRITER_ID)
        assert state.roots() == {record.number: record.root.content_hash for record in source.records}
        await target.close()
        again = make()
        assert list((await again.open(source.identity)).snapshots) == source.records
        async with reader_of(again) as reader:
            for record in source.records:
                source.assert_equal(reader, record.number)
        await again.close()

    run(story())


def test_the_newest_first_and_history_afterwards(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        source.grow(9)
        target = make()
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        known = await deliver(target, source, source.records[-1:])
        with pytest.raises(RefusedError) as error:
            await target.commit(source.records[:1])
        assert refused(error) in (Refusal.BAD_REQUEST, Refusal.INCOMPLETE)
        await deliver(target, source, source.records[3:8], known, history=True)
        await deliver(target, source, source.records[:3], known, history=True)
        source.grow(1)
        await deliver(target, source, source.records[-1:], known)
        assert list((await target.open(source.identity)).snapshots) == source.records
        async with reader_of(target) as reader:
            for record in source.records:
                source.assert_equal(reader, record.number)
        await target.close()

    run(story())


def test_what_was_sent_is_not_lacked_and_survives_an_interruption(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        source.grow(3, steps=40)
        reading = source.open()
        numbers = reading.select(source.records[-1:], Known()).numbers
        parts = parts_of(reading, numbers, 2048)
        assert len(parts) > 4
        first = make()
        await first.open(source.identity)
        await first.claim(GENERATION, WRITER_ID)
        assert len(await first.lacks(numbers)) == len(numbers)
        for part in parts[:3]:
            await first.send(part)
        sent = {number for part in parts[:3] for number in part.numbers()}
        assert set(await first.lacks(numbers)) == set(numbers) - sent
        await first.close()

        second = make()
        assert (await second.open(source.identity)).snapshots == ()
        await second.claim(GENERATION, WRITER_ID)
        missing = await second.lacks(numbers)
        assert set(missing) == set(numbers) - sent
        for part in reading.parts(missing, lambda: 1 << 20, 1 << 16):
            await second.send(part)
        await second.commit(source.records[-1:])
        assert len(await second.lacks(numbers)) == 0
        async with reader_of(second) as reader:
            source.assert_equal(reader, 3)
        await second.close()
        reading.close()

    run(story())


def test_everything_may_be_done_again(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        source.grow(2)
        target = make()
        reading = source.open()
        parts = parts_of(reading, reading.select(source.records, Known()).numbers, 4096)
        reading.close()
        for _ in range(2):
            await target.open(source.identity)
            await target.claim(GENERATION, WRITER_ID)
            for part in [*parts, *reversed(parts)]:
                await target.send(part)
            await target.commit(source.records)
            await target.commit(source.records)
        assert list((await target.open(source.identity)).snapshots) == source.records
        await target.close()

    run(story())


def test_a_snapshot_without_its_root_does_not_become_visible(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        source.grow(1)
        target = make()
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        with pytest.raises(RefusedError) as error:
            await target.commit(source.records)
        assert refused(error) is Refusal.INCOMPLETE
        assert (await target.open(source.identity)).snapshots == ()
        await target.close()

    run(story())


def test_a_writer_that_was_overtaken_changes_nothing(make: MakeTarget, source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(2)
        old = make()
        await old.open(source.identity)
        with pytest.raises(RefusedError) as error:
            await old.commit(source.records[:1])
        assert refused(error) is Refusal.UNCLAIMED
        await old.claim(GENERATION, WRITER_ID)
        await old.claim(GENERATION, WRITER_ID)
        await deliver(old, source, source.records[:1])
        new = make() if not isinstance(getattr(old, "inner", old), DirectoryTarget) else old
        await new.open(source.identity)
        with pytest.raises(RefusedError) as error:
            await new.claim(GENERATION, "somebody-else")
        assert refused(error) is Refusal.FENCED
        await new.claim(Generation(2), "somebody-else")
        with pytest.raises(RefusedError) as error:
            await old.claim(GENERATION, WRITER_ID)
        assert refused(error) is Refusal.FENCED
        if new is not old:
            with pytest.raises(RefusedError) as error:
                await deliver(old, source, source.records[1:])
            assert refused(error) in (Refusal.FENCED, Refusal.UNCLAIMED)
            await old.close()
        state = await new.open(source.identity)
        assert [record.number for record in state.snapshots] == [1]
        assert (state.generation, state.writer_id) == (2, "somebody-else")
        await new.close()

    run(story())


def test_what_a_fenced_writer_left_becomes_a_branch(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        source.grow(4)
        target = make()
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        await deliver(target, source, source.records)
        await target.claim(Generation(2), "the-next")
        for _ in range(2):
            await target.branch_off(SnapshotNumber(2), "left")
        assert [record.number for record in (await target.open(source.identity)).snapshots] == [1, 2]
        await target.claim(Generation(2), "the-next")
        later = replace(source.records[3], number=SnapshotNumber(3), generation=Generation(2))
        await target.commit([later])
        await target.close()
        again = make()
        found = (await again.open(source.identity)).snapshots
        assert [(record.number, record.generation) for record in found] == [(1, 1), (2, 1), (3, 2)]
        await again.close()

    run(story())


def test_another_volume_is_refused(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        first = make()
        await first.open(source.identity)
        await first.close()
        second = make()
        with pytest.raises(RefusedError) as error:
            await second.open(StoreIdentity("cd" * 16, 1))
        assert refused(error) is Refusal.EXISTS
        await second.close()

    run(story())


def test_two_that_make_an_object_store_at_the_same_time(source: SourceVolume, endpoint: str, tmp_path: Path) -> None:
    async def story(make: MakeTarget) -> None:
        states = await asyncio.gather(*(make().open(source.identity) for _ in range(4)))
        assert all(state.snapshots == () for state in states)
        claims = [make() for _ in range(4)]
        await asyncio.gather(*(target.open(source.identity) for target in claims))
        outcomes = await asyncio.gather(
            *(target.claim(GENERATION, f"host-{at}") for at, target in enumerate(claims)), return_exceptions=True
        )
        assert sum(outcome is None for outcome in outcomes) == 1, outcomes
        assert all(outcome is None or isinstance(outcome, RefusedError) for outcome in outcomes)

    store = MemoryStore()
    run(story(lambda: ObjectStoreTarget(store)))
    settings = TargetSettings(f"s3://{BUCKET}/{tmp_path.name}", options={**OPTIONS, "endpoint": endpoint})
    run(story(lambda: make_target(settings)))


def test_drops_are_followed_but_for_the_newest(make: MakeTarget, source: SourceVolume) -> None:
    async def story() -> None:
        source.grow(4)
        target = make()
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        await deliver(target, source, source.records)
        await target.drop([SnapshotNumber(number) for number in (1, 3, 4, 9)])
        await target.drop([SnapshotNumber(1)])
        assert [record.number for record in (await target.open(source.identity)).snapshots] == [2, 4]
        await target.close()
        again = make()
        assert [record.number for record in (await again.open(source.identity)).snapshots] == [2, 4]
        async with reader_of(again) as reader:
            source.assert_equal(reader, 2)
            source.assert_equal(reader, 4)
        await again.close()

    run(story())


def test_what_people_hold_stays_until_it_is_released(make: MakeTarget, source: SourceVolume) -> None:
    """From any connection; of one snapshot the latest record counts, however they arrive."""
    now_ns = time.time_ns()
    held = [
        HoldRecord(1, now_ns, None, "the audit"), HoldRecord(2, now_ns, now_ns - 3600 * 10**9, "has ended"),
        HoldRecord(3, now_ns, now_ns + 3600 * 10**9), HoldRecord(9, now_ns, None, "not there yet"),
    ]  # fmt: skip

    async def story() -> None:
        source.grow(5)
        target = make()
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        await deliver(target, source, source.records)
        assert await target.put_holds([*held, HoldRecord(4, now_ns, released=True)]) >= {1, 3}
        await target.close()
        again = make()
        state = await again.open(source.identity)
        await again.claim(GENERATION, WRITER_ID)
        assert {1, 3} <= state.held
        assert not to_send(held, state.people or (), now_ns)
        kept = await again.drop([SnapshotNumber(number) for number in (1, 2, 3, 4)], "last = 1")
        assert {(each.number, each.reason) for each in kept} == {(1, Stays.HELD), (3, Stays.HELD)}
        await again.put_holds([HoldRecord(1, now_ns + 1, released=True)])
        assert 1 not in await again.put_holds(held)
        await again.drop([SnapshotNumber(1), SnapshotNumber(3)])
        assert [record.number for record in (await again.open(source.identity)).snapshots] == [3, 5]
        await again.close()

    run(story())


@pytest.mark.parametrize("seed", range(3))
def test_a_history_in_any_order_with_interruptions(make: MakeTarget, source: SourceVolume, seed: int) -> None:
    """Random stretches, random part sizes, connections that end anywhere: in the end everything is there."""

    async def story() -> None:
        rng = random.Random(seed)
        source.grow(14, steps=6)
        target = make()
        there: set[int] = set()
        while len(there) < 14:
            await target.open(source.identity)
            await target.claim(GENERATION, WRITER_ID)
            first = rng.randrange(14)
            wanted = [record for record in source.records[first : first + 3] if record.number not in there]
            if not wanted:
                continue
            reading = source.open()
            numbers = reading.select(wanted, Known()).numbers
            missing = await target.lacks(numbers)
            size = rng.choice([500, 5000, 50_000])
            parts = list(reading.parts(missing, lambda size=size: size, 1 << 16))
            reading.close()
            rng.shuffle(parts)
            if rng.random() < 0.4:
                await send_all(target, parts[: rng.randrange(len(parts) + 1)])
                await target.close()
                target = make()
                continue
            await send_all(target, parts)
            await target.commit(wanted, history=bool(there))
            there |= {record.number for record in wanted}
        state = await target.open(source.identity)
        assert list(state.snapshots) == source.records
        async with reader_of(target) as reader:
            for record in source.records:
                source.assert_equal(reader, record.number)
        await target.close()

    run(story())
