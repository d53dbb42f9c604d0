"""Paths that are in no snapshot, on a real mount: what comes and goes through the kernel, with both data paths."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from tests.conftest import Mounted, run_snapfs


@pytest.fixture(params=["native", "python"])
def excluding(mount: Callable[..., Mounted], volume_dir: Path, request: Any) -> Mounted:
    Volume.create(str(volume_dir), Disk(), settings={"snapshots": {"exclude": ["cache/", "*.tmp"]}})
    return mount("-o", f"live.data_path={request.param}")


def listed(mounted: Mounted, snapshot: object) -> dict[str, bytes]:
    top = mounted.path / ".snapfs/snapshots" / str(snapshot)
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else b"" for path in sorted(top.rglob("*"))}


def test_excluded_paths_are_live_and_in_no_snapshot(excluding: Mounted) -> None:
    top = excluding.path
    (top / "cache/deep").mkdir(parents=True)
    (top / "cache/deep/file").write_bytes(b"cached")
    (top / "data").write_bytes(b"data")
    (top / "part.tmp").write_bytes(b"part")
    os.link(top / "data", top / "data.tmp")
    excluding.snapshot("one")
    assert listed(excluding, "one") == {"data": b"data"}
    assert (top / ".snapfs/snapshots/one/data").stat().st_nlink == 1
    assert (top / "data").stat().st_nlink == 2
    assert (top / "cache/deep/file").read_bytes() == b"cached"


def test_what_is_renamed_in_is_there_whole_and_what_is_renamed_out_is_not(excluding: Mounted) -> None:
    top, large = excluding.path, os.urandom(3 << 20)
    (top / "cache/deep").mkdir(parents=True)
    (top / "cache/deep/large").write_bytes(large)
    (top / "part.tmp").write_bytes(b"part")
    excluding.snapshot("before")
    (top / "cache").rename(top / "kept")
    (top / "part.tmp").rename(top / "part")
    with open(top / "kept/deep/large", "r+b") as file:
        file.write(b"changed")
    excluding.snapshot("in")
    whole = {"kept": b"", "kept/deep": b"", "kept/deep/large": b"changed" + large[7:], "part": b"part"}
    assert listed(excluding, "in") == whole
    (top / "kept").rename(top / "cache")
    with open(top / "cache/deep/large", "r+b") as open_file:
        open_file.write(b"changed again")
        excluding.snapshot("out")
    assert listed(excluding, "out") == {"part": b"part"}
    (top / "cache").rename(top / "kept")
    excluding.snapshot("again")
    assert listed(excluding, "again") == whole | {"kept/deep/large": b"changed again" + large[13:]}


def test_other_patterns_are_in_the_next_snapshot_and_older_ones_keep_theirs(
    excluding: Mounted, mount: Callable[..., Mounted]
) -> None:
    (excluding.path / "cache").mkdir()
    (excluding.path / "cache/file").write_bytes(b"cached")
    (excluding.path / "log").write_bytes(b"log")
    excluding.snapshot("one")
    run_snapfs("umount", excluding.path)
    mounted = mount("-o", "snapshots.exclude=log")
    mounted.snapshot("two")
    assert listed(mounted, "one") == {"log": b"log"}
    assert listed(mounted, "two") == {"cache": b"", "cache/file": b"cached"}
    shown = run_snapfs("diff", mounted.path, "one", "two")
    assert shown.stdout.splitlines() == ["+ cache", "+ cache/file  (6 B)", "x log  (3 B)"]
    assert "snapshot 1 was made without what is excluded" in shown.stderr
    assert "cache/, *.tmp" in shown.stderr
    facts = [json.loads(line) for line in run_snapfs("diff", "--json", mounted.path, "one", "two").stdout.splitlines()]
    assert facts[-1]["excluded"] == {"a": ["cache/", "*.tmp"], "b": ["log"]}
    assert "without     what is excluded: log" in run_snapfs("show", mounted.path, "two").stdout


def test_a_rollback_keeps_what_is_excluded_and_says_so(excluding: Mounted) -> None:
    top = excluding.path
    (top / "data").write_bytes(b"then")
    (top / "old").write_bytes(b"old")
    excluding.snapshot("then")
    (top / "data").write_bytes(b"now")
    (top / "new").mkdir()
    (top / "new/lost.tmp").write_bytes(b"its directory goes")
    (top / "cache").mkdir()
    (top / "cache/file").write_bytes(b"cached")
    (top / "old").rename(top / "old.tmp")
    done = run_snapfs("rollback", top, "then")
    assert "1 excluded paths stay as they are: cache/, *.tmp" in done.stderr
    assert "2 excluded paths are gone, and in no snapshot" in done.stderr
    assert {path.name: path.read_bytes() for path in top.iterdir() if path.is_file()} == {
        "data": b"then",
        "old": b"old",
    }
    assert (top / "cache/file").read_bytes() == b"cached"
    assert not (top / "new").exists()
    (top / "cache/more").write_bytes(b"goes on")
    excluding.snapshot("after")
    assert listed(excluding, "after") == {"data": b"then", "old": b"old"}


def test_a_restore_and_a_mount_from_elsewhere_say_what_is_left_out(
    excluding: Mounted, tmp_path: Path, other: Path
) -> None:
    (excluding.path / "data").write_bytes(b"data")
    (excluding.path / "part.tmp").write_bytes(b"part")
    excluding.snapshot("one")
    said = "snapshot 1 was made without what is excluded, and these paths are not there: cache/, *.tmp"
    assert said in run_snapfs("restore", excluding.path, "one", tmp_path / "restored").stderr
    assert [path.name for path in (tmp_path / "restored").iterdir()] == ["data"]
    run_snapfs("umount", excluding.path)
    begun = run_snapfs("mount", "--from", excluding.volume, tmp_path / "new", other)
    assert said in begun.stderr
    assert [path.name for path in other.iterdir()] == ["data"]
    there = Mounted(tmp_path / "new", other)
    (other / "later.tmp").write_bytes(b"this host excludes nothing")
    there.snapshot("two")
    assert listed(there, "two") == {"data": b"data", "later.tmp": b"this host excludes nothing"}
