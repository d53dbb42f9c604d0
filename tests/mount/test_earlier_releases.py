"""A whole volume as the earliest version of every format left it is mounted, written, snapshotted and mounted again.

tests/golden/volumes-v1.tar.gz holds what a killed mount left, a volume that was still lazy, and a standby; the variants
add small files of that time (a fence, a hold, suspects) to the first of them.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mounted
from tests.golden import make_volumes_v1 as golden

ARCHIVE = Path(golden.__file__).parent / "volumes-v1.tar.gz"
Snapfs = Callable[..., Any]


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The folder of the volumes. Their paths are where the archive was unpacked."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "left", filter="tar")
    for path in (tmp_path / "left").glob("*/*.json"):
        path.write_text(path.read_text().replace("/somewhere", str(tmp_path / "left")))
    return tmp_path / "left"


def mounted_at(snapfs: Snapfs, volume: Path, mountpoint: Path, *options: str) -> Mounted:
    snapfs("mount", *options, volume, mountpoint)
    return Mounted(volume, mountpoint)


def check_what_was_left(root: Path) -> None:
    assert sorted(os.listdir(root)) == ["big", "fifo", "kept", "link", "sub"]
    assert (root / "kept").read_bytes() == golden.KEPT_NOW
    assert os.getxattr(root / "kept", "user.what") == b"an attribute"
    assert stat.S_IMODE((root / "kept").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "sub").stat().st_mode) == 0o750
    assert sorted(os.listdir(root / "sub")) == ["again", "late"]
    assert (root / "link").read_bytes() == golden.LATE
    assert (root / "sub/again").stat().st_nlink == 2
    assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    assert (root / "big").read_bytes() == golden.BIG[:300_000]


def check_snapshots(root: Path) -> None:
    one, two = (root / ".snapfs/snapshots" / name for name in ("one", "two"))
    assert (one / "kept").read_bytes() == golden.KEPT
    assert (one / "sub/gone").read_bytes() == golden.GONE
    assert not (one / "big").exists()
    assert (two / "kept").read_bytes() == golden.KEPT_TWO
    assert (two / "big").read_bytes() == golden.BIG
    assert not (two / "sub/gone").exists()


def goes_on(mounted: Mounted, snapfs: Snapfs, mountpoint: Path, check: Callable[[Path], None]) -> None:
    """Write, snapshot, verify, unmount and mount again: old and new things are both there."""
    (mounted.path / "written").write_bytes(b"by the present version")
    with open(mounted.path / "kept", "r+b") as file:
        file.write(b"changed")
    before = (mounted.path / "kept").read_bytes()
    mounted.snapshot("now")
    assert (mounted.path / ".snapfs/snapshots/now/kept").read_bytes() == before
    check(mounted.path)
    verified = snapfs("verify", mounted.path)
    assert verified.returncode == 0
    snapfs("umount", mounted.path)
    assert snapfs("verify", mounted.volume).returncode == 0
    again = mounted_at(snapfs, mounted.volume, mountpoint)
    assert (again.path / "written").read_bytes() == b"by the present version"
    assert (again.path / "kept").read_bytes() == before
    assert (again.path / ".snapfs/snapshots/now/written").read_bytes() == b"by the present version"
    check(again.path)
    snapfs("umount", again.path)


def old_json(path: Path, fields: dict[str, Any]) -> None:
    """As it was written before there were checksums."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"format": 1, **fields}))


def test_a_killed_mount_of_the_earliest_version_is_gone_on_with(left: Path, snapfs: Snapfs, mountpoint: Path) -> None:
    mounted = mounted_at(snapfs, left / "unclean", mountpoint)
    check_what_was_left(mounted.path)
    check_snapshots(mounted.path)
    assert mounted.status()["daemons_before"] == 0
    goes_on(mounted, snapfs, mountpoint, check_snapshots)


def test_its_hold_is_kept_and_its_suspects_are_looked_at(left: Path, snapfs: Snapfs, mountpoint: Path) -> None:
    store = left / "unclean/store"
    old_json(store / "holds/host-b.json", {"snapshots": [1], "expires_ns": 4 * 10**18, "why": "for ever"})
    (store / "suspects").write_bytes(b"1000000000001\n")
    mounted = mounted_at(snapfs, left / "unclean", mountpoint)
    refused = snapfs("drop", mounted.path, "1", check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (4, 1), refused.stderr
    assert "host-b" in refused.stderr or "held" in refused.stderr
    goes_on(mounted, snapfs, mountpoint, check_snapshots)
    assert not (store / "suspects").exists()


def test_its_fence_still_fences(left: Path, snapfs: Snapfs, mountpoint: Path) -> None:
    fields = {
        "generation": 1, "by_generation": 2, "by_holder": "host-b", "target": "mirror", "since_ns": 10**18, "base": 1,
        "tail": 0, "kept": False,
    }  # fmt: skip
    old_json(left / "unclean/fenced.json", fields)
    mounted = mounted_at(snapfs, left / "unclean", mountpoint)
    fenced = json.loads(snapfs("status", "--json", mounted.path).stdout)
    assert "host-b" in json.dumps(fenced)
    check_what_was_left(mounted.path)
    check_snapshots(mounted.path)
    snapfs("umount", mounted.path)
    kept = json.loads((left / "unclean/fenced.json").read_bytes())
    assert (kept["by_holder"], kept["by_generation"]) == ("host-b", 2)


def test_its_lazy_volume_brings_the_rest(left: Path, snapfs: Snapfs, mountpoint: Path) -> None:
    mounted = mounted_at(snapfs, left / "lazy", mountpoint)
    assert (mounted.path / "kept").read_bytes() == golden.KEPT_LAZY
    assert (mounted.path / "new").read_bytes() == golden.NEW
    assert (mounted.path / "big").read_bytes() == golden.BIG
    assert not (mounted.path / "sub/late").exists()

    def check(root: Path) -> None:
        two = root / ".snapfs/snapshots/two"
        assert (two / "kept").read_bytes() == golden.KEPT_TWO
        assert (two / "big").read_bytes() == golden.BIG

    goes_on(mounted, snapfs, mountpoint, check)


@pytest.mark.parametrize("is_there", [True, False], ids=["source", "no source"])
def test_its_standby_is_taken_over(left: Path, snapfs: Snapfs, mountpoint: Path, is_there: bool) -> None:
    if not is_there:
        shutil.rmtree(left / "source")
    mounted = mounted_at(snapfs, left / "standby", mountpoint, *(() if is_there else ("--force",)))
    assert (mounted.path / "kept").read_bytes() == golden.KEPT_TWO
    assert (mounted.path / "big").read_bytes() == golden.BIG
    assert not (left / "standby/standby.json").exists()

    def check(root: Path) -> None:
        assert (root / ".snapfs/snapshots/two/kept").read_bytes() == golden.KEPT_TWO

    goes_on(mounted, snapfs, mountpoint, check)
