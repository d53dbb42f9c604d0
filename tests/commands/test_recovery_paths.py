"""What a user is reported, and can do, when parts of a store are lost or too new: by the commands, on a real volume."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Snapfs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pristine(snapfs: Snapfs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three snapshots, and changes since; not mounted."""
    base = tmp_path_factory.mktemp("recovery")
    mountpoint = base / "mnt"
    mountpoint.mkdir()
    snapfs("mount", base / "volume", mountpoint)
    for name in ("one", "two", "three"):
        (mountpoint / name).write_bytes(os.urandom(100_000))
        (mountpoint / ".snapfs/control").write_text(f"snapshot {name}")
    (mountpoint / "four").write_bytes(os.urandom(1000))
    snapfs("umount", mountpoint)
    return base / "volume"


@pytest.fixture
def volume(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be harmed."""
    subprocess.run(["cp", "-a", "--sparse=always", pristine, tmp_path / "volume"], check=True)
    return tmp_path / "volume"


def doctor(snapfs: Snapfs, volume: Path) -> tuple[int, list[str]]:
    """Its exit code, and what it finds bad."""
    done = snapfs("doctor", "--json", volume, check=False)
    return done.returncode, [each["finding"] for each in json.loads(done.stdout) if each["level"] == "bad"]


def states(snapfs: Snapfs, place: Path) -> dict[str, str]:
    return {each["name"]: each["state"] for each in json.loads(snapfs("list", "--json", place).stdout)}


def lose_lines(volume: Path, count: int) -> None:
    log = volume / "store/snapshots.log"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-count]))


def lose_log(volume: Path) -> None:
    (volume / "store/snapshots.log").unlink()


@pytest.mark.parametrize("harm", [lambda volume: lose_lines(volume, 2), lambda volume: lose_lines(volume, 3), lose_log])
def test_a_log_that_lost_its_end_or_all_is_reported_and_rebuilt(
    snapfs: Snapfs, volume: Path, mountpoint: Path, harm: Callable[[Path], None]
) -> None:
    harm(volume)
    refused = snapfs("mount", volume, mountpoint, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (5, 1)
    assert f"`snapfs doctor {volume}` states what can be done" in refused.stderr
    code, (words,) = doctor(snapfs, volume)
    assert code == 5
    assert f"`snapfs verify --repair {volume}` makes a new log" in words
    assert "rebuilt snapshots.log" in snapfs("verify", "--repair", volume).stderr
    assert states(snapfs, volume) == {"one": "good", "two": "good", "three": "good"}
    assert doctor(snapfs, volume) == (0, [])
    snapfs("mount", volume, mountpoint)
    assert (mountpoint / "four").stat().st_size == 1000
    snapfs("snapshot", mountpoint, "five")
    assert snapfs("verify", mountpoint).returncode == 0


def test_a_torn_line_is_cut_off_and_reported(snapfs: Snapfs, volume: Path, mountpoint: Path) -> None:
    with open(volume / "store/snapshots.log", "ab") as log:
        log.write(b'{"kind":"snapshot","ti')
    assert doctor(snapfs, volume) == (0, [])  # what a crash leaves is no damage
    done = snapfs("mount", volume, mountpoint)
    assert done.stderr == "snapfs: recovered: snapshots.log: 22 bytes of an unfinished line cut off\n"
    assert set(states(snapfs, mountpoint).values()) == {"good"}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_missing_segment_is_reported_and_the_next_snapshot_is_whole(
    snapfs: Snapfs, volume: Path, mountpoint: Path, which: int
) -> None:
    sorted((volume / "store/segments").glob("*.seg"))[which].unlink()
    code, words = doctor(snapfs, volume)
    assert code == 5
    assert any(f"what snapshot {which + 1} wrote is missing" in each for each in words)
    snapfs("mount", volume, mountpoint)
    assert snapfs("verify", mountpoint, check=False).returncode == 5
    done = snapfs("verify", "--repair", mountpoint, check=False)
    assert done.returncode == 5
    assert "make a new snapshot, which will be whole" in done.stderr
    snapfs("snapshot", mountpoint, "next")
    assert snapfs("verify", mountpoint, "next").returncode == 0
    damaged = [name for name, state in states(snapfs, mountpoint).items() if state == "damaged"]
    assert {"one", "two", "three"} >= set(damaged) >= {("one", "two", "three")[which]}
    snapfs("drop", mountpoint, *damaged)
    assert snapfs("verify", mountpoint).returncode == 0
    expected = {path.name: path.read_bytes() for path in mountpoint.iterdir()}
    past = mountpoint / ".snapfs/snapshots/next"
    assert {path.name: path.read_bytes() for path in past.iterdir()} == expected


def newer_volume(volume: Path) -> None:
    toml = volume / "volume.toml"
    toml.write_text(toml.read_text().replace("format = 1", "format = 9"))


def newer_log(volume: Path) -> None:
    log = volume / "store/snapshots.log"
    log.write_bytes(log.read_bytes().replace(b'"format":1', b'"format":9', 1))


def newer_segment(volume: Path) -> None:
    with open(max((volume / "store/segments").glob("*.seg")), "r+b") as file:
        file.seek(8)
        file.write(b"\x09")


def newer_namespace(volume: Path) -> None:
    database = sqlite3.connect(volume / "live/namespace.db")
    database.execute("PRAGMA user_version=99")
    database.commit()
    database.close()


def contents(volume: Path) -> dict[str, Any]:
    files = (path for path in volume.rglob("*") if path.is_file() and path.name != "daemon.log")
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("newer", [newer_volume, newer_log, newer_segment, newer_namespace])
def test_a_newer_format_is_refused_and_nothing_touched(
    snapfs: Snapfs, volume: Path, mountpoint: Path, newer: Callable[[Path], None]
) -> None:
    newer(volume)
    before = contents(volume)
    for command in (("mount", volume, mountpoint), ("list", volume), ("verify", volume)):
        if newer is newer_namespace and command[0] != "mount":
            continue  # the history is not newer: it is read, and its log says that it was verified
        done = snapfs(*command, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (6, 1), command
        assert "format" in done.stderr
    code, (words,) = doctor(snapfs, volume)
    assert code == 6
    assert "use a" in words
    after = contents(volume)
    assert {name for name in before if before[name] != after.get(name)} <= {str(volume / "lock")}
