"""The list of segments: found by number, followed while another process merges, few of them open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation, Number
from snapfs.base.errors import CorruptionError, UserError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.dedup import Dedup
from snapfs.store.objects.format import Encoding, Header, ObjectKind, Pointer
from snapfs.store.objects.segment_index import SegmentIndex
from snapfs.store.objects.segment_writer import SegmentWriter

ONE = Generation(1)


def write(folder: Path, first: int, count: int, size: int = 10) -> Path:
    """A segment of `count` objects from counter `first` on."""
    start = fmt.make_number(ONE, first)
    writer = SegmentWriter(str(folder), Disk(), Header("ab" * 16, ONE, start))
    for number in range(start, start + count):
        content_hash = number.to_bytes(16, "little")
        writer.append(Number(number), ObjectKind.CHUNK, Encoding.RAW, 0, Number(0), content_hash, size, bytes(size))
    writer.finish()
    writer.close()
    return Path(writer.path)


def number(counter: int) -> Number:
    return fmt.make_number(ONE, counter)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for first in (1, 11, 21, 41):
        write(tmp_path, first, 10)
    return tmp_path


@pytest.fixture
def index(folder: Path) -> Iterator[SegmentIndex]:
    made = SegmentIndex(str(folder), max_open=2)
    yield made
    made.check_invariants()
    made.close()


def test_every_object_is_found_and_no_other(index: SegmentIndex) -> None:
    for counter in [*range(1, 31), *range(41, 51)]:
        assert index.locate(number(counter))[1].number == number(counter)
    for counter in (31, 40, 51, 1 << 40):
        assert index.find(number(counter)) is None
        assert index.peek(number(counter)) is None
        with pytest.raises(CorruptionError, match="no segment holds it"):
            index.locate(number(counter))


def test_a_segment_added_by_another_process_is_found(index: SegmentIndex, folder: Path) -> None:
    write(folder, 51, 5)
    assert index.peek(number(53)) is None
    assert index.locate(number(53))[1].number == number(53)


def test_merging_under_a_reader_does_no_harm(index: SegmentIndex, folder: Path) -> None:
    index.locate(number(5))
    index.locate(number(25))
    write(folder, 1, 30)  # by a rename over the first of them
    for first in (11, 21):
        (folder / fmt.segment_name(number(first))).unlink()
    for counter in range(1, 31):
        assert index.locate(number(counter))[1].number == number(counter)
    assert [info.first for info in index.segments()] == [number(1), number(41)]


def test_the_old_descriptor_of_a_replaced_segment_is_not_kept(index: SegmentIndex, folder: Path) -> None:
    index.locate(number(5))
    write(folder, 1, 10, size=20)
    index.refresh()
    assert index.locate(number(5))[1].stored == 20


def test_readers_outlive_their_eviction(index: SegmentIndex) -> None:
    before = len(os.listdir("/proc/self/fd"))
    source, row = index.locate(number(1))
    for counter in (11, 21, 41):
        index.locate(number(counter))
    assert source.frame(row)[fmt.FRAME_BYTES :] == bytes(10)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del source
    assert len(os.listdir("/proc/self/fd")) == before + 2


def test_foreign_files_are_passed_over_and_foreign_segments_named(index: SegmentIndex, folder: Path) -> None:
    (folder / "README").write_text("hello")
    index.refresh()
    assert len(index.segments()) == 4
    shutil.copy(folder / fmt.segment_name(number(1)), folder / "copy of it.seg")
    with pytest.raises(CorruptionError, match=r"copy of it\.seg"):
        index.refresh()
    (folder / "copy of it.seg").unlink()
    index.refresh()


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        SegmentIndex(str(tmp_path / "none"), 4)


def test_dedup_finds_what_it_was_filled_with_and_forgets_gracefully(index: SegmentIndex, folder: Path) -> None:
    dedup = Dedup(index, slots=1 << 10)
    content_hashes = {counter: number(counter).to_bytes(16, "little") for counter in range(1, 31)}
    assert dedup.find(ObjectKind.CHUNK, content_hashes[5]) is None
    dedup.fill(1000)
    for counter, content_hash in content_hashes.items():
        assert dedup.find(ObjectKind.CHUNK, content_hash) == Pointer(number(counter), content_hash)
        assert dedup.find(ObjectKind.DIR_PAGE, content_hash) is None
    dedup.set_floor(number(20))
    assert dedup.find(ObjectKind.CHUNK, content_hashes[20]) is None
    assert dedup.find(ObjectKind.CHUNK, content_hashes[21]) is not None
    for info in index.segments():
        Path(info.path).unlink()
    index.refresh()
    assert dedup.find(ObjectKind.CHUNK, content_hashes[21]) is None


def test_dedup_is_bounded_and_a_newer_object_takes_the_slot(index: SegmentIndex) -> None:
    dedup = Dedup(index, slots=1)
    one, two = (number(counter).to_bytes(16, "little") for counter in (1, 2))
    dedup.add(one, number(1))
    dedup.add(two, number(2))
    assert dedup.find(ObjectKind.CHUNK, one) is None
    assert dedup.find(ObjectKind.CHUNK, two) == Pointer(number(2), two)
