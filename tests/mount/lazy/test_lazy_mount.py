"""Volumes that are mounted from another one's folder: at once, writable at once, and whole in the end."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mounted, run_snapfs
from tests.fakes.mounts.hydrated import is_whole, wait_whole
from tests.fakes.patience import eventually

CHUNK = 65536


def take_over(source: Path, volume: Path, place: Path, *arguments: str) -> Mounted:
    run_snapfs("mount", *arguments, "--from", source, volume, place)
    return Mounted(volume, place)


def hashes(top: Path) -> dict[str, Any]:
    """Everything below, by path: type, mode, times, links, content."""
    found: dict[str, Any] = {}
    for folder, _, files in os.walk(top):
        for name in [*files, "."]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else ""
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            times = (status.st_mtime_ns,) if name != "." else ()
            links = status.st_nlink if name != "." else os.stat(folder).st_nlink
            found[os.path.relpath(path, top)] = (status.st_mode, status.st_ino, links, *times, content)
    return found


def populate(top: Path) -> None:
    deep = top / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    os.link(deep / "file", top / "a" / "linked")
    os.symlink("somewhere", top / "symlink")
    (top / "big").write_bytes(os.urandom(40 * CHUNK + 17))
    with open(top / "sparse", "wb") as file:
        file.truncate(200 * CHUNK)
        file.seek(100 * CHUNK)
        file.write(b"island")
    for number in range(30):
        (top / "a" / f"small{number}").write_bytes(os.urandom(number * 1000))
    os.setxattr(top / "a" / "small1", "user.kept", b"value")
    (top / "empty").mkdir()
    for folder, _, files in os.walk(top):
        for name in files:  # sent at once, unlike the times of writes that the kernel still holds
            os.utime(os.path.join(folder, name), ns=(1_000_000_007, 2_000_000_009), follow_symlinks=False)


def test_a_volume_taken_over_is_the_same_and_becomes_whole(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    populate(mounted.path)
    mounted.snapshot("last")
    before = hashes(mounted.path)
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    facts = lazy.status()
    assert facts["generation"] == 2
    assert facts["hydration"]["unloaded_directories"] == 2
    assert hashes(lazy.path) == before
    assert os.getxattr(lazy.path / "a" / "small1", "user.kept") == b"value"
    lazy.command("resume")
    wait_whole(lazy)
    os.rename(mounted.volume, tmp_path / "gone")
    run_snapfs("umount", lazy.path)
    assert not (lazy.volume / "origin.json").exists()
    assert not (lazy.volume / "store" / "fetched").exists()
    run_snapfs("mount", lazy.volume, lazy.path)
    assert hashes(lazy.path) == before
    assert run_snapfs("verify", lazy.path).returncode == 0


def test_it_is_writable_at_once_and_its_snapshots_are_right(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    populate(mounted.path)
    mounted.snapshot("last")
    original = (mounted.path / "big").read_bytes()
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    with open(lazy.path / "big", "r+b") as file:
        file.seek(7 * CHUNK + 100)
        file.write(b"changed")
        os.fsync(file.fileno())
    assert lazy.status()["hydration"]["fetched_bytes"] < 10 * CHUNK
    os.rename(lazy.path / "a" / "b", lazy.path / "moved")
    os.unlink(lazy.path / "a" / "linked")
    (lazy.path / "a" / "born").write_bytes(b"here")
    os.utime(lazy.path / "a" / "born", ns=(1, 2))  # sent at once; a killed daemon may not have received the others
    lazy.snapshot("own")
    expected = original[: 7 * CHUNK + 100] + b"changed" + original[7 * CHUNK + 107 :]
    assert (lazy.path / "big").read_bytes() == expected
    assert (lazy.path / "moved" / "c" / "file").read_bytes() == b"deep"
    assert os.stat(lazy.path / "moved" / "c" / "file").st_nlink == 1
    whole = hashes(lazy.path)
    shown = lazy.path / ".snapfs" / "snapshots" / "own"
    assert {name: facts[-1] for name, facts in hashes(shown).items()} == {
        name: facts[-1] for name, facts in whole.items()
    }
    pid = lazy.status()["pid"]
    lazy.kill()
    run_snapfs("mount", lazy.volume, lazy.path)
    assert lazy.status()["pid"] != pid
    assert hashes(lazy.path) == whole
    wait_whole(lazy)  # without the option it goes on by itself
    assert hashes(lazy.path) == whole


def test_a_directory_that_was_not_loaded_is_never_empty(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    populate(mounted.path)
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(lazy.path / "a")
    with pytest.raises(OSError, match="not empty"):
        os.rename(lazy.path / "empty", lazy.path / "a")
    with pytest.raises(FileExistsError):
        os.mkdir(lazy.path / "a" / "b")
    os.rmdir(lazy.path / "empty")


def test_where_the_source_is_gone_reads_fail_and_nothing_looks_empty(
    mounted: Mounted, tmp_path: Path, other: Path
) -> None:
    populate(mounted.path)
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    assert (lazy.path / "a" / "small3").stat().st_size == 3000
    run_snapfs("umount", lazy.path)
    os.rename(mounted.volume, tmp_path / "away")
    run_snapfs("mount", "-o", "hydration.background=false,hydration.wait=100ms", lazy.volume, lazy.path)
    assert len(os.listdir(lazy.path / "a")) == 32
    with pytest.raises(OSError, match="Input/output"):
        (lazy.path / "big").read_bytes()
    with pytest.raises(OSError, match="Input/output"):
        os.listdir(lazy.path / "a" / "b")
    with pytest.raises(OSError, match="Input/output"), open(lazy.path / "big", "r+b", buffering=0) as file:
        file.seek(100)
        file.write(b"x")
        os.fsync(file.fileno())
    os.rename(tmp_path / "away", mounted.volume)

    def all_is_read() -> bool:
        """Each time there is more, of what took longer than such a mount waits."""
        try:
            return len((lazy.path / "big").read_bytes()) == 40 * CHUNK + 17 and os.listdir(lazy.path / "a/b") == ["c"]
        except OSError:
            return False

    eventually(all_is_read, "the source")


def test_a_damaged_newest_snapshot_is_passed_over_and_said(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    (mounted.path / "file").write_bytes(b"old")
    mounted.snapshot("good")
    (mounted.path / "file").write_bytes(b"new")
    mounted.snapshot("bad")
    run_snapfs("umount", mounted.path)
    newest = max((mounted.volume / "store" / "segments").iterdir())
    data = bytearray(newest.read_bytes())
    for place in range(64, len(data) - 500):
        data[place] ^= 0x55
    newest.write_bytes(data)
    done = run_snapfs("mount", "--from", mounted.volume, tmp_path / "new", other)
    assert "snapshot 2 cannot be used" in done.stderr
    assert "snapshot 1 good" in done.stderr
    assert " s old" in done.stderr
    assert (other / "file").read_bytes() == b"old"


def test_refusals_leave_nothing_behind(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    (mounted.path / "file").write_bytes(b"x")
    mounted.snapshot()
    assert "already" in run_snapfs("mount", "--from", mounted.volume, mounted.volume, other, check=False).stderr
    nowhere = run_snapfs("mount", "--from", tmp_path / "none", tmp_path / "new", other, check=False)
    assert nowhere.returncode == 3
    assert not list(tmp_path.glob("new*"))
    assert not os.path.ismount(other)


def test_sqlite_goes_on_from_a_mirror_folder(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    base = sqlite3.connect(mounted.path / "db")
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
    with base:
        base.executemany("INSERT INTO t VALUES (?, randomblob(1000))", ((k,) for k in range(5000)))
    base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    mounted.snapshot()
    base.close()
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    base = sqlite3.connect(lazy.path / "db")
    assert base.execute("SELECT length(v) FROM t WHERE k = 4321").fetchone() == (1000,)
    fetched = lazy.status()["hydration"]["fetched_bytes"]
    assert fetched < (lazy.path / "db").stat().st_size // 2
    with base:
        base.execute("UPDATE t SET v = randomblob(2000) WHERE k % 50 = 0")
    lazy.snapshot()
    lazy.command("resume")
    with base:
        base.execute("DELETE FROM t WHERE k % 7 = 0")
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    wait_whole(lazy)
    assert base.execute("SELECT count(*) FROM t").fetchone() == (4285,)
    base.close()


def test_what_needs_all_of_a_volume_is_refused_while_it_is_not_here(
    mounted: Mounted, tmp_path: Path, other: Path
) -> None:
    populate(mounted.path)
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    with pytest.raises(OSError, match="busy"):
        lazy.command("verify")
    assert run_snapfs("clone", lazy.path, "1", tmp_path / "clone", check=False).returncode == 4
    assert lazy.status()["last_snapshot"]["state"] == "good"
    lazy.command("resume")
    wait_whole(lazy)
    run_snapfs("clone", lazy.path, "1", tmp_path / "clone")
    assert run_snapfs("verify", lazy.path).returncode == 0


def test_a_rollback_needs_no_bytes_that_are_not_here(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    """Files that differ are built from the store; what is the same stays as it is: partly here, or not at all."""
    populate(mounted.path)
    mounted.snapshot("first")
    first = hashes(mounted.path)
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    with open(lazy.path / "sparse", "rb") as file:
        file.seek(100 * CHUNK)
        assert file.read(6) == b"island"
    with open(lazy.path / "big", "r+b") as file:  # partly here, and changed
        file.seek(20 * CHUNK)
        file.write(b"changed")
    (lazy.path / "a" / "small3").unlink()
    os.truncate(lazy.path / "a" / "small29", 5)
    lazy.command("rollback first")
    assert not is_whole(lazy.status())
    assert hashes(lazy.path) == first
    lazy.command("resume")
    wait_whole(lazy)
    assert hashes(lazy.path) == first
    assert run_snapfs("verify", lazy.path).returncode == 0


def test_space_in_a_file_that_is_not_here(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    content = os.urandom(40 * CHUNK)
    (mounted.path / "big").write_bytes(content)
    mounted.snapshot()
    run_snapfs("umount", mounted.path)
    lazy = take_over(mounted.volume, tmp_path / "new", other, "-o", "hydration.background=false")
    with open(lazy.path / "big", "r+b") as file:
        os.posix_fallocate(file.fileno(), 40 * CHUNK, CHUNK)
        os.truncate(file.fileno(), 50 * CHUNK)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.pread(file.fileno(), CHUNK, 39 * CHUNK) == content[39 * CHUNK :]
        os.truncate(file.fileno(), 20 * CHUNK + 5)
    assert (lazy.path / "big").read_bytes() == content[: 20 * CHUNK + 5]
