"""How many flushes an fsync of a new file takes: where the host filesystem is known to need fewer, and where not."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.live.backing import host_filesystem
from snapfs.live.database import wal_files
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.disks.sync_hooks import SyncHookDisk

pytestmark = pytest.mark.usefixtures("data_path")
KNOWN = pytest.mark.parametrize("known", [True], indirect=True)


class WatchedDisk(SyncHookDisk):
    """Notes what is synced, by label; `before` is called first."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.before: Callable[[str], None] = lambda label: None

    def before_sync(self, label: str) -> None:
        self.before(label)
        self.labels.append(label)


@pytest.fixture(params=[True, False], ids=["known", "unknown"])
def known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the host filesystem is taken for ext4, whatever it is."""
    monkeypatch.setattr(host_filesystem, "is_ext4", lambda path: request.param)
    monkeypatch.setattr(host_filesystem, "overwrites_in_place", lambda fd: request.param)
    return bool(request.param)


@pytest.fixture
def disk() -> WatchedDisk:
    return WatchedDisk()


@pytest.fixture
def tree(tmp_path: Path, disk: WatchedDisk, known: bool) -> Iterator[LiveTree]:
    names = Namespace(str(tmp_path / "namespace.db"), disk)
    tree = LiveTree(str(tmp_path), names, disk, boot_id="boot")
    disk.labels.clear()
    yield tree
    tree.close(clean=False)


def make(tree: LiveTree, name: bytes = b"a") -> Ino:
    ino = tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino
    tree.write(ino, 0, b"x")
    return ino


def test_a_new_file_takes_one_flush_where_that_will_do(tree: LiveTree, disk: WatchedDisk, known: bool) -> None:
    tree.fsync(make(tree), True)
    one = ["namespace:write_out", "backing:sync"]
    assert disk.labels == (one if known else ["backing:sync", "backing:name", "namespace:wal"])
    disk.labels.clear()
    tree.fsyncdir(ROOT_INO)
    assert disk.labels == []


def test_a_change_of_a_row_alone(tree: LiveTree, disk: WatchedDisk, known: bool) -> None:
    ino = make(tree)
    tree.fsync(ino)
    tree.setattr(ino, mode=0o644)
    disk.labels.clear()
    tree.fsync(ino, True)
    assert disk.labels == (["namespace:write_out", "backing:sync"] if known else ["backing:sync", "namespace:wal"])


@KNOWN
def test_beyond_what_was_filled_the_log_is_synced_itself(tree: LiveTree, disk: WatchedDisk) -> None:
    tree.names._wal._firm_bytes = wal_files.HEADER_BYTES + wal_files.FRAME_SIZE
    tree.fsync(make(tree), True)
    assert disk.labels == ["backing:sync", "namespace:wal"]


@KNOWN
def test_a_flush_that_fails_makes_no_name_durable(tree: LiveTree, disk: WatchedDisk) -> None:
    ino = make(tree)

    def fail(label: str) -> None:
        if label == "backing:sync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.before = fail
    with pytest.raises(OSError, match=r"Input/output"):
        tree.fsync(ino)
    disk.before = lambda label: None
    assert tree.names.needs_sync(ino)
    disk.labels.clear()
    tree.fsyncdir(ROOT_INO)
    assert disk.labels == ["namespace:wal"]


@KNOWN
def test_a_log_that_cannot_be_written_out_is_not_trusted_again(tree: LiveTree, disk: WatchedDisk) -> None:
    ino = make(tree)

    def fail(label: str) -> None:
        if label == "namespace:write_out":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk.before = fail
    for sync in (tree.fsync, tree.fsync, tree.fsyncdir):
        with pytest.raises(OSError, match=r"Input/output"):
            sync(ino)
        disk.before = lambda label: None
    assert "namespace:wal" not in disk.labels


@KNOWN
def test_a_name_that_came_by_rename_is_not_the_files_to_sync(tree: LiveTree, disk: WatchedDisk) -> None:
    ino = make(tree)
    staged = Path(tree.staging) / "elsewhere"
    staged.write_bytes(b"x")
    tree._backing.replace(ino, str(staged), "test:replace")
    tree.fsync(ino)
    assert disk.labels.count("backing:name") == 1


def test_what_is_known_of_this_machine(tmp_path: Path) -> None:
    def kind_of(path: Path) -> str:
        found = os.stat(path).st_dev
        number = f"{os.major(found)}:{os.minor(found)}"
        lines = [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()]
        return next((line[line.index("-") + 1] for line in lines if line[2] == number), "")

    for path in (tmp_path, Path("/dev/shm")):
        file = path / f"snapfs-{os.getpid()}"
        file.write_bytes(b"x")
        try:
            with open(file, "rb") as opened:
                wanted = kind_of(path) == "ext4" and os.path.isdir("/proc/fs/ext4")
                assert host_filesystem.is_ext4(str(path)) is wanted
                assert wanted or not host_filesystem.overwrites_in_place(opened.fileno())
        finally:
            file.unlink()
