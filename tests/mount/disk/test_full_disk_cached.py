"""A full disk: a write(2) returned, and its pages find no room. The promise is kept later, or all see what is there."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_snapfs
from tests.fakes.disks.seen_bytes import look_at
from tests.fakes.disks.small_ext4 import small_ext4

pytestmark = pytest.mark.usefixtures("data_path")

WRITTEN = os.urandom(3_000_000)


@pytest.fixture(params=[48, 512], ids=["little room kept", "enough room kept"])
def volume_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """On an ext4 of so many MiB, a 64th of which is kept."""
    with small_ext4(tmp_path, request.param, "-m", "0") as folder:
        yield folder / "volume"


def fill(place: Path) -> None:
    """Leave not a single block."""
    with open(place, "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1 << 9):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                while True:
                    file.write(bytes(size))
        os.fsync(file.fileno())


def test_what_the_live_tree_shows_is_what_a_snapshot_has(
    mount: Callable[..., Any], mountpoint: Path, request: pytest.FixtureRequest
) -> None:
    mounted = mount()
    kept = "enough" in request.node.callspec.id
    filler = mounted.volume.parent / "filler"
    while not (mounted.volume / "live/room").exists():
        assert mounted.status()["pid"]
    held = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(held, b"before", 0)
    os.fsync(held)
    mounted.snapshot("before")
    fill(filler)
    assert os.pwrite(held, WRITTEN, 0) == len(WRITTEN), "the kernel takes it"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        mounted.snapshot("full")
    if not kept:
        assert "lost" in mounted.status()["last_error"]["message"]
    live = look_at(mounted.path / "file")
    assert len(live) == len(WRITTEN)
    assert all(there in (wrote, 0) for there, wrote in zip(live[6::4096], WRITTEN[6::4096], strict=True))
    assert (live == WRITTEN) == kept
    filler.unlink()
    mounted.snapshot("after")
    snapshot = mounted.path / ".snapfs/snapshots/after/file"
    assert snapshot.read_bytes() == look_at(mounted.path / "file") == live
    with contextlib.suppress(OSError):
        os.close(held)
    run_snapfs("umount", mountpoint)
    mounted = mount()
    assert (mounted.path / "file").read_bytes() == live
    run_snapfs("umount", mountpoint)


@pytest.mark.parametrize("volume_dir", [512], ids=["enough room kept"], indirect=True)
def test_a_cached_page_that_goes_out_by_a_direct_descriptor_gets_the_room(
    mount: Callable[..., Any], mountpoint: Path
) -> None:
    """The kernel writes pages back by the handle that was opened last, be they written by another."""
    mounted = mount()
    while not (mounted.volume / "live/room").exists():
        assert mounted.status()["pid"]
    held = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(held, b"before", 0)
    os.fsync(held)
    direct = os.open(mounted.path / "file", os.O_RDWR | os.O_DIRECT)
    fill(mounted.volume.parent / "filler")
    os.pwrite(held, WRITTEN, 0)
    os.fsync(held)
    assert look_at(mounted.path / "file") == WRITTEN
    assert not mounted.status()["last_error"]
    os.close(direct)
    os.close(held)
    run_snapfs("umount", mountpoint)
    mount()
    assert (mounted.path / "file").read_bytes() == WRITTEN
    run_snapfs("umount", mountpoint)


def test_a_direct_write_that_fails_changes_no_size(mount: Callable[..., Any], mountpoint: Path) -> None:
    mounted = mount()
    held = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    fill(mounted.volume.parent / "filler")
    block, wrote = mmap.mmap(-1, 1 << 20), 0
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        while wrote < 64 << 20:
            wrote += os.pwrite(held, block, wrote)
    far = 100 << 20
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        os.pwrite(held, block, far)
    assert os.fstat(held).st_size < far
    block.close()
    os.close(held)
    run_snapfs("umount", mountpoint)


@pytest.mark.parametrize("volume_dir", [48], ids=["little room kept"], indirect=True)
def test_a_daemon_that_dies_after_a_loss_leaves_no_page_that_was_not_stored(
    mount: Callable[..., Any], mountpoint: Path
) -> None:
    mounted = mount()
    path = mounted.path / "file"
    path.write_bytes(b"before")
    mounted.snapshot("before")
    pid = mounted.status()["pid"]
    fill(mounted.volume.parent / "filler")
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, WRITTEN, 0)
    with contextlib.suppress(OSError):
        os.close(fd)
    os.kill(pid, signal.SIGKILL)  # before it had the kernel drop the pages, mostly
    (mounted.volume.parent / "filler").unlink()
    with contextlib.suppress(OSError):
        mounted.snapshot("first")  # may report what was lost before
    mounted.snapshot("after")
    live = look_at(path)
    assert len(live) == len(WRITTEN)
    is_stored = (mounted.path / ".snapfs/snapshots/after/file").read_bytes() == live
    assert is_stored, "the snapshot is not what was seen"
    run_snapfs("umount", mountpoint)
    mounted = mount()
    is_there = path.read_bytes() == live
    assert is_there, "what was seen is not there after a remount"
