"""Merging and collecting: what lives keeps its number and content; what is dead gives its space back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import CHUNK_SIZE, Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.segment_index import SegmentInfo, without_covered
from snapfs.store.repository import compaction
from snapfs.store.repository.compaction import FAN_IN, due_merge, tier
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity

IDENTITY = StoreIdentity("ef" * 16, 4)
NOISE = random.Random(9).randbytes(8 * CHUNK_SIZE)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository.create(str(tmp_path / "store"), IDENTITY, Disk())
    yield made
    made.check_invariants()
    made.close()


class Written:
    """Snapshots of a few chunks each, and what they must read as."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.content: dict[int, dict[Pointer, bytes]] = {}
        self.newest: dict[int, tuple[Pointer, bytes]] = {}

    def snap(self, *changes: tuple[int, bytes]) -> SnapshotRecord:
        """Give some of the chunks a new content; the snapshot has the newest of all."""
        transaction = self.repository.begin(Generation(1))
        for index, plain in changes:
            base = self.newest.get(index, (None, b""))[0]
            around = [self.newest.get(index + step, (None, b""))[0] for step in (-1, 1)]
            self.newest[index] = transaction.append(transaction.encode_chunk(plain, base, *around)), plain
        root = transaction.put_page(ObjectKind.ROOT, os.urandom(20), None)
        record = transaction.commit(root, parent=None, name=None, cut_time_ns=1, trigger="manual")
        self.content[record.number] = dict([*self.newest.values(), (root, transaction.read(root))])
        return record

    def drop(self, number: int) -> None:
        self.repository.drop(SnapshotNumber(number))
        del self.content[number]

    def live(self) -> NumberSet:
        live = NumberSet()
        for content in self.content.values():
            for pointer in content:
                live.add(pointer.number)
        return live

    def check(self) -> None:
        """All that lives reads back, here and in a fresh reader."""
        fresh = Repository.open(self.repository.store_dir, IDENTITY, Disk(), readonly=True, cache_bytes=0)
        for reader in (self.repository, fresh):
            assert all(record.state == "good" for record in reader.snapshots())
            for content in self.content.values():
                for pointer, plain in content.items():
                    assert reader.read(pointer) == plain
        fresh.check_invariants()
        fresh.close()


def sizes(repository: Repository) -> int:
    folder = Path(repository.store_dir) / "segments"
    return sum(path.stat().st_size for path in folder.iterdir())


def info(first: int, size: int = 100, damage: str | None = None, last: int | None = None) -> SegmentInfo:
    return SegmentInfo(f"{first}", Number(first), Number(first if last is None else last), 1, size, damage)


@pytest.mark.parametrize(
    ("infos", "due"),
    [
        ([], []),
        ([info(i) for i in range(FAN_IN - 1)], []),
        ([info(i) for i in range(FAN_IN + 3)], list(range(FAN_IN))),
        ([info(i, damage="x" if i == 4 else None) for i in range(2 * FAN_IN - 1)], list(range(5, 5 + FAN_IN))),
        ([info(i, 1 << 40) for i in range(FAN_IN)], []),
        ([info(i, 100 if i % 2 else 1 << 20) for i in range(4 * FAN_IN)], []),
        ([info(i, 1 << 20 if i < FAN_IN else 100) for i in range(2 * FAN_IN)], list(range(FAN_IN, 2 * FAN_IN))),
        ([info(i << 48 | 1) for i in range(FAN_IN)], []),
        ([info(i << 31) for i in range(FAN_IN)], []),
    ],
)  # fmt: skip
def test_which_merge_is_due(infos: list[SegmentInfo], due: list[int]) -> None:
    assert [found.first for found in due_merge(infos)] == due


def test_tiers_grow_eightfold() -> None:
    assert [tier(size) for size in (0, 65536, 65537, 8 * 65536, 8 * 65536 + 1)] == [0, 0, 1, 1, 2]


def test_covered_segments_are_recognized() -> None:
    infos = [info(1, last=30), info(5, last=9), info(20, last=30), info(31, last=40), info(50)]
    kept, covered = without_covered(infos)
    assert [found.first for found in kept] == [1, 31, 50]
    assert [found.first for found in covered] == [5, 20]


def test_merging_keeps_numbers_and_contents_and_bounds_the_count(repository: Repository) -> None:
    written = Written(repository)
    for i in range(70):
        written.snap((i % 3, NOISE[i * 100 : i * 100 + 3000]))
        while repository.merge_once():
            pass
    assert len(repository.index.segments()) <= 2 * FAN_IN
    assert len(list((Path(repository.store_dir) / "segments").iterdir())) == len(repository.index.segments())
    written.check()
    repository.check_invariants()


def test_the_segments_that_a_crash_left_beside_a_merged_one_are_removed(repository: Repository) -> None:
    written = Written(repository)
    for i in range(FAN_IN):
        written.snap((0, b"%d" % i * 100))
    old = {found.path: Path(found.path).read_bytes() for found in repository.index.segments()[1:]}
    assert repository.merge_once() == FAN_IN - 1
    for path, content in old.items():
        Path(path).write_bytes(content)
    written.check()  # a reader is not misled by them
    repository.close()
    again = Repository.open(repository.store_dir, IDENTITY, Disk())
    assert len(again.recovered) == FAN_IN - 1
    assert len(again.index.segments()) == 1
    written.repository = again
    written.check()
    again.close()


def test_a_damaged_segment_is_not_merged(repository: Repository) -> None:
    written = Written(repository)
    for i in range(FAN_IN):
        written.snap((0, b"%d" % i * 100))
    path = Path(repository.index.segments()[3].path)
    damaged = bytearray(path.read_bytes())
    damaged[fmt.HEADER_BYTES + fmt.FRAME_BYTES + 2] ^= 1
    path.write_bytes(bytes(damaged))
    before = {found.path: Path(found.path).read_bytes() for found in repository.index.segments()}
    with pytest.raises(CorruptionError):
        repository.merge_once()
    folder = Path(repository.store_dir) / "segments"
    assert {str(path): path.read_bytes() for path in folder.iterdir()} == before


def test_collecting_frees_what_only_dropped_snapshots_needed(repository: Repository) -> None:
    written = Written(repository)
    for i in range(6):
        written.snap((i % 2, os.urandom(CHUNK_SIZE)))
    before = sizes(repository)
    for number in range(1, 6):
        written.drop(number)
    with repository.collection() as collection:
        report = collection.run(written.live())
    assert report.removed == 4
    assert report.freed_bytes == before - sizes(repository) > 4 * CHUNK_SIZE
    assert report.skipped == ()
    written.check()
    assert [event.kind for event in repository.events()][-1] == "collected"


def test_the_base_of_a_living_difference_lives(repository: Repository) -> None:
    written = Written(repository)
    written.snap((0, NOISE[:CHUNK_SIZE]), (1, NOISE[CHUNK_SIZE : 2 * CHUNK_SIZE]), (5, os.urandom(CHUNK_SIZE)))
    written.snap((0, NOISE[:100] + b"edit" + NOISE[104:CHUNK_SIZE]))
    written.snap((5, os.urandom(CHUNK_SIZE)), (1, NOISE[CHUNK_SIZE + 3000 : 2 * CHUNK_SIZE + 3000]))
    written.drop(1)
    written.drop(2)
    with repository.collection() as collection:
        report = collection.run(written.live(), min_dead=0.1)
    assert report.rewritten >= 1
    written.check()


def test_dedup_does_not_revive_what_a_collection_in_progress_may_drop(repository: Repository) -> None:
    written = Written(repository)
    written.snap((0, NOISE[:CHUNK_SIZE]))
    written.snap((0, NOISE[CHUNK_SIZE : 2 * CHUNK_SIZE]))
    written.drop(1)
    with repository.collection() as collection:
        live = written.live()
        written.snap((7, NOISE[:CHUNK_SIZE]))  # the content of the dead chunk comes again
        assert collection.run(live).removed == 1
    written.check()


def test_with_damage_that_matters_nothing_is_collected(repository: Repository) -> None:
    written = Written(repository)
    written.snap((0, os.urandom(5000)))
    written.snap((1, os.urandom(5000)))
    live = written.live()
    repository.drop(SnapshotNumber(1))
    path = Path(repository.index.segments()[1].path)
    path.write_bytes(path.read_bytes()[:-5])
    repository.refresh()
    before = sizes(repository)
    with pytest.raises(CorruptionError, match="not known"), repository.collection() as collection:
        collection.run(live)
    assert sizes(repository) == before


def test_a_damaged_segment_that_nobody_needs_goes(repository: Repository) -> None:
    written = Written(repository)
    for _ in range(2):
        written.snap((0, os.urandom(5000)))
    written.drop(1)
    Path(repository.index.segments()[0].path).write_bytes(b"")
    repository.refresh()
    with repository.collection() as collection:
        assert collection.run(written.live()).removed == 1
    written.check()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("snap"), st.integers(0, 5), st.integers(0, 7 * CHUNK_SIZE)),
        st.tuples(st.just("edit"), st.integers(0, 5), st.integers(0, 4000)),
        st.tuples(st.just("drop"), st.integers(0, 50), st.just(0)),
        st.tuples(st.just("merge"), st.just(0), st.just(0)),
        st.tuples(st.just("collect"), st.integers(0, 10), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_any_order_of_snapshots_drops_merges_and_collections(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    store_dir = str(tmp_path_factory.mktemp("compaction") / "store")
    written = Written(Repository.create(store_dir, IDENTITY, Disk()))
    for what, index, value in steps:
        act(written, what, index, value)
    written.check()
    written.repository.check_invariants()
    written.repository.close()


def act(written: Written, what: str, index: int, value: int) -> None:
    if what == "snap":
        written.snap((index, NOISE[value : value + 10000]))
    elif what == "edit":
        plain = written.newest.get(index, (None, NOISE[:10000]))[1]
        written.snap((index, plain[:value] + b"edit" + plain[value + 4 :]))
    elif what == "drop" and len(written.content) > 1:
        written.drop(sorted(written.content)[index % (len(written.content) - 1)])
    elif what == "merge":
        written.repository.merge_once()
    elif what == "collect":
        with written.repository.collection() as collection:
            collection.run(written.live(), min_dead=index / 10)
    elif what == "reopen":
        written.repository.close()
        written.repository = Repository.open(written.repository.store_dir, IDENTITY, Disk())
        assert written.repository.recovered == []


def test_a_merge_can_be_stopped_between_objects(repository: Repository) -> None:
    written = Written(repository)
    for i in range(FAN_IN):
        written.snap((0, b"%d" % i * 100))

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        repository.merge_once(stop)
    assert len(repository.index.segments()) == FAN_IN
    assert compaction.due_merge(repository.index.segments())
    written.check()
    assert repository.merge_once() == FAN_IN - 1
