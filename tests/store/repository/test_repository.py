"""The facade: snapshots by number and name, generations, repair at opening, and a reader in another process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import BusyError, CorruptionError, UserError, VersionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.repository.repository import Repository, SealStats, SnapshotRecord, StoreIdentity
from tests.fakes.patience import PATIENCE_S

IDENTITY = StoreIdentity("cd" * 16, 99)
ONE = Generation(1)


class PickyDisk(Disk):
    """Fails the acts whose label is in `failing` with ENOSPC."""

    def __init__(self) -> None:
        self.failing: set[str] = set()

    def check(self, label: str) -> None:
        if label in self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        self.check(label)
        super().pwrite(label, fd, data, offset)

    def fsync(self, label: str, fd: int) -> None:
        self.check(label)
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self.check(label)
        super().fdatasync(label, fd)

    def rename(self, label: str, source: str, target: str) -> None:
        self.check(label)
        super().rename(label, source, target)

    def sync_dir(self, label: str, path: str) -> None:
        self.check(label)
        super().sync_dir(label, path)


@pytest.fixture
def disk() -> PickyDisk:
    return PickyDisk()


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def repository(store_dir: Path, disk: PickyDisk) -> Iterator[Repository]:
    made = Repository.create(str(store_dir), IDENTITY, disk)
    yield made
    made.check_invariants()
    made.close()


def snap(
    repository: Repository, content: bytes, name: str | None = None, generation: Generation = ONE
) -> SnapshotRecord:
    transaction = repository.begin(generation)
    try:
        root = transaction.put_page(ObjectKind.ROOT, content, None)
    except BaseException:
        transaction.abort()
        raise
    latest = repository.latest()
    return transaction.commit(
        root,
        parent=latest.number if latest else None,
        name=name,
        cut_time_ns=5,
        trigger="manual",
        files=3,
        dirty_bytes=9,
    )


def reopened(repository: Repository, **options: bool) -> Repository:
    repository.close()
    return Repository.open(repository.store_dir, IDENTITY, Disk(), **options)


def files(store_dir: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(store_dir.rglob("*")) if path.is_file()}


def test_a_snapshot_is_found_again_with_all_its_facts(repository: Repository) -> None:
    record = snap(repository, b"one", "before-upgrade")
    second = snap(repository, b"two")
    assert (record.number, second.number, second.parent) == (1, 2, 1)
    assert record.stats.new_objects == 2
    assert record.stats.stored_bytes == os.path.getsize(repository.index.segments()[0].path)
    assert isinstance(record.stats, SealStats)
    again = reopened(repository)
    assert again.snapshots() == [record, second]
    assert again.latest() == again.latest_good() == second
    assert again.find("before-upgrade") == again.find("1") == record
    assert again.read(record.root) == b"one"
    assert again.recovered == []
    again.close()


def test_an_empty_store_has_no_snapshots(repository: Repository) -> None:
    assert repository.snapshots() == []
    assert repository.latest() is None
    assert repository.latest_good() is None
    with pytest.raises(UserError, match="there is no snapshot 'x'"):
        repository.find("x")


@pytest.mark.parametrize("name", ["", "..", "a/b", "12", "a\nb", "x" * 256])
def test_names_that_cannot_be(repository: Repository, name: str) -> None:
    with pytest.raises(UserError):
        snap(repository, b"x", name)
    assert snap(repository, b"y").number == 1


def test_a_name_is_given_once_until_its_snapshot_is_dropped(repository: Repository) -> None:
    snap(repository, b"x", "a")
    with pytest.raises(UserError, match="is that of snapshot 1 already"):
        snap(repository, b"y", "a")
    repository.drop(SnapshotNumber(1))
    assert snap(repository, b"z", "a").number == 2
    again = reopened(repository)
    assert [record.number for record in again.snapshots()] == [2]
    assert snap(again, b"3").number == 3
    again.close()


def test_a_snapshot_is_not_built_on_one_that_was_dropped(repository: Repository) -> None:
    first = snap(repository, b"one")
    transaction = repository.begin(ONE)
    repository.drop(first.number)
    with pytest.raises(UserError, match="there is no snapshot '1'"):
        transaction.commit(first.root, parent=first.number, name=None, cut_time_ns=1, trigger="manual")
    assert repository.snapshots() == []
    assert snap(repository, b"two").number == 2


def test_only_one_transaction_at_a_time(repository: Repository) -> None:
    transaction = repository.begin(ONE)
    with pytest.raises(BusyError):
        repository.begin(ONE)
    with pytest.raises(BusyError), repository.collection():
        pass
    transaction.abort()
    repository.begin(ONE).abort()


def test_numbers_grow_over_aborts_generations_and_openings(repository: Repository) -> None:
    transaction = repository.begin(ONE)
    lost = transaction.put_page(ObjectKind.ROOT, b"lost", None)
    transaction.abort()
    with pytest.raises(CorruptionError):
        repository.read(lost)
    first = snap(repository, b"one")
    assert first.root.number > lost.number
    second = snap(repository, b"two", generation=Generation(2))
    assert second.root.number == fmt.make_number(Generation(2), 1)
    again = reopened(repository)
    assert snap(again, b"three", generation=Generation(2)).root.number > second.last_number
    with pytest.raises(UserError, match="fenced off"):
        again.begin(ONE)
    again.close()


def test_events_record_the_whole_story(repository: Repository) -> None:
    repository.record_event("mounted", at="/mnt")
    snap(repository, b"x", "a")
    repository.drop(SnapshotNumber(1))
    assert [event.kind for event in repository.events()] == ["created", "mounted", "snapshot", "dropped"]


def test_marks_last(repository: Repository) -> None:
    snap(repository, b"one")
    snap(repository, b"two")
    repository.mark(SnapshotNumber(2), "damaged", "bad object")
    again = reopened(repository)
    assert [record.state for record in again.snapshots()] == ["good", "damaged"]
    good = again.latest_good()
    assert good is not None
    assert good.number == 1
    again.mark(SnapshotNumber(2), "good", "repaired from a mirror")
    last = reopened(again)
    assert last.latest_good() == last.latest()
    last.close()


FAILURES = [
    "seal:objects",
    "seal:table",
    "seal:trailer",
    "seal:segment",
    "seal:segment-name",
    "seal:segment-folder",
    "log:append",
    "log:sync",
]


@pytest.mark.parametrize("label", FAILURES)
def test_a_full_disk_fails_one_snapshot_and_leaves_nothing(
    repository: Repository, store_dir: Path, disk: PickyDisk, label: str
) -> None:
    first = snap(repository, b"one")
    before = files(store_dir)
    disk.failing = {label}
    with pytest.raises(OSError, match="No space left"):
        snap(repository, os.urandom(3 << 20))
    assert files(store_dir) == before
    disk.failing = set()
    record = snap(repository, b"two")
    assert record.number == 2
    again = reopened(repository)
    assert again.recovered == []
    assert again.snapshots() == [first, record]
    again.close()


def test_what_a_crash_left_is_put_right_and_reported_but_only_when_opened_for_writing(
    repository: Repository, store_dir: Path
) -> None:
    """The snapshot whose line was lost was removed here, segment and all; it is whole, and is recovered."""
    first = snap(repository, b"one")
    second = snap(repository, b"two")
    repository.close()
    log = store_dir / "snapshots.log"
    log.write_bytes(log.read_bytes()[:-10])
    (store_dir / "segments" / "0001000000000009.new").write_bytes(b"half")
    before = files(store_dir)
    reader = Repository.open(str(store_dir), IDENTITY, Disk(), readonly=True)
    assert [record.root for record in reader.snapshots()] == [first.root, second.root]
    assert reader.read(first.root) == b"one"
    reader.close()
    assert files(store_dir) == before
    again = Repository.open(str(store_dir), IDENTITY, Disk())
    assert len(again.recovered) == 3
    assert [record.root for record in again.snapshots()] == [first.root, second.root]
    assert len(list((store_dir / "segments").iterdir())) == 2
    assert again.read(second.root) == b"two"
    assert snap(again, b"anew").number == 3
    again.close()


def test_a_log_that_lost_its_end_stops_the_opening_and_nothing_is_touched(
    repository: Repository, store_dir: Path
) -> None:
    for i in range(3):
        snap(repository, b"%d" % i)
    repository.close()
    log = store_dir / "snapshots.log"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    before = files(store_dir)
    with pytest.raises(CorruptionError, match="lost its end: 2 segments"):
        Repository.open(str(store_dir), IDENTITY, Disk())
    assert files(store_dir) == before


@pytest.mark.parametrize("readonly", [True, False])
def test_an_empty_log_is_a_damaged_one(repository: Repository, store_dir: Path, readonly: bool) -> None:
    repository.close()
    (store_dir / "snapshots.log").write_bytes(b'{"kind":"crea')
    with pytest.raises(CorruptionError, match="it is empty"):
        Repository.open(str(store_dir), IDENTITY, Disk(), readonly=readonly)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_segment_that_is_gone_or_torn_marks_its_snapshot(
    repository: Repository, store_dir: Path, damage: str
) -> None:
    records = [snap(repository, b"snapshot %d" % i) for i in range(3)]
    path = Path(repository.index.segments()[1].path)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[: fmt.HEADER_BYTES + 20] if damage == "cut" else b"")
    again = reopened(repository)
    assert [record.state for record in again.snapshots()] == ["good", "damaged", "good"]
    assert len(again.recovered) == 1
    assert "snapshot 2 cannot be read" in again.recovered[0]
    with pytest.raises(CorruptionError):
        again.read(records[1].root)
    assert again.read(records[2].root) == b"snapshot 2"
    assert snap(again, b"next").number == 4
    again.close()


def many(repository: Repository) -> tuple[SnapshotRecord, dict[Pointer, bytes]]:
    """A snapshot with full objects and differences to them."""
    transaction = repository.begin(ONE)
    written = {}
    for _ in range(20):
        plain = os.urandom(3000)
        base = transaction.append(transaction.encode_chunk(plain, None))
        edited = plain[:100] + b"edit" + plain[104:]
        written |= {base: plain, transaction.append(transaction.encode_chunk(edited, base)): edited}
    root = transaction.put_page(ObjectKind.ROOT, b"the root", None)
    record = transaction.commit(root, parent=None, name=None, cut_time_ns=1, trigger="manual")
    return record, {**written, root: b"the root"}


@pytest.mark.parametrize("damage", ["trailer", "cut trailer", "cut table", "header", "long"])
def test_a_segment_without_an_end_is_saved_whole(repository: Repository, store_dir: Path, damage: str) -> None:
    snap(repository, b"before")
    _, written = many(repository)
    after = snap(repository, b"after")
    path = Path(repository.index.segments()[1].path)
    whole = path.read_bytes()
    damaged = {
        "trailer": whole[:-1] + b"?",
        "cut trailer": whole[:-50],
        "cut table": whole[: -fmt.TRAILER_BYTES - 1000],
        "header": b"x" + whole[1:],
        "long": whole + bytes(5000),
    }[damage]
    path.write_bytes(damaged)
    repository.close()
    reader = Repository.open(str(store_dir), IDENTITY, Disk(), readonly=True)
    assert [record.state for record in reader.snapshots()] == ["good", "damaged", "good"]
    reader.close()
    assert path.read_bytes() == damaged
    again = reopened(repository)
    assert [record.state for record in again.snapshots()] == ["good", "good", "good"]
    assert "42 objects were saved" in again.recovered[0]
    assert all(again.read(pointer) == plain for pointer, plain in written.items())
    assert again.read(after.root) == b"after"
    assert path.read_bytes() == whole
    assert path.with_name(path.name + ".damaged").read_bytes() == damaged
    last = reopened(again)
    assert last.recovered == []
    last.close()


def test_without_room_to_save_a_torn_segment_all_else_can_be_used(repository: Repository, disk: PickyDisk) -> None:
    record, written = many(repository)
    second = snap(repository, b"second")
    path = Path(repository.index.segments()[0].path)
    damaged = path.read_bytes()[:-50]
    path.write_bytes(damaged)
    repository.close()
    disk.failing = {"salvage:objects", "salvage:segment"}
    again = Repository.open(repository.store_dir, IDENTITY, disk)
    assert "No space left" in again.recovered[0]
    assert [found.state for found in again.snapshots()] == ["damaged", "good"]
    assert again.read(second.root) == b"second"
    assert not list(path.parent.glob("*.new"))
    disk.failing = set()
    last = reopened(again)
    assert last.find(str(record.number)).state == "good"
    assert all(last.read(pointer) == plain for pointer, plain in written.items())
    last.close()


def test_of_a_torn_segment_with_bad_places_all_else_is_saved(repository: Repository) -> None:
    record, written = many(repository)
    pointers = list(written)
    rows = [repository.index.locate(pointer.number)[1] for pointer in pointers]
    path = Path(repository.index.segments()[0].path)
    damaged = bytearray(path.read_bytes())
    damaged[rows[4].offset + 100] ^= 1  # a full object: its difference is lost as well
    damaged[rows[9].offset + 33] ^= 1  # a difference
    path.write_bytes(damaged[: rows[-1].offset + 10])  # and the root
    again = reopened(repository)
    assert "37 objects were saved" in again.recovered[0]
    lost = {pointers[4], pointers[5], pointers[9], pointers[-1]}
    for pointer, plain in written.items():
        if pointer in lost:
            with pytest.raises(CorruptionError):
                again.read(pointer)
        else:
            assert again.read(pointer) == plain
    assert [found.state for found in again.snapshots()] == ["damaged"]
    assert again.latest_good() is None
    last = reopened(again)
    assert [found.state for found in last.snapshots()] == ["damaged"]
    assert last.snapshots()[0].root == record.root
    last.close()


def test_the_newest_segment_damaged_leaves_the_one_before(repository: Repository) -> None:
    first = snap(repository, b"one")
    snap(repository, b"two")
    Path(repository.index.segments()[1].path).write_bytes(b"")
    again = reopened(repository)
    assert again.latest_good() == first
    third = snap(again, b"three")
    last = reopened(again)
    assert [record.state for record in last.snapshots()] == ["good", "damaged", "good"]
    assert last.read(third.root) == b"three"
    last.close()


def test_a_segment_of_a_later_version_is_refused(repository: Repository) -> None:
    snap(repository, b"one")
    path = Path(repository.index.segments()[0].path)
    path.write_bytes(path.read_bytes()[:8] + b"\3" + path.read_bytes()[9:])
    with pytest.raises(VersionError, match="format version 3"):
        reopened(repository)


def test_the_store_of_another_volume_is_refused(repository: Repository) -> None:
    repository.close()
    with pytest.raises(UserError, match="another volume"):
        Repository.open(repository.store_dir, StoreIdentity("00" * 16, 1), Disk())


def test_content_under_another_number_is_noticed(repository: Repository) -> None:
    one, two = snap(repository, b"one"), snap(repository, b"two")
    for again in (repository, reopened(repository)):
        with pytest.raises(CorruptionError, match="not the content that was expected"):
            again.read(Pointer(two.root.number, one.root.content_hash))
    again.close()


def test_descriptors_are_bounded_by_the_open_segments(repository: Repository) -> None:
    records = [snap(repository, b"%d" % i) for i in range(40)]
    repository.close()
    before = len(os.listdir("/proc/self/fd"))
    again = Repository.open(repository.store_dir, IDENTITY, Disk(), cache_bytes=0, max_open_segments=4)
    for _ in range(2):
        for i, record in enumerate(records):
            assert again.read(record.root) == b"%d" % i
            assert len(os.listdir("/proc/self/fd")) <= before + 6
    again.check_invariants()
    again.close()


READER = """
import sys
from snapfs.base.blocks import Disk
from snapfs.store.repository.repository import Repository, StoreIdentity
reader = Repository.open(sys.argv[1], StoreIdentity("cd" * 16, 99), Disk(), readonly=True, cache_bytes=0)
print("ready", flush=True)
seen = set()
while len(seen) < 60:
    reader.refresh()
    for record in reader.snapshots():
        assert record.state == "good", record
        if record.number not in seen:
            assert reader.read(record.root) == b"%d" % record.number * 1000, record
            seen.add(record.number)
for record in reader.snapshots():
    assert reader.read(record.root) == b"%d" % record.number * 1000, record
print("done", len(reader.recovered), flush=True)
"""


def test_a_reader_in_another_process_sees_whole_snapshots_while_the_writer_appends_and_merges(
    repository: Repository, store_dir: Path
) -> None:
    command = [sys.executable, "-c", READER, str(store_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for i in range(1, 61):
            snap(repository, b"%d" % i * 1000)
            repository.merge_once()
        output, errors = reader.communicate(timeout=PATIENCE_S)
    assert errors == ""
    assert output == "done 0\n"
    assert len(repository.index.segments()) < 60
