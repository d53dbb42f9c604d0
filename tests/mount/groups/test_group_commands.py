"""The commands that put a group's cut back: each by itself, over two tiny members."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import take_down

Snapfs = Callable[..., subprocess.CompletedProcess[str]]
NAMES = ("a", "b")


class Pair:
    """Two mounted volumes, the group `g` of both, and its cut `c`: each has a file `which` with its name."""

    def __init__(self, folder: Path, snapfs: Snapfs) -> None:
        self.folder, self.snapfs = folder, snapfs
        self.volumes = [folder / name for name in NAMES]
        self.mounts = [folder / f"m{name}" for name in NAMES]
        for volume, mount in zip(self.volumes, self.mounts, strict=True):
            mount.mkdir()
            snapfs("mount", volume, mount)
        snapfs("snapshot", self.mounts[0])  # so their numbers differ
        snapfs("group", "create", "g", *self.volumes)
        self.write("{}")
        snapfs("snapshot", "--group", "g", "c")
        self.write("later {}")

    def write(self, what: str) -> None:
        for name, mount in zip(NAMES, self.mounts, strict=True):
            (mount / "which").write_text(what.format(name))

    def group(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.snapfs("group", *arguments, check=check)


@pytest.fixture
def pair(tmp_path: Path, snapfs: Snapfs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setenv("SNAPFS_GROUPS", str(tmp_path / "groups"))
    try:
        yield Pair(tmp_path, snapfs)
    finally:
        for place in (*(f"m{name}" for name in NAMES), *(f"{out}/{name}" for out in "xyz" for name in NAMES)):
            take_down(tmp_path / place)


def contents(folder: Path) -> list[str]:
    return [(folder / name / "which").read_text() for name in NAMES]


def test_a_cut_is_cloned_mounted_and_put_back(pair: Pair, snapfs: Snapfs, tmp_path: Path) -> None:
    pair.group("clone", "g", "c", tmp_path / "x")
    (tmp_path / "out").mkdir()
    for name in NAMES:
        snapfs("restore", tmp_path / "x" / name, "c", tmp_path / "out" / name)
    assert contents(tmp_path / "out") == ["a", "b"]
    pair.group("rollback", "g", "c")
    assert [(mount / "which").read_text() for mount in pair.mounts] == ["a", "b"]
    sources = [f"--from={name}=file://{volume}" for name, volume in zip(NAMES, pair.volumes, strict=True)]
    assert "not whole" not in pair.group("show", "g", *sources).stdout
    pair.group("mount", "g", tmp_path / "y", *sources)
    assert contents(tmp_path / "y") == ["a", "b"]
    pair.group("mount", "g", tmp_path / "z", "--at", "c", "--writable")
    (tmp_path / "z/a/which").write_text("new")
    assert contents(tmp_path / "z") == ["new", "b"]
