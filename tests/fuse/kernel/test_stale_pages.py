"""Pages that could not be stored: the kernel drops them as soon as the file is marked, whatever was dropped before."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.fuse.kernel.kernel_sizes import KernelSizes
from snapfs.fuse.kernel.notices import Kernel
from snapfs.fuse.kernel.stale_pages import StalePages
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.conftest import Mounted


class RecordingKernel(Kernel):
    """Records which files' pages it is to drop."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped: list[int] = []

    def forget_pages(self, inos: Iterable[Ino]) -> list[Ino]:
        known = list(inos)
        self.dropped += known
        return known


class Opened:
    """A live tree with one file, its lost pages, and a kernel that records."""

    def __init__(self, folder: Path, *, adopting: bool = False) -> None:
        names = Namespace(str(folder / "namespace.db"), Disk())
        self.tree = LiveTree(str(folder), names, Disk(), boot_id="boot", adopting=adopting)
        self.kernel = RecordingKernel()
        self.rounds = 0
        self.stale = StalePages(self.kernel, self.tree.lost_writes, self._go_through_all)

    def _go_through_all(self) -> None:
        self.rounds += 1
        self.tree.lost_writes.all_dropped()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    found = Opened(tmp_path)
    yield found
    if found.tree.is_open:
        found.tree.close()


def test_a_mark_wakes_a_task_that_waited_when_nothing_was_marked(opened: Opened) -> None:
    waited: list[float] = []

    async def wait() -> None:
        start = trio.current_time()
        with trio.move_on_after(1000.0):
            await opened.stale.wait()
        waited.append(trio.current_time() - start)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await opened.stale.drop()  # as a flush does, at any time
            opened.stale.mark(Ino(7))
        await opened.stale.drop()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.0))
    assert waited == [0.0], "it waited until the time was over"
    assert opened.kernel.dropped == [7]


def test_a_loss_is_dropped_whether_its_mark_came_or_not(opened: Opened) -> None:
    ino = opened.tree.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0).ino
    opened.tree.lose(ino, 5000, errno.ENOSPC)
    assert opened.tree.lost_writes.undropped() == {ino: 1}
    trio.run(opened.stale.drop)
    assert opened.kernel.dropped == [ino]
    assert opened.tree.lost_writes.undropped() == {}
    assert opened.tree.getattr(ino).size == 5000


def test_a_loss_that_came_while_pages_were_dropped_stays(opened: Opened) -> None:
    ino = opened.tree.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0).ino
    opened.tree.lose(ino, 10, errno.ENOSPC)
    before = opened.tree.lost_writes.undropped()
    opened.tree.lose(ino, 20, errno.ENOSPC)
    opened.tree.lost_writes.dropped(before)
    assert opened.tree.lost_writes.undropped() == {ino: 2}


def test_after_a_death_with_room_given_up_all_files_are_gone_through_once(tmp_path: Path) -> None:
    first = Opened(tmp_path)
    first.tree.lost_writes.keep_room()
    assert not first.tree.room.is_given_up, "this disk is full: the test needs some room"
    ino = first.tree.mknod(ROOT_INO, b"file", 0o100600, 0, 0, 0).ino
    first.tree.lose(ino, 5000, errno.ENOSPC)
    first.tree.lost_writes.keep_room()
    assert first.tree.room.is_given_up, "no room is kept while pages are shown that were not stored"
    first.tree.close()
    second = Opened(tmp_path, adopting=True)
    second.tree.lost_writes.keep_room()
    assert second.tree.room.is_given_up
    trio.run(second.stale.drop)
    trio.run(second.stale.drop)
    assert second.rounds == 1
    second.tree.lost_writes.keep_room()
    assert not second.tree.room.is_given_up
    second.tree.close()
    third = Opened(tmp_path, adopting=True)
    trio.run(third.stale.drop)
    assert third.rounds == 0, "nothing was lost before"
    third.tree.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="open_by_handle_at is root's")
def test_the_kernels_length_is_that_of_pages_it_has_not_written(mounted: Mounted) -> None:
    path = mounted.path / "file"
    with open(path, "wb", buffering=0) as file:
        file.write(bytes(1000))
        os.fsync(file.fileno())
        file.write(bytes(9000))
        with KernelSizes(str(mounted.path)) as sizes:
            assert sizes.of(Ino(os.fstat(file.fileno()).st_ino)) == 10_000
            assert sizes.of(Ino(1 << 40)) is None
