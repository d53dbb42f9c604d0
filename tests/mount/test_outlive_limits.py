"""Where outliving ends: daemons that keep dying, signals, unmounts at the worst moment, a supervisor that is killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse import router
from snapfs.fuse.openers import writers_of
from snapfs.supervisor import CRASHES_AN_HOUR, DELAYS_SECONDS, STABLE_SECONDS, Death, delay_s

needs_router = pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.01)


def facts(volume: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((volume / "supervisor.json").read_text())
    return told


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_daemon(volume: Path) -> int:
    wait_until(lambda: bool(facts(volume)["state"] == "serving"), "a daemon")
    pid = int(facts(volume)["daemon"])
    os.kill(pid, signal.SIGKILL)
    return pid


# -- the decision


def deaths(*lives: float, killed: bool = True, every_s: float = 1.0) -> list[Death]:
    return [Death(number * every_s, lived, killed) for number, lived in enumerate(lives)]


@pytest.mark.parametrize(
    ("past", "delay"),
    [
        (deaths(10.0), DELAYS_SECONDS[0]),
        (deaths(0.0), DELAYS_SECONDS[1]),
        (deaths(0.0, 0.0, 0.1), DELAYS_SECONDS[3]),
        (deaths(*[0.0] * 7), DELAYS_SECONDS[7]),
        (deaths(*[0.0] * 8), None),
        (deaths(*[0.0] * 7, STABLE_SECONDS), DELAYS_SECONDS[0]),
        (deaths(*[1.0] * 900), DELAYS_SECONDS[0]),  # killed from outside, however often
        (deaths(*[1.0] * CRASHES_AN_HOUR, killed=False), DELAYS_SECONDS[0]),
        (deaths(*[1.0] * (CRASHES_AN_HOUR + 1), killed=False), None),
        (deaths(*[1.0] * 900, killed=False, every_s=120.0), DELAYS_SECONDS[0]),
    ],
)
def test_when_to_start_another(past: list[Death], delay: float | None) -> None:
    assert delay_s(past) == delay


# -- on a mount


@needs_router
def test_a_daemon_that_keeps_dying_is_given_up_and_the_mount_fails(mounted: Any, snapfs: Callable[..., Any]) -> None:
    """Its volume.toml is gone: no successor can open the volume."""
    (mounted.path / "file").write_text("answered")
    supervisor = facts(mounted.volume)["supervisor"]
    (mounted.volume / "volume.toml").rename(mounted.volume / "hidden.toml")
    started = time.monotonic()
    os.kill(facts(mounted.volume)["daemon"], signal.SIGKILL)
    with pytest.raises(OSError, check=lambda _: True) as failure:  # waits while there is hope, and no longer
        (mounted.path / "new").write_text("x")
    assert failure.value.errno in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
    assert time.monotonic() - started > sum(DELAYS_SECONDS)
    wait_until(lambda: not alive(supervisor), "the supervisor's end")
    assert facts(mounted.volume)["state"] == "failed"
    assert "given up" in facts(mounted.volume)["words"]
    assert "given up" in (mounted.volume / "daemon.log").read_text()
    (mounted.volume / "hidden.toml").rename(mounted.volume / "volume.toml")
    findings = json.loads(snapfs("doctor", mounted.volume, "--json").stdout)
    assert any(finding["check"] == "supervisor" and "given up" in finding["finding"] for finding in findings)
    snapfs("mount", mounted.volume, mounted.path)
    assert (mounted.path / "file").read_text() == "answered"


@needs_router
def test_an_unmount_while_no_daemon_lives_is_an_orderly_end(mounted: Any, snapfs: Callable[..., Any]) -> None:
    (mounted.path / "file").write_text("answered")
    supervisor = facts(mounted.volume)["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    kill_daemon(mounted.volume)
    unmounting = subprocess.Popen(["umount", str(mounted.path)])
    time.sleep(0.2)
    os.kill(supervisor, signal.SIGCONT)
    assert unmounting.wait(30) == 0
    wait_until(lambda: not alive(supervisor), "the supervisor's end")
    assert not (mounted.volume / "supervisor.json").exists()
    assert "was ended by SIGKILL" in (mounted.volume / "daemon.log").read_text()
    snapfs("mount", mounted.volume, mounted.path)
    assert (mounted.path / "file").read_text() == "answered"
    assert json.loads((mounted.path / ".snapfs/status").read_bytes())["recovered"] == []


@needs_router
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_unmounts(mounted: Any, number: int) -> None:
    (mounted.path / "file").write_text("text")
    told = facts(mounted.volume)
    os.kill(told["supervisor"], number)
    wait_until(lambda: not alive(told["supervisor"]) and not alive(told["daemon"]), "the end")
    assert not os.path.ismount(mounted.path)
    assert not (mounted.volume / "supervisor.json").exists()


@needs_router
def test_a_signal_reaches_the_daemon_that_comes(mounted: Any) -> None:
    """It arrives while nobody serves: the next daemon is told."""
    told = facts(mounted.volume)
    os.kill(told["supervisor"], signal.SIGSTOP)
    kill_daemon(mounted.volume)
    os.kill(told["supervisor"], signal.SIGTERM)
    os.kill(told["supervisor"], signal.SIGCONT)
    wait_until(lambda: not alive(told["supervisor"]), "the end")
    assert not os.path.ismount(mounted.path)


@needs_router
def test_in_the_foreground_signals_and_exit_codes_are_as_without_a_supervisor(
    volume_dir: Path, mountpoint: Path
) -> None:
    command = [sys.executable, "-m", "snapfs.cli", "mount", "--foreground", str(volume_dir), str(mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until((mountpoint / ".snapfs").exists, "the mount")
        kill_daemon(volume_dir)
        (mountpoint / "file").write_text("after a death")
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=30)
        assert process.returncode == 0, words
    (volume_dir / "live/namespace.db").write_bytes(b"garbage" * 4096)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith("snapfs: ")
    assert not os.path.ismount(mountpoint)


@needs_router
def test_a_daemon_serves_on_without_its_supervisor(mounted: Any, snapfs: Callable[..., Any]) -> None:
    told = facts(mounted.volume)
    os.kill(told["supervisor"], signal.SIGKILL)
    wait_until(lambda: mounted.status()["supervisor"] is None, "the daemon to notice")
    (mounted.path / "file").write_text("text")
    assert mounted.status()["pid"] == told["daemon"]
    refused = snapfs("upgrade", mounted.path, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1)
    assert snapfs("umount", mounted.path).returncode == 0
    wait_until(lambda: not alive(told["daemon"]), "the daemon's end")


@needs_router
def test_a_command_that_the_daemon_dies_over_is_done_once(mounted: Any) -> None:
    """A large seal is under way for a named snapshot when the daemon is killed."""
    (mounted.path / "large").write_bytes(os.urandom(60 << 20))
    replies: list[dict[str, Any]] = []
    writer = threading.Thread(target=lambda: replies.append(mounted.snapshot("named")))
    writer.start()
    wait_until(lambda: bool(mounted.status()["sealing"]), "the seal")
    kill_daemon(mounted.volume)
    writer.join(60)
    assert replies[0]["snapshot"]["name"] == "named"
    shown = os.listdir(mounted.path / ".snapfs/snapshots")
    assert shown.count("named") == 1
    assert (mounted.path / ".snapfs/snapshots/named/large").stat().st_size == 60 << 20


@needs_router
def test_a_rollback_after_an_adoption_asks_proc(mounted: Any) -> None:
    (mounted.path / "file").write_text("old")
    mounted.snapshot("old")
    (mounted.path / "file").write_text("new")
    script = f"exec 3<>{mounted.path}/file; echo held; exec sleep 60"
    holder = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    kill_daemon(mounted.volume)
    held = writers_of(str(mounted.path))
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EBUSY):
        mounted.command("rollback old")
    holder.kill()
    holder.communicate()
    before = writers_of(str(mounted.path))
    assert held - before == 1
    if before == 0:
        mounted.command("rollback old")
    else:  # there are processes on this machine that may not be looked at
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EBUSY):
            mounted.command("rollback old")
        mounted.command("rollback old force")
    assert (mounted.path / "file").read_text() == "old"
    kill_daemon(mounted.volume)
    assert (mounted.path / "file").read_text() == "old"
    (mounted.path / "file").write_text("goes on")
