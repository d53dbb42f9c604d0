"""The times of a file that stat(2) returns, and those of its snapshots, are equal, whenever the daemon is killed."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("data_path")

BLOCK = bytes(range(256)) * 16
LONG_AGO_NS = 1_000_000_000_123_456_789
FLUSHED_BYTES = 32 << 20
FILES = ["written", "twice", "grown", "dated", "dated and written", "mapped", "left open", "direct", "flushed"]


def sync(fd: int) -> None:
    """syncfs(2) of the mount. A sync(2) would wait for the mounts of all other tests, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syncfs(fd) == 0, os.strerror(ctypes.get_errno())


def change(path: Path) -> list[int]:
    """All ways of writing to a file, each followed by an fsync, unless its name has it otherwise."""
    held = []
    for name in FILES:
        fd = os.open(path / name, os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(fd, BLOCK, 0)
        os.fsync(fd)
        if name != "written":
            time.sleep(0.03)  # another time than the first
        if name in ("twice", "left open"):
            os.pwrite(fd, BLOCK[::-1], 0)
            os.fdatasync(fd)
            os.pwrite(fd, BLOCK[::-1], 0)
        elif name == "grown":
            os.pwrite(fd, BLOCK, 10 * len(BLOCK))
        elif name.startswith("dated"):
            os.utime(fd, ns=(LONG_AGO_NS, LONG_AGO_NS))
        elif name == "mapped":
            with mmap.mmap(fd, len(BLOCK)) as pages:
                pages[:100] = b"x" * 100
                pages.flush()
        elif name == "direct":  # past the kernel's cache, and its clock
            os.close(fd)
            fd = os.open(path / name, os.O_RDWR | os.O_DIRECT)
            with mmap.mmap(-1, len(BLOCK)) as page:
                os.pwritev(fd, [page], 0)
        elif name == "flushed":  # the kernel sends the times while it sends the bytes
            for start in range(0, FLUSHED_BYTES, 1 << 20):
                os.pwrite(fd, bytes(1 << 20), start)
            sync(fd)
        if name == "dated and written":
            os.pwrite(fd, b"later", 100)
        if name != "flushed":
            os.fsync(fd)
        if name in ("left open", "direct", "flushed"):
            held.append(fd)
        else:
            os.close(fd)
    return held


def times_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: (found.st_mtime_ns, found.st_ctime_ns) for name in FILES if (found := os.stat(folder / name))}


def snapshot(mounted: Any, name: str) -> dict[str, tuple[int, int]]:
    mounted.snapshot(name)
    return times_of(mounted.path / ".snapfs/snapshots" / name)


def test_a_remount_after_a_kill_reports_the_times_of_before(mount: Callable[..., Any]) -> None:
    """The mtime was 4 to 44 ms later in the mount than in the snapshot after a kill, and jumped back."""
    mounted = mount()
    held = change(mounted.path)
    before = times_of(mounted.path)
    assert snapshot(mounted, "before") == before
    assert times_of(mounted.path) == before
    for fd in held:
        os.close(fd)
    assert times_of(mounted.path) == before
    mounted.kill()
    mounted = mount()
    assert times_of(mounted.path) == before
    assert times_of(mounted.path / ".snapfs/snapshots/before") == before
    assert snapshot(mounted, "after") == before
    assert times_of(mounted.path) == before


def test_a_remount_after_a_kill_before_any_snapshot_reports_the_same(mount: Callable[..., Any]) -> None:
    mounted = mount()
    held = change(mounted.path)
    for fd in held:
        os.fsync(fd)  # sync(2) alone does not bring a file's times to the daemon: a mount that dies loses them
    before = times_of(mounted.path)
    mounted.kill()
    for fd in held:
        os.close(fd)
    mounted = mount()
    assert times_of(mounted.path) == before
    assert snapshot(mounted, "after") == before


def test_the_next_daemon_of_a_mount_reports_the_times_of_the_one_before(mount: Callable[..., Any]) -> None:
    """The mount lives on; what the kernel has cached, and what it reads again, are equal."""
    mounted = mount()
    held = change(mounted.path)
    before = times_of(mounted.path)
    assert snapshot(mounted, "before") == before
    was = json.loads((mounted.volume / "supervisor.json").read_text())["daemon"]
    os.kill(was, signal.SIGKILL)
    assert times_of(mounted.path) == before
    assert snapshot(mounted, "after") == before
    for fd in held:
        os.close(fd)
    assert mounted.status()["pid"] != was
    assert times_of(mounted.path) == before
    mounted.kill()
    mounted = mount()
    assert times_of(mounted.path) == before
    assert snapshot(mounted, "later") == before
