"""Verify against the plain truth: a snapshot is damaged if, and only if, it cannot be read in full."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.blocks import Disk, Generation, Ino, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import FRAME_BYTES, ObjectKind, Pointer
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repair import damage_report, liveness, verify
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity, Transaction
from snapfs.store.tables.reachability import Walk
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.store.tables.snapshot_invariants import check_tree
from tests.fakes.histories.state_model import State

IDENTITY = StoreIdentity("0123456789abcdef0123456789abcdef", 0x1234_5678_9ABC_DEF0)
GENERATION = Generation(1)


class Sealing:
    """A transaction as a sealer uses it."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.read = transaction.read
        self.put_page = transaction.put_page

    def put_chunk(self, plain: bytes, base: Pointer | None = None) -> Pointer:
        return self._transaction.append(self._transaction.encode_chunk(plain, base))


class Recorder:
    """Passes reads on and remembers the numbers."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.numbers: set[int] = set()

    def read(self, pointer: Pointer) -> bytes:
        self.numbers.add(pointer.number)
        return self._repository.read(pointer)


def fill(repository: Repository, seed: int, versions: int, steps: int) -> list[State]:
    """Snapshots of a random state; each has the one before it as parent."""
    rng, state, before, states = random.Random(seed), State(), None, []
    tree: SnapshotTree | None = None
    parent: SnapshotNumber | None = None
    for _ in range(versions):
        state.change(rng, rng.randrange(steps))
        transaction = repository.begin(GENERATION)
        root = state.seal(Sealing(transaction), tree, before)
        record = transaction.commit(root, parent=parent, name=None, cut_time_ns=state.clock, trigger="manual")
        tree, parent, before = SnapshotTree(repository, root), record.number, state.copy()
        states.append(before)
    return states


def opened(store_dir: Path) -> Repository:
    return Repository.open(str(store_dir), IDENTITY, Disk(), readonly=True)


def read_in_full(repository: Repository, record: SnapshotRecord, state: State) -> set[int]:
    """The numbers of all objects that reading everything took."""
    recorder = Recorder(repository)
    tree = SnapshotTree(recorder, record.root)
    state.assert_equals(tree)
    return recorder.numbers


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[State]]:
    """A store with eight snapshots, and the states they are of."""
    store_dir = tmp_path_factory.mktemp("check") / "store"
    repository = Repository.create(str(store_dir), IDENTITY, Disk())
    states = fill(repository, 11, 8, 80)
    repository.close()
    return store_dir, states


@pytest.fixture
def store(pristine: tuple[Path, list[State]], tmp_path: Path) -> tuple[Path, list[State]]:
    """A copy of it, to be damaged."""
    shutil.copytree(pristine[0], tmp_path / "store")
    return tmp_path / "store", pristine[1]


@pytest.fixture
def repository(pristine: tuple[Path, list[State]]) -> Iterator[Repository]:
    found = opened(pristine[0])
    yield found
    found.close()


def test_every_snapshot_is_the_state_it_was_made_of(repository: Repository, pristine: tuple[Path, list[State]]) -> None:
    for record, state in zip(repository.snapshots(), pristine[1], strict=True):
        tree = SnapshotTree(repository, record.root)
        state.assert_equals(tree)
        check_tree(tree)


def test_a_sound_store_is_good_and_was_read_once(repository: Repository) -> None:
    steps: list[tuple[int, int]] = []
    report = verify.verify(repository, repository.snapshots(), progress=lambda done, total: steps.append((done, total)))
    assert report.is_good
    assert [*report.bad, *report.other_damage, *report.damaged_snapshots] == []
    assert report.snapshots == 8
    assert steps == sorted(steps, key=lambda step: step[0])
    assert all(done <= total for done, total in steps)
    assert steps[-1] == (report.stored_bytes, report.stored_bytes)
    written = sum(info.size for info in repository.index.segments())
    assert 0.5 * written < report.stored_bytes <= written


def test_what_is_reached_is_what_reading_reads(repository: Repository, pristine: tuple[Path, list[State]]) -> None:
    for record, state in zip(repository.snapshots(), pristine[1], strict=True):
        failures: list[Exception] = []
        walk = Walk(repository, lambda pointer, error: failures.append(error))  # noqa: B023
        reached = [visit.pointer.number for visit in walk.visits(record.root)]
        assert failures == []
        assert len(set(reached)) == len(reached)
        assert set(reached) == read_in_full(repository, record, state)
        assert list(walk.visits(record.root)) == []


def test_live_is_what_is_read_and_the_bases_of_that(repository: Repository, pristine: tuple[Path, list[State]]) -> None:
    chosen = repository.snapshots()[2:5]
    needed: set[int] = {record.last_number for record in chosen}
    for record in chosen:
        read = read_in_full(repository, record, pristine[1][record.number - 1])
        needed |= read | {base for number in read for base in repository.objects.bases_of(Number(number))}
    assert set(liveness.live_numbers(repository, chosen)) == needed


def test_live_numbers_raise_rather_than_miss_something(store: tuple[Path, list[State]]) -> None:
    with_page_damaged = opened(store[0])
    record = with_page_damaged.snapshots()[3]
    damage(store[0], with_page_damaged, SnapshotTree(with_page_damaged, record.root).root.table.number)
    with_page_damaged.close()
    repository = opened(store[0])
    with pytest.raises(CorruptionError):
        liveness.live_numbers(repository, repository.snapshots())
    repository.close()


def damage(store_dir: Path, repository: Repository, number: int) -> None:
    """Turn over a byte of the object's payload, or of its frame if that is empty."""
    info = repository.index.find(Number(number))
    assert info is not None
    _, row = repository.index.locate(Number(number))
    at = row.offset + FRAME_BYTES + row.stored // 2 if row.stored else row.offset + 3
    with open(store_dir / "segments" / os.path.basename(info.path), "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x55]))


def truly_damaged(store_dir: Path, states: list[State]) -> list[SnapshotNumber]:
    """The snapshots that cannot be read in full, each tried with cold caches."""
    found = []
    for record_number, state in enumerate(states, 1):
        repository = opened(store_dir)
        try:
            read_in_full(repository, repository.find(str(record_number)), state)
        except CorruptionError:
            found.append(SnapshotNumber(record_number))
        repository.close()
    return found


@pytest.mark.parametrize("seed", range(12))
def test_damage_is_found_and_charged_to_whom_it_hurts(store: tuple[Path, list[State]], seed: int) -> None:
    rng = random.Random(seed)
    repository = opened(store[0])
    live = list(liveness.live_numbers(repository, repository.snapshots()))
    records = {record.last_number for record in repository.snapshots()}
    hit = sorted(rng.sample([number for number in live if number not in records], rng.choice([1, 1, 2, 5])))
    for number in hit:
        damage(store[0], repository, number)
    repository.close()

    repository = opened(store[0])
    report = verify.verify(repository, repository.snapshots(), threads=3)
    repository.close()
    assert not report.is_good
    assert report.damaged_snapshots == truly_damaged(store[0], store[1])
    found = [bad.number for bad in report.bad]
    assert set(found) <= set(hit)  # some may lie below a page that cannot be read any more
    if len(hit) == 1:
        assert found == hit
    assert report.bad_objects == len(found)
    assert all(bad.why and bad.snapshots for bad in report.bad)


def test_the_file_that_suffers_is_named(store: tuple[Path, list[State]]) -> None:
    repository = opened(store[0])
    record = repository.snapshots()[-1]
    tree = SnapshotTree(repository, record.root)
    ino, (index, pointer) = next(
        (file.ino, found) for file in tree.inodes() for found in tree.chunks(file) if found[0] > 1
    )
    damage(store[0], repository, pointer.number)
    repository.close()
    repository = opened(store[0])
    (bad,) = verify.verify(repository, [record]).bad
    repository.close()
    assert (bad.ino, bad.chunk, bad.snapshots) == (ino, index, [record.number])
    assert f"{pointer.number:#x}" in bad.why


def test_a_missing_segment_hurts_those_who_need_it(store: tuple[Path, list[State]]) -> None:
    repository = opened(store[0])
    third = repository.index.segments()[2]
    repository.close()
    os.unlink(third.path)
    repository = opened(store[0])
    report = verify.verify(repository, repository.snapshots())
    repository.close()
    assert report.damaged_snapshots == truly_damaged(*store)
    assert 3 in report.damaged_snapshots


def test_however_much_is_bad_the_snapshots_are_named(
    store: tuple[Path, list[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = opened(store[0])
    for info in repository.index.segments()[:3]:
        os.unlink(info.path)
    repository.close()
    repository = opened(store[0])
    in_detail = verify.verify(repository, repository.snapshots())
    monkeypatch.setattr(damage_report, "MAX_DETAILED", 2)
    report = verify.verify(repository, repository.snapshots())
    repository.close()
    assert report.damaged_snapshots == in_detail.damaged_snapshots == truly_damaged(*store)
    assert report.bad_objects == in_detail.bad_objects == len(in_detail.bad) > 2
    assert len(report.bad) == 2
    assert all(report.why(number) for number in report.damaged_snapshots)
    assert report.why(SnapshotNumber(99)) == ""


def test_a_copy_of_a_record_is_checked_too(store: tuple[Path, list[State]]) -> None:
    repository = opened(store[0])
    damage(store[0], repository, repository.snapshots()[4].last_number)
    repository.close()
    repository = opened(store[0])
    report = verify.verify(repository, repository.snapshots())
    repository.close()
    assert not report.is_good
    assert report.damaged_snapshots == []
    assert [line.startswith("snapshot 5: ") for line in report.other_damage] == [True]


def test_a_history_that_was_rewritten_is_noticed(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "store"), IDENTITY, Disk())
    fill(repository, 3, 2, 30)
    transaction = repository.begin(GENERATION)
    root = State().seal(Sealing(transaction), None, None)
    forged = transaction.commit(root, parent=SnapshotNumber(2), name=None, cut_time_ns=1, trigger="manual")
    report = verify.verify(repository, repository.snapshots())
    repository.close()
    assert report.other_damage == [f"snapshot {forged.number} does not continue 2"]


@given(
    st.sets(st.one_of(st.integers(1, 40_000), st.integers(1 << 48, (1 << 48) + 20_000), st.integers(1, (1 << 64) - 1)))
)
def test_a_set_of_numbers_is_a_set(numbers: set[int]) -> None:
    found = NumberSet()
    for number in numbers:
        assert found.add(number)
        assert not found.add(number)
        assert number in found
    assert list(found) == sorted(numbers)
    assert len(found) == len(numbers)
    assert 0 not in found


def test_roles_and_places_are_right(repository: Repository) -> None:
    record = repository.snapshots()[-1]
    tree = SnapshotTree(repository, record.root)
    leaves = set()
    for visit in Walk(repository, pytest.fail).visits(record.root):  # type: ignore[arg-type]
        _, row = repository.index.locate(visit.pointer.number)
        if visit.is_leaf and row.kind == ObjectKind.CHUNK:
            leaves.add((visit.ino, visit.start, visit.pointer.number))
    expected = {(file.ino, index, p.number) for file in tree.inodes() for index, p in tree.chunks(file)}
    assert leaves <= expected  # a chunk that two files share is visited once
    assert {number for _, _, number in leaves} == {number for _, _, number in expected}
    assert all(ino > Ino(1) for ino, _, _ in leaves)
