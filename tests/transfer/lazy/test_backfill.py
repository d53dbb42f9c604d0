"""A snapshot is brought into a lazily mounted volume's store: whole, each object once, also over several lives."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, Disk, Ino, chunk_count
from snapfs.base.volumes.volume import Volume
from snapfs.store.lazy import fetched_objects
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects.format import Encoding, Pointer
from snapfs.store.protocol.number_runs import Run
from snapfs.store.repair.liveness import live_numbers
from snapfs.store.repair.verify import verify
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import origin_of, sized
from snapfs.transfer.lazy import backfill, newest_objects
from snapfs.transfer.lazy.attachment import Attachment
from snapfs.transfer.lazy.remount import remount
from snapfs.transfer.sources.fetcher import Fetcher
from snapfs.transfer.sources.late_source import LateSource
from snapfs.transfer.sources.object_check import FetchedBatch
from tests.fakes.disks.crashes import Crash, CrashDisk
from tests.fakes.replication.push_source import SourceVolume


class Life:
    """The new volume, open without a mount. Its source counts its requests."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        disk = disk or Disk()
        volume = Volume.open(str(path), disk)
        identity = StoreIdentity(volume.volume_id, volume.seed)
        self.repository = Repository.open(volume.store_dir, identity, disk)
        attachment = Attachment.of(volume, self.repository, disk)
        assert attachment is not None
        self.attachment = attachment
        self.requested: list[int] = []
        for each in attachment.sources:
            self._count(each)

    def _count(self, source: object) -> None:
        assert isinstance(source, LateSource)
        objects = source.objects

        def counted(pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True):  # type: ignore[no-untyped-def]
            for item in objects(pointers, urgent=urgent, bases=bases):
                self.requested.append(item.frame.number)
                yield item

        source.objects = counted  # type: ignore[method-assign]

    def backfill(self, segments: int = 1 << 30) -> None:
        """All, or no more than until so many segments are there."""
        with contextlib.closing(self.attachment.backfill()) as steps:
            for _ in steps:
                if len(self.repository.index.segments()) >= segments:
                    return

    def finish(self) -> None:
        self.attachment.finish(lambda: None)

    def close(self) -> None:
        self.attachment.close()
        self.repository.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=5)
    made.grow(9, steps=40)
    yield made
    made.close()


@pytest.fixture
def lives(tmp_path: Path, source: SourceVolume) -> Iterator[Callable[..., Life]]:
    """Opens the new volume, as often as wanted."""
    made: list[Life] = []
    remount(str(tmp_path / "new"), [str(source.path)], Disk())

    def open_it(disk: Disk | None = None) -> Life:
        if made:
            made[-1].close()
        made.append(Life(tmp_path / "new", disk))
        return made[-1]

    yield open_it
    made[-1].close()


def assert_whole(source: SourceVolume, life: Life, tmp_path: Path) -> None:
    """All is here, with the source gone, in segments that are in order."""
    shutil.rmtree(source.path)
    life.finish()
    record = source.records[-1]
    source.history.states[record.number].assert_equals(SnapshotTree(life.repository, record.root))
    assert verify(life.repository, life.repository.snapshots()).is_good
    life.repository.check_invariants()
    assert not (tmp_path / "new" / "store" / "fetched").exists()


def needed(source: SourceVolume) -> set[int]:
    return {*live_numbers(source.history.repository, source.records[-1:])}


def test_all_of_it_comes_and_each_object_once(source: SourceVolume, lives: Callable[..., Life], tmp_path: Path) -> None:
    life = lives()
    rows = [source.history.repository.index.peek(number) for number in needed(source)]  # type: ignore[arg-type]
    assert any(row is not None and row.encoding > Encoding.ZSTD for row in rows), "with differences"
    life.backfill()
    assert len(life.requested) == len(set(life.requested))
    assert set(life.requested) <= needed(source)
    assert_whole(source, life, tmp_path)


def test_it_goes_on_where_the_last_life_was_cut_off(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched_objects, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(backfill, "MOST_OBJECTS", 8)
    first = lives()
    first.backfill(segments=3)
    kept = first.repository.index.segments()
    assert len(kept) == 3
    second = lives()
    second.backfill()
    assert not any(info.first <= number <= info.last for info in kept for number in second.requested)
    assert_whole(source, second, tmp_path)


def test_a_crash_at_any_step_loses_nothing_that_is_needed(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched_objects, "SEGMENT_BYTES", 30_000)
    at, disk = 0, CrashDisk(0)
    while disk.at is not None:
        disk = CrashDisk()
        life = lives(disk)
        disk.at = len(disk.labels) + at
        try:
            life.backfill()
            disk.at = None
        except Crash:
            at += 3
    assert at > 12
    assert_whole(source, life, tmp_path)


def test_where_no_source_names_the_bases_they_are_fetched_when_they_are_needed(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: LateSource, runs: Sequence[Run]) -> list[Run]:
        return []

    monkeypatch.setattr(LateSource, "bases", silent)
    monkeypatch.setattr(backfill, "MOST_OBJECTS", 4)
    life = lives()
    life.backfill()
    assert_whole(source, life, tmp_path)


def test_what_somebody_reads_meanwhile_is_taken_in(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "MOST_OBJECTS", 8)
    monkeypatch.setattr(backfill, "WINDOWS", 1)
    life = lives()
    record, state = source.records[-1], source.history.states[source.records[-1].number]
    with contextlib.closing(life.attachment.backfill()) as steps:
        for _ in range(8):
            next(steps)
        state.assert_equals(SnapshotTree(life.repository, record.root))
        before = len(life.requested)
        for _ in steps:
            pass
    assert len(life.requested) - before <= 1, "all of it was here, but for the record"
    assert_whole(source, life, tmp_path)


def test_who_is_to_go_slowly_asks_for_little_at_a_time(
    source: SourceVolume, lives: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int] = []
    fetch_missing = Fetcher.fetch_missing

    def counted(self: Fetcher, pointers: Sequence[Pointer]) -> FetchedBatch:
        requested.append(len(pointers))
        return fetch_missing(self, pointers)

    monkeypatch.setattr(Fetcher, "fetch_missing", counted)
    life = lives()
    for _ in life.attachment.backfill(rate=1 << 20):
        pass
    assert max(requested) <= 2, "an eighth of a second's worth"


def test_what_came_before_a_source_failed_stays(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "MOST_OBJECTS", 8)
    fetch_missing, count = Fetcher.fetch_missing, itertools.count()

    def failing(self: Fetcher, pointers: Sequence[Pointer]) -> FetchedBatch:
        if next(count) >= 10:
            raise OSError(errno.EIO, "it is gone")
        return fetch_missing(self, pointers)

    life = lives()
    with monkeypatch.context() as patch:
        patch.setattr(Fetcher, "fetch_missing", failing)
        with pytest.raises(OSError, match="it is gone"):
            life.backfill()
    before = len(life.requested)
    life.backfill()
    assert len(life.requested) == len(set(life.requested)), "nothing was requested twice"
    assert len(life.requested) > before
    assert_whole(source, life, tmp_path)


def test_large_files_are_filled_on_the_way(
    source: SourceVolume, lives: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    supplied: dict[int, dict[int, bytes]] = {}
    life = lives()
    tree = life.attachment.tree()

    def supply(ino: Ino, origin: bytes, pieces: list[tuple[int, bytes]]) -> None:
        record = tree.inode(ino)
        assert record is not None
        assert origin == origin_of(record)
        supplied.setdefault(ino, {}).update(pieces)

    for _ in life.attachment.backfill(supply=supply):
        pass
    assert supplied
    for ino, chunks in supplied.items():
        record = tree.inode(Ino(ino))
        assert record is not None
        for chunk, plain in chunks.items():
            assert plain == tree.read(record, chunk * CHUNK_SIZE, CHUNK_SIZE)


def test_what_rots_here_before_the_end_is_brought_again(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path
) -> None:
    life = lives()
    life.backfill()
    info = max(life.repository.index.segments(), key=lambda each: each.size)
    with open(info.path, "r+b") as file:
        file.seek(info.size // 3)
        file.write(b"\xff" * 60)
    state = source.history.states[source.records[-1].number]
    life = lives()
    state.assert_equals(SnapshotTree(life.repository, source.records[-1].root))
    assert life.requested
    assert_whole(source, life, tmp_path)


def test_what_the_newest_snapshots_wrote_comes_first_and_is_not_fetched_again(
    lives: Callable[..., Life], source: SourceVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = source.records[-1]
    monkeypatch.setattr(newest_objects, "NEWEST_OBJECTS", 100)
    monkeypatch.setattr(newest_objects, "WINDOW_OBJECTS", 7)
    life, supplied = lives(), dict[tuple[int, int], bytes]()

    def supply(ino: Ino, origin: bytes, pieces: list[tuple[int, bytes]]) -> None:
        supplied.update({(ino, chunk): plain for chunk, plain in pieces})

    assert sum(life.attachment.newest(supply)) == sum(map(len, supplied.values()))
    tree = life.attachment.tree()
    newest = set()
    for ino in range(1, tree.root.next_ino):
        inode = tree.inode(Ino(ino))
        if inode is None or not stat.S_ISREG(inode.mode):
            continue
        for index, pointer in tree.chunks(inode, 0, chunk_count(inode.size)):
            if pointer.number > record.last_number - 100:
                newest.add((ino, index))
                is_equal = supplied[ino, index] == sized(life.repository.read(pointer), inode.size, index)
                assert is_equal
    assert newest
    assert supplied.keys() == newest
    before = list(life.requested)
    life.backfill()
    fetched_twice = set(before) & set(life.requested[len(before) :])
    assert not fetched_twice
    assert_whole(source, life, tmp_path)


def test_pieces_of_long_attributes_are_put_into_no_file(lives: Callable[..., Life]) -> None:
    life = lives()
    tree = life.attachment.tree()

    def supply(ino: Ino, origin: bytes, pieces: list[tuple[int, bytes]]) -> None:
        inode = tree.inode(ino)
        assert inode is not None
        supplied.add(ino)
        for chunk, plain in pieces:
            pointers = dict(tree.chunks(inode, chunk, chunk + 1))
            is_equal = chunk in pointers and plain == sized(life.repository.read(pointers[chunk]), inode.size, chunk)
            assert is_equal, (ino, chunk)

    supplied: set[Ino] = set()
    for _ in life.attachment.backfill(supply=supply):
        pass
    inodes = [tree.inode(Ino(ino)) for ino in range(1, tree.root.next_ino)]
    assert any(inode and sum(len(value) for _, value in inode.xattrs) > 4096 for inode in inodes), "some are long"
    assert supplied
