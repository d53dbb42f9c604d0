"""Every single-bit flip and every truncation of a bucket's head (and the claim in it), catalog pages, tombstones, lock.

The outcome is exit code 5 or 6 with the object's name, or nothing at all: never other facts, never "it was not there".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from replicator.source.selection import Known
from replicator.targets.object_store_target import ObjectStoreTarget
from snapfs.base.errors import EXIT_CORRUPT, EXIT_VERSION, CorruptionError, SnapfsError, VersionError
from snapfs.store.bucket import head_object, tombstones
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.bucket.tombstones import Tombstone
from snapfs.transfer.sources.bucket_source import BucketSource
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, parts_of
from tests.fakes.targets.s3_server import start_obstore

FACTS = tuple[Any, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MemoryStore, SourceVolume]]:
    """A small volume in a bucket: some of its snapshots are in pages, some in the head."""
    start_obstore()
    store, source = MemoryStore(), SourceVolume(tmp_path_factory.mktemp("rot") / "source", seed=2)

    async def story() -> None:
        target = ObjectStoreTarget(store, tail=4)
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        for _ in range(4):
            source.grow(1, steps=2)
            with closing(source.open()) as reading:
                lacking = await target.lacks(reading.select(source.records[-1:], Known()).numbers)
                for part in parts_of(reading, lacking, 1 << 20):
                    await target.send(part)
            await target.commit(source.records[-1:])
        assert len(target._heads.head.pages) == 2
        assert target._heads.head.snapshots

    asyncio.run(story())
    yield store, source
    source.close()


def pages(store: MemoryStore) -> list[str]:
    head = head_object.decode_head(bytes(obstore.get(store, HEAD).bytes()))
    return list(head.pages)


def damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    for at in range(len(data)):
        for bit in range(8):
            yield f"bit {bit} of byte {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    for end in range(len(data)):
        yield f"{end} bytes", data[:end]


async def seen_by_the_writer(store: MemoryStore, source: SourceVolume) -> FACTS:
    target = ObjectStoreTarget(store, tail=4)
    state = await target.open(source.identity)
    names = [info.path for info in target.segments()]
    return state.generation, state.writer_id, state.snapshots, names, target._heads.catalog.received_ns


def seen_by_a_mount(store: MemoryStore) -> FACTS:
    source = BucketSource("s3://bucket", store)
    try:
        origin = source.origin()
        return origin, source.writer(), source.snapshots(), source.head.known().segments.infos
    finally:
        source.close()


def check_refusal(error: SnapfsError, key: str, what: str) -> None:
    assert error.exit_code in (EXIT_CORRUPT, EXIT_VERSION), (what, error)
    assert key in str(error), (what, error)


def test_no_flip_and_no_truncation_of_head_or_pages_is_believed(made: tuple[MemoryStore, SourceVolume]) -> None:
    store, source = made

    async def look(key: str, what: str, before: FACTS) -> int:
        try:
            assert await seen_by_the_writer(store, source) == before, (key, what)
        except SnapfsError as error:
            check_refusal(error, key, what)
            return 1
        return 0

    async def story() -> None:
        before, mounted = await seen_by_the_writer(store, source), seen_by_a_mount(store)
        for key in (HEAD, *pages(store)):
            data = bytes(obstore.get(store, key).bytes())
            refused = tried = 0
            for what, bad in damaged(data):
                obstore.put(store, key, bad)
                refused += await look(key, what, before)
                tried += 1
                try:
                    assert seen_by_a_mount(store) == mounted, (key, what)
                except SnapfsError as error:
                    check_refusal(error, key, what)
            obstore.put(store, key, data)
            assert refused > 0.95 * tried, key
        assert await seen_by_the_writer(store, source) == before

    asyncio.run(story())


def test_a_page_or_head_that_is_lost_is_reported_as_lost(made: tuple[MemoryStore, SourceVolume]) -> None:
    store, source = made

    async def story() -> None:
        for key in (HEAD, *pages(store)):
            data = bytes(obstore.get(store, key).bytes())
            obstore.delete(store, key)
            with pytest.raises(SnapfsError, match="missing") as error:
                await seen_by_the_writer(store, source)
            check_refusal(error.value, key, "lost")
            if key != HEAD:
                with pytest.raises(CorruptionError, match=key):
                    seen_by_a_mount(store)
            assert key not in {meta["path"] for batch in obstore.list(store) for meta in batch}
            obstore.put(store, key, data)

    asyncio.run(story())


def test_no_flip_and_no_truncation_of_a_tombstone_is_believed() -> None:
    key, tombstone = "garbage/0123", Tombstone(1_700_000_000.5, ["segments/1-2-3-400-0123456789abcdef-s00.seg"])
    data = tombstones.encode_tombstone(tombstone)
    for what, bad in damaged(data):
        try:
            assert tombstones.decode_tombstone(bad, key) == tombstone, what
        except (CorruptionError, VersionError) as error:
            check_refusal(error, key, what)


def test_a_claim_in_a_damaged_head_lets_no_writer_in(made: tuple[MemoryStore, SourceVolume], tmp_path: Path) -> None:
    """Neither a takeover nor the writer itself writes over what cannot be read."""
    store, source = made
    data = bytes(obstore.get(store, HEAD).bytes())
    at = data.index(b'"generation":') + len('"generation":')
    bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    obstore.put(store, HEAD, bad)

    async def story() -> None:
        with pytest.raises(SnapfsError, match=HEAD):
            await ObjectStoreTarget(store).open(source.identity)

    asyncio.run(story())
    reader = BucketSource("s3://bucket", store)
    with pytest.raises(CorruptionError, match=HEAD):
        reader.claim(GENERATION, "another", "")
    reader.close()
    assert bytes(obstore.get(store, HEAD).bytes()) == bad
    obstore.put(store, HEAD, data)
