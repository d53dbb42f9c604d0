"""The write-intent log: what is written comes back, a torn tail does not, and listings never lapse too early."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Epoch, Ino
from snapfs.base.errors import VersionError
from snapfs.live.intents.dirty_map import DirtyMap
from snapfs.live.intents.intent_records import (
    HEADER_SIZE,
    RECORD_SIZE,
    IntentKind,
    pack_header,
    read_log,
    record,
    records_of,
)
from snapfs.live.intents.intents import Intents


@pytest.fixture
def intents(tmp_path: Path) -> Iterator[Intents]:
    made = Intents(str(tmp_path), Disk(), "boot", threading.Lock())
    made.logs.append(made.new_log(Epoch(1), Ino(100)))
    yield made
    made.close(clean=False)


def next_log(intents: Intents, new_from: int) -> None:
    intents.logs.append(intents.new_log(Epoch(intents.current.epoch + 1), Ino(new_from)))


def test_what_is_written_comes_back(intents: Intents) -> None:
    dirty = DirtyMap()
    dirty.mark(100_000, 200_000)
    dirty.lower(9, 12)
    intents.append(*records_of(Ino(7), dirty))
    intents.append(*records_of(Ino(8), DirtyMap(0, whole=True)), record(IntentKind.TIMES, 9))
    story = read_log(intents.current.path)
    assert story is not None
    assert (story.boot_id, story.epoch, story.new_from, story.clean, story.sealed) == ("boot", 1, 100, False, False)
    found = dict(story.changed())
    assert found.keys() == {7, 8, 9}
    assert (found[Ino(7)].masks, found[Ino(7)].floor, found[Ino(7)].reach) == (dirty.masks, 9, 12)
    assert found[Ino(8)].whole
    assert found[Ino(9)].is_clean()


@pytest.mark.parametrize("damage", ["short", "flipped", "zeros"])
def test_a_torn_tail_ends_the_log(intents: Intents, damage: str) -> None:
    intents.append(
        record(IntentKind.BLOCKS, 1, 0, 1), record(IntentKind.BLOCKS, 2, 0, 1), record(IntentKind.BLOCKS, 3, 0, 1)
    )
    at = HEADER_SIZE + RECORD_SIZE
    if damage == "short":
        os.truncate(intents.current.path, at + 5)
    else:
        os.pwrite(intents.current.fd, bytes(2 * RECORD_SIZE) if damage == "zeros" else b"\xff", at + 3)
    story = read_log(intents.current.path)
    assert story is not None
    assert list(story.files) == [1]


def test_a_torn_header_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"SNAPINT\0 and not much else")
    assert read_log(str(path)) is None


def test_a_later_version_is_refused(intents: Intents, monkeypatch: pytest.MonkeyPatch) -> None:
    later = functools.partial(pack_header, version=2)
    monkeypatch.setattr("snapfs.live.intents.intent_log.pack_header", later)
    next_log(intents, 200)
    with pytest.raises(VersionError, match="use a newer snapfs"):
        read_log(intents.current.path)


def test_a_listing_is_durable_before_it_counts(intents: Intents) -> None:
    assert not intents.is_listed(Ino(5))
    assert intents.is_listed(Ino(100))  # new since
    intents.list_file(Ino(5))
    assert intents.is_listed(Ino(5))
    assert intents.current.durable == intents.current.end
    next_log(intents, 200)
    assert intents.is_listed(Ino(5))
    assert intents.is_listed(Ino(150))


def test_retiring_lists_hot_files_again_and_settles_the_others(intents: Intents) -> None:
    for ino in (5, 6, 7, 8):
        intents.list_file(Ino(ino))
    old = intents.current
    next_log(intents, 200)
    assert not intents.retirable()
    intents.mark_sealed(Epoch(1))
    settled: list[tuple[set[Ino], int, int]] = []
    dirty = [Ino(6), Ino(300)]
    intents.retire(intents.retirable(), {5}.__contains__, lambda: dirty, lambda *args: settled.append(args))
    assert settled == [({7, 8}, 100, 200)]
    assert [ino for ino in (5, 6, 7, 8, 150, 200) if intents.is_listed(Ino(ino))] == [5, 6, 200]
    assert not os.path.exists(old.path)
    story = read_log(intents.current.path)
    assert story is not None
    assert story.files.keys() == {5, 6}
    assert not list(story.changed())  # listed is not changed


def test_a_file_that_changes_while_its_listing_retires_is_listed_again(intents: Intents) -> None:
    intents.list_file(Ino(5))
    next_log(intents, 200)
    intents.mark_sealed(Epoch(1))

    def settle(files: set[Ino], new_from: Ino, upto: Ino) -> None:
        with intents.latch:
            assert intents.may_change(Ino(5))

    intents.retire(intents.retirable(), lambda ino: False, list, settle)
    assert intents.is_listed(Ino(5))
    assert intents.current.durable == intents.current.end


def test_a_file_that_begins_to_change_as_its_listing_retires_is_listed_again(intents: Intents) -> None:
    """A file that begins before `dirty` is called is found there; one that begins later is watched."""
    intents.list_file(Ino(5))
    next_log(intents, 200)
    intents.mark_sealed(Epoch(1))

    def dirty() -> list[Ino]:
        found: list[Ino] = []
        with intents.latch:
            assert intents.may_change(Ino(5))  # by another thread, when all that were dirty have been counted
        return found

    intents.retire(intents.retirable(), lambda ino: False, dirty, lambda *args: None)
    assert intents.is_listed(Ino(5))


def test_a_log_that_retired_writes_into_no_other_file(intents: Intents, tmp_path: Path) -> None:
    """Who was waiting for it when it went may still hold it; its descriptor means another file by then."""
    old = intents.current
    next_log(intents, 200)
    intents.logs.remove(old)
    number = old.fd
    old.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    try:
        assert other == number
        with pytest.raises(OSError, match="closed"):
            old.append(record(IntentKind.LIST, 8))
        old.flush()
        assert os.fstat(other).st_size == 0
    finally:
        os.close(other)


def test_a_failed_append_leaves_nothing(intents: Intents, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(label: str, fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[:10], offset)
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(intents.disk, "pwrite", fail)
        with pytest.raises(OSError, match="full"):
            intents.append(record(IntentKind.BLOCKS, 1, 0, 1))
    intents.append(record(IntentKind.BLOCKS, 2, 0, 1))
    story = read_log(intents.current.path)
    assert story is not None
    assert list(story.files) == [2]


def test_callers_share_a_flush(intents: Intents, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = 0
    gate = threading.Barrier(8)
    flush = intents.disk.fdatasync

    def count(label: str, fd: int) -> None:
        nonlocal flushes
        flushes += 1
        flush(label, fd)

    def list_one(ino: int) -> None:
        gate.wait()
        intents.list_file(Ino(ino))

    monkeypatch.setattr(intents.disk, "fdatasync", count)
    threads = [threading.Thread(target=list_one, args=(ino,)) for ino in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert flushes <= 8
    assert all(intents.is_listed(Ino(ino)) for ino in range(1, 9))
    assert intents.current.durable == intents.current.end
