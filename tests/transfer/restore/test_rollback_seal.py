"""What the model does not check of a seal and a rollback: their words, their progress, and what is worth storing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino
from snapfs.base.errors import BusyError, SnapshotError
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.transfer.restore.rollback import Rollback, RollbackReport, roll_back
from snapfs.transfer.seal.sealer import seal


class Filling(Disk):
    """A disk that can be full."""

    full = False

    def append(self, label: str, fd: int, data: bytes) -> None:
        if self.full and label.startswith("seal:"):
            raise OSError(errno.ENOSPC, "No space left on device", label)
        super().append(label, fd, data)

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        if self.full and label.startswith("seal:"):
            raise OSError(errno.ENOSPC, "No space left on device", label)
        super().pwrite(label, fd, data, offset)


class Bench:
    def __init__(self, folder: Path) -> None:
        (folder / "live").mkdir(parents=True)
        self.disk = Filling()
        self.repository = Repository.create(str(folder / "store"), StoreIdentity("ab" * 16, 1), self.disk)
        names = Namespace(str(folder / "live/namespace.db"), self.disk)
        self.tree = LiveTree(str(folder / "live"), names, self.disk, boot_id="boot")
        self.steps: list[tuple[int, int]] = []

    def file(self, name: bytes, data: bytes) -> Ino:
        ino = self.tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o644, 0, 0, 0).ino
        self.write(ino, 0, data)
        return ino

    def write(self, ino: Ino, offset: int, data: bytes) -> None:
        while not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        self.tree.write(ino, offset, data)

    def seal(self, name: str | None = None) -> SnapshotRecord:
        record = seal(
            self.tree.cut(), self.repository, self.repository.latest(), generation=Generation(1), name=name,
            progress=lambda *step: self.steps.append(step),
        )  # fmt: skip
        self.tree.tidy()
        return record

    def roll_back(self, target: SnapshotRecord, force: bool = False) -> RollbackReport:
        return roll_back(
            self.tree, self.repository, target, self.disk, parent=self.repository.latest(),
            generations=(Generation(1), Generation(1)), force=force,
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path / "volume")
    yield found
    found.tree.close()
    found.repository.close()


def test_a_full_disk_is_reported_and_loses_nothing(bench: Bench) -> None:
    bench.file(b"file", os.urandom(40 * CHUNK_SIZE))
    bench.disk.full = True
    with pytest.raises(SnapshotError, match="no space is left") as failed:
        bench.seal()
    assert failed.value.errno == errno.ENOSPC
    assert bench.repository.snapshots() == []
    bench.disk.full = False
    assert bench.seal().stats.dirty_bytes == 40 * CHUNK_SIZE


def test_a_name_that_is_taken_is_refused_before_the_work(bench: Bench) -> None:
    bench.file(b"file", b"1")
    bench.seal("one")
    with pytest.raises(SnapshotError, match="one"):
        bench.seal("one")
    assert bench.seal("two").name == "two"


def test_progress_reports_bytes(bench: Bench) -> None:
    bench.file(b"file", os.urandom(50 * CHUNK_SIZE))
    bench.seal()
    assert bench.steps[-1] == (50 * CHUNK_SIZE, 50 * CHUNK_SIZE)
    assert bench.steps == sorted(bench.steps)


def test_nothing_is_stored_for_what_equals_the_parent(bench: Bench) -> None:
    data = os.urandom(30 * CHUNK_SIZE)
    ino = bench.file(b"file", data)
    bench.seal()
    bench.write(ino, 0, data)
    again = bench.seal()
    assert again.stats.dirty_bytes == 30 * CHUNK_SIZE
    assert again.stats.stored_bytes < 4096


def test_a_file_renamed_over_another_is_stored_against_it(bench: Bench) -> None:
    """Shifted by some bytes, as a dump whose values have changed their lengths."""
    data = os.urandom(60 * CHUNK_SIZE)
    bench.file(b"dump", data)
    bench.seal()
    bench.file(b"dump.new", data[:5000] + b"inserted" * 100 + data[5000:])
    bench.tree.rename(ROOT_INO, b"dump.new", ROOT_INO, b"dump")
    assert bench.seal().stats.stored_bytes < len(data) // 20


def test_an_unlinked_and_rewritten_file_is_stored_against_the_old_one(bench: Bench) -> None:
    data = os.urandom(60 * CHUNK_SIZE)
    bench.file(b"dump", data)
    bench.seal()
    bench.tree.unlink(ROOT_INO, b"dump")
    bench.file(b"dump", data[:5000] + b"inserted" * 100 + data[5000:])
    assert bench.seal().stats.stored_bytes < len(data) // 20


def test_files_open_for_writing_hold_a_rollback_off(bench: Bench) -> None:
    ino = bench.file(b"file", b"before")
    target = bench.seal()
    bench.write(ino, 0, b"behind")
    bench.tree.open(ino, True)
    with pytest.raises(BusyError, match="open for writing"):
        bench.roll_back(target)
    report = bench.roll_back(target, force=True)
    assert (report.kept, report.now, report.files) == (2, 3, 1)
    assert bench.tree.read(ino, 0, 10) == b"before"
    bench.tree.release(ino, True)


def test_a_rollback_shares_everything_with_its_target(bench: Bench) -> None:
    ino = bench.file(b"file", os.urandom(20 * CHUNK_SIZE))
    target = bench.seal()
    bench.write(ino, 0, os.urandom(20 * CHUNK_SIZE))
    bench.roll_back(target)
    now = bench.repository.latest()
    assert now is not None
    assert now.parent == target.number
    assert now.stats.stored_bytes < 4096
    assert not bench.tree.has_changes()


def test_the_turn_waits_for_a_tree_that_stands_still(bench: Bench) -> None:
    ino = bench.file(b"file", b"one")
    target = bench.seal()
    bench.write(ino, 0, b"two")
    present = bench.seal()
    rollback = Rollback(bench.tree, bench.repository, present, target, bench.disk)
    rollback.stage(2)
    bench.write(ino, 0, b"new")
    with pytest.raises(BusyError):
        rollback.turn()
    rollback.close()
    assert os.listdir(bench.tree.staging) == []
    assert bench.tree.read(ino, 0, 3) == b"new"


def test_the_kernel_is_notified_what_to_forget(bench: Bench) -> None:
    bench.file(b"stays", b"1")
    target = bench.seal()
    gone = bench.file(b"goes", b"2")
    present = bench.seal()
    rollback = Rollback(bench.tree, bench.repository, present, target, bench.disk)
    assert list(rollback.invalid()) == [(ROOT_INO, [b"goes"]), (gone, [])]
    rollback.close()
