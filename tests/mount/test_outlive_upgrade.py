"""`snapfs upgrade`: another daemon, and another program, under a mount that stays in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import snapfs as package
from snapfs.fuse import router

sys.path.append(str(Path(__file__).parent.parent / "fakes"))

import outlive_run

pytestmark = pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))


def test_an_application_does_not_notice_upgrades(mount: Callable[..., Any], snapfs: Callable[..., Any]) -> None:
    seed = int.from_bytes(os.urandom(2))
    mounted = mount("-o", "snapshots.every=1s")
    gaps: list[float] = []
    lock = threading.Lock()

    def strike(volume: Path) -> bool:
        with lock:
            done = snapfs("upgrade", "--json", mounted.path, check=False)
        assert done.returncode == 0, done.stderr
        gaps.append(json.loads(done.stdout)["gap_s"])
        return True

    before = mounted.status()
    outcome = outlive_run.run(mounted.volume, mounted.path, 5.0, seed, strike, (0.2, 0.8))
    print(f"seed {seed}: {outcome.operations} operations, gaps {gaps}, longest stall {outcome.stall_s:.3f} s")
    after = mounted.status()
    assert len(gaps) >= 2
    assert after["supervisor"] == before["supervisor"]
    assert after["pid"] != before["pid"]
    assert after["daemons_before"] == len(gaps)
    outlive_run.check_sums(mounted.path, outcome)
    outlive_run.check_snapshots(mounted.path, outcome, seed)


def installed(folder: Path) -> dict[str, str]:
    """A copy of the package, as an installation that can be replaced; the environment to run it in."""
    shutil.copytree(Path(package.__file__).parent, folder / "snapfs", ignore=shutil.ignore_patterns("__pycache__"))
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_new_program_takes_over(tmp_path: Path, volume_dir: Path, mountpoint: Path) -> None:
    environment = installed(tmp_path / "lib")
    command = [sys.executable, "-m", "snapfs.cli"]

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *map(str, words)], env=environment, cwd="/",
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    assert run("mount", volume_dir, mountpoint).returncode == 0
    status = mountpoint / ".snapfs/status"
    with open(mountpoint / "held", "w+") as held:
        held.write("written before")
        held.flush()
        (mountpoint / "held").unlink()
        source = tmp_path / "lib/snapfs/daemon.py"
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
    deadline = time.monotonic() + 10
    while (volume_dir / "supervisor.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_no_mount_is_one_line(snapfs: Callable[..., Any], tmp_path: Path) -> None:
    done = snapfs("upgrade", tmp_path, check=False)
    assert (done.returncode, done.stderr) == (3, f"snapfs: {tmp_path} is not a snapfs mount\n")
