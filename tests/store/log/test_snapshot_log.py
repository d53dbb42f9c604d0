"""snapshots.log: torn tails, broken chains, later versions, failed appends, and a reader beside the writer."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError, VersionError
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.objects.format import VERSION


class FailingDisk(Disk):
    """Fails the acts whose label is in `failing`, after half of a write."""

    def __init__(self) -> None:
        self.failing: set[str] = set()

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        if label in self.failing:
            os.pwrite(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "full")
        super().pwrite(label, fd, data, offset)

    def fdatasync(self, label: str, fd: int) -> None:
        if label in self.failing:
            raise OSError(errno.EIO, "broken")
        super().fdatasync(label, fd)

    def truncate(self, label: str, fd: int, size: int) -> None:
        if label in self.failing:
            raise OSError(errno.EIO, "broken")
        super().truncate(label, fd, size)


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def path(tmp_path: Path, disk: Disk) -> Path:
    path = tmp_path / "snapshots.log"
    clock = itertools.count(1000)
    SnapshotLog.create(str(path), disk, "ab" * 16, lambda: next(clock))
    return path


@pytest.fixture
def log(path: Path, disk: Disk) -> Iterator[SnapshotLog]:
    clock = itertools.count(2000)
    log = SnapshotLog(str(path), disk, readonly=False, clock=lambda: next(clock))
    list(log.follow())
    yield log
    log.close()


def kinds(path: Path) -> list[str]:
    log = SnapshotLog(str(path), Disk(), readonly=True)
    try:
        return [event.kind for event in log.follow()]
    finally:
        log.close()


def test_each_line_names_the_hash_of_the_one_before(path: Path, log: SnapshotLog) -> None:
    log.append("mounted", {"by": "test"})
    log.append("unmounted", {})
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0]) == {
        "kind": "created", "time_ns": 1000, "format": VERSION, "volume": "ab" * 16, "prev": "",
        "sum": xxhash.xxh3_64_hexdigest(lines[0].partition(b',"sum":')[0]),
    }  # fmt: skip
    assert json.loads(lines[1])["prev"] == hashlib.sha256(lines[0]).hexdigest()
    assert json.loads(lines[2])["prev"] == hashlib.sha256(lines[1]).hexdigest()
    assert [(event.kind, event.time_ns, event.fields) for event in log.events()][1:] == [
        ("mounted", 2000, {"by": "test"}), ("unmounted", 2001, {})
    ]  # fmt: skip


def test_every_torn_tail_is_passed_over_by_a_reader_and_cut_by_a_writer(path: Path, log: SnapshotLog) -> None:
    log.append("mounted", {})
    end = path.with_name("snapshots.end")
    good, witnessed = path.read_bytes(), end.read_bytes()
    log.append("unmounted", {})
    whole = path.read_bytes()
    end.write_bytes(witnessed)  # a line that was not finished was never witnessed
    for size in range(len(good) + 1, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert kinds(path) == ["created", "mounted"]
        again = SnapshotLog(str(path), Disk(), readonly=False)
        list(again.follow())
        finding = again.cut_torn_tail()
        again.close()
        assert finding is not None
        assert f"{size - len(good)} bytes" in finding
        assert path.read_bytes() == good


def test_a_line_that_lacks_only_its_newline_counts_and_gets_it(path: Path, log: SnapshotLog) -> None:
    log.append("mounted", {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert kinds(path) == ["created", "mounted"]
    again = SnapshotLog(str(path), Disk(), readonly=False)
    list(again.follow())
    assert again.cut_torn_tail() == "snapshots.log: the newline at its end was missing"
    again.append("unmounted", {})
    again.close()
    assert path.read_bytes().startswith(whole)
    assert kinds(path) == ["created", "mounted", "unmounted"]


def test_a_broken_chain_names_the_line_and_nothing_is_touched(path: Path, log: SnapshotLog) -> None:
    for _ in range(3):
        log.append("mounted", {})
    broken = path.read_bytes().replace(b'"time_ns":2001', b'"time_ns":2009')
    path.write_bytes(broken)
    with pytest.raises(CorruptionError, match="line 3.*wrong checksum"):
        kinds(path)
    assert path.read_bytes() == broken


def test_a_line_that_is_no_record_is_a_corruption(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(CorruptionError, match="line 2"):
        kinds(path)


def test_a_missing_beginning_is_noticed(path: Path, log: SnapshotLog) -> None:
    log.append("mounted", {})
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(CorruptionError):
        kinds(path)


def test_a_later_version_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(VersionError, match="format version 2"):
        kinds(path)


def test_a_missing_log_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        SnapshotLog(str(tmp_path / "none"), Disk(), readonly=True)


@pytest.mark.parametrize("label", ["log:append", "log:sync"])
def test_a_failed_append_is_taken_back(path: Path, log: SnapshotLog, disk: FailingDisk, label: str) -> None:
    before = path.read_bytes()
    disk.failing = {label}
    with pytest.raises(OSError, match=r"full|broken"):
        log.append("mounted", {"x": 1})
    assert path.read_bytes() == before
    disk.failing = set()
    log.append("mounted", {"x": 2})
    assert [event.fields.get("x") for event in log.events()] == [None, 2]


def test_when_nothing_can_be_taken_back_nothing_more_is_appended(
    path: Path, log: SnapshotLog, disk: FailingDisk
) -> None:
    disk.failing = {"log:sync", "log:cut"}
    with pytest.raises(OSError, match="broken"):
        log.append("mounted", {})
    disk.failing = set()
    with pytest.raises(OSError, match="open the volume again"):
        log.append("mounted", {})
    assert log.broken


def test_a_reader_follows_what_a_writer_appends(path: Path, log: SnapshotLog) -> None:
    reader = SnapshotLog(str(path), Disk(), readonly=True)
    seen = [event.kind for event in reader.follow()]
    log.append("one", {})
    with path.open("ab") as file:
        file.write(b'{"kind":"half')
    seen += [event.kind for event in reader.follow()]
    log.append("two", {})
    seen += [event.kind for event in reader.follow()]
    seen += [event.kind for event in reader.follow()]
    reader.close()
    assert seen == ["created", "one", "two"]
