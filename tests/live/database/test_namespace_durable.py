"""What sync promises, what a power cut leaves, how the WAL is kept short, and what a failing disk does."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Epoch, Ino
from snapfs.live.database import checkpointer, wal
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.writer import unsynced_inodes
from tests.fakes.patience import PATIENCE_S

FILE, DIR = 0o100644, 0o040755


class WatchedDisk(Disk):
    """Counts the syncs of the WAL, keeps what was durable after each, can hold one up or fail it."""

    def __init__(self) -> None:
        self.syncs = 0
        self.durable = b""
        self.failure: int | None = None
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def fdatasync(self, label: str, fd: int) -> None:
        if label == "namespace:wal":
            self.entered.set()
            self.go_on.wait()
            if self.failure is not None:
                raise OSError(self.failure, os.strerror(self.failure))
            self.syncs += 1
            self.durable = os.pread(fd, os.fstat(fd).st_size, 0)
        super().fdatasync(label, fd)


@pytest.fixture
def disk() -> WatchedDisk:
    return WatchedDisk()


@pytest.fixture
def ns(tmp_path: Path, disk: WatchedDisk) -> Iterator[Namespace]:
    namespace = Namespace(str(tmp_path / "namespace.db"), disk)
    yield namespace
    namespace.close()


def make(ns: Namespace, first: int, stop: int) -> list[Ino]:
    return [ns.create(ROOT_INO, b"%d" % i, FILE, 0, 0).ino for i in range(first, stop)]


# -- which inodes need a sync


def test_needs_sync_follows_each_inode_an_operation_changes(ns: Namespace) -> None:
    folder = ns.create(ROOT_INO, b"d", DIR, 0, 0).ino
    a, b = make(ns, 0, 2)
    assert all(ns.needs_sync(ino) for ino in (ROOT_INO, folder, a, b))
    ns.sync()
    assert not any(ns.needs_sync(ino) for ino in (ROOT_INO, folder, a, b))
    ns.setattr(a, uid=1)
    assert [ns.needs_sync(ino) for ino in (ROOT_INO, folder, a, b)] == [False, False, True, False]
    ns.rename(ROOT_INO, b"1", folder, b"x")
    assert [ns.needs_sync(ino) for ino in (ROOT_INO, folder, a, b)] == [True, True, True, True]
    ns.sync()
    ns.setxattr(b, b"user.x", b"1")
    ns.link(a, folder, b"y")
    assert [ns.needs_sync(ino) for ino in (ROOT_INO, folder, a, b)] == [False, True, True, True]


def test_needs_sync_forgets_what_is_durable_and_never_what_is_not(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsynced_inodes, "REMEMBERED_CHANGES", 8)
    first = make(ns, 0, 100)
    assert all(ns.needs_sync(ino) for ino in first)
    ns.sync()
    assert not any(ns.needs_sync(ino) for ino in first)
    second = make(ns, 100, 104)
    assert all(ns.needs_sync(ino) for ino in second)
    assert len(ns._writer.unsynced.changed_at) <= 9


def test_a_refused_operation_needs_no_sync(ns: Namespace, disk: WatchedDisk) -> None:
    make(ns, 0, 1)
    ns.sync()
    with pytest.raises(FileExistsError):
        make(ns, 0, 1)
    assert not ns.needs_sync(ROOT_INO)
    ns.sync()
    assert disk.syncs == 1


# -- sync


def test_callers_share_a_flush(ns: Namespace, disk: WatchedDisk) -> None:
    """While one flush runs, eight more callers come; the next one serves them all."""
    make(ns, 0, 1)
    disk.go_on.clear()
    threads = [threading.Thread(target=ns.sync)]
    threads[0].start()
    disk.entered.wait()
    make(ns, 1, 2)
    threads += [threading.Thread(target=ns.sync) for _ in range(8)]
    for thread in threads[1:]:
        thread.start()
    assert ns.needs_sync(ROOT_INO)
    disk.go_on.set()
    for thread in threads:
        thread.join()
    assert disk.syncs == 2
    assert not ns.needs_sync(ROOT_INO)


def test_a_cut_is_durable_before_its_changes_are_given(ns: Namespace, disk: WatchedDisk) -> None:
    make(ns, 0, 3)
    frozen = ns.cut(ns.epoch)
    assert disk.syncs == 0
    assert len(list(frozen.changed())) == 4
    assert disk.syncs == 1
    frozen.close()


def test_after_a_failed_sync_nothing_is_called_durable(ns: Namespace, disk: WatchedDisk) -> None:
    make(ns, 0, 1)
    disk.failure = errno.EIO
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output") as caught:
            ns.sync()
        assert caught.value.errno == errno.EIO
        disk.failure = None
    assert ns.needs_sync(ROOT_INO)
    assert disk.syncs == 0
    make(ns, 1, 2)
    assert len(ns.readdir(ROOT_INO, 0, 9)) == 2


@pytest.mark.parametrize("seed", range(20))
def test_a_power_cut_leaves_what_was_synced_and_whole_operations(
    tmp_path: Path, ns: Namespace, disk: WatchedDisk, seed: int
) -> None:
    """Of the sectors written since the last sync, any may have reached the disk."""
    chance = random.Random(seed)
    synced, made = chance.randrange(1, 40), 60
    make(ns, 0, synced)
    ns.sync()
    make(ns, synced, made)
    image = tmp_path / "image"
    image.mkdir()
    (image / "namespace.db").write_bytes(Path(ns.path).read_bytes())
    written = Path(f"{ns.path}-wal").read_bytes()
    assert len(written) == len(disk.durable) >= wal.RESERVE_BYTES
    mixed = bytearray(disk.durable)
    survival = chance.choice([0.5, 0.9, 0.99])
    for start in range(0, ns.wal_bytes() + 4096, 512):
        if chance.random() < survival:
            mixed[start : start + 512] = written[start : start + 512]
    (image / "namespace.db-wal").write_bytes(mixed)
    after = Namespace(str(image / "namespace.db"), Disk())
    after.check_invariants()
    names = [entry.name for entry in after.readdir(ROOT_INO, 0, 1000)]
    assert synced <= len(names) <= made
    assert names == [b"%d" % i for i in range(len(names))]
    after.close()


# -- the length of the WAL


def test_the_wal_starts_over_under_a_writer_that_never_pauses(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "CHECKPOINT_AT_BYTES", 100 << 10)
    monkeypatch.setattr(checkpointer, "FORCE_AT_BYTES", 200 << 10)
    stop = threading.Event()

    def keep_short() -> None:
        while not stop.is_set():
            ns.checkpoint()

    thread = threading.Thread(target=keep_short)
    thread.start()
    shrank = made = 0
    patience = time.monotonic() + PATIENCE_S
    while made < 4000 or not (shrank or time.monotonic() > patience):
        before = ns.wal_bytes()
        make(ns, made, made + 1)
        made += 1
        shrank += ns.wal_bytes() < before
    stop.set()
    thread.join()
    assert shrank >= 1
    ns.check_invariants()
    assert len(ns.readdir(ROOT_INO, 0, made + 1)) == made


def test_the_wal_waits_for_a_frozen_namespace(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "CHECKPOINT_AT_BYTES", 0)
    make(ns, 0, 5)
    frozen = ns.cut(ns.epoch)
    make(ns, 5, 50)
    long = ns.wal_bytes()
    ns.checkpoint()
    make(ns, 50, 51)
    assert ns.wal_bytes() > long
    assert len(list(frozen.entries(ROOT_INO))) == 5
    frozen.close()
    ns.checkpoint()
    make(ns, 51, 52)
    assert ns.wal_bytes() < long


def test_rows_of_sealed_epochs_go_little_by_little(ns: Namespace) -> None:
    ns.cut(ns.epoch).close()
    ns.mark_sealed(Epoch(1))
    make(ns, 0, 1000)
    rows = ns._writer.rows("SELECT count(*) FROM touched")
    assert rows == [(1000,)]
    frozen = ns.cut(ns.epoch)
    frozen.close()
    ns.mark_sealed(frozen.epoch)
    assert not ns.has_changes()
    make(ns, 1000, 1300)
    assert ns._writer.rows("SELECT count(*) FROM touched WHERE epoch <= 2") == [(0,)]


def test_a_clean_close_gives_back_unused_numbers(tmp_path: Path) -> None:
    path = str(tmp_path / "again.db")
    for expected in (2, 3):
        ns = Namespace(path, Disk())
        assert ns.create(ROOT_INO, b"%d" % expected, FILE, 0, 0).ino == expected
        ns.close()
        assert not Path(f"{path}-wal").exists()
