"""Rollback of a mounted volume, seen by those who use it."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def raises(number: int) -> Any:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def everything(top: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(top)): (path.lstat().st_mode, path.lstat().st_mtime_ns, content(path))
        for path in sorted(top.rglob("*"))
    }


def content(path: Path) -> bytes:
    return os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""


def build(top: Path) -> None:
    (top / "sub/deep").mkdir(parents=True)
    (top / "sub/file").write_bytes(os.urandom(200_000))
    (top / "large").write_bytes(os.urandom(1 << 20))
    (top / "gone").write_text("will be removed")
    (top / "link").symlink_to("sub/file")


def spoil(top: Path) -> None:
    """All kinds of change, and everything known to the kernel's caches."""
    os.truncate(top / "sub/file", 1000)
    with open(top / "large", "r+b") as file:
        file.seek(500_000)
        file.write(b"spoiled")
    (top / "gone").unlink()
    (top / "link").unlink()
    (top / "link").mkdir()
    (top / "link/new").write_text("new")
    (top / "sub/deep").rename(top / "moved")
    (top / "sub").chmod(0o700)
    everything(top)
    assert not (top / "gone").exists()


def test_a_rollback_shows_the_past_at_once_and_keeps_the_present(mounted: Any) -> None:
    build(mounted.path)
    past = everything(mounted.path)
    mounted.snapshot("good")
    spoil(mounted.path)
    spoiled = everything(mounted.path)
    reply = mounted.command("rollback good")
    assert reply["target"] == 1
    assert everything(mounted.path) == past
    status = mounted.status()
    assert status["generation"] == 2
    assert status["busy"] is None
    assert everything(mounted.path / ".snapfs/snapshots" / str(reply["kept"])) == spoiled
    assert everything(mounted.path / ".snapfs/snapshots" / str(reply["now"])) == past


def test_it_can_be_written_to_and_sealed_and_remounted_afterwards(mounted: Any, mount: Callable[..., Any]) -> None:
    build(mounted.path)
    mounted.snapshot("good")
    spoil(mounted.path)
    mounted.command("rollback good")
    (mounted.path / "after").write_text("after")
    with open(mounted.path / "large", "r+b") as file:
        file.write(b"changed again")
    expected = everything(mounted.path)
    mounted.snapshot("after")
    assert everything(mounted.path / ".snapfs/snapshots/after") == expected
    mounted.kill()
    mounted = mount()
    assert everything(mounted.path) == expected
    (mounted.path / "later").touch()
    mounted.snapshot("later")
    assert mounted.status()["last_snapshot"]["generation"] == 2


def test_it_is_refused_while_files_are_open_for_writing(mounted: Any) -> None:
    (mounted.path / "file").write_text("past")
    mounted.snapshot("good")
    with open(mounted.path / "file", "r+b", buffering=0) as file:
        file.write(b"more than it was")
        with raises(errno.EBUSY):
            mounted.command("rollback good")
        assert mounted.status()["last_error"]["message"].startswith("1 files are open for writing")
        assert (mounted.path / "file").read_bytes() == b"more than it was"
        mounted.command("rollback good force")
        assert os.pread(file.fileno(), 100, 0) == b"past"
        assert os.fstat(file.fileno()).st_size == 4
    assert (mounted.path / "file").read_bytes() == b"past"


def test_it_goes_through_while_an_application_works(mounted: Any) -> None:
    (mounted.path / "file").write_text("past")
    mounted.snapshot("good")
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (mounted.path / f"new-{number % 50}").write_text("x" * 1000)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        (mounted.path / "file").write_text("present")
        mounted.command("rollback good force")
        assert (mounted.path / "file").read_text() == "past"
    finally:
        stop.set()
        worker.join()


def test_a_damaged_database_is_put_back(mounted: Any) -> None:
    path = mounted.path / "app.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t(number, text)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", ((n, "x" * 100) for n in range(5000)))
    connection.commit()
    connection.close()
    mounted.snapshot("good")
    with open(path, "r+b") as file:
        for page in range(10, 60):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    mounted.command("rollback good")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (5000,)
    connection.close()
