"""Where outliving ends: daemons that keep dying, signals, unmounts at the worst moment, a supervisor that is killed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from snapfs.daemon.supervision.restart_policy import (
    CRASHES_AN_HOUR,
    DELAYS_SECONDS,
    FRUITLESS_DEATHS,
    STABLE_SECONDS,
    STEADY_SECONDS,
    Death,
    delay_s,
)
from snapfs.fuse.kernel import router
from snapfs.fuse.kernel.openers import writers_of
from tests.fakes.patience import PATIENCE_S, eventually

Waiting = TypeVar("Waiting", subprocess.Popen[str], threading.Thread)
FAILING = "snapfs_snapshot_failing_seconds "
needs_router = pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))


def facts(volume: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((volume / "supervisor.json").read_text())
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill_daemon(volume: Path) -> int:
    eventually(lambda: bool(facts(volume)["state"] == "serving"), "a daemon")
    pid = int(facts(volume)["daemon"])
    os.kill(pid, signal.SIGKILL)
    return pid


PIECES, PIECE_BYTES = 8, 16 << 20


def stopped_in_a_seal(
    mounted: Any, command: Callable[[str], Waiting], is_waiting: Callable[[Waiting], bool]
) -> tuple[Waiting, str]:
    """Have `command` make snapshots of much that is new, until the daemon was stopped (SIGSTOP) in the middle of a
    seal; the command that waits for that, and the name of its snapshot."""
    for number in itertools.count():
        name = f"named-{number}"
        for piece in range(PIECES):
            (mounted.path / f"large-{piece}").write_bytes(os.urandom(PIECE_BYTES))
        waiting = command(name)
        while is_waiting(waiting):
            if (mounted.status()["sealing"] or {}).get("phase") == "seal":
                daemon = int(facts(mounted.volume)["daemon"])
                os.kill(daemon, signal.SIGSTOP)
                if name.encode() not in (mounted.volume / "store/snapshots.log").read_bytes():
                    return waiting, name
                os.kill(daemon, signal.SIGCONT)
                break
        eventually(lambda waiting=waiting: not is_waiting(waiting), "the end of a command")
    raise AssertionError


# -- the decision


def deaths(*lives: float, killed: bool = True, every_s: float = 1.0, progress: bool = True) -> list[Death]:
    return [Death(number * every_s, lived, killed, progress) for number, lived in enumerate(lives)]


VAIN = deaths(*[1.0] * (FRUITLESS_DEATHS - 1), progress=False)
"""One less than is too many."""


@pytest.mark.parametrize(
    ("past", "delay"),
    [
        (deaths(10.0), DELAYS_SECONDS[0]),
        (deaths(0.0), DELAYS_SECONDS[1]),
        (deaths(0.0, 0.0, 0.1), DELAYS_SECONDS[3]),
        (deaths(*[0.0] * 7), DELAYS_SECONDS[7]),
        (deaths(*[0.0] * 8), None),
        (deaths(*[0.0] * 7, STABLE_SECONDS), DELAYS_SECONDS[0]),
        (deaths(*[1.0] * 900), DELAYS_SECONDS[0]),  # killed from outside, however often, with progress
        (VAIN, DELAYS_SECONDS[0]),
        (deaths(1.0, progress=False) + VAIN, None),
        (deaths(1.0, progress=False, killed=False) + VAIN, None),  # whatever the signal
        (VAIN + deaths(1.0) + VAIN, DELAYS_SECONDS[0]),
        (deaths(*[STEADY_SECONDS] * 900, progress=False), DELAYS_SECONDS[0]),  # it had nothing to do
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
    eventually(lambda: not alive(supervisor), "the supervisor's end")
    assert facts(mounted.volume)["state"] == "failed"
    assert "given up" in facts(mounted.volume)["words"]
    assert "given up" in (mounted.volume / "daemon.log").read_text()
    (mounted.volume / "hidden.toml").rename(mounted.volume / "volume.toml")
    findings = json.loads(snapfs("doctor", mounted.volume, "--json").stdout)
    assert any(finding["check"] == "supervisor" and "given up" in finding["finding"] for finding in findings)
    snapfs("mount", mounted.volume, mounted.path)
    assert (mounted.path / "file").read_text() == "answered"


@needs_router
@pytest.mark.parametrize("works", [False, True])
def test_kills_without_progress_are_an_end_and_kills_with_progress_are_not(
    mounted: Any, snapfs: Callable[..., Any], works: bool
) -> None:
    """Deaths without progress between them count, whatever the signal, and end in a clear word."""
    (mounted.path / "file").write_text("answered")
    supervisor = facts(mounted.volume)["supervisor"]
    for number in range(FRUITLESS_DEATHS + 2):
        if works:
            (mounted.path / f"file-{number}").write_text("answered")
        time.sleep(2 * STABLE_SECONDS)
        with open(mounted.path / ".snapfs/status") as file:  # as a waiting command does: no progress
            assert file.read()
        kill_daemon(mounted.volume)
        eventually(lambda n=number + 1: facts(mounted.volume)["lives"] > n or not alive(supervisor), "what follows")
        if not alive(supervisor):
            break
    assert alive(supervisor) == works
    if works:
        assert len(list(mounted.path.glob("file-*"))) == FRUITLESS_DEATHS + 2
        return
    status = facts(mounted.volume)
    assert status["state"] == "failed"
    assert "was ended by SIGKILL, again and again" in status["words"]
    assert f"the last {FRUITLESS_DEATHS} without progress" in status["words"]
    assert status["words"] in (mounted.volume / "daemon.log").read_text()
    refused = snapfs("snapshot", mounted.path, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (9, 1), refused.stderr
    assert "given up" in refused.stderr
    assert "given up" in snapfs("status", mounted.path).stdout
    snapfs("mount", mounted.volume, mounted.path)
    assert (mounted.path / "file").read_text() == "answered"


@needs_router
@pytest.mark.parametrize("follows", [True, False])
def test_a_snapshot_command_over_which_the_daemon_dies_gets_an_answer(mounted: Any, follows: bool) -> None:
    """A waiting command gets an answer after a daemon's death: of the next one, or why there is none."""

    def command(name: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "snapfs", "snapshot", str(mounted.path), name]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    reader, name = stopped_in_a_seal(mounted, command, lambda reader: reader.poll() is None)
    with reader:
        if not follows:
            (mounted.volume / "volume.toml").rename(mounted.volume / "hidden.toml")
        died = kill_daemon(mounted.volume)
        printed, words = reader.communicate(timeout=PATIENCE_S)
    if not follows:
        (mounted.volume / "hidden.toml").rename(mounted.volume / "volume.toml")
        assert (reader.returncode, len(words.splitlines())) == (9, 1), words
        assert "given up" in words
        return
    number = mounted.status()["last_snapshot"]["number"]
    assert (reader.returncode, printed) == (0, f"{number}\n"), words
    assert mounted.status()["pid"] != died
    shown = mounted.path / f".snapfs/snapshots/{name}"
    assert all((shown / f"large-{number}").stat().st_size == PIECE_BYTES for number in range(PIECES))
    assert os.listdir(mounted.path / ".snapfs/snapshots").count(name) == 1


@needs_router
def test_a_failed_snapshot_is_reported_until_one_is_made(mounted: Any, snapfs: Callable[..., Any]) -> None:
    """'no snapshot since' is an alert also where no interval is set."""

    def failing_s() -> float:
        text = (mounted.path / ".snapfs/metrics").read_text()
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith(FAILING)))

    assert (mounted.status()["snapshot_failing"], failing_s()) == (None, 0.0)
    (mounted.path / "large").write_bytes(os.urandom(16 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(mounted.status()["pid"], resource.RLIMIT_FSIZE, (8 << 20, limits[1]))
    refused = snapfs("snapshot", mounted.path, "named", check=False)
    assert refused.returncode == 7, refused.stderr
    status = mounted.status()["snapshot_failing"]
    assert status["what"] == "snapshot named"
    assert failing_s() > 0.0
    kill_daemon(mounted.volume)  # its successor has no such limit, and knows
    assert mounted.status()["snapshot_failing"] == status
    assert failing_s() > 0.0
    assert "NO SNAPSHOT since" in snapfs("status", mounted.path).stdout
    mounted.snapshot("named")
    assert (mounted.status()["snapshot_failing"], failing_s()) == (None, 0.0)
    assert "NO SNAPSHOT" not in snapfs("status", mounted.path).stdout


@needs_router
def test_an_unmount_while_no_daemon_lives_is_an_orderly_end(mounted: Any, snapfs: Callable[..., Any]) -> None:
    (mounted.path / "file").write_text("answered")
    supervisor = facts(mounted.volume)["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    kill_daemon(mounted.volume)
    unmounting = subprocess.Popen(["umount", str(mounted.path)])
    time.sleep(0.2)
    os.kill(supervisor, signal.SIGCONT)
    assert unmounting.wait(PATIENCE_S) == 0
    eventually(lambda: not alive(supervisor), "the supervisor's end")
    assert not (mounted.volume / "supervisor.json").exists()
    assert "was ended by SIGKILL" in (mounted.volume / "daemon.log").read_text()
    snapfs("mount", mounted.volume, mounted.path)
    assert (mounted.path / "file").read_text() == "answered"
    assert json.loads((mounted.path / ".snapfs/status").read_bytes())["recovered"] == []


@needs_router
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_unmounts(mounted: Any, number: int) -> None:
    (mounted.path / "file").write_text("text")
    status = facts(mounted.volume)
    os.kill(status["supervisor"], number)
    eventually(lambda: not alive(status["supervisor"]) and not alive(status["daemon"]), "the end")
    assert not os.path.ismount(mounted.path)
    assert not (mounted.volume / "supervisor.json").exists()


@needs_router
def test_a_signal_reaches_the_daemon_that_comes(mounted: Any) -> None:
    """It arrives while no daemon serves: it is passed on to the next."""
    status = facts(mounted.volume)
    os.kill(status["supervisor"], signal.SIGSTOP)
    kill_daemon(mounted.volume)
    os.kill(status["supervisor"], signal.SIGTERM)
    os.kill(status["supervisor"], signal.SIGCONT)
    eventually(lambda: not alive(status["supervisor"]), "the end")
    assert not os.path.ismount(mounted.path)


@needs_router
def test_in_the_foreground_signals_and_exit_codes_are_as_without_a_supervisor(
    volume_dir: Path, mountpoint: Path
) -> None:
    command = [sys.executable, "-m", "snapfs", "mount", "--foreground", str(volume_dir), str(mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        eventually((mountpoint / ".snapfs").exists, "the mount")
        kill_daemon(volume_dir)
        (mountpoint / "file").write_text("after a death")
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, words
    (volume_dir / "live/namespace.db").write_bytes(b"garbage" * 4096)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith("snapfs: ")
    assert not os.path.ismount(mountpoint)


@needs_router
def test_a_daemon_serves_on_without_its_supervisor(mounted: Any, snapfs: Callable[..., Any]) -> None:
    status = facts(mounted.volume)
    os.kill(status["supervisor"], signal.SIGKILL)
    eventually(lambda: mounted.status()["supervisor"] is None, "the daemon to notice")
    (mounted.path / "file").write_text("text")
    assert mounted.status()["pid"] == status["daemon"]
    refused = snapfs("upgrade", mounted.path, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1)
    assert snapfs("umount", mounted.path).returncode == 0
    eventually(lambda: not alive(status["daemon"]), "the daemon's end")


@needs_router
def test_a_command_that_the_daemon_dies_over_is_done_once(mounted: Any) -> None:
    """A large seal is under way for a named snapshot when the daemon is killed."""
    replies: list[dict[str, Any]] = []

    def command(name: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: replies.append(mounted.snapshot(name)))
        thread.start()
        return thread

    writer, name = stopped_in_a_seal(mounted, command, threading.Thread.is_alive)
    kill_daemon(mounted.volume)
    writer.join(PATIENCE_S)
    assert replies[-1]["snapshot"]["name"] == name
    shown = os.listdir(mounted.path / ".snapfs/snapshots")
    assert shown.count(name) == 1
    assert (mounted.path / f".snapfs/snapshots/{name}/large-0").stat().st_size == PIECE_BYTES


@needs_router
def test_a_rollback_after_an_adoption_asks_proc(mounted: Any) -> None:
    (mounted.path / "file").write_text("old")
    mounted.snapshot("old")
    (mounted.path / "file").write_text("new")
    script = f"exec 3<>{mounted.path}/file; echo held; exec sleep 600"
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
