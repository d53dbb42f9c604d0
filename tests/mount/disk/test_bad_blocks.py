"""A disk that takes no new blocks: the host accepts bytes, and its device fails when they are written back.

The device is a loop device over a file in a small tmpfs. What ext4 has in use is there; its free blocks were trimmed
away (fstrim), and the tmpfs is full: so each write to a block that was free fails, and each to one in use is carried
out. Without a journal, the failure of which would make the filesystem read-only (test_host_goes_down.py has that).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_snapfs
from tests.fakes.disks.seen_bytes import difference, look_at
from tests.fakes.patience import eventually

pytestmark = pytest.mark.usefixtures("data_path")

DISK_MIB = 64
FILE_BYTES = 2_000_000


class BadBlocks:
    """An ext4 whose free blocks can be made bad, and good again."""

    def __init__(self, folder: Path) -> None:
        self.memory, self.point = folder / "memory", folder / "host"
        self.memory.mkdir()
        self.point.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB + 2}m", "tmpfs", str(self.memory))
        image = self.memory / "image"
        image.write_bytes(bytes(DISK_MIB << 20))
        run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", "-O", "^has_journal", "-e", "continue", str(image))
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self.memory / "image"), str(self.point))

    def make_bad(self) -> None:
        """From now on no block that is free can be written."""
        run("sync", "-f", str(self.point))
        run("fstrim", str(self.point))
        with open(self.memory / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_good(self) -> None:
        (self.memory / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.point)], check=False)
        subprocess.run(["umount", "-l", str(self.memory)], check=False)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def bad_blocks(tmp_path: Path) -> Iterator[BadBlocks]:
    if os.geteuid() or not shutil.which("mkfs.ext4") or not shutil.which("fstrim"):
        pytest.skip("needs root, mkfs.ext4 and fstrim")
    try:
        disk = BadBlocks(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot make such a disk here: {error}")
    yield disk
    disk.close()


@pytest.fixture
def volume_dir(bad_blocks: BadBlocks) -> Path:
    return bad_blocks.point / "volume"


def assert_equal(mounted: Any, name: str) -> dict[str, bytes]:
    """What a reader sees of each file is what the snapshot has; returns it."""
    seen = {file: look_at(mounted.path / file) for file in ("old", "new")}
    for file, live in seen.items():
        found = difference(look_at(mounted.path / f".snapfs/snapshots/{name}/{file}"), live)
        assert found == "", f"snapshot {name} has other bytes of {file} than a reader sees"
    return seen


def test_bytes_that_the_device_refused_are_in_live_tree_and_snapshot_alike(
    mount: Callable[..., Any], bad_blocks: BadBlocks, mountpoint: Path
) -> None:
    mounted = mount()
    old, new = mounted.path / "old", mounted.path / "new"
    old.write_bytes(b"A" * FILE_BYTES)
    new.write_bytes(b"")
    mounted.snapshot("before")
    bad_blocks.make_bad()
    with open(old, "r+b", buffering=0) as file:
        file.write(b"B" * 5000)
        with contextlib.suppress(OSError):  # its bytes are written in place; its name or log may need a block
            os.fsync(file.fileno())
    fd = os.open(new, os.O_RDWR)
    try:
        os.pwrite(fd, os.urandom(FILE_BYTES), 0)
        with pytest.raises(OSError):  # the errno is the loop device's: EIO, or ENOSPC
            os.fsync(fd)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    assert mounted.status()["host"]["errors"]["sync"] > 0
    with contextlib.suppress(OSError):  # its segment needs blocks: mostly it fails
        mounted.snapshot("meanwhile")
        assert_equal(mounted, "meanwhile")
    bad_blocks.make_good()
    mounted.snapshot("after")
    seen = assert_equal(mounted, "after")
    run_snapfs("verify", mountpoint)
    run_snapfs("umount", mountpoint)
    unmount = ["umount", str(bad_blocks.point)]  # the last processes of the mount have its log open, in there
    eventually(lambda: subprocess.run(unmount, check=False, capture_output=True).returncode == 0, "its unmount")
    bad_blocks.mount()
    mounted = mount()
    for name, live in seen.items():
        found = difference(look_at(mounted.path / name), live)
        assert found == "", f"{name} is another after the host's filesystem was mounted anew"
    run_snapfs("umount", mountpoint)
