"""Fixtures for all tests: places for volumes, real mounts that always come down again, and the search for leaks.

A test that leaves a descriptor, a thread, a mount or a daemon behind fails itself, not a later one. What a fixture of a
wider scope holds was there before the test and is not counted.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapfs.live import datapath

SNAPFS = [sys.executable, "-m", "snapfs.cli"]
_LEAK_GRACE_S = 2.0
_NOT_OURS = ("/dev/null", "/dev/urandom", "/dev/pts/", "anon_inode:inotify", "/usr/", "/lib/")
"""Descriptors that the interpreter and its libraries open once and keep."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as `nohup tools/test &` leaves it, to us and to what we start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-path", choices=["python", "native"],
        help="what serves the bytes of files in all tests that do not choose; without it what `auto` takes",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--data-path")
    if chosen:
        os.environ["SNAPFS_DATA_PATH"] = datapath.DEFAULT = chosen


@pytest.fixture(params=["python", "native"])
def data_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every live tree of the test takes this data path. The native one is skipped only where it was not built."""
    if request.param == "native" and datapath.why_not_native():
        pytest.skip(datapath.why_not_native())
    monkeypatch.setattr(datapath, "DEFAULT", request.param)
    monkeypatch.setenv("SNAPFS_DATA_PATH", request.param)
    return str(request.param)


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith(_NOT_OURS) and ".hypothesis" not in target:
                found[int(name)] = target
    return found


def _threads() -> set[threading.Thread]:
    """Living threads, but for the ones that trio keeps for its next call."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}


def snapfs_mounts(below: str = "") -> set[str]:
    """Mountpoints of snapfs in this mount namespace whose path begins with `below`."""
    with open("/proc/self/mountinfo") as file:
        fields = [line.split(" - ") for line in file]
    places = {
        front.split()[4].encode().decode("unicode_escape") for front, back in fields if "snapfs" in back.split()[0]
    }
    return {place for place in places if place.startswith(below)}


def force_unmount(mountpoint: str) -> None:
    subprocess.run(["fusermount3", "-u", "-z", "-q", mountpoint], check=False, capture_output=True)
    if mountpoint in snapfs_mounts():
        subprocess.run(["umount", "-l", mountpoint], check=False, capture_output=True)


def _leaks(base: str, descriptors: dict[int, str], threads: set[threading.Thread], mounts: set[str]) -> list[str]:
    return [
        *(f"descriptor {fd} -> {to}" for fd, to in _descriptors().items() if descriptors.get(fd) != to),
        *(f"thread {thread.name}" for thread in _threads() - threads),
        *(f"mount at {place}" for place in snapfs_mounts(base) - mounts),
    ]


@pytest.fixture(autouse=True)
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that ends with more descriptors, threads or mounts than it began with."""
    base = str(tmp_path_factory.getbasetemp())  # mounts elsewhere are somebody else's
    before = _descriptors(), _threads(), snapfs_mounts(base)
    yield
    deadline = time.monotonic() + _LEAK_GRACE_S
    while leaks := _leaks(base, *before):
        gc.collect()
        if time.monotonic() > deadline:
            for mountpoint in snapfs_mounts(base) - before[2]:
                force_unmount(mountpoint)
            pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
        time.sleep(0.02)


@dataclass
class Mounted:
    """A mounted volume, as its user sees it: a directory and a command."""

    volume: Path
    path: Path

    @property
    def control(self) -> Path:
        return self.path / ".snapfs" / "control"

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.path / ".snapfs" / "status").read_bytes())
        return facts

    def command(self, text: str) -> dict[str, Any]:
        """Write a command to the control file and read its reply on the same descriptor. A failure is its OSError."""
        fd = os.open(self.control, os.O_RDWR)
        try:
            os.write(fd, text.encode())
            reply: dict[str, Any] = json.loads(os.read(fd, 1 << 20))
            return reply
        finally:
            os.close(fd)

    def snapshot(self, name: str = "") -> dict[str, Any]:
        return self.command(f"snapshot {name}".strip())

    def kill(self) -> None:
        """SIGKILL the daemon and its supervisor, wait until they are gone, and take the dead mount away."""
        facts = self.status()
        for pid in filter(None, (facts["supervisor"], facts["pid"])):  # the supervisor first, or it starts another
            os.kill(pid, signal.SIGKILL)
            _wait_gone(pid)
        force_unmount(str(self.path))


def _wait_gone(pid: int, seconds: float = 30.0) -> None:
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(seconds * 1000), f"process {pid} is still there after {seconds:.0f} s"
        finally:
            os.close(fd)


def run_snapfs(*arguments: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would. With `check`, an exit code other than 0 fails and shows the errors."""
    command = [*SNAPFS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)
    assert not check or done.returncode == 0, f"snapfs {' '.join(command[3:])}: {done.returncode}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def snapfs() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, as a function of its arguments."""
    return run_snapfs


@pytest.fixture
def volume_dir(tmp_path: Path) -> Path:
    """A place for a volume; there is none there yet."""
    return tmp_path / "volume"


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on. Whatever is mounted there is gone when the test ends, and its daemon too."""
    place = tmp_path / "mnt"
    place.mkdir()
    yield place
    take_down(place)


def take_down(place: Path) -> None:
    """Unmount `place` in the gentlest way that works, and see its daemon gone."""
    if str(place) not in snapfs_mounts():
        return
    pids: list[int] = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        facts = json.loads((place / ".snapfs" / "status").read_bytes())
        pids = [pid for pid in (facts["supervisor"], facts["pid"]) if pid]
    if run_snapfs("umount", place, check=False).returncode:
        force_unmount(str(place))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for pid in pids:
        _wait_gone(pid)


@pytest.fixture
def mount(mountpoint: Path, volume_dir: Path) -> Callable[..., Mounted]:
    """Mount the test's volume at its mountpoint, with any more arguments of `snapfs mount`."""

    def do(*arguments: str) -> Mounted:
        run_snapfs("mount", *arguments, volume_dir, mountpoint)
        return Mounted(volume_dir, mountpoint)

    return do


@pytest.fixture
def mounted(mount: Callable[..., Mounted]) -> Mounted:
    """A fresh volume, mounted."""
    return mount()
