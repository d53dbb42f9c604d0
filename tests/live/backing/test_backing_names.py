"""Backing files: when their names are durable, and who hears of bytes that the disk lost."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree


class WatchedDisk(Disk):
    """Counts flushes of folders, and lets a test do something before an act returns, once."""

    def __init__(self) -> None:
        self.folders_synced = 0
        self.meanwhile: Callable[[], None] | None = None
        self.lost: set[str] = set()

    def sync_dir(self, label: str, path: str) -> None:
        super().sync_dir(label, path)
        self.folders_synced += 1
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def fsync(self, label: str, fd: int) -> None:
        if label in self.lost:
            self.lost.discard(label)
            raise OSError(errno.EIO, "the disk lost it, and reports that once")
        super().fsync(label, fd)


@pytest.fixture
def disk() -> WatchedDisk:
    return WatchedDisk()


@pytest.fixture
def tree(tmp_path: Path, disk: WatchedDisk, data_path: str) -> Iterator[LiveTree]:
    made = LiveTree(str(tmp_path), Namespace(str(tmp_path / "namespace.db"), disk), disk, boot_id="boot")
    yield made
    made.close(clean=False)


@pytest.mark.parametrize("every", [False, True])
def test_a_name_that_gets_another_file_during_a_flush_is_not_durable_by_it(
    tmp_path: Path, disk: WatchedDisk, every: bool
) -> None:
    backing = Backing(str(tmp_path), disk, 8)
    backing.make_folders()
    backing.create(Ino(5))
    (tmp_path / "staging" / "other").write_bytes(b"other")

    def replace() -> None:
        backing.replace(Ino(5), str(tmp_path / "staging" / "other"), "test")

    if every:
        disk.lost.clear()
        syncs = disk.fsync

        def slow(label: str, fd: int) -> None:
            syncs(label, fd)
            replace()

        disk.fsync = slow  # type: ignore[method-assign]
        backing.sync_all("all")
    else:
        disk.meanwhile = replace
        backing.sync_name(Ino(5))
    before = disk.folders_synced
    backing.sync_name(Ino(5))
    assert disk.folders_synced == before + 1
    backing.sync_name(Ino(5))
    assert disk.folders_synced == before + 1
    backing.close()


def test_bytes_that_housekeeping_failed_to_sync_fail_the_next_fsync(tree: LiveTree, disk: WatchedDisk) -> None:
    """The host reports a failed writeback once; our housekeeping must not be the only one to see it."""
    ino, other = (tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino for name in (b"a", b"b"))
    tree.write(ino, 0, b"x" * 100_000)
    tree.cut().finish(True)
    disk.lost.add("backing:settle")
    with pytest.raises(OSError, match="lost"):
        tree.sync_soon()
    tree.fsync(other)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tree.fsync(ino)
    tree.fsync(ino)
