"""Real applications on a real mount: what every story of this folder needs.

A story mounts a volume, lets an application work on it while snapshots are cut, and then puts every
snapshot back into a plain directory, where the application must start from it and hold at least every
transaction that was acknowledged before the cut.
`SNAPFS_SECONDS` lengthens the load, `SNAPFS_KILL_EVERY` kills daemons under it (tools/chaos uses both).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.patience import PATIENCE_S, eventually

LOAD_SECONDS = float(os.environ.get("SNAPFS_SECONDS", "4"))
KILL_EVERY_SECONDS = float(os.environ.get("SNAPFS_KILL_EVERY", "0"))
SNAPFS = [sys.executable, "-m", "snapfs"]


@dataclass
class Host:
    """One volume and its mountpoint, driven only through what a user has: commands and the control file."""

    base: Path
    volume: Path = field(init=False)
    mountpoint: Path = field(init=False)

    def __post_init__(self) -> None:
        self.volume = self.base / "volume"
        self.mountpoint = self.base / "mnt"
        self.mountpoint.mkdir()

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*SNAPFS, *arguments], capture_output=True, text=True, check=False, timeout=280)
        assert not check or done.returncode == 0, f"snapfs {' '.join(arguments)}: {done.returncode} {done.stderr}"
        return done

    def mount(self) -> None:
        self.run("mount", str(self.volume), str(self.mountpoint))

    def umount(self) -> None:
        self.run("umount", str(self.mountpoint))

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.mountpoint / ".snapfs/status").read_text())
        return facts

    def snapshot(self, name: str) -> None:
        """As a user would: one write to the control file, which returns when the snapshot is durable."""
        with open(self.mountpoint / ".snapfs/control", "w") as control:
            control.write(f"snapshot {name}\n")

    def snapshots(self) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = json.loads(self.run("list", "--json", str(self.volume)).stdout)
        return records

    def restore(self, reference: str, destination: Path) -> None:
        self.run("restore", "--verify", str(self.volume), reference, str(destination))

    def kill(self) -> None:
        """SIGKILL the daemon and its supervisor, and take the dead mount away, as on a host that crashed."""
        facts = self.status()
        for pid in filter(None, (facts["supervisor"], facts["pid"])):  # the supervisor first, or it starts another
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, capture_output=True)

    def clear(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if os.path.ismount(self.mountpoint):
                self.run("umount", str(self.mountpoint), check=False)
        subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, capture_output=True)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that an application with a user of its own can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="snapfs-apps-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.clear()


@dataclass
class Acknowledged:
    """The acknowledged steps: (sequence number, time of the acknowledgment), in order."""

    entries: list[tuple[int, int]] = field(default_factory=list)

    def add(self, sequence: int) -> None:
        self.entries.append((sequence, time.time_ns()))

    def newest_before(self, time_ns: int) -> int:
        return max((sequence for sequence, at in self.entries if at < time_ns), default=0)

    @property
    def newest(self) -> int:
        return self.entries[-1][0] if self.entries else 0


class Writer(threading.Thread):
    """Runs `step(sequence)` with 1, 2, 3, ... until stopped; each return is an acknowledgment.

    A step that raises ends the writer. Whether that was allowed is for the story to decide (`error`).
    """

    def __init__(self, step: Callable[[int], None], first: int = 1) -> None:
        super().__init__()
        self.acknowledged = Acknowledged()
        self.error: Exception | None = None
        self._step = step
        self._next = first
        self._stop_asked = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                self._step(self._next)
                self.acknowledged.add(self._next)
                self._next += 1
        except Exception as error:
            self.error = error

    def wait_for(self, sequence: int) -> None:
        """Return when `sequence` is acknowledged, or the writer has ended."""
        eventually(lambda: self.acknowledged.newest >= sequence or self.error is not None, f"entry {sequence}")

    def stop(self, at_least: int = 1) -> None:
        """End it, when `at_least` entries are acknowledged."""
        self.wait_for(at_least)
        self._stop_asked.set()
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the writer hangs"


def snapshots_under_load(host: Host, seconds: float = LOAD_SECONDS) -> list[str]:
    """Cut a named snapshot every second for `seconds`; returns the names."""
    names = []
    end = time.monotonic() + seconds
    with killing(host.volume):
        while time.monotonic() < end:
            names.append(f"load-{len(names) + 1}")
            host.snapshot(names[-1])
            time.sleep(1.0)
    return names


@contextlib.contextmanager
def killing(volume: Path) -> Iterator[None]:
    """SIGKILL the daemon every `SNAPFS_KILL_EVERY` seconds, if that is set; its supervisor starts the next one."""
    ended = threading.Event()
    deaths = 0

    def kill() -> None:
        nonlocal deaths
        while not ended.wait(KILL_EVERY_SECONDS):
            facts = json.loads((volume / "supervisor.json").read_text())
            if facts["state"] == "serving":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(facts["daemon"], signal.SIGKILL)
                    deaths += 1

    killer = threading.Thread(target=kill)
    if KILL_EVERY_SECONDS:
        killer.start()
    try:
        yield
    finally:
        ended.set()
        if KILL_EVERY_SECONDS:
            killer.join()
            print(f"{deaths} daemons were killed")
            assert deaths, "no one was killed"


@pytest.fixture
def load_seconds() -> float:
    return LOAD_SECONDS


@pytest.fixture
def story() -> Any:
    """The helpers above by name, since test modules are imported on their own."""
    return sys.modules[__name__]
