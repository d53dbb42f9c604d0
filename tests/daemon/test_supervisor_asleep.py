"""While nothing happens the supervisor is a small program, and whatever comes finds a supervisor all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.daemon.supervision import asleep
from snapfs.fuse.kernel import router
from tests.daemon.test_outlive_upgrade import Installation
from tests.fakes.patience import eventually

pytestmark = [
    pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not())),
    pytest.mark.skipif(asleep.program() is None, reason="the program was not built"),
]


def facts(volume: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((volume / "supervisor.json").read_text())
    return found


def is_asleep(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "snapfs-supervisor"
    except FileNotFoundError:
        return False


def fall_asleep(volume: Path) -> int:
    """Wait until the supervisor sleeps; its process."""
    supervisor = int(facts(volume)["supervisor"])
    eventually(lambda: is_asleep(supervisor), "its sleep")
    return supervisor


def is_over(volume: Path, pid: int) -> bool:
    return not (volume / "supervisor.json").exists() and not os.path.exists(f"/proc/{pid}/fd/0")


@pytest.fixture
def program(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "lib")


def test_it_wakes_up_for_each_death_of_a_daemon(mounted: Any) -> None:
    with open(mounted.path / "file", "w+") as file:
        file.write("before")
        file.flush()
        (mounted.path / "file").unlink()
        for number in (1, 2):
            supervisor = fall_asleep(mounted.volume)
            before = facts(mounted.volume)
            os.kill(before["daemon"], signal.SIGKILL)
            file.seek(0)
            assert file.read() == "before"
            (mounted.path / f"after-{number}").write_text("x")
            eventually(lambda n=number: facts(mounted.volume)["restarts"] == n, "the next daemon's status")
            eventually(lambda: bool(facts(mounted.volume)["state"] == "serving"), "its service")
            after = facts(mounted.volume)
            assert (after["supervisor"], after["lives"]) == (supervisor, number + 1)
            assert after["daemon"] != before["daemon"]
            assert after["gap_s"] > 0
    assert mounted.status()["daemons_before"] == 2


def test_a_signal_that_comes_while_it_sleeps_unmounts(mounted: Any) -> None:
    supervisor = fall_asleep(mounted.volume)
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: is_over(mounted.volume, supervisor), "the end")
    assert not os.path.ismount(mounted.path)


def test_an_unmount_while_it_sleeps_leaves_nothing(mounted: Any, snapfs: Callable[..., Any]) -> None:
    supervisor = fall_asleep(mounted.volume)
    assert snapfs("umount", mounted.path).returncode == 0
    eventually(lambda: is_over(mounted.volume, supervisor), "its end")
    assert snapfs("mount", mounted.volume, mounted.path).returncode == 0


def test_a_signal_that_comes_while_it_falls_asleep_unmounts(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    """Between its last look at what came and the `exec`; then only the mount's end would have woken it up."""
    program.change(
        "daemon/supervision/supervisor_upgrade.py",
        ("    inherited = [carrier", "    os.kill(os.getpid(), 15)\n    inherited = [carrier"),
    )
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    supervisor = int(facts(volume_dir)["supervisor"])
    eventually(lambda: is_over(volume_dir, supervisor), "the end")
    assert not os.path.ismount(mountpoint)


def test_an_upgrade_wakes_it_up_and_keeps_it(mounted: Any, snapfs: Callable[..., Any]) -> None:
    for count in (1, 2):
        supervisor = fall_asleep(mounted.volume)
        done = json.loads(snapfs("upgrade", "--json", mounted.path).stdout)
        assert (done["supervisor"], done["upgrades"]) == (supervisor, count)
    command = Path(f"/proc/{supervisor}/cmdline").read_bytes()
    assert command.count(b"--foreground") == 1  # it does not grow with each sleep
    os.kill(int(facts(mounted.volume)["daemon"]), signal.SIGKILL)  # what it had learned before is not forgotten
    (mounted.path / "file").write_text("answered")
    assert (facts(mounted.volume)["upgrades"], mounted.status()["daemons_before"]) == (2, 3)


def test_daemons_that_cannot_start_are_given_up_as_ever(mounted: Any) -> None:
    """The volume is opened by the daemon, not by the supervisor that woke up, which would take the mount with it."""
    supervisor = fall_asleep(mounted.volume)
    (mounted.volume / "volume.toml").rename(mounted.volume / "hidden.toml")
    os.kill(facts(mounted.volume)["daemon"], signal.SIGKILL)
    eventually(lambda: bool(facts(mounted.volume)["state"] == "failed"), "the end of all patience")
    assert "given up" in facts(mounted.volume)["words"]
    eventually(lambda: not os.path.exists(f"/proc/{supervisor}/fd/0"), "its end")
    (mounted.volume / "hidden.toml").rename(mounted.volume / "volume.toml")


def test_an_installation_that_is_being_replaced_is_waited_for(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    (mountpoint / "file").write_text("before")
    supervisor = fall_asleep(volume_dir)
    put_back = program.change("daemon/supervisor.py", ("import gc\n", "this is no Python\n"))
    os.kill(facts(volume_dir)["daemon"], signal.SIGKILL)
    log = volume_dir / "daemon.log"
    eventually(lambda: log.read_text().count("tries again") >= 2, "two tries")
    put_back()
    assert (mountpoint / "file").read_text() == "before"
    eventually(lambda: bool(facts(volume_dir)["state"] == "serving"), "the next daemon's status")
    assert facts(volume_dir)["supervisor"] == supervisor
    assert program.run("umount", mountpoint).returncode == 0
    eventually(lambda: is_over(volume_dir, supervisor), "its end")


@pytest.mark.parametrize("name", ["a build", "a module"])
def test_an_installation_of_which_no_daemon_can_begin_is_waited_for(
    program: Installation, volume_dir: Path, mountpoint: Path, name: str
) -> None:
    """As after a `git pull` without a build: extensions of other sources were refused, and the mount ended."""
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    (mountpoint / "file").write_text("before")
    supervisor = fall_asleep(volume_dir)
    if name == "a build":
        put_back = program.change("live/native/lock_order.h", ("/* The order", "/* This is the order"))
    else:
        put_back = program.change("daemon/daemon.py", ("import gc\n", "this is no Python\n"))
    before = facts(volume_dir)
    os.kill(before["daemon"], signal.SIGKILL)
    log = volume_dir / "daemon.log"
    eventually(lambda: log.read_text().count("no daemon can be started") >= 2, "two tries")
    assert facts(volume_dir)["state"] in ("restarting", "starting")
    put_back()
    assert (mountpoint / "file").read_text() == "before"
    eventually(lambda: facts(volume_dir)["state"] == "serving", "the next daemon's status")
    after = facts(volume_dir)
    assert (after["supervisor"], after["lives"]) == (supervisor, before["lives"] + 1)
    assert after["gap_s"] > 0
    assert program.run("umount", mountpoint).returncode == 0
    eventually(lambda: is_over(volume_dir, supervisor), "its end")


def test_an_unfit_installation_keeps_no_mount_from_its_end(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    supervisor = fall_asleep(volume_dir)
    put_back = program.change("daemon/daemon.py", ("import gc\n", "this is no Python\n"))
    os.kill(facts(volume_dir)["daemon"], signal.SIGKILL)
    eventually(lambda: "no daemon can be started" in (volume_dir / "daemon.log").read_text(), "a try")
    put_back()
    subprocess.run(["umount", "-l", mountpoint], check=True)
    eventually(lambda: is_over(volume_dir, supervisor), "its end")


def test_an_earlier_version_that_knows_no_sleep_goes_on(
    program: Installation, tmp_path: Path, volume_dir: Path, mountpoint: Path
) -> None:
    """As after an upgrade: by the command that the mount was made with."""
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    (mountpoint / "file").write_text("before")
    supervisor = fall_asleep(volume_dir)
    wake, away = tmp_path / "lib/snapfs/commands/wake.py", tmp_path / "wake.py"
    wake.rename(away)
    os.kill(facts(volume_dir)["daemon"], signal.SIGKILL)
    assert (mountpoint / "file").read_text() == "before"
    eventually(lambda: bool(facts(volume_dir)["state"] == "serving"), "the next daemon's status")
    assert facts(volume_dir)["supervisor"] == supervisor
    away.rename(wake)
    assert program.run("umount", mountpoint).returncode == 0
    eventually(lambda: is_over(volume_dir, supervisor), "its end")


def test_an_earlier_version_that_cannot_read_its_state_ends_no_mount(
    program: Installation, volume_dir: Path, mountpoint: Path
) -> None:
    """`upgrade` refuses it, the next daemon waits for the right version, and the end of the mount is seen."""
    later = program.change(
        "daemon/supervision/supervisor_state.py",
        ('JsonFile("supervisor state", dict[str, Any], ', 'JsonFile("supervisor state", dict[str, Any], version=99, '),
    )
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    supervisor = fall_asleep(volume_dir)
    later()
    before = facts(volume_dir)
    refused = program.run("upgrade", mountpoint)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1), refused.stderr
    assert "reads supervisor state up to format 1, and this is 99" in refused.stderr
    assert facts(volume_dir) == before
    assert is_asleep(supervisor)
    (mountpoint / "file").write_text("before")
    os.kill(before["daemon"], signal.SIGKILL)
    log = volume_dir / "daemon.log"
    eventually(lambda: "the supervisor cannot go on, and tries again" in log.read_text(), "a try")
    earlier = program.change(
        "daemon/supervision/supervisor_state.py",
        ('JsonFile("supervisor state", dict[str, Any], ', 'JsonFile("supervisor state", dict[str, Any], version=99, '),
    )
    assert (mountpoint / "file").read_text() == "before"
    assert fall_asleep(volume_dir) == supervisor
    earlier()
    assert program.run("umount", mountpoint).returncode == 0
    eventually(lambda: is_over(volume_dir, supervisor), "its end")


def test_without_the_program_it_stays_awake(program: Installation, volume_dir: Path, mountpoint: Path) -> None:
    program.change("daemon/supervision/asleep.py", ("AWAKE_SECONDS: Final = 3.0", "AWAKE_SECONDS: Final = 0.1"))
    (Path(program.environment["PYTHONPATH"]) / "snapfs/daemon/supervision/snapfs-supervisor").unlink()
    assert program.run("mount", volume_dir, mountpoint).returncode == 0
    supervisor = int(facts(volume_dir)["supervisor"])
    with open(mountpoint / "file", "w") as file:
        file.write("x")
        file.flush()
        assert program.run("snapshot", mountpoint, "flushed").returncode == 0  # by the helper, which is Python here
    assert (mountpoint / ".snapfs/snapshots/flushed/file").read_text() == "x"
    assert not is_asleep(supervisor)
    os.kill(facts(volume_dir)["daemon"], signal.SIGKILL)
    assert (mountpoint / "file").read_text() == "x"
    assert program.run("umount", mountpoint).returncode == 0
    eventually(lambda: is_over(volume_dir, supervisor), "its end")
