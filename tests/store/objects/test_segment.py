"""Segments on a real disk: written once, found by number, read by anyone, and every damage noticed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects import segment_reader, segment_writer
from snapfs.store.objects.format import Encoding, Header, ObjectKind
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.objects.segment_writer import SegmentWriter

FIRST = fmt.make_number(Generation(1), 100)
HEADER = Header("ab" * 16, Generation(1), FIRST)


class FullDisk(Disk):
    """Fails every write with ENOSPC while `full`."""

    full = False

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        if self.full:
            os.pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pwrite(label, fd, data, offset)


def payload(i: int) -> bytes:
    return (b"%d " % i) * (i % 50 + 1)


def append(writer: SegmentWriter, i: int, number: int | None = None) -> None:
    data, chosen = payload(i), Number(FIRST + i if number is None else number)
    writer.append(chosen, ObjectKind.CHUNK, Encoding.RAW, 0, Number(0), b"%016d" % i, len(data), data)


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_writer, "WRITE_BUFFER", 1000)
    monkeypatch.setattr(segment_writer, "TABLE_BUFFER", 400)
    monkeypatch.setattr(segment_reader, "CACHED_TABLE", 400)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SegmentWriter]:
    made = SegmentWriter(str(tmp_path), Disk(), HEADER)
    yield made
    made.close()


@pytest.mark.parametrize("count", [1, 9, 10, 11, 500])
@pytest.mark.usefixtures("small_buffers")
def test_what_was_appended_is_found_before_and_after_the_end(tmp_path: Path, writer: SegmentWriter, count: int) -> None:
    for i in range(count):
        append(writer, i)
    for source in (writer, None):
        if source is None:
            size = writer.finish()
            assert size == os.path.getsize(writer.path)
        reader = source or SegmentReader(writer.path)
        for i in range(count):
            row = reader.row(Number(FIRST + i))
            assert row is not None
            assert row.content_hash == b"%016d" % i
            assert reader.frame(row)[fmt.FRAME_BYTES :] == payload(i)
        assert reader.row(Number(FIRST - 1)) is None
        assert reader.row(Number(FIRST + count)) is None
    assert os.listdir(tmp_path) == [fmt.segment_name(FIRST)]


@pytest.mark.usefixtures("small_buffers")
def test_numbers_with_gaps_are_found(writer: SegmentWriter) -> None:
    numbers = [FIRST + i * i * 1000 for i in range(200)]
    for i, number in enumerate(numbers):
        append(writer, i, number)
    writer.finish()
    reader = SegmentReader(writer.path)
    reader.check_table()
    assert [row.number for row in reader.rows()] == numbers
    for i, number in enumerate(numbers):
        row = reader.row(Number(number))
        assert row is not None
        assert row.content_hash == b"%016d" % i
        assert reader.row(Number(number + 1)) is None


def test_memory_of_a_writer_is_bounded(writer: SegmentWriter) -> None:
    data = os.urandom(60000)
    for i in range(100):
        writer.append(Number(FIRST + i), ObjectKind.CHUNK, Encoding.RAW, 0, Number(0), bytes(16), len(data), data)
        assert writer.size - os.fstat(writer._fd).st_size <= segment_writer.WRITE_BUFFER + len(data)


def test_abandoning_leaves_no_file(tmp_path: Path, writer: SegmentWriter) -> None:
    append(writer, 0)
    writer.abandon()
    writer.abandon()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("small_buffers")
def test_a_full_disk_ends_in_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    disk = FullDisk()
    writer = SegmentWriter(str(tmp_path), disk, HEADER)
    append(writer, 0)
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        for i in range(1, 100):
            append(writer, i)
    row = writer.row(FIRST)
    assert row is not None
    disk.full = False
    assert writer.frame(row)[fmt.FRAME_BYTES :] == payload(0)
    writer.abandon()
    assert os.listdir(tmp_path) == []


def finished(writer: SegmentWriter) -> Path:
    for i in range(20):
        append(writer, i)
    writer.finish()
    return Path(writer.path)


def test_every_cut_off_end_is_noticed(writer: SegmentWriter) -> None:
    path = finished(writer)
    whole = path.read_bytes()
    for size in [0, 1, 63, 64, 200, len(whole) // 2, *range(len(whole) - 100, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptionError):
            SegmentReader(str(path))
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptionError):
        SegmentReader(str(path))


def test_a_damaged_table_is_noticed(writer: SegmentWriter) -> None:
    path = finished(writer)
    damaged = bytearray(path.read_bytes())
    damaged[-fmt.TRAILER_BYTES - 30] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(CorruptionError, match="wrong SHA-256"):
        SegmentReader(str(path)).check_table()


def test_a_trailer_of_another_segment_is_noticed(tmp_path: Path, writer: SegmentWriter) -> None:
    path = finished(writer)
    whole = path.read_bytes()
    other = fmt.pack_header(HEADER._replace(first=Number(FIRST + 1)))
    path.write_bytes(other + whole[len(other) :])
    with pytest.raises(CorruptionError, match="another segment"):
        SegmentReader(str(path))


def test_the_table_without_a_name_vanishes_with_the_writer(tmp_path: Path, small_buffers: None) -> None:
    writer = SegmentWriter(str(tmp_path), Disk(), HEADER)
    for i in range(100):
        append(writer, i)
    assert os.listdir(tmp_path) == [os.path.basename(writer.unfinished_path)]
    writer.abandon()
    assert os.listdir(tmp_path) == []
