"""A standby follows a mirror process; mounting it takes over, with the mirror there or gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.blocks import Disk
from snapfs.errors import UserError
from snapfs.transfer.remote import Access
from snapfs.transfer.standby import Standby
from tests.conftest import SNAPFS, Mounted, run_snapfs, take_down
from tests.fakes.crashes import Crash, CrashDisk

CHUNK = 65536


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "other"
    place.mkdir()
    yield place
    take_down(place)


def test_a_standby_follows_and_is_mounted_without_its_source(mounted: Mounted, tmp_path: Path, other: Path) -> None:
    content = os.urandom(30 * CHUNK + 5)
    (mounted.path / "big").write_bytes(content)
    (mounted.path / "folder").mkdir()
    mounted.snapshot("one")
    standing = [*SNAPFS, "standby", "--from", str(mounted.volume), str(tmp_path / "warm")]
    process = subprocess.Popen(standing, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "snapshot 1 (one)" in process.stderr.readline()
    with open(mounted.path / "big", "r+b") as file:
        file.seek(5 * CHUNK)
        file.write(b"later")
    (mounted.path / "folder" / "new").write_bytes(b"new")
    mounted.snapshot("two")
    assert "snapshot 2 (two)" in process.stderr.readline()
    run_snapfs("umount", mounted.path)
    os.rename(mounted.volume, tmp_path / "gone")
    refused = run_snapfs("mount", tmp_path / "warm", other, check=False)
    assert refused.returncode == 4
    assert "--force" in refused.stderr
    done = run_snapfs("mount", "--force", tmp_path / "warm", other)
    assert "snapshot 2" in done.stderr
    assert process.wait(10) == 0
    process.stderr.close()
    taken = Mounted(tmp_path / "warm", other)
    assert (other / "big").read_bytes() == content[: 5 * CHUNK] + b"later" + content[5 * CHUNK + 5 :]
    assert (other / "folder" / "new").read_bytes() == b"new"
    (other / "folder" / "own").write_bytes(b"own")
    assert taken.status()["generation"] == 2
    assert taken.snapshot("three")["snapshot"]["parent"] == 2
    deadline = time.monotonic() + 30
    while taken.status()["hydration"].get("phase") != "done":
        assert time.monotonic() < deadline, taken.status()["hydration"]
        time.sleep(0.05)
    run_snapfs("umount", other)
    assert not (tmp_path / "warm" / "origin.json").exists()
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
        at += 5
    standby = Standby(place, [], Access(), Disk())
    try:
        assert [record.number for record in standby.repository.snapshots()] == [2]
    finally:
        standby.close()
    run_snapfs("mount", place, other)
    assert (other / "more").read_bytes() == (mounted.path / "more").read_bytes()


def test_a_volume_is_no_standby_and_a_folder_without_a_source_neither(mounted: Mounted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="volume of its own"):
        Standby(str(mounted.volume), [str(mounted.volume)], Access(), Disk())
    with pytest.raises(UserError, match="--from"):
        Standby(str(tmp_path / "none"), [], Access(), Disk())
    command = [*SNAPFS, "standby", "--from", str(tmp_path / "nothing"), str(tmp_path / "warm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 3
    assert not (tmp_path / "warm").exists()


def test_sigterm_ends_a_standby_in_order(mounted: Mounted, tmp_path: Path) -> None:
    mounted.snapshot()
    command = [sys.executable, "-m", "snapfs.cli", "standby", "--from", str(mounted.volume), str(tmp_path / "warm")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "snapshot 1" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stderr.close()
