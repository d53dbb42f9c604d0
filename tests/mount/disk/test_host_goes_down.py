"""The host's filesystem goes down without a reboot: what was fsynced is live, and the next snapshot has all of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_snapfs
from tests.fakes.patience import eventually

pytestmark = pytest.mark.usefixtures("data_path")

SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32) of ext4 and xfs
NO_LOG_FLUSH = 2


class HostDisk:
    """A small filesystem in a file, that can be shut down and mounted again."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.image, self.point = folder / "image", folder / "host"
        self.point.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(400 << 20)
        subprocess.run([f"mkfs.{kind}", "-q", str(self.image)], check=True)
        self.mount()

    def mount(self) -> None:
        if subprocess.run(["mount", "-o", "loop", str(self.image), str(self.point)], check=False).returncode:
            pytest.skip("cannot mount this kind of filesystem here")

    def unmount(self) -> None:
        """Wait until nobody has it mounted: other tests may have copied all mounts into a namespace."""
        eventually(lambda: subprocess.run(["umount", str(self.point)], check=False).returncode == 0, "its unmount")
        find = ["losetup", "--noheadings", "--associated", str(self.image)]
        eventually(lambda: not subprocess.run(find, check=True, capture_output=True).stdout, "its end everywhere")

    def shut_down(self) -> None:
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture(params=["ext4", "xfs"])
def host_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HostDisk]:
    if os.geteuid() or not shutil.which(f"mkfs.{request.param}") or not Path("/dev/loop-control").exists():
        pytest.skip(f"needs root, loop devices and mkfs.{request.param}")
    disk = HostDisk(tmp_path, request.param)
    yield disk
    subprocess.run(["umount", "-l", str(disk.point)], check=False, capture_output=True)


@pytest.fixture
def volume_dir(host_disk: HostDisk) -> Path:
    return host_disk.point / "volume"


@pytest.mark.parametrize("data_path", ["python", "native", "native, names in Python"], indirect=True)
def test_what_a_remount_took_back_is_compared(mount: Callable[..., Any], host_disk: HostDisk, mountpoint: Path) -> None:
    mounted = mount()
    kept = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(kept, b"A" * 1_000_000, 0)
    os.fsync(kept)
    mounted.snapshot("before")
    time.sleep(2.5)  # the log of that epoch retires
    for at in range(0, 1_000_000, 50_000):
        os.pwrite(kept, b"B" * 100, at)
        os.fsync(kept)
    assert mounted.status()["host"] == {
        "refuses": None, "since_ns": None, "errors": {"read": 0, "write": 0, "sync": 0}, "last": None,
    }  # fmt: skip
    for number in range(20):
        (mounted.path / f"not synced {number}").touch()
    host_disk.shut_down()
    eventually(lambda: mounted.status()["host"]["refuses"] == "EIO")
    assert "snapfs_host_refuses 1.0" in (mounted.path / ".snapfs/metrics").read_text()
    assert "unmount this volume" in mounted.status()["last_error"]["message"]
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.pwrite(kept, b"C" * 100, 0)
        os.fsync(kept)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        mounted.snapshot("too-late")
    assert sum(mounted.status()["host"]["errors"].values()) > 0
    os.close(kept)
    supervisor = mounted.status()["supervisor"]
    run_snapfs("umount", mounted.path, check=False)
    assert not is_running(supervisor), "the volume's lock file cannot be read, and the wait has to know its process"
    host_disk.unmount()
    host_disk.mount()
    mounted = mount()
    assert not any("damage" in line or "ended early" in line for line in mounted.status()["recovered"])
    mounted.snapshot("after")
    live = (mounted.path / "file").read_bytes()
    assert live[:1_000_000:50_000] == b"B" * 20
    assert (mounted.path / ".snapfs/snapshots/after/file").read_bytes() == live
    run_snapfs("umount", mountpoint)


@pytest.mark.parametrize("host_disk", ["ext4"], indirect=True)
def test_a_status_that_was_not_read_before_is_read_without_the_disk(
    mount: Callable[..., Any], host_disk: HostDisk, tmp_path: Path
) -> None:
    """On a host that took the volume over, too: how it did is in the log."""
    first, place = tmp_path / "first", tmp_path / "first-mount"
    place.mkdir()
    run_snapfs("mount", first, place)
    (place / "file").write_text("text")
    run_snapfs("snapshot", place)
    run_snapfs("umount", place)
    mounted = mount("--from", first, "--force")
    host_disk.shut_down()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), open(mounted.path / "file", "r+b") as file:
        file.write(b"more")
        os.fsync(file.fileno())
    assert mounted.status()["generation"] == 2
    assert "snapfs_generation 2.0" in (mounted.path / ".snapfs/metrics").read_text()
    eventually(lambda: mounted.status()["host"]["refuses"] == "EIO")
    assert run_snapfs("umount", mounted.path, check=False).returncode == 0


@pytest.mark.parametrize("host_disk", ["ext4"], indirect=True)
def test_the_status_of_a_volume_without_snapshots_is_read_without_the_disk(
    mount: Callable[..., Any], host_disk: HostDisk
) -> None:
    """What is late counts from when the volume was made, then, which is in the log."""
    mounted = mount()
    host_disk.shut_down()
    eventually(lambda: mounted.status()["host"]["refuses"] == "EIO")
    assert mounted.status()["last_snapshot"] is None
    assert "snapfs_verify_overdue_seconds 0" in (mounted.path / ".snapfs/metrics").read_text()
    assert run_snapfs("umount", mounted.path, check=False).returncode == 0


def test_a_killed_daemon_on_a_living_host_is_believed(mount: Callable[..., Any], mountpoint: Path) -> None:
    mounted = mount()
    (mounted.path / "file").write_bytes(b"A" * 1_000_000)
    mounted.snapshot()
    with open(mounted.path / "file", "r+b") as file:
        file.write(b"B" * 100)
        os.fsync(file.fileno())
    mounted.kill()
    mounted = mount()
    assert any("known from the intent log" in line for line in mounted.status()["recovered"])
    run_snapfs("umount", mountpoint)
