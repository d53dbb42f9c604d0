"""A fork's volume, without a mount: what it shares, what it takes over, and a crash or a full disk at each act."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.base.errors import UserError
from snapfs.base.settings.config import Config, decode, encode
from snapfs.base.volumes.fork_file import read_fork
from snapfs.base.volumes.volume import Volume
from snapfs.live.database.namespace_rows import INO_LIMIT
from snapfs.store.repository.repository import SnapshotRecord
from snapfs.transfer.restore.fork import INOS_OF_FORK, first_ino, fork
from tests.fakes.disks.crashes import Crash, CrashDisk
from tests.transfer.restore.test_restore_clone import Opened, fill


@pytest.fixture
def opened(volume_dir: Path) -> Iterator[Opened]:
    volume = Opened(Volume.create(str(volume_dir), Disk()))
    yield volume
    volume.close()


def test_only_the_root_is_loaded_and_nothing_is_copied(opened: Opened, tmp_path: Path) -> None:
    fill(opened, random.Random(3))
    record = opened.seal()
    opened.write(opened.make(ROOT_INO, b"later"), 0, b"not in the fork")
    opened.seal()
    report = fork(opened.volume, opened.repository, record, str(tmp_path / "fork"), Disk(), mountpoint="/mnt")
    assert (report.snapshot, report.linked, report.copied) == (record.number, 1, 0)
    note = read_fork(report.path)
    assert note is not None
    assert (note.origin, note.origin_id, note.snapshot) == (opened.volume.path, opened.volume.volume_id, record.number)
    assert read_fork(opened.volume.path) is None
    copy = Opened(Volume.open(report.path, Disk()))
    try:
        assert copy.volume.volume_id != opened.volume.volume_id
        assert copy.tree.names.unloaded_count() == 1
        (own,) = copy.repository.snapshots()
        assert (own.number, own.root) == (record.number, record.root)
        made = copy.make(ROOT_INO, b"its own")
        assert made // INOS_OF_FORK != opened.make(ROOT_INO, b"the origin's") // INOS_OF_FORK
        copy.write(made, 0, b"own")
        record = copy.seal()
        assert record.stats.dirty_bytes == CHUNK_SIZE
        copy.tree.check_invariants()
    finally:
        copy.close()


def test_a_fork_takes_over_how_it_is_shown_and_nothing_that_acts_for_its_origin(tmp_path: Path) -> None:
    settings = {
        "mount": {"allow_other": True}, "control": {"allow": {"snapshot": ["backup", "@operators"], "rollback": []}},
        "snapshots": {"every": "10s"}, "hooks": {"before": ["freeze"]}, "seal": {"threads": 2},
        "replication": {"target": [{"url": "file:///elsewhere"}]},
    }  # fmt: skip
    volume = Opened(Volume.create(str(tmp_path / "origin"), Disk(), settings=settings))
    try:
        report = fork(volume.volume, volume.repository, volume.seal(), str(tmp_path / "fork"), Disk())
    finally:
        volume.close()
    taken = {name: settings[name] for name in ("mount", "control", "seal")} | {"hydration": {"background": False}}
    assert encode(Volume.open(report.path, Disk()).config) == encode(decode(taken, "here"))
    assert Volume.open(report.path, Disk()).config.replication == Config().replication


def test_the_numbers_of_new_inodes_are_a_forks_own() -> None:
    taken = {first_ino(Ino(7)) for _ in range(200)}
    assert all(each % INOS_OF_FORK == 0 and each >= INOS_OF_FORK for each in taken)
    assert len(taken) > 1
    again = {first_ino(Ino(3 * INOS_OF_FORK + 5)) for _ in range(200)}
    assert min(again) > 3 * INOS_OF_FORK + 5
    with pytest.raises(UserError, match="too many times"):
        first_ino(Ino(INO_LIMIT - 5))


def test_a_place_that_is_taken_is_refused(opened: Opened, tmp_path: Path) -> None:
    record = opened.seal()
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="--volume"):
        fork(opened.volume, opened.repository, record, str(tmp_path / "taken"), Disk())


def test_elsewhere_it_is_a_copy(opened: Opened, tmp_path: Path) -> None:
    class Elsewhere(Disk):
        def link(self, label: str, source: str, target: str) -> NoReturn:
            raise OSError(errno.EXDEV, "another filesystem")

    opened.write(opened.make(ROOT_INO, b"file"), 0, b"bytes")
    report = fork(opened.volume, opened.repository, opened.seal(), str(tmp_path / "fork"), Elsewhere())
    assert (report.linked, report.copied) == (0, 1)


def test_a_fork_that_dies_is_whole_or_not_there(opened: Opened, tmp_path: Path) -> None:
    """At every act; and the next one of that name succeeds."""
    opened.write(opened.make(ROOT_INO, b"file"), 0, b"bytes")
    opened.make(ROOT_INO, b"folder", stat.S_IFDIR | 0o755)
    record, place, at = opened.seal(), tmp_path / "fork", 0
    while _dies(opened, record, place, CrashDisk(at)):
        if not place.exists():
            fork(opened.volume, opened.repository, record, str(place), Disk())
        copy = Opened(Volume.open(str(place), Disk()))
        assert copy.tree.read(copy.tree.lookup(ROOT_INO, b"file").ino, 0, 10) == b"bytes"
        copy.close()
        assert read_fork(str(place)) is not None
        shutil.rmtree(place)
        assert os.listdir(tmp_path) == ["volume"]
        at += 1
    assert at > 20


def test_a_full_disk_leaves_nothing(opened: Opened, tmp_path: Path) -> None:
    """At every act."""
    opened.write(opened.make(ROOT_INO, b"file"), 0, random.Random(1).randbytes(3 * CHUNK_SIZE))
    record, place, at = opened.seal(), tmp_path / "fork", 0
    while (why := _refused(opened, record, place, _Full(at))) is not None:
        assert "No space left" in why
        if place.exists():  # the rename is done, and only its sync failed
            shutil.rmtree(place)
        assert os.listdir(tmp_path) == ["volume"]
        at += 1
    assert at > 15


def _dies(opened: Opened, record: SnapshotRecord, place: Path, disk: CrashDisk) -> bool:
    try:
        fork(opened.volume, opened.repository, record, str(place), disk)
    except Crash:
        return True
    shutil.rmtree(place)
    return False


def _refused(opened: Opened, record: SnapshotRecord, place: Path, disk: Disk) -> str | None:
    try:
        fork(opened.volume, opened.repository, record, str(place), disk)
    except (OSError, UserError) as error:
        return str(error)
    return None


class _Full(CrashDisk):
    """Has no room from the n-th act on; what is removed is removed."""

    def _act(self, label: str, half: object = None) -> None:
        self.labels.append(label)
        if len(self.labels) > (self.at or 0) and ":undo" not in label:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
