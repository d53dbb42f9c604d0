"""A snapshot is brought into a lazily mounted volume's store: whole, each object once, also over several lives."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from snapfs.blocks import CHUNK_SIZE, Disk, Ino
from snapfs.store import fetched
from snapfs.store.check import live_numbers, verify
from snapfs.store.format import Encoding, Pointer
from snapfs.store.records import StoreIdentity
from snapfs.store.repository import Repository
from snapfs.store.snapshot import SnapshotTree
from snapfs.store.wire import Run
from snapfs.transfer import bringing
from snapfs.transfer.attachment import Attachment
from snapfs.transfer.fetcher import Brought, Fetcher
from snapfs.transfer.hydrator import origin_of
from snapfs.transfer.remount import remount
from snapfs.transfer.sources import LateSource
from snapfs.volume import Volume
from tests.fakes.crashes import Crash, CrashDisk
from tests.fakes.pushing import SourceVolume


class Life:
    """The new volume, open without a mount. Its source counts what it is asked for."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        disk = disk or Disk()
        volume = Volume.open(str(path), disk)
        identity = StoreIdentity(volume.volume_id, volume.seed)
        self.repository = Repository.open(volume.store_dir, identity, disk)
        attachment = Attachment.of(volume, self.repository, disk)
        assert attachment is not None
        self.attachment = attachment
        self.asked: list[int] = []
        for each in attachment.sources:
            self._count(each)

    def _count(self, source: object) -> None:
        assert isinstance(source, LateSource)
        objects = source.objects

        def counted(pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True):  # type: ignore[no-untyped-def]
            for item in objects(pointers, urgent=urgent, bases=bases):
                self.asked.append(item.frame.number)
                yield item

        source.objects = counted  # type: ignore[method-assign]

    def bring(self, segments: int = 1 << 30) -> None:
        """All, or no more than until so many segments are there."""
        with contextlib.closing(self.attachment.bring_all()) as steps:
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


def test_all_of_it_comes_and_each_object_once(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path
) -> None:
    life = lives()
    rows = [source.history.repository.index.peek(number) for number in needed(source)]  # type: ignore[arg-type]
    assert any(row is not None and row.encoding > Encoding.ZSTD for row in rows), "with differences"
    life.bring()
    assert len(life.asked) == len(set(life.asked))
    assert set(life.asked) <= needed(source)
    assert_whole(source, life, tmp_path)


def test_it_goes_on_where_the_last_life_was_cut_off(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(bringing, "MOST_OBJECTS", 8)
    first = lives()
    first.bring(segments=3)
    kept = first.repository.index.segments()
    assert len(kept) == 3
    second = lives()
    second.bring()
    assert not any(info.first <= number <= info.last for info in kept for number in second.asked)
    assert_whole(source, second, tmp_path)


def test_a_crash_at_any_step_loses_nothing_that_is_needed(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "SEGMENT_BYTES", 30_000)
    at, disk = 0, CrashDisk(0)
    while disk.at is not None:
        disk = CrashDisk()
        life = lives(disk)
        disk.at = len(disk.labels) + at
        try:
            life.bring()
            disk.at = None
        except Crash:
            at += 3
    assert at > 12
    assert_whole(source, life, tmp_path)


def test_where_nobody_tells_the_bases_they_are_fetched_when_they_are_needed(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: LateSource, runs: Sequence[Run]) -> list[Run]:
        return []

    monkeypatch.setattr(LateSource, "bases", silent)
    monkeypatch.setattr(bringing, "MOST_OBJECTS", 4)
    life = lives()
    life.bring()
    assert_whole(source, life, tmp_path)


def test_what_somebody_reads_meanwhile_is_taken_in(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "MOST_OBJECTS", 8)
    monkeypatch.setattr(bringing, "WINDOWS", 1)
    life = lives()
    record, state = source.records[-1], source.history.states[source.records[-1].number]
    with contextlib.closing(life.attachment.bring_all()) as steps:
        for _ in range(8):
            next(steps)
        state.assert_equals(SnapshotTree(life.repository, record.root))
        before = len(life.asked)
        for _ in steps:
            pass
    assert len(life.asked) - before <= 1, "all of it was here, but for the record"
    assert_whole(source, life, tmp_path)


def test_who_is_to_go_slowly_asks_for_little_at_a_time(
    source: SourceVolume, lives: Callable[..., Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    bring = Fetcher.bring

    def counted(self: Fetcher, pointers: Sequence[Pointer]) -> Brought:
        asked.append(len(pointers))
        return bring(self, pointers)

    monkeypatch.setattr(Fetcher, "bring", counted)
    life = lives()
    for _ in life.attachment.bring_all(rate=1 << 20):
        pass
    assert max(asked) <= 2, "an eighth of a second's worth"


def test_what_came_before_a_source_failed_stays(
    source: SourceVolume, lives: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bringing, "MOST_OBJECTS", 8)
    bring, count = Fetcher.bring, itertools.count()

    def failing(self: Fetcher, pointers: Sequence[Pointer]) -> Brought:
        if next(count) >= 10:
            raise OSError(errno.EIO, "it is gone")
        return bring(self, pointers)

    life = lives()
    with monkeypatch.context() as patch:
        patch.setattr(Fetcher, "bring", failing)
        with pytest.raises(OSError, match="it is gone"):
            life.bring()
    before = len(life.asked)
    life.bring()
    assert len(life.asked) == len(set(life.asked)), "nothing was asked for twice"
    assert len(life.asked) > before
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

    for _ in life.attachment.bring_all(supply=supply):
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
    life.bring()
    info = max(life.repository.index.segments(), key=lambda each: each.size)
    with open(info.path, "r+b") as file:
        file.seek(info.size // 3)
        file.write(b"\xff" * 60)
    state = source.history.states[source.records[-1].number]
    life = lives()
    state.assert_equals(SnapshotTree(life.repository, source.records[-1].root))
    assert life.asked
    assert_whole(source, life, tmp_path)
