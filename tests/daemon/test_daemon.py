"""A daemon's life on a real mount: the thread through all layers, its ways to end, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.patience import eventually


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def numbers(path: Path) -> list[int]:
    """What is in the table, read as SQLite reads a file that does not change; its integrity is checked."""
    connection = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [number for (number,) in connection.execute("SELECT number FROM t ORDER BY number")]
    finally:
        connection.close()


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_one_thread_through_all_layers(mount: Callable[..., Any], journal: str) -> None:
    mounted = mount()
    path = mounted.path / "app.db"
    with database(path) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE t(number)")
        connection.execute("INSERT INTO t VALUES (1)")
        mounted.snapshot("one")
        connection.execute("INSERT INTO t VALUES (2)")
    assert numbers(path) == [1, 2]
    subprocess.run(["umount", str(mounted.path)], check=True)

    mounted = mount()
    assert numbers(path) == [1, 2]
    with database(path) as connection:
        connection.execute("INSERT INTO t VALUES (3)")
        mounted.kill()
    mounted = mount()
    with database(path) as connection:
        assert connection.execute("SELECT number FROM t ORDER BY number").fetchall() == [(1,), (2,), (3,)]
    mounted.snapshot("two")
    snapshots = mounted.path / ".snapfs/snapshots"
    assert sorted(os.listdir(snapshots)) == ["1", "2", "one", "two"]
    copy = mounted.volume.parent / "copy"
    copy.mkdir()
    for name in os.listdir(snapshots / "one"):  # with its WAL, as a restore would
        (copy / name).write_bytes((snapshots / "one" / name).read_bytes())
    with database(copy / "app.db") as connection:
        assert connection.execute("SELECT number FROM t").fetchall() == [(1,)]


def test_a_second_daemon_is_refused(mounted: Any, snapfs: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    done = snapfs("mount", mounted.volume, tmp_path / "other", check=False)
    assert done.returncode == 4
    assert f"process {mounted.status()['supervisor'] or mounted.status()['pid']}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_ends_it(mounted: Any, number: int) -> None:
    (mounted.path / "file").write_text("text")
    pid = mounted.status()["pid"]
    os.kill(pid, number)
    eventually(lambda: not alive(pid), "the daemon's end")
    assert not os.path.ismount(mounted.path)
    assert "unmounted" in (mounted.volume / "daemon.log").read_text()


def test_a_signal_ends_it_even_if_the_mount_is_in_use(mounted: Any, mount: Callable[..., Any]) -> None:
    with open(mounted.path / "file", "wb", buffering=0) as file:
        file.write(b"kept")
        pid = mounted.status()["pid"]
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not alive(pid), "the daemon's end")
        assert not os.path.ismount(mounted.path)
    assert (mount().path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]])
def test_unmounting_from_outside_ends_it(mounted: Any, mount: Callable[..., Any], command: list[str]) -> None:
    (mounted.path / "file").write_text("text")
    pid = mounted.status()["pid"]
    subprocess.run([*command, str(mounted.path)], check=True)
    eventually(lambda: not alive(pid), "the daemon's end")
    again = mount()
    assert (again.path / "file").read_text() == "text"
    assert again.status()["recovered"] == []


def test_a_lazy_unmount_serves_processes_that_are_still_in_there(mounted: Any, mount: Callable[..., Any]) -> None:
    with open(mounted.path / "file", "w+b", buffering=0) as file:
        pid = mounted.status()["pid"]
        subprocess.run(["umount", "-l", str(mounted.path)], check=True)
        file.write(b"still here")
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 100, 0) == b"still here"
        assert alive(pid)
    eventually(lambda: not alive(pid), "the daemon's end")
    assert (mount().path / "file").read_bytes() == b"still here"


def test_kill_and_remount_again_and_again(mount: Callable[..., Any]) -> None:
    for round_ in range(4):
        mounted = mount()
        for earlier in range(round_):
            assert (mounted.path / f"file-{earlier}").read_text() == f"text {earlier}"
        with open(mounted.path / f"file-{round_}", "w") as file:
            file.write(f"text {round_}")
            file.flush()
            os.fsync(file.fileno())
            if round_ % 2:
                mounted.snapshot(f"s{round_}")
            mounted.kill()
    mounted = mount()
    past = mounted.path / ".snapfs/snapshots/s3"
    assert {path.name: path.read_text() for path in past.iterdir()} == {f"file-{n}": f"text {n}" for n in range(4)}
    mounted.snapshot("last")
    now = mounted.path / ".snapfs/snapshots/last"
    assert {path.name: path.read_text() for path in now.iterdir()} == {f"file-{n}": f"text {n}" for n in range(4)}


def test_changes_from_before_a_kill_are_in_the_next_snapshot(mount: Callable[..., Any]) -> None:
    """Neither data nor dirtiness is lost, for files that the last snapshot has."""
    mounted = mount()
    content = bytearray(os.urandom(1 << 20))
    (mounted.path / "file").write_bytes(content)
    mounted.snapshot("first")
    with open(mounted.path / "file", "r+b", buffering=0) as file:
        for offset in (0, 70_000, 900_000):
            os.pwrite(file.fileno(), b"changed", offset)
            content[offset : offset + 7] = b"changed"
        os.fsync(file.fileno())
        mounted.kill()
    mounted = mount()
    mounted.snapshot("second")
    assert (mounted.path / ".snapfs/snapshots/second/file").read_bytes() == content
    assert mounted.status()["last_snapshot"]["stats"]["dirty_bytes"] <= 4 * 65536


def test_the_interval_makes_snapshots_and_skips_what_is_unchanged(mount: Callable[..., Any]) -> None:
    mounted = mount("-o", "snapshots.every=100ms")
    (mounted.path / "file").write_text("one")
    eventually(lambda: mounted.status()["snapshots"] >= 1, "a snapshot")

    def settled() -> bool:
        before = mounted.status()["snapshots"]
        time.sleep(0.5)
        return bool(mounted.status()["snapshots"] == before)

    eventually(settled, "nothing to be left to do")
    number = mounted.status()["snapshots"]
    (mounted.path / "file").write_text("two")
    eventually(lambda: mounted.status()["snapshots"] > number, "another snapshot")
    last = mounted.status()["last_snapshot"]
    assert (last["trigger"], last["name"]) == ("interval", None)


def test_the_interval_keeps_as_many_as_configured(mount: Callable[..., Any]) -> None:
    mounted = mount("-o", "snapshots.every=50ms,snapshots.keep=2")
    mounted.snapshot("named")

    def enough() -> bool:
        (mounted.path / "file").write_text(str(time.monotonic_ns()))
        return bool(mounted.status()["last_snapshot"]["number"] >= 8)

    eventually(enough, "eight snapshots")

    def few() -> bool:
        return len(os.listdir(mounted.path / ".snapfs/snapshots")) <= 5  # two or three, and the named one twice

    eventually(few, "the old ones to go")
    assert "named" in os.listdir(mounted.path / ".snapfs/snapshots")


def test_a_snapshot_at_unmount_if_wanted(mount: Callable[..., Any]) -> None:
    for _ in range(2):  # the second time nothing has changed
        mounted = mount("-o", "snapshots.on_unmount=true")
        (mounted.path / "file").exists() or (mounted.path / "file").write_text("text")
        pid = mounted.status()["pid"]
        subprocess.run(["umount", str(mounted.path)], check=True)
        eventually(lambda pid=pid: not alive(pid), "the daemon's end")
    mounted = mount()
    status = mounted.status()
    assert (status["snapshots"], status["last_snapshot"]["trigger"]) == (1, "unmount")
    assert (mounted.path / ".snapfs/snapshots/1/file").read_text() == "text"


def resources(pid: int) -> tuple[int, int, int]:
    """Descriptors, threads and resident KiB of the daemon."""
    memory = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), int(memory)


def work(mounted: Any, round_: int) -> None:
    for number in range(20):
        (mounted.path / f"file-{number}").write_bytes(os.urandom(10_000))
    mounted.snapshot(f"s{round_}")
    past = mounted.path / f".snapfs/snapshots/s{round_}"
    assert all((past / name).read_bytes() for name in os.listdir(past))
    with contextlib.suppress(OSError):
        mounted.command("frobnicate")


def test_it_leaks_neither_descriptors_nor_threads_nor_memory(mounted: Any) -> None:
    pid = mounted.status()["pid"]
    for round_ in range(8):
        work(mounted, round_)
    descriptors, threads, memory = resources(pid)
    for round_ in range(8, 40):
        work(mounted, round_)
    more_descriptors, more_threads, more_memory = resources(pid)
    assert more_descriptors <= descriptors + 32 + 8  # a segment each stays open, up to a bound
    assert more_memory <= memory + (32 << 10)  # the caches, 10 KB of new content a file and round
    assert more_threads <= threads + 8


def test_status_says_who_it_is(mounted: Any, snapfs: Callable[..., Any]) -> None:
    facts = json.loads(snapfs("status", "--json", mounted.path).stdout)
    assert facts["pid"] == mounted.status()["pid"]
