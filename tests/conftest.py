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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from snapfs.live.content import datapath
from tests.fakes import gate_order, leaks
from tests.fakes.leaks import snapfs_mounts
from tests.fakes.memory_folder import IN_MEMORY, memory_folder
from tests.fakes.mounts.own_mounts import keep_mounts_apart
from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.mirror_process import MirrorProcess

SNAPFS = [sys.executable, "-m", "snapfs"]
_OWN_BASE = pytest.StashKey[Path]()
"""The folder of this run's temporary files."""
_LEAK_GRACE_S = 10.0  # a thread or a daemon that is ending may be kept waiting by others


# As in an installation, there is bytecode: else each start of a command, thousands of them, compiles all its modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A warm process that one test left would start the daemons of others; the tests of it name a folder of their own.
os.environ.setdefault("SNAPFS_WARM", "off")

settings.register_profile("without a deadline", deadline=None)  # how long an example takes does not affect its result
settings.load_profile("without a deadline")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as `nohup tools/test &` leaves it, to us and to what we start
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-path", choices=["python", "native"],
        help="what serves the bytes of files in all tests that do not choose; without it what `auto` takes",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several that run tests at the same time
        keep_mounts_apart()
    if not config.option.basetemp:  # a worker of xdist has one below its controller's
        # pytest's own choice lies in a folder that each start of pytest closes to other users, whatever tests of an
        # ordinary user are running there.
        config.option.basetemp = tempfile.mkdtemp(prefix="snapfs-tests-")
        config.stash[_OWN_BASE] = Path(config.option.basetemp)
    chosen = config.getoption("--data-path")
    if chosen:
        os.environ["SNAPFS_DATA_PATH"] = datapath.DEFAULT = chosen


def pytest_collection_finish() -> None:
    leaks.freeze()


@pytest.hookimpl(trylast=True)  # when the workers have ended
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    own = session.config.stash.get(_OWN_BASE, None)
    if own is not None and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(own, ignore_errors=True)  # after a failure it stays, to be looked at


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def file(item: pytest.Item) -> Path:
        return item.path.relative_to(here) if item.path.is_relative_to(here) else item.path

    places = gate_order.order([file(item) for item in items])
    items.sort(key=lambda item: places[file(item)])


@pytest.fixture(params=["python", "native"])
def data_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every live tree of the test takes this data path. The native one is skipped only where it was not built.

    "native, names in Python": in child processes C changes no names.
    """
    path, _, names = str(request.param).partition(", ")
    if path == "native" and datapath.why_not_native():
        pytest.skip(datapath.why_not_native())
    monkeypatch.setattr(datapath, "DEFAULT", path)
    monkeypatch.setenv("SNAPFS_DATA_PATH", path)
    if names:
        monkeypatch.setenv("SNAPFS_NATIVE_CHANGES", "0")
    return path


def force_unmount(mountpoint: str) -> None:
    subprocess.run(["fusermount3", "-u", "-z", "-q", mountpoint], check=False, capture_output=True)
    if mountpoint in snapfs_mounts():
        subprocess.run(["umount", "-l", mountpoint], check=False, capture_output=True)


@pytest.fixture(autouse=True)
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that ends with more descriptors, threads or mounts than it began with, or left an object open."""
    before = leaks.Before(str(tmp_path_factory.getbasetemp()))
    yield
    leaks.collect()  # what it warns of ends the teardown of this test (filterwarnings in pyproject.toml)
    deadline = time.monotonic() + _LEAK_GRACE_S
    while found := before.leaks():
        if time.monotonic() > deadline:
            for mountpoint in before.new_mounts():
                force_unmount(mountpoint)
            pytest.fail("left behind: " + "; ".join(found), pytrace=False)
        time.sleep(0.02)
        gc.collect()


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


def _wait_gone(pid: int, seconds: float = PATIENCE_S) -> None:
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(seconds * 1000), f"process {pid} is still there after {seconds:.0f} s"
        finally:
            os.close(fd)


def run_snapfs(
    *arguments: str | Path, check: bool = True, timeout: float = PATIENCE_S, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would. With `check`, an exit code other than 0 fails and shows the errors."""
    command = [*SNAPFS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, **options)
    assert not check or done.returncode == 0, f"snapfs {' '.join(command[3:])}: {done.returncode}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def snapfs() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, as a function of its arguments."""
    return run_snapfs


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder of the test: in memory where its room asks nothing of a disk (fakes/memory_folder.py)."""
    here = Path(__file__).parent
    in_memory = any(request.path.is_relative_to(here / each) for each in IN_MEMORY)
    if not in_memory or request.node.get_closest_marker("on_disk"):
        yield tmp_path
        return
    with memory_folder(tmp_path) as folder:
        yield folder


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


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """A second mountpoint, for the host that takes over."""
    place = tmp_path / "other"
    place.mkdir()
    yield place
    take_down(place)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[MirrorProcess]:
    """A mirror that serves tmp_path/mirror; tmp_path/token is an administrator's."""
    process = MirrorProcess(tmp_path / "mirror")
    process.start()
    (tmp_path / "token").write_text(process.admin)
    yield process
    process.stop()
