"""The host fails to write back what it had taken: a seal never trusts a bitmap that it cannot vouch for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.backing.host_life import HostLife
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

pytestmark = pytest.mark.usefixtures("data_path")


class FailingDisk(Disk):
    """Fails the next sync that has one of these labels, once, as the kernel reports lost pages."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}

    def _maybe_fail(self, label: str) -> None:
        if (number := self.failing.pop(label, 0)) != 0:
            raise OSError(number, os.strerror(number))

    def fsync(self, label: str, fd: int) -> None:
        self._maybe_fail(label)
        super().fsync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self._maybe_fail(label)
        super().fdatasync(label, fd)


Opener = Callable[..., LiveTree]


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def opener(tmp_path: Path, disk: FailingDisk) -> Iterator[Opener]:
    """Opens the tree, as a daemon does; what is open at the end is let go of."""
    opened: list[LiveTree] = []

    def open_it(adopting: bool = False) -> LiveTree:
        names = Namespace(str(tmp_path / "namespace.db"), disk)
        life = HostLife(str(tmp_path), disk, "boot", adopting=adopting)
        opened.append(LiveTree(str(tmp_path), names, disk, boot_id=life.token, host_life=life, adopting=adopting))
        return opened[-1]

    yield open_it
    for tree in opened:
        if tree.is_open:
            tree.close(clean=False)


def sealed_file(tree: LiveTree) -> Ino:
    """A large file, the middle of which was overwritten after it was durable. Both states are in snapshots."""
    ino = tree.mknod(ROOT_INO, b"file", stat.S_IFREG | 0o600, 0, 0, 0).ino
    tree.write(ino, 0, b"a" * 4 * CHUNK_SIZE)
    seal(tree)
    tree.write(ino, CHUNK_SIZE, b"b" * BLOCK_SIZE)
    tree.cut().finish(True)
    tree.tidy()
    return ino


def seal(tree: LiveTree) -> None:
    tree.cut().finish(True)
    tree.tidy()
    tree.sync_soon()


def is_compared(tree: LiveTree, ino: Ino) -> bool:
    """Whether the next snapshot looks at all of the file."""
    cut = tree.cut()
    file = cut.open_file(ino)
    whole = ino in cut.changed_files() and file is not None and file.whole
    if file is not None:
        file.close()
    cut.finish(False)
    return whole


def settle_suspicion(tree: LiveTree) -> list[Ino]:
    """What the snapshotter does before a cut."""
    inos = tree.suspects()
    return tree.compare_suspects(inos) if inos else []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_fsync_makes_all_that_is_not_durable_suspect(opener: Opener, disk: FailingDisk, number: int) -> None:
    tree = opener()
    ino = sealed_file(tree)
    assert not is_compared(tree, ino)
    tree.fsync(ino)
    tree.write(ino, 2 * CHUNK_SIZE, b"c")
    disk.failing["backing:sync"] = number
    with pytest.raises(OSError, match=os.strerror(number)):
        tree.fsync(ino)
    assert tree.health.failures == {"read": 0, "write": 0, "sync": 1}
    assert settle_suspicion(tree) == [ino]
    assert is_compared(tree, ino)
    assert settle_suspicion(tree) == []


def test_a_failed_settling_of_what_is_sealed_makes_it_suspect(opener: Opener, disk: FailingDisk) -> None:
    """The bytes of a snapshot that were never on the disk: the next one compares them."""
    tree = opener()
    ino = sealed_file(tree)
    disk.failing["backing:settle"] = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tree.sync_soon()
    assert settle_suspicion(tree) == [ino]
    tree.sync_soon()
    assert is_compared(tree, ino)


def test_new_files_of_a_sealed_epoch_are_suspect_too(opener: Opener, disk: FailingDisk) -> None:
    tree = opener()
    ino = tree.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o600, 0, 0, 0).ino
    tree.write(ino, 0, b"a" * CHUNK_SIZE)
    tree.cut().finish(True)
    disk.failing["backing:settle"] = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tree.sync_soon()
    assert settle_suspicion(tree) == [ino]
    assert is_compared(tree, ino)


@pytest.mark.parametrize("adopting", [False, True])
def test_a_daemon_that_died_over_a_failed_sync_is_not_believed(
    opener: Opener, disk: FailingDisk, adopting: bool
) -> None:
    """Between the failed sync and the marks of it: the next daemon compares all that was listed."""
    tree = opener()
    ino = sealed_file(tree)
    disk.failing["backing:sync"] = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tree.fsync(ino)
    tree.close(clean=False)
    again = opener(adopting)
    assert again.adopted == adopting
    assert is_compared(again, ino)


@pytest.mark.parametrize("adopting", [False, True])
def test_a_daemon_that_died_over_nothing_is_believed(opener: Opener, adopting: bool) -> None:
    tree = opener()
    ino = sealed_file(tree)
    tree.write(ino, 3 * CHUNK_SIZE, b"c")
    tree.close(clean=False)
    again = opener(adopting)
    assert not is_compared(again, ino)
    cut = again.cut()
    assert cut.changed_files() == [ino]
    cut.finish(True)


def test_a_host_that_lost_bytes_while_nobody_served_is_not_believed(opener: Opener, disk: FailingDisk) -> None:
    tree = opener()
    ino = sealed_file(tree)
    tree.close(clean=False)
    disk.failing["recovery:host"] = errno.EIO
    again = opener()
    assert any("failed to write" in line for line in again.recovered)
    assert is_compared(again, ino)


def test_after_an_adoption_the_host_is_checked_once(opener: Opener, disk: FailingDisk) -> None:
    tree = opener()
    ino = sealed_file(tree)
    tree.close(clean=False)
    again = opener(adopting=True)
    disk.failing["adopted:host"] = errno.EIO
    again.sync_soon()
    assert settle_suspicion(again) == [ino]
    assert is_compared(again, ino)


def test_a_suspicion_at_the_end_is_left_to_the_next_mount(opener: Opener, disk: FailingDisk) -> None:
    tree = opener()
    ino = sealed_file(tree)
    disk.failing["backing:sync"] = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tree.fsync(ino)
    tree.close()
    assert is_compared(opener(), ino)
