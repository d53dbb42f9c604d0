"""Pushing ciphertext: what a target takes and refuses, rotation on the way, space, interruptions, and the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from replicator.commands.fetch import fetch
from replicator.commands.mirror_commands import _verify_one
from replicator.source.selection import Known
from replicator.targets.encrypted_target import EncryptedTarget
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.mirror_access import MirrorAccess
from snapfs.store.crypto import keys
from snapfs.store.crypto.keys import Keyring, OwnersKey
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import ObjectKind
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.protocol import message_codec, messages, number_runs, object_stream, read_objects, wire, wire_fields
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.repair.suspects import SUSPECTS
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.agent_process import assert_mirrored
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, feeder, parts_of
from tests.fakes.targets.mirror_process import Client, MirrorProcess
from tests.fakes.targets.s3_server import start_obstore
from tests.fakes.targets.target_reader import ServedTarget, reader_of


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=23)
    made.encrypt()
    yield made
    made.close()


def encrypted_target(source: SourceVolume, tmp_path: Path, inner: Any = None) -> EncryptedTarget:
    inner = inner if inner is not None else DirectoryTarget(str(tmp_path / "target"))
    return EncryptedTarget(inner, source.new_keys(str(tmp_path / "owners.key")), "the target")


def owner(tmp_path: Path) -> OwnersKey:
    return keys.read_owners_key(str(tmp_path / "owners.key"), None)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


async def assert_complete(source: SourceVolume, target: EncryptedTarget, *numbers: int) -> None:
    state = await target.open(source.identity)
    assert list(state.snapshots) == source.records
    async with reader_of(target) as reader:
        for number in numbers or [record.number for record in source.records]:
            source.assert_equal(reader, number)


def test_an_encrypted_target_takes_nothing_else_and_no_other_ciphertext(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(2)
        target = encrypted_target(source, tmp_path)
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        reading, plain = source.open(), SourceVolume.open(without_keys(source))
        numbers = reading.select(source.records, Known()).numbers
        with pytest.raises(RefusedError, match="is not encrypted"):
            await target.send(parts_of(plain, numbers, 4096)[0])
        plain_target = DirectoryTarget(str(tmp_path / "plain"))
        await plain_target.open(source.identity)
        await plain_target.claim(GENERATION, WRITER_ID)
        with pytest.raises(RefusedError, match="is encrypted"):
            await plain_target.send(parts_of(reading, numbers, 4096)[0])
        for part in parts_of(reading, numbers, 4096)[1:]:
            await target.send(part)
        target.set_manifest(numbers, ())
        with pytest.raises(RefusedError) as error:
            await target.commit(source.records)
        assert error.value.refusal is Refusal.INCOMPLETE
        assert set(error.value.problem.missing) == set(await target.lacks(numbers))
        await target.send(parts_of(reading, numbers, 4096)[0])
        target._there = {SnapshotNumber(99)}
        target.set_manifest(numbers, ())
        with pytest.raises(RefusedError, match="snapshot 99 is not here"):
            await target.commit(source.records)
        await target.open(source.identity)
        target.set_manifest(numbers, ())
        await target.commit(source.records)
        await assert_complete(source, target)
        for closing in (target, plain_target):
            await closing.close()
        reading.close()
        plain.close()

    run(story())


def without_keys(source: SourceVolume) -> SourceVolume:
    made = object.__new__(SourceVolume)
    made.path, made.identity, made.keys = source.path, source.identity, None
    return made


def test_a_key_that_is_rotated_in_the_middle(source: SourceVolume, tmp_path: Path) -> None:
    """Parts that came before are not sent again, or are, under another key; all of it opens."""

    async def story() -> None:
        source.grow(3, steps=30)
        reading = source.open()
        numbers = reading.select(source.records, Known()).numbers
        first = encrypted_target(source, tmp_path)
        await first.open(source.identity)
        await first.claim(GENERATION, WRITER_ID)
        before = parts_of(reading, numbers, 2048)
        for part in before[: len(before) // 2]:
            await first.send(part)
        await first.close()
        reading.close()
        keyring = owner(tmp_path).unwrap(keys.read_keys(str(source.path)), "here")  # type: ignore[arg-type]
        keys.write_keys(str(source.path), owner(tmp_path).wrap(keyring.rotated()), Disk())
        source.encrypt()
        reading = source.open()
        second = encrypted_target(source, tmp_path)
        await second.open(source.identity)
        await second.claim(GENERATION, WRITER_ID)
        for part in parts_of(reading, numbers, 3000)[len(before) // 4 :]:
            await second.send(part)
        for part in reading.parts(await second.lacks(numbers), lambda: 3000, 1 << 16):
            await second.send(part)
        second.set_manifest(numbers, ())
        await second.commit(source.records)
        for part in [*before, *parts_of(reading, numbers, 5000)]:
            await second.send(part)  # as if the answers had been lost
        await second.commit(source.records)
        await assert_complete(source, second)
        assert len(await second.lacks(numbers)) == 0
        await second.close()
        reading.close()

    run(story())


def test_the_keys_of_a_volume_and_of_its_targets_become_the_same(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(1)
        made = feeder(source, encrypted_target(source, tmp_path))
        await made.run_once()
        await made.close()
        mine, there = source.path / keys.KEYS_FILE, tmp_path / "target" / keys.KEYS_FILE
        assert mine.read_bytes() == there.read_bytes()
        mine.unlink()  # a host that has only the owner's key
        target = encrypted_target(source, tmp_path)
        await target.open(source.identity)
        assert mine.read_bytes() == there.read_bytes()
        keyring = owner(tmp_path).unwrap(keys.WrappedKeys.decode(there.read_bytes(), ""), "")
        elsewhere = owner(tmp_path).wrap(keyring.rotated())
        there.write_bytes(elsewhere.encode())  # another host wrote meanwhile
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        assert owner(tmp_path).unwrap(keys.WrappedKeys.decode(mine.read_bytes(), ""), "").keys == keyring.keys | (
            owner(tmp_path).unwrap(elsewhere, "").keys
        )
        assert keys.read_keys(str(mine.parent)) == keys.read_keys(str(there.parent))
        assert target.inner.opened is not None  # type: ignore[attr-defined]
        with pytest.raises(RefusedError) as error:
            await target.inner.put_keys(owner(tmp_path).wrap(keyring).encode())
        assert error.value.refusal is Refusal.DIVERGED
        other = owner(tmp_path).wrap(Keyring.create(source.identity.volume_id, source.identity.seed))
        with pytest.raises(RefusedError) as error:
            await target.inner.put_keys(other.encode())
        assert error.value.refusal is Refusal.EXISTS
        keys.write_keys(str(source.path), other, Disk())
        with pytest.raises(UserError, match="another keyring"):
            await target.open(source.identity)
        mine.unlink()
        there.unlink()
        with pytest.raises(UserError, match="neither there nor in"):
            await target.open(source.identity)
        await target.close()

    run(story())


def test_what_was_dropped_gives_its_space_back(
    source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        monkeypatch.setattr("replicator.agent.delivery.COLLECT_AFTER_DROPS", 3)
        target = encrypted_target(source, tmp_path)
        made = feeder(source, target)
        for _ in range(12):
            source.grow(1, steps=25)
            await made.run_once()
        before = (await target.open(source.identity)).stored_bytes
        for number in range(2, 11):
            source.history.repository.drop(SnapshotNumber(number))
        await made.run_once()
        after = (await target.open(source.identity)).stored_bytes
        assert before is not None
        assert after is not None
        assert after < before
        source.grow(1, steps=25)
        await made.run_once()
        await assert_complete(source, target)
        await made.close()

    run(story())


def test_nothing_is_freed_that_the_writer_does_not_know(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        source.grow(4)
        target = encrypted_target(source, tmp_path)
        made = feeder(source, target)
        await made.run_once()
        reading = source.open()
        live = reading.known_by(source.records[-1:]).there
        target._there = {source.records[-1].number}  # it has forgotten the others
        assert await target.collect(live) == 0
        await assert_complete(source, target)
        begins = messages.Collect(number_runs.pack_needs([]), begins=True)
        volume = target.inner.opened  # type: ignore[attr-defined]
        volume.collect_by_manifest(begins, GENERATION, WRITER_ID)
        volume.drop([1], GENERATION, WRITER_ID)
        with pytest.raises(RefusedError, match="meanwhile"):
            volume.collect_by_manifest(messages.Collect(number_runs.pack_needs([]), ends=True), GENERATION, WRITER_ID)
        await made.close()
        reading.close()

    run(story())


def test_an_encrypted_history_comes_back_from_an_object_store(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        store = MemoryStore()
        for _ in range(3):
            source.grow(1, steps=20)
            made = feeder(source, encrypted_target(source, tmp_path, ObjectStoreTarget(store)))
            await made.run_once()
            await made.close()
        with pytest.raises(UserError, match="give its key"):
            await fetch(ObjectStoreTarget(store), str(tmp_path / "back"), Disk())
        with pytest.raises(UserError, match="is not the key of the object store"):
            wrong = OwnersKey(bytes(32), "/etc/wrong")
            await fetch(ObjectStoreTarget(store), str(tmp_path / "back"), Disk(), owner=wrong)
        assert not (tmp_path / "back").exists()
        for new in (3, 0):
            found = await fetch(ObjectStoreTarget(store), str(tmp_path / "back"), Disk(), owner=owner(tmp_path))
            assert (found.snapshots, found.new, found.damaged, found.incomplete) == (3, new, [], {})
        assert_mirrored(source, tmp_path / "back")
        target = ObjectStoreTarget(store)
        await target.open(await target.identify())
        path = f"segments/{target.segments()[-1].path}.seg"
        data = bytearray(bytes(await (await obstore.get_async(store, path)).bytes_async()))
        data[200] ^= 1
        await obstore.put_async(store, path, bytes(data))
        found = await fetch(ObjectStoreTarget(store), str(tmp_path / "again"), Disk(), owner=owner(tmp_path))
        assert len(found.damaged) == 1
        assert list(found.incomplete) == [3]
        assert_mirrored(source, tmp_path / "again", [1, 2])

    run(story())


def test_a_mirror_reads_back_ciphertext_in_every_way(source: SourceVolume, tmp_path: Path) -> None:
    """Single, in ranges, bases first, and what a mount reads first in one answer; and no client learns the seed."""
    process = MirrorProcess(tmp_path / "root")
    process.start()
    (tmp_path / "token").write_text(process.admin)

    async def story() -> None:
        url = f"http://127.0.0.1:{process.port}/pg"
        inner = ServedTarget(url, MirrorAccess(str(tmp_path / "token")), process.root / "pg")
        made = feeder(source, encrypted_target(source, tmp_path, inner))
        for _ in range(5):
            source.grow(1, steps=15)
            await made.run_once()
        await made.close()

    try:
        run(story())
        client, newest = process.client(), source.records[-1]
        state = client.state()
        assert (state.mode, state.seed, state.snapshots) == (wire.Mode.ENCRYPTED, "0" * 16, 5)
        assert source.keys is not None
        opened: dict[int, bytes] = {}

        def take(items: list[object_stream.Item]) -> list[int]:
            for item in items:
                for base in item.base_numbers():
                    assert base in opened, "bases come first"
                opened[item.frame.number] = source.keys.encryptor.decrypt(item, "there").framed  # type: ignore[union-attr]
            return [item.frame.number for item in items]

        reading = without_keys(source).open()
        first = take(client.tables(str(newest.number))[1])
        assert first[0] == newest.root.number
        assert set(reading.first(newest)) <= set(first)
        numbers = list(reading.select(source.records, Known()).numbers)
        take(client.objects(read_objects.ReadObjects(numbers=[int(number) for number in numbers]))[1])
        run_items = client.objects(read_objects.ReadObjects(runs=[(int(numbers[0]), int(numbers[-1]))]))[1]
        assert {item.frame.number for item in run_items} == set(numbers)
        for number in numbers:
            framed = reading.read(number)[1]
            if fmt.unpack_frame(framed).kind != ObjectKind.RECORD:  # of which the content comes back, not its encoding
                assert opened[number] == framed
        reading.close()
        refuse_nonsense(client, newest)
    finally:
        process.stop()


def refuse_nonsense(client: Client, record: SnapshotRecord) -> None:
    """What only an encrypted volume is sent, malformed or out of place."""
    client.generation, client.writer_id = 1, WRITER_ID
    lists = (b'{"begins": true, "live": "!"}', b'{"begins": true, "live": "AAAA"}', b'{"live": 3}')
    bad = (b"", b"{", b"[]", b"{}", *lists, b'{"format": 1}', b"\xff" * 9)
    for method, path in (("POST", "collect"), ("PUT", "keys")):
        for body in bad:
            with pytest.raises(RefusedError) as error:
                client.request(method, wire.volume_path("pg", path), body)
            assert error.value.refusal is Refusal.BAD_REQUEST, (path, body)
    again = wire_fields.encode_record(replace(record, number=SnapshotNumber(77)))
    for needs in ("!", "AAAA"):
        with pytest.raises(RefusedError) as error:
            client.request(
                "POST", wire.volume_path("pg", "commit"), message_codec.encode(messages.Commit([again], needs=needs))
            )
        assert error.value.refusal is Refusal.BAD_REQUEST
    with pytest.raises(RefusedError) as error:
        client.create("pg", messages.CreateVolume(client.state().volume_id, "0" * 16))
    assert "kept there encrypted" in str(error.value)
    with pytest.raises(RefusedError, match="send zeros"):
        client.create("other", messages.CreateVolume("cd" * 16, "1" * 16, wire.Mode.ENCRYPTED))
    client.create("plain", messages.CreateVolume("cd" * 16, "1" * 16))
    with pytest.raises(RefusedError) as error:
        client.request("GET", wire.volume_path("plain", "keys"))
    assert error.value.refusal is Refusal.NOT_FOUND
    client.generation = 2
    with pytest.raises(RefusedError) as error:
        client.request("PUT", wire.volume_path("pg", "keys"), b"{}")
    assert error.value.refusal is Refusal.UNCLAIMED


def test_a_target_keeps_the_bases_of_what_is_a_difference_only_there(
    source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer stores in full what it has repaired, and names no base of it any more."""
    monkeypatch.setattr("snapfs.store.repository.compaction.MIN_DEAD", 0.0)

    async def story(target: Any) -> None:
        source.grow(6, steps=25)
        made = feeder(source, target)
        await made.run_once()
        reading = without_keys(source).open()
        live = reading.known_by(source.records).there
        forgotten = NumberSet()
        for number in live:
            for base in reading.repository.objects.bases_of(number):
                forgotten.add(base)
        listed = NumberSet()
        for number in live:
            if number not in forgotten:
                listed.add(number)
        assert len(listed) < len(live)
        await target.collect(listed)
        assert len(await target.lacks(live)) == 0
        await assert_complete(source, target)
        await made.close()
        reading.close()

    run(story(encrypted_target(source, tmp_path)))
    run(story(encrypted_target(source, tmp_path, ObjectStoreTarget(MemoryStore()))))


def test_what_is_damaged_there_comes_again_though_the_target_cannot_know_its_use(
    source: SourceVolume, tmp_path: Path
) -> None:
    async def story() -> None:
        source.grow(3, steps=30)
        made = feeder(source, encrypted_target(source, tmp_path))
        await made.run_once()
        await made.close()
        source.grow(1)
        reading = source.open()
        alive = set(reading.known_by(source.records[-1:]).there)
        reading.close()
        segments = sorted((tmp_path / "target" / "store" / "segments").glob("*.seg"))
        spoiled = [
            (path, row) for path in segments for row in SegmentReader(str(path)).rows()
            if row.number in alive and row.kind == ObjectKind.ENCRYPTED
        ][::25]  # fmt: skip
        assert len(spoiled) > 2
        for path, row in spoiled:
            with open(path, "r+b") as file:
                file.seek(row.offset + 40)
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 1]))
        assert verified(tmp_path)["bad_objects"] == len(spoiled)
        target = encrypted_target(source, tmp_path)
        made = feeder(source, target)
        await made.run_once()
        await assert_complete(source, target, 4)
        await made.close()
        assert verified(tmp_path)["bad_objects"] == 0
        assert not (tmp_path / "target" / "store" / SUSPECTS).exists()

    run(story())


def verified(tmp_path: Path) -> dict[str, Any]:
    return _verify_one(str(tmp_path), "target")
