"""`snapfs upgrade`: another daemon, and another program, under a mount that stays in use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import snapfs as package
from snapfs.fuse.kernel import router
from tests.fakes.mounts import outlive_run
from tests.fakes.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))


def test_an_application_does_not_notice_upgrades(mount: Callable[..., Any], snapfs: Callable[..., Any]) -> None:
    seed = int.from_bytes(os.urandom(2))
    mounted = mount("-o", "snapshots.every=1s")
    gaps: list[float] = []
    lock = threading.Lock()

    def strike(volume: Path) -> bool:
        with lock:
            done = snapfs("upgrade", "--json", mounted.path, check=False, timeout=400)  # more than each of its waits
        assert done.returncode == 0, done.stderr
        gaps.append(json.loads(done.stdout)["gap_s"])
        return True

    before = mounted.status()
    outcome = outlive_run.run(mounted.volume, mounted.path, 5.0, seed, strike, (0.2, 0.8), at_least=2)
    print(f"seed {seed}: {outcome.operations} operations, gaps {gaps}, longest stall {outcome.stall_s:.3f} s")
    after = mounted.status()
    assert len(gaps) == outcome.kills >= 2
    assert after["supervisor"] == before["supervisor"]
    assert after["pid"] != before["pid"]
    assert after["daemons_before"] == len(gaps)
    outlive_run.check_sums(mounted.path, outcome)
    outlive_run.check_snapshots(mounted.path, outcome, seed)


def test_a_strike_that_fails_leaves_nothing_of_the_application(tmp_path: Path) -> None:
    """Its pipes failed whatever test came next in the same process. Any folder will do for the application."""
    (tmp_path / "daemon.log").write_text("the last words")
    before = os.listdir("/proc/self/fd")

    def strike(volume: Path) -> bool:
        raise subprocess.TimeoutExpired("snapfs upgrade", 120)

    with pytest.raises(AssertionError, match="seed 5: TimeoutExpired.*\n.*the last words"):
        outlive_run.run(tmp_path, tmp_path, 1.0, 5, strike, (0.0, 0.0))
    assert os.listdir("/proc/self/fd") == before
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert not [pid for pid in children if str(tmp_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


def installed(folder: Path) -> dict[str, str]:
    """A copy of the package, as an installation that can be replaced; the environment to run it in."""
    shutil.copytree(Path(package.__file__).parent, folder / "snapfs", ignore=shutil.ignore_patterns("__pycache__"))
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_new_program_takes_over(tmp_path: Path, volume_dir: Path, mountpoint: Path) -> None:
    environment = installed(tmp_path / "lib")
    command = [sys.executable, "-m", "snapfs"]

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *map(str, words)], env=environment, cwd="/",
            check=False, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip

    assert run("mount", volume_dir, mountpoint).returncode == 0
    status = mountpoint / ".snapfs/status"
    with open(mountpoint / "held", "w+") as held:
        held.write("written before")
        held.flush()
        (mountpoint / "held").unlink()
        source = tmp_path / "lib/snapfs/daemon/daemon.py"
        good = source.read_text()
        source.write_text(good + "\nthis is no Python\n")
        refused = run("upgrade", mountpoint)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1)
        assert "nothing was changed" in refused.stderr
        assert json.loads(status.read_bytes())["daemons_before"] == 0
        source.write_text(good)
        init = tmp_path / "lib/snapfs/__init__.py"
        init.write_text(init.read_text().replace(package.__version__, "99.0"))
        done = run("upgrade", mountpoint)
        assert done.returncode == 0, done.stderr
        assert "(snapfs 99.0)" in done.stdout
        assert json.loads(status.read_bytes())["version"] == "99.0"
        held.seek(0)
        assert held.read() == "written before"
    assert run("umount", mountpoint).returncode == 0
    deadline = time.monotonic() + PATIENCE_S
    while (volume_dir / "supervisor.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Installation:
    """A snapfs that can be replaced under its mounts, in the form of an earlier or a later version."""

    def __init__(self, folder: Path) -> None:
        self.environment = installed(folder)
        self._folder = folder / "snapfs"
        self._module = "snapfs"

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", self._module, *map(str, words)], env=self.environment, cwd="/",
            check=False, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip

    def change(self, name: str, *pairs: tuple[str, str]) -> Callable[[], None]:
        """Replace texts in a module; what puts it back."""
        path = self._folder / name
        good = text = path.read_text()
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text)
        return lambda: path.write_text(good) and None


@pytest.fixture
def program(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "lib")


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_supervisor_of_an_earlier_version_is_taken_over(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    """It runs `snapfs.cli`, imports `snapfs.supervisor`, and hands over a state without a format and a checksum."""
    earlier = [
        program.change("commands/mounting/daemon_start.py", ('"-P", "-m", "snapfs", ', '"-P", "-m", "snapfs.cli", ')),
        program.change(
            "daemon/supervision/supervisor_upgrade.py",
            ("import snapfs.daemon.supervisor as supervisor", "import snapfs.supervisor as supervisor"),
            ("STATE.encode(handed.facts())", "__import__('json').dumps(handed.facts()).encode()"),
        ),
    ]
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    with open(mountpoint / "held", "w+") as held:
        held.write("written before")
        held.flush()
        before = json.loads((mountpoint / ".snapfs/status").read_bytes())
        command = Path(f"/proc/{before['supervisor']}/cmdline").read_bytes().split(b"\0")
        assert b"snapfs.cli" in command
        for put_back in earlier:
            put_back()
        for count in (1, 2):
            done = program.run("upgrade", mountpoint)
            assert done.returncode == 0, done.stderr
            after = json.loads((mountpoint / ".snapfs/status").read_bytes())
            assert (after["supervisor"], after["daemons_before"]) == (before["supervisor"], count)
        held.seek(0)
        assert held.read() == "written before"
    (mountpoint / "after").write_text("by the present version")
    assert program.run("snapshot", mountpoint, "after").returncode == 0
    assert program.run("verify", mountpoint).returncode == 0
    assert program.run("umount", mountpoint).returncode == 0
    wait_until_gone(volume_dir / "supervisor.json")


def test_a_supervisor_of_a_later_version_is_left_with_its_mount(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    """One clear line, and nothing is touched: its state could not be read."""
    put_back = program.change(
        "daemon/supervision/supervisor_state.py",
        ('JsonFile("supervisor state", dict[str, Any], ', 'JsonFile("supervisor state", dict[str, Any], version=99, '),
    )
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    put_back()
    (mountpoint / "file").write_text("before")
    before = json.loads((mountpoint / ".snapfs/status").read_bytes())
    refused = program.run("upgrade", mountpoint)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1), refused.stderr
    assert "reads supervisor state up to format 1, and this is 99" in refused.stderr
    after = json.loads((mountpoint / ".snapfs/status").read_bytes())
    assert (after["supervisor"], after["pid"], after["daemons_before"]) == (before["supervisor"], before["pid"], 0)
    (mountpoint / "file").write_text("after")
    assert (mountpoint / "file").read_text() == "after"
    assert program.run("umount", mountpoint).returncode == 0
    wait_until_gone(volume_dir / "supervisor.json")


def succession(program: Installation, body: str) -> Callable[[], None]:
    """Let a daemon do this when it is requested to leave; what puts it back, for the daemons to come."""
    return program.change(
        "daemon/succession.py", ("            await _leave(handle, reader, snapshotter, tree)\n", body)
    )


def supervised(volume: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((volume / "supervisor.json").read_text())
    return facts


def test_a_daemon_that_does_not_leave_serves_on(program: Installation, volume_dir: Path, mountpoint: Path) -> None:
    succession(program, "            pass\n")
    program.change("daemon/supervisor.py", ("LEAVE_SECONDS: Final = 50.0", "LEAVE_SECONDS: Final = 0.5"))
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    for _ in range(2):  # nor does what was before stand for what comes
        before = supervised(volume_dir)
        refused = program.run("upgrade", mountpoint)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1), refused.stderr
        assert f"process {before['daemon']} was to leave, and has not" in refused.stderr
        (mountpoint / "file").write_text("served")
        assert supervised(volume_dir)["daemon"] == before["daemon"]
        assert supervised(volume_dir)["time_ns"] > before["time_ns"]
    assert program.run("umount", mountpoint).returncode == 0


def test_a_daemon_that_cannot_leave_reports_why(program: Installation, volume_dir: Path, mountpoint: Path) -> None:
    """As after a rollback, until the kernel is notified."""
    stale = "is_kernel_stale:\n            reader.resume()"
    program.change("daemon/succession.py", (stale, stale.replace("is_kernel_stale", "is_kernel_stale or 1")))
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    before = supervised(volume_dir)
    refused = program.run("upgrade", mountpoint)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1), refused.stderr
    assert f"process {before['daemon']} serves on: a rollback has not ended" in refused.stderr
    (mountpoint / "file").write_text("served")
    assert program.run("snapshot", mountpoint, "made").returncode == 0
    assert program.run("umount", mountpoint).returncode == 0


def test_a_daemon_that_dies_instead_of_leaving_is_followed(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    succession(program, "            os.kill(os.getpid(), 9)\n")
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    before = supervised(volume_dir)
    done = program.run("upgrade", "--json", mountpoint)
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert (after["upgrades"], after["daemon"] != before["daemon"]) == (1, True)
    assert program.run("umount", mountpoint).returncode == 0


def test_a_supervisor_that_does_nothing_is_not_waited_for(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    program.change("commands/upgrade.py", ("PATIENCE_S = 75.0", "PATIENCE_S = 0.5"))
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    before = supervised(volume_dir)
    os.kill(before["supervisor"], signal.SIGSTOP)
    refused = program.run("upgrade", mountpoint)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (4, 1), refused.stderr
    assert f"the supervisor, process {before['supervisor']}, has not begun" in refused.stderr
    (mountpoint / "file").write_text("served")
    os.kill(before["supervisor"], signal.SIGCONT)
    eventually(lambda: (supervised(volume_dir)["upgrades"], supervised(volume_dir)["state"]) == (1, "serving"))
    assert program.run("umount", mountpoint).returncode == 0


def test_what_is_no_mount_is_one_line(snapfs: Callable[..., Any], tmp_path: Path) -> None:
    done = snapfs("upgrade", tmp_path, check=False)
    assert (done.returncode, done.stderr) == (
        3,
        f"snapfs: {tmp_path} is not a snapfs mount: `snapfs volumes` shows those there are\n",
    )
