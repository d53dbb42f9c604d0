"""An object store as a source: all of it can be read, with few requests, while its writer goes on; claims fence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from replicator.source.selection import Known
from replicator.targets.bucket_garbage import GRACE_SECONDS
from replicator.targets.bucket_segments import build_segment
from replicator.targets.object_store_target import HOT_SECONDS, ObjectStoreTarget
from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, UserError, VersionError
from snapfs.base.volumes.volume import Volume
from snapfs.store.bucket import bucket_layout, bucket_tables, segment_names
from snapfs.store.bucket.bucket_tables import PageKey, Segments, TablePage, Tables, search
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SealStats, SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Pointer, Row
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol.hot_codec import pack_hot
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.transfer.lazy import remount as taking_over
from snapfs.transfer.lazy.attachment import Attachment
from snapfs.transfer.sources.bucket_source import BucketSource
from snapfs.transfer.sources.sources import Source
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, parts_of
from tests.fakes.targets.s3_server import start_obstore

PLACE = "s3://bucket/prefix"


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "writer", seed=9)
    yield made
    made.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


class Agent:
    """What pushes each snapshot as it is made, and remembers what it sent."""

    def __init__(self, writer: SourceVolume, store: MemoryStore, tail: int = 256) -> None:
        self.target = ObjectStoreTarget(store, tail=tail)
        self._writer, self._known = writer, Known()

    async def begin(self) -> Agent:
        await self.target.open(self._writer.identity)
        await self.target.claim(GENERATION, WRITER_ID)
        return self

    async def make(self, snapshots: int, steps: int = 12) -> None:
        for _ in range(snapshots):
            self._writer.grow(1, steps)
            with closing(self._writer.open()) as reading:
                selection = reading.select(self._writer.records[-1:], self._known)
                parts = parts_of(reading, selection.numbers, 1 << 20)
            for part in parts:
                await self.target.send(part)
            await self.target.commit(self._writer.records[-1:])
            self._known.take(selection)


def made(writer: SourceVolume, store: MemoryStore, snapshots: int, tail: int = 256) -> None:
    async def story() -> None:
        await (await Agent(writer, store, tail).begin()).make(snapshots)

    run(story())


@pytest.fixture
def remounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[MemoryStore], tuple[Path, BucketSource]]:
    """Takes a volume over from a store; its folder, and the source that it was read from."""

    def do(store: MemoryStore) -> tuple[Path, BucketSource]:
        used: list[BucketSource] = []

        def late_source(place: str, _access: object, **_options: object) -> Source:
            used.append(BucketSource(place, store))
            return used[-1]

        monkeypatch.setattr(taking_over, "late_source", late_source)
        monkeypatch.setattr("snapfs.transfer.lazy.attachment.late_source", late_source)
        folder = tmp_path / f"over-{len(list(tmp_path.iterdir()))}"
        taking_over.remount(str(folder), [PLACE], Disk())
        return folder, used[0]

    return do


# -- tables


def table_of(numbers: list[int]) -> tuple[SegmentInfo, bytes]:
    """A segment's name and its table, of objects of one byte."""
    rows = [Row(Number(number), 0, 0, 0, 0, 1, Number(0), bytes(16)) for number in numbers]
    name, pieces = build_segment("ab" * 16, rows, [bytes(fmt.FRAME_BYTES + 1)] * len(rows), "s00")
    return segment_names.info_of(name), pieces[-2]


@given(st.sets(st.integers(1, 5000), min_size=1, max_size=200), st.integers(0, 5001), st.sampled_from([1, 3, 16]))
def test_a_search_finds_what_is_there_and_ends(numbers: set[int], wanted: int, page_rows: int) -> None:
    ordered = sorted(numbers)
    info, table = table_of(ordered)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_tables, "PAGE_ROWS", page_rows)
        patch.setattr(bucket_tables, "WHOLE_ROWS", 0)
        going, seen = search(info, wanted), list[PageKey]()
        try:
            key = next(going)
            while True:
                assert key not in seen
                seen.append(key)
                rows = key.rows
                key = going.send(TablePage(key, table[rows.start * fmt.ROW_BYTES : rows.stop * fmt.ROW_BYTES]))
        except StopIteration as end:
            place = end.value
        assert (place is not None) == (wanted in numbers)
        assert place is None or place.row.number == wanted
        assert len(seen) <= bucket_tables.GUESSES + len(ordered).bit_length() + 1


def test_a_number_in_a_dense_table_of_millions_is_one_page() -> None:
    info = SegmentInfo("1-2-3-4-5", Number(1), Number(4_000_000), 4_000_000, 1 << 40)
    going = search(info, 3_000_001)
    assert 3_000_000 in next(going).rows


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30)), max_size=12), st.integers(0, 100))
def test_segments_around_a_number(ranges: list[tuple[int, int]], number: int) -> None:
    infos = [SegmentInfo(str(at), Number(low), Number(low + more), 1, 1) for at, (low, more) in enumerate(ranges)]
    around = Segments(infos).around(number)
    assert {info.path for info in around} == {info.path for info in infos if info.first <= number <= info.last}


def test_pages_are_read_once_and_a_damaged_one_counts_as_empty() -> None:
    info, table = table_of(list(range(5, 50)))
    read: list[tuple[int, int]] = []
    damage = bytearray(table)
    damage[3] ^= 1

    def read_range(_info: SegmentInfo, start: int, end: int) -> bytes:
        read.append((start, end))
        return bytes(damage) if len(read) == 1 else table

    with ThreadPoolExecutor(2) as pool:
        tables = Tables(read_range, pool)
        assert tables.locate(Segments([info]), [7]) == {}
        assert list(tables.locate(Segments([info]), range(100))) == list(range(5, 50))
        assert len(tables.locate(Segments([info]), [7, 8])) == 2
        tables.check_invariants()
    assert len(read) == 2


# -- reading


def test_all_of_every_snapshot_is_there_and_while_its_writer_merges_and_frees(
    writer: SourceVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    source = BucketSource(PLACE, store)

    def check() -> None:
        listed = {record.number: record for record in source.snapshots()}
        assert sorted(listed) == [record.number for record in writer.history.repository.snapshots()]
        reading = writer.open()
        needed = reading.select(list(listed.values()), Known()).numbers
        reading.close()
        pointers = [Pointer(number, b"") for number in needed]
        there = {item.frame.number: item for item in source.objects(pointers)}
        assert there.keys() == set(needed)
        for number, item in there.items():
            source_row, row = writer.history.repository.objects.index.locate(number)
            assert (item.content_hash, item.framed) == (row.content_hash, source_row.frame(row))
        alone = list(source.objects(pointers, bases=False))
        assert [item.frame.number for item in alone] == sorted(needed)
        source.stored.tables.check_invariants()
        source.stored.ends.check_invariants()

    async def story() -> None:
        clock = 0.0
        agent = Agent(writer, store, tail=12)
        agent.target.guard.clock = lambda: clock
        await agent.begin()
        for _ in range(6):
            await agent.make(7)
            await asyncio.to_thread(check)
            clock += GRACE_SECONDS + 1  # what was merged away is really gone, behind the source's back
        assert agent.target.requests["delete"] > 0

    try:
        run(story())
    finally:
        source.close()


def test_the_first_answer_takes_a_bounded_number_of_requests(
    writer: SourceVolume, remounted: Callable[[MemoryStore], tuple[Path, BucketSource]]
) -> None:
    counts = []
    for snapshots in (5, 40):
        store = MemoryStore()
        made(writer, store, snapshots, tail=10)
        _, source = remounted(store)
        counts.append(source.requests)
    few, many = counts
    assert many["head"] == few["head"] == 4, "the fourth reads which peers the bucket knows"
    assert many["put"] == few["put"] == 1
    assert many["page"] <= 3
    assert few["range"] <= 8
    assert many["range"] <= 30, "as many segments as pages of the tables lie in, and no more"


def test_neighbours_come_in_one_request(writer: SourceVolume) -> None:
    store = MemoryStore()
    writer.grow(1, steps=200)
    made(writer, store, 1)
    source = BucketSource(PLACE, store)
    try:
        info = max(source.head.known().segments.infos, key=lambda info: info.count)
        places = source.stored.locate({Number(info.first + at) for at in range(30)})
        source.requests.clear()
        source.stored.ends._known.clear()
        source.stored.ends._bytes = 0
        pointers = [Pointer(number, b"") for number in places]
        assert len(list(source.objects(pointers, bases=False))) == len(places)
        assert source.requests["range"] == 1
    finally:
        source.close()


def test_what_is_damaged_is_left_out_and_the_rest_is_there(writer: SourceVolume) -> None:
    store = MemoryStore()
    made(writer, store, 1)
    source = BucketSource(PLACE, store)
    try:
        (info,) = source.head.known().segments.infos
        path = segment_names.segment_path(info.path)
        data = bytearray(bytes(obstore.get(store, path).bytes()))
        data[fmt.HEADER_BYTES + fmt.FRAME_BYTES] ^= 1
        obstore.put(store, path, bytes(data))
        pointers = [Pointer(Number(info.first + at), b"") for at in range(info.count)]
        came = [item.frame.number for item in source.objects(pointers, bases=False)]
        assert came == [pointer.number for pointer in pointers[1:]]
    finally:
        source.close()


def test_a_volume_taken_over_becomes_whole(
    writer: SourceVolume, remounted: Callable[[MemoryStore], tuple[Path, BucketSource]]
) -> None:
    store = MemoryStore()
    made(writer, store, 20, tail=10)
    folder, _ = remounted(store)
    volume = Volume.open(str(folder), Disk())
    from snapfs.store.repository.repository import Repository

    repository = Repository.open(volume.store_dir, writer.identity, Disk())
    attachment = Attachment.of(volume, repository, Disk())
    assert attachment is not None
    for _ in attachment.backfill():
        pass
    attachment.finish(lambda: None)
    writer.assert_equal(repository, writer.records[-1].number)
    repository.close()


# -- who writes


def test_claims_fence_as_those_of_a_target_do(writer: SourceVolume) -> None:
    store = MemoryStore()
    source = BucketSource(PLACE, store)

    async def story() -> None:
        agent = await Agent(writer, store).begin()
        await agent.make(1)
        with pytest.raises(RefusedError) as refused:
            source.claim(GENERATION, "another", "")
        assert refused.value.refusal is Refusal.FENCED
        assert refused.value.problem.generation == GENERATION
        source.claim(GENERATION, WRITER_ID, "")
        source.claim(Generation(2), "another", "")
        source.claim(Generation(2), "another", "once more")
        assert source.writer() == (writer.identity.volume_id, 2, "another")
        with pytest.raises(RefusedError) as refused:
            await agent.make(1)
        assert refused.value.refusal is Refusal.FENCED
        with pytest.raises(RefusedError) as refused:
            await agent.target.claim(GENERATION, WRITER_ID)
        assert refused.value.refusal is Refusal.FENCED
        assert [record.number for record in source.snapshots()] == [1]
        later = ObjectStoreTarget(store)
        await later.open(writer.identity)
        await later.claim(Generation(3), "a-third")
        with pytest.raises(RefusedError) as refused:
            source.claim(Generation(2), "another", "")
        assert refused.value.problem.writer_id == "a-third"

    try:
        run(story())
    finally:
        source.close()


def test_of_many_that_claim_at_once_one_is_let_in(writer: SourceVolume) -> None:
    store = MemoryStore()
    made(writer, store, 1)
    sources = [BucketSource(PLACE, store) for _ in range(6)]

    def claim(at: int) -> Refusal | None:
        try:
            sources[at].claim(Generation(2), f"host-{at}", "")
        except RefusedError as error:
            return error.refusal
        return None

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(claim, range(6)), key=str) == [None, *[Refusal.FENCED] * 5]
    assert len({source.writer() for source in sources}) == 1
    for source in sources:
        source.close()


def test_the_hot_list_travels_along(writer: SourceVolume) -> None:
    store = MemoryStore()
    source = BucketSource(PLACE, store)
    lists = [pack_hot([(7, at, 1)]) for at in range(3)]

    async def story() -> None:
        clock = 0.0
        agent = Agent(writer, store)
        agent.target.guard.clock = lambda: clock
        await agent.begin()
        for data in lists:
            await agent.make(1)
            await agent.target.put_hot(writer.records[-1].number, data)
            clock += HOT_SECONDS

    run(story())
    try:
        assert [source.hot_bytes(record) for record in writer.records] == lists
        old = writer.records[0].number - 1
        assert bucket_layout.newest_hot(["hot/0001-0000000000000001"], 1, SnapshotNumber(old)) is None
    finally:
        source.close()


# -- what may lie there


RECORD: dict[str, Any] = snapshot_records.to_fields(
    SnapshotRecord(
        SnapshotNumber(1), None, Generation(1), None, 0, 0, "test", Pointer(Number(1), bytes(16)), Number(2),
        SealStats(),
    )
)  # fmt: skip


def head_with(fields: dict[str, Any]) -> bytes:
    return json.dumps({"format": 1, "volume": "ab" * 16, "seed": "0", "snapshots": [RECORD], **fields}).encode()


def test_the_head_that_the_others_are_changed_from_is_good() -> None:
    store = MemoryStore()
    obstore.put(store, bucket_layout.HEAD, head_with({}))
    source = BucketSource(PLACE, store)
    try:
        assert [record.number for record in source.snapshots()] == [1]
    finally:
        source.close()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (None, RefusedError),
        (b'{"format": 3}', VersionError),
        (b'{"format": 2}', CorruptionError),
        (b'{"format": 0}', CorruptionError),
        (b'{"format": 1, "volume', CorruptionError),
        (head_with({"seed": "not hex"}), CorruptionError),
        (head_with({"generation": 1 << 16}), CorruptionError),
        (head_with({"snapshots": [{}]}), CorruptionError),
        (head_with({"snapshots": [{**RECORD, "number": "1"}]}), CorruptionError),
        (head_with({"segments": ["x"]}), CorruptionError),
        (head_with({"segments": ["1-2-0-999-x"]}), CorruptionError),
        (head_with({"segments": ["1-2-2-99-x"]}), CorruptionError),
        (head_with({"pages": ["catalog/none.zst"]}), CorruptionError),
        (b"\xff", CorruptionError),
    ],
)
def test_a_head_that_is_none_is_a_failure_of_its_kind(head: bytes | None, kind: type[Exception]) -> None:
    store = MemoryStore()
    if head is not None:
        obstore.put(store, bucket_layout.HEAD, head)
    source = BucketSource(PLACE, store)
    try:
        with pytest.raises((SnapfsError, OSError)) as raised:
            source.origin()
        assert isinstance(raised.value, kind), raised.value
    finally:
        source.close()


def test_a_lost_or_cut_segment_is_noticed_before_the_takeover(
    writer: SourceVolume, remounted: Callable[[MemoryStore], tuple[Path, BucketSource]]
) -> None:
    """The older whole one is offered; where there is none, no writer is fenced off."""
    store = MemoryStore()
    made(writer, store, 3)
    source = BucketSource(PLACE, store)
    try:
        infos = sorted(source.head.known().segments.infos, key=lambda info: info.last)
        path = segment_names.segment_path(infos[-1].path)
        data = bytes(obstore.get(store, path).bytes())
        obstore.put(store, path, data[:-7])
        states = [record.state for record in source.snapshots()]
        assert states == ["good", "good", "damaged"]
        obstore.delete(store, path)
        assert [record.state for record in source.snapshots()] == states
        folder, _ = remounted(store)
        volume = Volume.open(str(folder), Disk())
        from snapfs.store.repository.repository import Repository

        repository = Repository.open(volume.store_dir, writer.identity, Disk(), readonly=True)
        assert [record.number for record in repository.snapshots()] == [2]
        repository.close()
        generation = source.origin().generation
        obstore.delete(store, segment_names.segment_path(infos[0].path))
        with pytest.raises(UserError, match="known to be damaged"):
            remounted(store)
        assert source.origin().generation == generation
    finally:
        source.close()
