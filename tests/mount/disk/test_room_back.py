"""Whatever is removed gives its room back at once, without another operation of the application."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_snapfs
from tests.fakes.disks.small_ext4 import small_ext4
from tests.fakes.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("data_path")

BIG_BYTES = 24 << 20
PUNCH_HOLE_AND_KEEP_SIZE = 3


@pytest.fixture
def volume_dir(tmp_path: Path) -> Iterator[Path]:
    """On an ext4 of 64 MiB."""
    with small_ext4(tmp_path, 64, "-m", "0") as folder:
        yield folder / "volume"


def free_bytes(volume: Path) -> int:
    """Of the host; the mount gets no request."""
    room = os.statvfs(volume)
    return room.f_bavail * room.f_frsize


def unlink(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"small")
    other.rename(path)


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def truncate_at_open(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def punch(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDWR)
    try:
        arguments = (PUNCH_HOLE_AND_KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(BIG_BYTES))
        if libc.fallocate(fd, *arguments):
            pytest.skip("this data path cannot punch holes")
    finally:
        os.close(fd)


def remove_many(path: Path) -> None:
    """More than are removed at a time."""
    folder = path.with_name("folder")
    folder.mkdir()
    for number in range(600):
        (folder / str(number)).write_bytes(b"x")
    path.rename(folder / "big")
    shutil.rmtree(folder)


@pytest.mark.parametrize("remove", [unlink, replace, truncate, truncate_at_open, punch, remove_many])
def test_room_is_back_without_another_operation(
    mount: Callable[..., Any], mountpoint: Path, remove: Callable[[Path], None]
) -> None:
    mounted = mount()
    big = mounted.path / "big"
    big.write_bytes(os.urandom(BIG_BYTES))
    with open(big, "rb") as file:
        os.fsync(file.fileno())
    before = free_bytes(mounted.volume)
    remove(big)
    deadline = time.monotonic() + PATIENCE_S
    while free_bytes(mounted.volume) < before + BIG_BYTES * 2 // 3:  # the log of names may have grown
        assert time.monotonic() < deadline, "the room does not come back"
        time.sleep(0.05)
    run_snapfs("umount", mountpoint)


def test_a_snapshot_on_a_full_disk_has_the_room_of_what_was_removed_before(
    mount: Callable[..., Any], mountpoint: Path
) -> None:
    mounted = mount()
    (mounted.path / "kept").write_bytes(os.urandom(4 << 20))
    (mounted.path / "big").write_bytes(os.urandom(BIG_BYTES))
    with open(mounted.volume.parent / "filler", "ab", buffering=0) as filler:
        with pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(bytes(1 << 20))
        os.fsync(filler.fileno())
    (mounted.path / "big").unlink()
    assert mounted.snapshot("after")["ok"]
    run_snapfs("umount", mountpoint)
