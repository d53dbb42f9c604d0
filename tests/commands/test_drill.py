"""`snapfs drill` of a volume and of its targets: verdicts, exit codes, what is recorded, and nothing disturbed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import EXIT_DAEMON_DIED, BusyError, CorruptionError, SnapfsError, UserError, VersionError
from snapfs.commands.drills import drill_run, scratch_mount
from snapfs.commands.drills.drill_checks import check_named
from snapfs.commands.drills.drill_process import DrillProcess
from snapfs.commands.drills.drill_report import DrillResult
from snapfs.commands.drills.drill_run import DrillOrder
from snapfs.commands.support.bounded_look import NoAnswerError
from snapfs.transfer.sources.source_access import Access
from tests.conftest import SNAPFS, Mounted
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.mirror_process import REPLICATOR, MirrorProcess
from tests.fakes.targets.silent_link import SilentLink


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Where drills mount; it is empty again after each test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def make_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE entry(text)")
        database.executemany("INSERT INTO entry VALUES(?)", [("x" * 500,)] * 400)
        database.commit()
        os.link(path, path.with_name("also"))
        os.unlink(path.with_name("also"))


def drilled(snapfs: Any, *words: str | Path, code: int = 0) -> dict[str, Any]:
    done = snapfs("drill", *words, "--json", check=False)
    assert done.returncode == code, f"{done.returncode} {done.stdout} {done.stderr}"
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def log_of(volume: Path) -> bytes:
    return (volume / "store" / "snapshots.log").read_bytes()


def test_a_drill_of_a_volume_is_recorded_and_a_bad_snapshot_is_passed_over(
    mounted: Mounted, snapfs: Any, scratch: Path
) -> None:
    make_database(mounted.path / "app.db")
    mounted.snapshot("good")
    with open(mounted.path / "app.db", "r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)
    mounted.snapshot("bad")
    here = ["--scratch", str(scratch)]
    facts = drilled(snapfs, mounted.path, "--check", "sqlite", *here, code=10)
    assert facts["recorded"] is True
    bad, good = facts["results"]
    assert (bad["name"], bad["passed"], good["name"], good["passed"]) == ("bad", False, "good", True)
    assert bad["why"].startswith("app.db: ")
    assert good["found"] == ["SQLite: 1 databases with 1 tables are whole"]
    assert 0 < good["mount_s"] <= good["ready_s"] <= good["recovery_s"] == good["ended_s"] <= good["whole_s"]
    listed = {each["name"]: each["gates"] for each in json.loads(snapfs("list", mounted.volume, "--json").stdout)}
    assert (listed["good"]["drilled"]["passed"], listed["bad"]["drilled"]["passed"]) == (True, False)
    assert [line.split()[-3:-1] for line in snapfs("list", mounted.path).stdout.splitlines()[1:]] == [
        ["good", "drilled"], ["drill", "failed"],
    ]  # fmt: skip
    metrics = (mounted.path / ".snapfs" / "metrics").read_text()
    assert "snapfs_drill_passed 0" in metrics  # that an older one recovers does not end the alert
    assert "snapfs_drill_recovery_seconds " not in metrics

    page = snapfs("volumes", mounted.path, check=False)
    assert page.returncode == 8
    assert "snapshot 2 did not recover in the drill of " in page.stdout
    assert "FAILED: app.db: " in snapfs("status", mounted.path).stdout

    text = snapfs("drill", mounted.volume, "--check", "files", "--at", "bad", "--rto", "1ms", *here, check=False)
    assert text.returncode == 8
    assert text.stdout.splitlines()[-1] == "snapshot 2 recovers, but too late for objectives.rto"
    metrics = (mounted.path / ".snapfs" / "metrics").read_text()
    assert "snapfs_drill_passed 1" in metrics
    assert "snapfs_drill_recovery_seconds " in metrics
    before = log_of(mounted.volume)
    impossible = snapfs("drill", mounted.path, "--check", "no-such-program", *here, check=False)
    assert (impossible.returncode, log_of(mounted.volume)) == (3, before)
    full = snapfs("drill", mounted.path, "--check", "echo No space left on device; false", *here, check=False)
    assert (full.returncode, log_of(mounted.volume)) == (3, before), "a full disk here says nothing of a snapshot"
    for failing in ("echo ended with exit code 127; false", os.fsdecode(b"echo \xff; false")):
        assert drilled(snapfs, mounted.path, "--check", failing, "--tries", "1", *here, code=10)["recorded"] is True
    wrong = [
        (["drill", mounted.path, "--check", "files", "--timeout", "0s"], 2, "--timeout: a check needs a time above 0"),
        (["drill", mounted.path], 2, "--check is needed"),
        (["drill", mounted.path, "--check", "files", "--at", "9"], 3, "has no snapshot 9"),
        (["drill", mounted.path, "--check", "files", "--target", "near"], 3, "has no target near: there are none"),
        (["drill", mounted.path, "--check", "files", "--record", mounted.path], 2, "--record belongs to a URL"),
        (["drill", "http://127.0.0.1:1/pg", "--check", "files", "--timeout", "soon"], 2, "--timeout: `soon`"),
    ]
    for words, code, why in wrong:
        done = snapfs(*words, check=False)
        assert (done.returncode, why in done.stderr) == (code, True), done.stderr


def test_a_drill_of_a_mirror_changes_nothing_there(
    mounted: Mounted, snapfs: Any, mirror: MirrorProcess, tmp_path: Path, scratch: Path, other: Path
) -> None:
    (mounted.path / "file").write_bytes(os.urandom(300_000))
    url, token = f"http://127.0.0.1:{mirror.port}/pg", str(tmp_path / "token")
    toml = mounted.volume / "volume.toml"
    text = toml.read_text().replace('#check = ""', 'check = "files"').replace('#rto = "off"', 'rto = "10m"')
    target = f'\n[[replication.target]]\nname = "near"\nurl = "{url}"\ntoken_file = "{token}"\n'
    toml.write_text(text + target)
    mounted.snapshot("one")
    subprocess.run([*REPLICATOR, "push", "--once", "--new", mounted.volume], check=True, capture_output=True)
    kept = mirror.root / "pg"
    before = log_of(kept), mirror.client().state(), sorted(os.listdir(kept / "store"))
    facts = drilled(snapfs, mounted.volume, "--target", "near", "--scratch", scratch)
    (result,) = facts["results"]
    assert (facts["recorded"], result["place"], result["rto_met"]) == (True, url, True)
    assert result["fetched_bytes"] > 300_000
    there = drilled(snapfs, url, "--token-file", token, "--check", "test -s file", "--no-whole", "--scratch", scratch)
    assert (there["recorded"], there["results"][0]["whole_s"]) == (False, None)
    again = drilled(
        snapfs, url, "--token-file", token, "--check", "files", "--record", mounted.path, "--scratch", scratch
    )
    assert again["recorded"] is True
    state = mirror.client().state()
    assert (log_of(kept), state.generation, state.writer_id) == (before[0], before[1].generation, before[1].writer_id)
    assert list((kept / "store" / "holds").glob("*")) == []
    mounted.snapshot("still-the-writer")
    subprocess.run([*REPLICATOR, "push", "--once", mounted.volume], check=True, capture_output=True)
    folder = drilled(snapfs, kept, "--check", "files", "--scratch", scratch)
    assert folder["recorded"] is False  # a target's log is its writer's
    lines = [line for line in snapfs("log", mounted.volume).stdout.splitlines() if " drilled " in line]
    assert len(lines) == 2

    # Another host requires what this one found out, which came along with the push.
    elsewhere, access = tmp_path / "elsewhere", ["--from", url, "--token-file", token]
    refused = snapfs("mount", *access, "--require", "verified", elsewhere, other, check=False)
    assert refused.returncode == 3
    assert "no snapshot there is verified; of the newest, 2, it is not verified; nothing was made" in refused.stderr
    taken = snapfs("mount", *access, "--require", "drilled", elsewhere, other)
    assert "snapshot 2 is newer and is not taken: it is not drilled" in taken.stderr
    assert "snapshot 1 one" in taken.stderr
    assert (other / "file").stat().st_size == 300_000
    was = {each["number"]: each["gates"]["drilled"] for each in json.loads(snapfs("list", kept, "--json").stdout)}
    (listed,) = json.loads(snapfs("list", other, "--json").stdout)
    assert (listed["number"], listed["gates"]["drilled"]) == (1, was[1]), "the new host knows what was proven, and when"
    assert listed["gates"]["replicated"]["copies"] == 0
    (line,) = [line for line in snapfs("log", elsewhere).stdout.splitlines() if " drilled " in line]
    assert "by='mount --from'" in line
    metrics = (other / ".snapfs" / "metrics").read_text()
    shown = float(metrics.partition("\nsnapfs_drill_timestamp_seconds ")[2].split()[0])
    assert shown == pytest.approx(was[1]["time_ns"] / 1e9, abs=0.01)
    fetched = tmp_path / "fetched"
    snapfs("fetch", url, "--token-file", token, fetched)
    back = {each["number"]: each["gates"]["drilled"] for each in json.loads(snapfs("list", fetched, "--json").stdout)}
    assert back == was
    wrong = snapfs("mount", "--require", "drilled", mounted.volume, other, check=False)
    assert (wrong.returncode, "--require belongs to --from" in wrong.stderr) == (2, True)


def push(mounted: Mounted, mirror: MirrorProcess, tmp_path: Path) -> tuple[str, str]:
    """The path of the volume's URL at the mirror, and the file of a token for it; with 4 MB in its snapshot."""
    (mounted.path / "file").write_bytes(os.urandom(4 << 20))
    mounted.snapshot()
    url, token = f"http://127.0.0.1:{mirror.port}/pg", str(tmp_path / "token")
    toml = mounted.volume / "volume.toml"
    target = f'\n[[replication.target]]\nname = "near"\nurl = "{url}"\ntoken_file = "{token}"\n'
    toml.write_text(toml.read_text() + target)
    subprocess.run([*REPLICATOR, "push", "--once", "--new", mounted.volume], check=True, capture_output=True)
    return "pg", token


@pytest.mark.parametrize("check", ["files", "true"])
def test_a_source_that_falls_silent_ends_the_drill_in_its_time_without_a_verdict(
    check: str, mounted: Mounted, snapfs: Any, mirror: MirrorProcess, tmp_path: Path, scratch: Path
) -> None:
    """Wherever it is then: at its mount, in a check that reads it, or before all of the state was here."""
    path, token = push(mounted, mirror, tmp_path)
    try:
        with SilentLink(mirror.port, 1 << 20, lambda: os.kill(mirror.pid, signal.SIGSTOP)).running() as link:
            words = [f"http://127.0.0.1:{link.port}/{path}", "--token-file", token, "--check", check, "--tries", "1"]
            words += ["--record", str(mounted.volume), "--timeout", "12s"]
            done = snapfs("drill", *words, "--scratch", scratch, check=False)
    finally:
        os.kill(mirror.pid, signal.SIGCONT)
    assert done.returncode == 3, done.stderr
    assert "does not answer any more; so this says nothing of snapshot 1: " in done.stderr
    assert "it did not end in its time" in done.stderr or "the mount failed" in done.stderr
    assert b" drilled " not in log_of(mounted.volume)


def test_a_source_that_never_answers_gives_no_verdict_on_a_snapshot(
    mounted: Mounted, snapfs: Any, mirror: MirrorProcess, tmp_path: Path, scratch: Path
) -> None:
    path, token = push(mounted, mirror, tmp_path)
    os.kill(mirror.pid, signal.SIGSTOP)
    try:
        words = ["--token-file", token, "--check", "true", "--timeout", "2s", "--scratch", scratch]
        done = snapfs("drill", f"http://127.0.0.1:{mirror.port}/{path}", *words, check=False)
    finally:
        os.kill(mirror.pid, signal.SIGCONT)
    assert done.returncode == 3, done.stderr
    assert "does not answer: it is not known which snapshots it has" in done.stderr


@pytest.mark.parametrize(
    ("error", "only", "is_verdict"),
    [
        (CorruptionError("a page", "the source", "it is bad"), (), True),
        (UserError("no source has a snapshot 9"), (), True),
        (TimeoutError("the source is silent"), (), True),
        (OSError(errno.EIO, "failed", "/elsewhere/store"), (), True),
        (OSError(errno.EACCES, "no", "/scratch/volume.partial/store"), (), False),
        (VersionError("use a newer snapfs"), (), False),
        (BusyError("in use"), (), False),
        (SnapfsError("it died", exit_code=EXIT_DAEMON_DIED), (EXIT_DAEMON_DIED,), True),
        (SnapfsError("no /dev/fuse"), (EXIT_DAEMON_DIED,), False),
        (OSError("no /dev/fuse"), (EXIT_DAEMON_DIED,), False),
    ],
)
def test_what_fails_while_mounting_is_a_verdict_if_it_is_the_snapshots(
    error: Exception, only: tuple[int, ...], is_verdict: bool
) -> None:
    expected = scratch_mount.NotMountableError if is_verdict else type(error)
    with pytest.raises(expected) as raised, scratch_mount._blamed(Path("/scratch/volume"), only):
        raise error
    assert raised.value is error or str(error) in str(raised.value)


def test_a_snapshot_that_cannot_be_mounted_has_failed(
    mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted.snapshot()
    order = DrillOrder(str(mounted.volume), Access(), "true")
    (record,) = drill_run._chosen(order)
    gone = replace(record, number=SnapshotNumber(9))
    reported: list[tuple[str, DrillResult]] = []
    result = DrillResult(order.place, gone, "true", 0.0)
    folder = tmp_path / "drill"
    folder.mkdir()
    drill_run._work(order, check_named("true"), result, folder, time.monotonic(), reported.append)  # type: ignore[arg-type]
    ((stage, found),) = reported
    assert (stage, found.passed, found.mount_s) == ("", False, None)
    assert found.why.startswith("it cannot be mounted: no source has a snapshot 9")


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_what_a_killed_drill_left_is_removed_by_the_next(mounted: Mounted, snapfs: Any, scratch: Path) -> None:
    """Its processes, also those that left the group of its check; its mount, its folder; no place that a link leads
    to."""
    (mounted.path / "file").write_text("x")
    mounted.snapshot()
    pids = scratch.parent / "pids"
    check = f"setsid sleep 1000 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; sleep 100"
    command = [*SNAPFS, "drill", mounted.volume, "--check", check, "--scratch", scratch]
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(pids.exists, "the check")
        shell, apart = map(int, pids.read_text().split())
        pids.unlink()
        process.send_signal(number)
        process.wait()
        eventually(lambda: not is_alive(shell), "the end of the check")  # noqa: B023 - called here
        if number is signal.SIGTERM:
            assert list(scratch.iterdir()) == []
            assert not is_alive(apart)
    assert list(scratch.iterdir())
    assert is_alive(apart)
    kept = scratch.parent / "kept"
    (kept / "mnt").mkdir(parents=True)
    (scratch / "snapfs-drill-link").symlink_to(kept)
    (scratch / "snapfs-drill-without-a-lock").mkdir()
    assert drilled(snapfs, mounted.volume, "--check", "true", "--scratch", scratch)["results"][0]["passed"] is True
    assert not is_alive(apart)
    (scratch / "snapfs-drill-link").unlink()
    assert [path.name for path in kept.iterdir()] == ["mnt"]
    assert list(scratch.iterdir()) == []


def test_what_hangs_in_a_mount_is_ended_by_force(mounted: Mounted, tmp_path: Path) -> None:
    """A process in such a read cannot be killed before the connection of the mount is aborted."""

    def work(report: Any) -> None:
        report("reading")
        os.statvfs(mounted.path)

    daemon = mounted.status()["pid"]
    os.kill(daemon, signal.SIGSTOP)
    try:
        with DrillProcess(work, tmp_path / "folder", mounted.path) as process:
            reported = process.reports(time.monotonic() + 2)
            assert next(reported) == "reading"
            with pytest.raises(NoAnswerError):
                next(reported)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
    finally:
        os.kill(daemon, signal.SIGCONT)


def test_what_a_drill_raises_comes_with_its_exit_code(tmp_path: Path) -> None:
    def work(report: Any) -> None:
        report(1)
        raise CorruptionError("the thing", "here", "it is bad")

    with DrillProcess(work, tmp_path, tmp_path) as process:
        reported = process.reports(time.monotonic() + PATIENCE_S)
        assert next(reported) == 1
        with pytest.raises(SnapfsError, match="it is bad") as raised:
            next(reported)
    assert raised.value.exit_code == 5


def test_of_two_drills_that_begin_at_once_neither_takes_the_other_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step from the new folder to its lock another drill clears what is stale."""
    open_lock = scratch_mount._open_lock
    clearing = []

    def slow(folder: Path) -> int:
        if not clearing:
            clearing.append(folder)
            scratch_mount._clear_stale(str(tmp_path))  # before the lock is there
        lock = open_lock(folder)
        if len(clearing) == 1 and folder != clearing[0]:
            clearing.append(folder)
            scratch_mount._clear_stale(str(tmp_path))  # before it is taken
        return lock

    monkeypatch.setattr(scratch_mount, "_open_lock", slow)
    with scratch_mount.scratch_folder(str(tmp_path)) as folder:
        scratch_mount._clear_stale(str(tmp_path))
        assert list(tmp_path.iterdir()) == [folder]
        assert folder not in clearing
    assert list(tmp_path.iterdir()) == []


def test_a_takeover_says_that_the_drill_of_what_it_takes_failed(
    mounted: Mounted, snapfs: Any, tmp_path: Path, scratch: Path, other: Path
) -> None:
    mounted.snapshot("one")
    assert snapfs("drill", mounted.path, "--check", "false", "--scratch", scratch, check=False).returncode == 10
    snapfs("umount", mounted.path)
    taken = snapfs("mount", "--from", mounted.volume, "--force", tmp_path / "elsewhere", other)
    assert "the drill of snapshot 1 failed (false): the application may not recover from it; --require" in taken.stderr
