"""A standby follows a mirror process; mounting it takes over, with the mirror there or gone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.transfer.failover.standby_volume import Standby
from snapfs.transfer.sources.source_access import Access
from tests.conftest import SNAPFS, Mounted, run_snapfs
from tests.fakes.disks.crashes import Crash, CrashDisk
from tests.fakes.patience import PATIENCE_S

CHUNK = 65536


def test_a_standby_follows_and_is_mounted_without_its_source(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    content = os.urandom(30 * CHUNK + 5)
    (mounted.path / "big").write_bytes(content)
    (mounted.path / "folder").mkdir()
    mounted.snapshot("one")
    standing = [*SNAPFS, "standby", "--from", str(mounted.volume), str(tmp_path / "warm")]
    process = subprocess.Popen(standing, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "snapshot 1 (one)" in process.stderr.readline()
    assert "snapshot 1 is in place" in process.stderr.readline()
    with open(mounted.path / "big", "r+b") as file:
        file.seek(5 * CHUNK)
        file.write(b"later")
    (mounted.path / "folder" / "new").write_bytes(b"new")
    mounted.snapshot("two")
    assert "snapshot 2 (two)" in process.stderr.readline()
    assert "snapshot 2 is in place" in process.stderr.readline()
    run_snapfs("umount", mounted.path)
    os.rename(mounted.volume, tmp_path / "gone")
    refused = run_snapfs("mount", tmp_path / "warm", other, check=False)
    assert refused.returncode == 4
    assert "--force" in refused.stderr
    done = run_snapfs("mount", "--force", tmp_path / "warm", other)
    assert "snapshot 2" in done.stderr
    assert "not all of it" not in done.stderr
    assert process.wait(PATIENCE_S) == 0
    process.stderr.close()
    taken = Mounted(tmp_path / "warm", other)
    assert (other / "big").read_bytes() == content[: 5 * CHUNK] + b"later" + content[5 * CHUNK + 5 :]
    assert (other / "folder" / "new").read_bytes() == b"new"
    (other / "folder" / "own").write_bytes(b"own")
    assert taken.status()["generation"] == 2
    assert taken.snapshot("three")["snapshot"]["parent"] == 2
    assert taken.status()["hydration"]["absent_files"] == 0
    assert not (tmp_path / "warm" / "origin.json").exists()
    run_snapfs("umount", other)
    run_snapfs("mount", tmp_path / "warm", other)
    assert (other / "folder" / "own").read_bytes() == b"own"
    assert "damaged" not in run_snapfs("verify", other).stdout


def test_a_standby_that_dies_at_any_step_goes_on(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    (mounted.path / "big").write_bytes(os.urandom(10 * CHUNK))
    mounted.snapshot()
    (mounted.path / "more").write_bytes(os.urandom(3 * CHUNK))
    mounted.snapshot()
    place, at, crashed = str(tmp_path / "warm"), 0, True
    while crashed:
        disk, crashed = CrashDisk(at), False
        standby = None
        try:
            standby = Standby(place, [str(mounted.volume)], Access(), disk)
            standby.follow(lambda received: None, once=True)
        except Crash:
            crashed = True
        disk.at = None
        if standby is not None:
            standby.close()
        at += 5 if len(disk.labels) < 80 else 41  # there are hundreds of folders to be made
    standby = Standby(place, [], Access(), Disk())
    try:
        assert [record.number for record in standby.repository.snapshots()] == [2]
    finally:
        standby.close()
    run_snapfs("mount", place, other)
    assert (other / "more").read_bytes() == (mounted.path / "more").read_bytes()


def test_what_is_taken_over_is_the_snapshot(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    """The standby is killed again and again while its tree becomes the next snapshot and the next."""
    chance, top = random.Random(5), mounted.path
    begin(top, chance)
    mounted.snapshot("first")
    command = [*SNAPFS, "standby", "--from", str(mounted.volume), str(tmp_path / "warm")]
    subprocess.run([*command, "--once"], check=True, capture_output=True)
    for number in range(4):
        change(top, chance, number)
        mounted.snapshot(f"change-{number}")
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.3, 0.7))
        process.kill()
        process.wait()
    run_snapfs("mount", tmp_path / "warm", other)
    taken = Mounted(tmp_path / "warm", other)
    name = json.loads(run_snapfs("list", other, "--json").stdout)[-1]["name"]
    assert shown(other) == shown(top / ".snapfs" / "snapshots" / name)
    run_snapfs("umount", other)
    run_snapfs("mount", tmp_path / "warm", other)
    assert shown(other) == shown(top / ".snapfs" / "snapshots" / name)
    (other / "own").write_bytes(b"own")
    assert taken.snapshot("mine")["snapshot"]["stats"]["inodes"] < 10
    assert run_snapfs("verify", other, check=False).returncode == 0


def begin(top: Path, chance: random.Random) -> None:
    for number in range(3):
        (top / f"big{number}").write_bytes(chance.randbytes(20 * CHUNK + number))
        (top / f"folder{number}").mkdir()
        for small in range(30):
            (top / f"folder{number}" / f"small{small}").write_bytes(chance.randbytes(small * 300))
    os.link(top / "big0", top / "folder0" / "linked")
    os.setxattr(top / "big1", "user.noted", b"one")
    (top / "symlink").symlink_to("big1")
    (top / "turns").write_bytes(b"a file")
    with open(top / "sparse", "wb") as file:
        file.truncate(300 << 20)
        file.seek(100 << 20)
        file.write(b"in the middle")


def change(top: Path, chance: random.Random, number: int) -> None:
    with open(top / "big0", "r+b") as file:
        file.seek(chance.randrange(20) * CHUNK + 77)
        file.write(chance.randbytes(3000))
    os.truncate(top / "big1", (chance.randrange(30) + 5) * CHUNK + 9)
    os.rename(top / "big2", top / f"folder{number % 3}" / "moved")
    (top / "big2").write_bytes(chance.randbytes(9 * CHUNK))
    shutil.rmtree(top / "folder1")
    (top / "folder1").mkdir()
    (top / "folder1" / "anew").write_bytes(chance.randbytes(500))
    os.setxattr(top / "big1", "user.noted", b"%d" % number)
    os.chmod(top / "folder2", 0o700 + number)
    os.utime(top / "folder0" / "small3", ns=(number, number))
    with open(top / "sparse", "r+b") as file:
        file.seek((100 << 20) + number * CHUNK)
        file.write(b"and another")
    if (top / "turns").is_dir():
        (top / "turns").rmdir()
        os.mkfifo(top / "turns")
    else:
        (top / "turns").unlink()
        (top / "turns").mkdir()


def shown(top: Path) -> dict[str, tuple[object, ...]]:
    """All that a tree is, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files, "."]:
            path = os.path.join(folder, name)
            facts = os.lstat(path)
            keys = os.listxattr(path, follow_symlinks=False)
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
            read = {stat.S_IFLNK: os.readlink, stat.S_IFREG: data}.get(stat.S_IFMT(facts.st_mode), lambda path: b"")
            found[os.path.relpath(path, top)] = (
                facts.st_mode, facts.st_uid, facts.st_gid, facts.st_nlink, facts.st_size, facts.st_mtime_ns,
                facts.st_ctime_ns, sorted(xattrs.items()), read(path),
                "" if stat.S_ISDIR(facts.st_mode) else sorted(linked(top, facts.st_ino)) if facts.st_nlink > 1 else [],
            )  # fmt: skip
    return found


def linked(top: Path, ino: int) -> list[str]:
    names = (os.path.join(folder, name) for folder, _, files in os.walk(top) for name in files)
    return [os.path.relpath(path, top) for path in names if os.lstat(path).st_ino == ino]


def data(path: str) -> list[tuple[int, bytes]]:
    """The blocks of a file that are not all zeros."""
    fd, found, at = os.open(path, os.O_RDONLY), [], 0
    try:
        while True:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) // CHUNK * CHUNK
            except OSError:
                return found
            block = os.pread(fd, CHUNK, at)
            found += [(at, block)] if block.strip(b"\0") else []
            at += CHUNK
    finally:
        os.close(fd)


def test_a_volume_is_no_standby_and_a_folder_without_a_source_neither(mounted: Mounted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="volume of its own"):
        Standby(str(mounted.volume), [str(mounted.volume)], Access(), Disk())
    with pytest.raises(UserError, match="--from"):
        Standby(str(tmp_path / "none"), [], Access(), Disk())
    command = [*SNAPFS, "standby", "--from", str(tmp_path / "nothing"), str(tmp_path / "warm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 3
    assert not (tmp_path / "warm").exists()


def test_sigterm_ends_a_standby_in_order(mounted: Mounted, tmp_path: Path) -> None:
    mounted.snapshot()
    command = [sys.executable, "-m", "snapfs", "standby", "--from", str(mounted.volume), str(tmp_path / "warm")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "snapshot 1" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    process.stderr.close()
