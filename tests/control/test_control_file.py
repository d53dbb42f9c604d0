"""`.snapfs` on a real mount: the control file, status and metrics, as a user meets them."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families


def shell(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def raises(number: int) -> Any:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_a_shell_makes_a_snapshot_with_echo(mounted: Any) -> None:
    (mounted.path / "file").write_text("before")
    done = shell(f"echo 'snapshot before-upgrade' > {mounted.control}")
    assert (done.returncode, done.stderr) == (0, "")
    (mounted.path / "file").write_text("after")
    assert (mounted.path / ".snapfs/snapshots/before-upgrade/file").read_text() == "before"
    assert (mounted.path / ".snapfs/snapshots/1/file").read_text() == "before"


@pytest.mark.parametrize("redirection", [">", ">>", "1<>"])
def test_every_way_to_open_control_for_writing_is_accepted(mounted: Any, redirection: str) -> None:
    assert shell(f"echo snapshot {redirection} {mounted.control}").returncode == 0
    assert mounted.status()["snapshots"] == 1


def test_the_reply_is_read_on_the_same_descriptor(mounted: Any) -> None:
    done = shell(f"exec 3<>{mounted.control}; echo 'snapshot x' >&3; read -r line <&3; echo \"$line\"; cat <&3")
    reply = json.loads(done.stdout)
    assert (reply["ok"], reply["snapshot"]["name"], reply["snapshot"]["number"]) == (True, "x", 1)


def test_two_descriptors_have_replies_of_their_own(mounted: Any) -> None:
    fds = [os.open(mounted.control, os.O_RDWR) for _ in range(2)]
    try:
        for fd, name in zip(fds, "ab", strict=True):
            os.write(fd, b"snapshot %s\n" % name.encode())
        names = [json.loads(os.read(fd, 65536))["snapshot"]["name"] for fd in fds]
        assert names == ["a", "b"]
        assert [os.read(fd, 65536) for fd in fds] == [b"", b""]
    finally:
        for fd in fds:
            os.close(fd)


FAILURES = [
    ("frobnicate", errno.EINVAL, "unknown command"),
    ("snapshot 17", errno.EINVAL, "numbers"),
    ("snapshot a/b", errno.EINVAL, "file name"),
    ("snapshot a b", errno.EINVAL, "usage"),
    ("snapshot taken", errno.EEXIST, "taken"),
    ("drop nothing", errno.ENOENT, "no snapshot"),
    ("verify nothing", errno.ENOENT, "no snapshot"),
]


def test_a_failure_is_an_errno_and_an_explanation(mounted: Any) -> None:
    mounted.snapshot("taken")
    for command, number, words in FAILURES:
        fd = os.open(mounted.control, os.O_RDWR)
        try:
            with raises(number):
                os.write(fd, command.encode())
            reply = json.loads(os.read(fd, 65536))
        finally:
            os.close(fd)
        assert (reply["ok"], reply["errno"]) == (False, errno.errorcode[number])
        assert words in reply["error"]
        last = mounted.status()["last_error"]
        assert (last["what"], last["message"], last["errno"]) == (command, reply["error"], reply["errno"])
    assert mounted.status()["snapshots"] == 1


def test_what_is_no_text_or_too_long_is_refused(mounted: Any) -> None:
    fd = os.open(mounted.control, os.O_WRONLY)
    try:
        with raises(errno.EILSEQ):
            os.write(fd, b"snapshot \xff")
        with raises(errno.E2BIG):
            os.write(fd, b"snapshot " + b"x" * 70000)
    finally:
        os.close(fd)


def test_writers_at_the_same_time_queue(mounted: Any) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda name=name: numbers.append(mounted.snapshot(name)["snapshot"]["number"]))
        for name in "abcdef"
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        mounted.status()  # goes on answering
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def test_modes_and_owner_follow_the_root_directory(mounted: Any) -> None:
    os.chown(mounted.path, 1234, 5678) if os.geteuid() == 0 else None
    root = mounted.path.stat()
    modes = {"control": 0o600, "status": 0o444, "metrics": 0o444, "snapshots": 0o555}
    for name, mode in modes.items():
        found = (mounted.path / ".snapfs" / name).stat()
        assert (name, stat.S_IMODE(found.st_mode)) == (name, mode)
        assert (found.st_uid, found.st_gid) == (root.st_uid, root.st_gid)


def test_it_is_not_listed_and_cannot_be_changed(mounted: Any) -> None:
    inside = mounted.path / ".snapfs"
    (mounted.path / "file").touch()
    assert os.listdir(mounted.path) == ["file"]
    assert sorted(os.listdir(inside)) == ["control", "metrics", "snapshots", "status"]
    attempts: list[tuple[int, Callable[[], Any]]] = [
        (errno.EROFS, (inside / "new").touch),
        (errno.EROFS, (inside / "new").mkdir),
        (errno.EROFS, (inside / "status").unlink),
        (errno.EROFS, lambda: os.rename(mounted.path / "file", inside / "file")),
        (errno.EROFS, lambda: os.link(mounted.path / "file", inside / "snapshots/file")),
        (errno.EROFS, lambda: (inside / "control").chmod(0o666)),
        (errno.EROFS, lambda: os.open(inside / "status", os.O_RDWR)),
        (errno.EROFS, lambda: os.truncate(inside / "status", 0)),
        (errno.EPERM, inside.rmdir),
        (errno.EPERM, lambda: os.rename(inside, mounted.path / "other")),
    ]
    for number, attempt in attempts:
        with raises(number):
            attempt()
    os.truncate(inside / "control", 0)


def test_status_is_fresh_at_each_open_and_keeps_its_fields(mounted: Any) -> None:
    first = mounted.status()
    assert first["last_snapshot"] is None
    assert first["volume"] == str(mounted.volume)
    assert first["mountpoint"] == str(mounted.path)
    with open(mounted.path / ".snapfs/status", "rb", buffering=0) as file:
        assert json.loads(file.read())["snapshots"] == 0
        mounted.snapshot("x")
        assert json.loads(os.pread(file.fileno(), 1 << 20, 0))["snapshots"] == 1
    second = mounted.status()
    assert set(first) == set(second)
    assert second["last_snapshot"]["name"] == "x"
    assert second["last_snapshot"]["age_s"] >= 0
    assert second["cut_pause_s"]["count"] == 1
    assert second["sealing"] is None
    assert second["epoch"] == first["epoch"] + 1


def test_status_counts_what_is_dirty(mounted: Any) -> None:
    with open(mounted.path / "file", "wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        mounted.snapshot()
        assert mounted.status()["dirty"] == {"files": 0, "bytes": 0}
        os.pwrite(file.fileno(), b"x", 0)
        os.fsync(file.fileno())
        dirty = mounted.status()["dirty"]
        assert dirty["files"] == 1
        assert 0 < dirty["bytes"] <= 1 << 20


def test_metrics_are_prometheus_text(mounted: Any) -> None:
    (mounted.path / "file").write_bytes(os.urandom(100_000))
    mounted.snapshot()
    with contextlib.suppress(OSError):
        mounted.command("frobnicate")
    families = {f.name: f for f in text_string_to_metric_families((mounted.path / ".snapfs/metrics").read_text())}
    values = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
    assert values[("snapfs_snapshots_made_total", "control")] == 1
    assert values[("snapfs_cut_pause_seconds_count",)] == 1
    assert values[("snapfs_stored_bytes_total",)] > 100_000
    assert values[("snapfs_snapshots",)] == 1
    assert values[("snapfs_last_snapshot_age_seconds",)] >= 0
    assert values[("snapfs_generation",)] == 1
    assert values[("snapfs_commands_total", "unknown", "failed")] == 1
    assert all(name.startswith("snapfs_") for name in families)


def test_dropping_takes_a_snapshot_out_of_sight(mounted: Any) -> None:
    (mounted.path / "file").touch()
    mounted.snapshot("x")
    snapshots = mounted.path / ".snapfs/snapshots"
    assert sorted(os.listdir(snapshots)) == ["1", "x"]
    assert os.listdir(snapshots / "x") == ["file"]
    with raises(errno.EBUSY):  # the next one builds on it
        mounted.command("drop x")
    mounted.snapshot()
    assert mounted.command("drop x")["dropped"]["number"] == 1
    assert os.listdir(snapshots) == ["2"]
    assert not (snapshots / "x").exists()
    assert not (snapshots / "1").exists()
    mounted.snapshot("x")
    assert sorted(os.listdir(snapshots)) == ["2", "3", "x"]


def test_verify_says_that_all_is_well(mounted: Any) -> None:
    (mounted.path / "file").write_bytes(os.urandom(200_000))
    mounted.snapshot()
    reply = mounted.command("verify")
    assert (reply["good"], reply["snapshots"], reply["damaged_snapshots"]) == (True, 1, [])
    assert reply["stored_bytes"] > 200_000


def test_what_was_written_and_not_fsynced_is_in_the_snapshot(mounted: Any) -> None:
    """Writes that returned, and stores into a shared mapping, when only the kernel has them."""
    size = 8 << 20
    for round_ in range(3):
        name = f"s{round_}"
        content = os.urandom(4096) * (size // 4096)
        here = mounted.path
        with open(here / "written", "w+b", buffering=0) as written, open(here / "mapped", "w+b") as mapped:
            os.ftruncate(mapped.fileno(), size)
            view = mmap.mmap(mapped.fileno(), size)
            written.write(content)
            view[:] = content
            mounted.snapshot(name)
            written.seek(0)
            written.write(bytes(size))
            view.close()
        past: Path = mounted.path / ".snapfs/snapshots" / name
        assert (past / "written").read_bytes() == content
        assert (past / "mapped").read_bytes() == content
