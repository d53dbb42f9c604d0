"""An encrypted target as a source: keys that come later, what was changed there, and whatever bytes it may send."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from replicator.targets.encrypted_target import EncryptedTarget
from replicator.targets.folder_target import DirectoryTarget
from snapfs.base.blocks import ChunkIndex, Disk, Generation, Ino, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, UserError
from snapfs.store.crypto import keys
from snapfs.store.crypto.encryption import Encryptor
from snapfs.store.crypto.keys import Keyring, OwnersKey, WrappedKeys
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, SealStats, SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, ObjectKind, Pointer
from snapfs.store.protocol.hot_codec import pack_hot
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.sources.folder_source import FolderSource
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import open_source
from snapfs.transfer.sources.sources import Source
from tests.fakes.replication.push_source import SourceVolume, feeder

RING = Keyring.create("ab" * 16, 5)
ENCRYPTOR = Encryptor(RING)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=17)
    made.encrypt()
    yield made
    made.close()


def push(source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        inner = DirectoryTarget(str(tmp_path / "target"))
        made = feeder(source, EncryptedTarget(inner, source.new_keys(str(tmp_path / "owners.key")), "the target"))
        await made.run_once()
        await made.close()

    asyncio.run(story())


def opened(tmp_path: Path) -> Source:
    return open_source(str(tmp_path / "target"), Access(key_file=str(tmp_path / "owners.key")))


def read_all(found: Source, source: SourceVolume) -> dict[int, bytes]:
    reading = source.open()
    reading.stage = lambda row, framed: (row, framed)
    live = reading.known_by(source.records).there
    expected = {int(number): reading.read(number)[0].content_hash for number in live}
    reading.close()
    items = {item.frame.number: item.content_hash for item in found.objects([Pointer(number, b"") for number in live])}
    assert all(expected[number] == content_hash for number, content_hash in items.items() if number in expected)
    return items


def test_everything_comes_as_it_is_in_the_volume(source: SourceVolume, tmp_path: Path) -> None:
    source.grow(3, steps=20)
    push(source, tmp_path)
    found = opened(tmp_path)
    assert found.origin().identity == source.identity
    assert found.origin().newest == source.records[-1]
    assert found.snapshots() == source.records == found.snapshots()
    assert list(found.tables(source.records[-1], 1 << 20)) == []
    assert len(read_all(found, source)) >= len(source.history.numbers(*source.records))
    there = (source.path / keys.KEYS_FILE).read_bytes()  # in an envelope with a checksum, which is not sent
    assert keys.WrappedKeys.decode(found.keys(), "sent") == keys.WrappedKeys.decode(there, "there")
    found.close()
    keyless = open_source(str(tmp_path / "target"), Access())
    with pytest.raises(UserError, match="give its key"):
        keyless.origin()
    keyless.close()


def test_a_reader_takes_up_keys_that_came_later(source: SourceVolume, tmp_path: Path) -> None:
    source.grow(2)
    push(source, tmp_path)
    found = opened(tmp_path)
    before = len(read_all(found, source))
    owner = keys.read_owners_key(str(tmp_path / "owners.key"), None)
    wrapped = keys.read_keys(str(source.path))
    assert wrapped is not None
    keys.write_keys(str(source.path), owner.wrap(owner.unwrap(wrapped, "").rotated()), Disk())
    source.encrypt()
    source.grow(2)
    push(source, tmp_path)
    assert found.snapshots() == source.records
    assert len(read_all(found, source)) > before
    found.close()


def test_what_was_changed_there_is_left_out_and_named(
    source: SourceVolume, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the keeper of the store: with right checksums and content hashes, so that only the keys reveal it."""
    source.grow(2)
    push(source, tmp_path)
    found = opened(tmp_path)
    inner = found._inner  # type: ignore[attr-defined]
    assert isinstance(inner, FolderSource)
    plain_objects, records = inner.objects, inner.snapshots()
    number = source.records[-1].root.number
    other = source.records[0].last_number
    wanted = [Pointer(each, b"") for each in (number, other)]
    items = {item.frame.number: item for item in plain_objects(wanted)}
    payload = bytearray(items[number].payload)
    payload[-1] ^= 1
    framed = fmt.pack_frame(
        number, 0, ObjectKind.ENCRYPTED, Encoding.ENCRYPTED, 0, len(payload), bytes(payload)
    ) + bytes(payload)
    forged = Item(xxhash.xxh3_128_digest(bytes(payload), 0), fmt.unpack_frame(framed), framed)
    inner.objects = lambda *_, **__: iter([forged, items[other]])  # type: ignore[assignment, misc]
    with caplog.at_level(logging.ERROR):
        came = [item.frame.number for item in found.objects([Pointer(number, b"")])]
    assert came == [other]
    assert f"{number:#x}" in caplog.text
    swapped = replace(records[1], ciphertext=records[0].ciphertext)
    inner.snapshots = lambda: [records[0], swapped]  # type: ignore[method-assign]
    found._records = {}  # type: ignore[attr-defined]
    assert [record.state for record in found.snapshots()] == [GOOD, DAMAGED]
    found.close()


@given(st.binary(max_size=120), st.integers(0, 3), st.sampled_from([0, 4]), st.booleans())
def test_any_object_opens_or_is_damaged(payload: bytes, ordinal: int, base: int, as_record: bool) -> None:
    kind, encoding = (ObjectKind.RECORD, Encoding.RAW) if as_record else (ObjectKind.ENCRYPTED, Encoding.ENCRYPTED)
    framed = fmt.pack_frame(9, base, kind, encoding, ordinal, len(payload), payload) + payload
    with pytest.raises(CorruptionError):
        ENCRYPTOR.decrypt(Item(bytes(16), fmt.unpack_frame(framed), framed), "there")


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = list(msgspec.structs.asdict(OwnersKey(bytes(range(200, 232)), "").wrap(RING)))


@given(st.dictionaries(st.sampled_from(["number", "root", "stats", "sealed", "parent", "name"]), _JSON), _JSON)
def test_any_record_opens_or_is_damaged(changes: dict[str, object], whole: object) -> None:
    root = Pointer(Number(8), bytes(16))
    record = SnapshotRecord(SnapshotNumber(3), "n", Generation(1), None, 5, 6, "t", root, Number(9), SealStats())
    fields = {"number": 3, "name": None, "generation": 1, "parent": None, "cut_time_ns": 1, "seal_time_ns": 1}
    fields |= {"trigger": "", "root": [8, "00" * 16], "last_number": 9, "stats": {}, "sealed": "00"} | changes
    for fields_there in (fields, whole):
        payload = msgspec.json.encode(fields_there)
        framed = fmt.pack_frame(9, 0, ObjectKind.RECORD, Encoding.RAW, 0, len(payload), payload) + payload
        with pytest.raises(CorruptionError):
            ENCRYPTOR.decrypt(Item(bytes(16), fmt.unpack_frame(framed), framed), "there")
    assert ENCRYPTOR.decrypt_record(ENCRYPTOR.encrypt_record(record), "there") == record


@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON), st.binary(max_size=60))
def test_any_keys_open_or_are_refused(changes: dict[str, object], noise: bytes) -> None:
    owner = OwnersKey(bytes(range(200, 232)), "the key")
    good = msgspec.structs.asdict(owner.wrap(RING))
    for data in (msgspec.json.encode(good | changes), noise):
        try:
            found = owner.unwrap(WrappedKeys.decode(data, "there"), "there")
        except SnapfsError:
            continue
        assert found == RING


def test_forged_key_ids_do_not_make_it_read_keys_again_and_again(source: SourceVolume, tmp_path: Path) -> None:
    source.grow(1)
    push(source, tmp_path)
    found = opened(tmp_path)
    inner, reads = found._inner, []  # type: ignore[attr-defined]
    wrapped = inner.wrapped_keys()
    inner.wrapped_keys = lambda: reads.append(1) or wrapped
    payload = b"\1\0\0\0none" + bytes(60)
    framed = fmt.pack_frame(9, 0, ObjectKind.ENCRYPTED, Encoding.ENCRYPTED, 0, len(payload), payload) + payload
    forged = Item(xxhash.xxh3_128_digest(payload, 0), fmt.unpack_frame(framed), framed)
    inner.objects = lambda *_, **__: iter([forged] * 50)
    assert list(found.objects([])) == []
    assert len(reads) == 1
    found.close()


def test_the_hot_list_travels_unreadable_and_comes_back(source: SourceVolume, tmp_path: Path) -> None:
    hot = [(Ino(0x1234567), ChunkIndex(5), 3), (Ino(0x7654321), ChunkIndex(0), 9)]
    (source.path / "hot").write_bytes(pack_hot(hot))
    source.grow(1)
    push(source, tmp_path)
    kept = (tmp_path / "target" / "store" / "hot" / "1").read_bytes()
    assert not any(pack_hot([entry])[:4] in kept for entry in hot)
    found = opened(tmp_path)
    assert found.hot(source.records[-1]) == hot
    found.close()
