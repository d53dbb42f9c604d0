"""Damage to a mounted volume and to an unmounted one, found and repaired with the commands that a user has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.store.objects.format import ObjectKind
from snapfs.store.objects.segment_reader import SegmentReader


def everything(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def build(top: Path) -> None:
    for number in range(40):
        (top / f"directory-{number % 7}").mkdir(exist_ok=True)
        (top / f"directory-{number % 7}/file-{number}").write_bytes(os.urandom(20_000))
        os.utime(top / f"directory-{number % 7}/file-{number}")  # else a write in the tick of the creation shows none


def spoil_frames(segment: Path) -> None:
    """Every object is bad, but the table of their places is not: it is noticed when one is needed."""
    with open(segment, "r+b") as file:
        for offset in range(200, segment.stat().st_size // 2 + 300_000, 997):
            if offset < segment.stat().st_size - 30_000:
                file.seek(offset)
                byte = file.read(1)
                file.seek(offset)
                file.write(bytes([byte[0] ^ 0xFF]))


def flip(volume: Path, kind: int, which: int = 0) -> int:
    """Turn over a byte of an object of this kind in the newest segment, as a bad disk would; its number."""
    segment = sorted((volume / "store/segments").glob("*.seg"))[-1]
    reader = SegmentReader(str(segment))
    row = [row for row in reader.rows() if row.kind == kind][which]
    with open(segment, "r+b") as file:
        file.seek(row.offset + 32 + row.stored // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x5A]))
    return row.number


@pytest.mark.parametrize("while_mounted", [True, False])
@pytest.mark.parametrize("kind", [ObjectKind.CHUNK, ObjectKind.INODE_PAGE, ObjectKind.DIR_PAGE])
def test_damage_is_found_reported_and_repaired_from_the_live_tree(
    mounted: Any, mount: Callable[..., Any], snapfs: Callable[..., Any], kind: ObjectKind, while_mounted: bool
) -> None:
    build(mounted.path)
    expected = everything(mounted.path)
    mounted.snapshot("one")
    place = mounted.path
    if not while_mounted:
        snapfs("umount", mounted.path)
        place = mounted.volume
    number = flip(mounted.volume, kind)

    found = snapfs("verify", "--json", place, check=False)
    assert found.returncode == 5
    (bad,) = json.loads(found.stdout)["bad_objects"]
    assert (bad["number"], bad["kind"], bad["snapshots"]) == (number, kind.name.lower().replace("_", " "), [1])
    done = snapfs("verify", place, check=False)
    assert "damaged snapshots: 1" in done.stdout
    assert "snapfs verify --repair" in done.stderr

    done = snapfs("verify", "--repair", place)
    assert "repaired 1 objects" in done.stderr
    assert "all good" in done.stdout
    assert snapfs("verify", place).returncode == 0
    assert not list((mounted.volume / "store/segments").glob("*.damaged"))
    events = [json.loads(line)["kind"] for line in snapfs("log", "--json", place).stdout.splitlines()]
    assert [kind for kind in events if kind in ("mended", "cleared")] == ["mended", "cleared"]
    if not while_mounted:
        mounted = mount()
    assert everything(mounted.path) == expected
    assert everything(mounted.path / ".snapfs/snapshots/one") == expected


def test_a_clone_that_is_only_partly_here_is_repaired_too(
    mounted: Any, snapfs: Callable[..., Any], tmp_path: Path
) -> None:
    build(mounted.path)
    (mounted.path / "large").write_bytes(os.urandom(1 << 20))
    mounted.snapshot("one")
    snapfs("clone", mounted.path, "one", tmp_path / "clone")
    snapfs("umount", mounted.path)
    snapfs("mount", tmp_path / "clone", mounted.path)
    with open(mounted.path / "large", "r+b") as file:
        file.write(b"changed")
    expected = everything(mounted.path)
    flip(tmp_path / "clone", ObjectKind.DIR_PAGE)
    flip(tmp_path / "clone", ObjectKind.CHUNK, 1)
    assert "objects; rewrote" in snapfs("verify", "--repair", mounted.path, check=False).stderr
    assert everything(mounted.path).keys() == expected.keys()


def test_what_nothing_has_any_more_stays_marked_until_it_comes_back(mounted: Any, snapfs: Callable[..., Any]) -> None:
    file = mounted.path / "file"
    old = os.urandom(50_000)
    file.write_bytes(old)
    mounted.snapshot("one")
    file.write_bytes(os.urandom(50_000))
    mounted.snapshot("two")
    first = min((mounted.volume / "store/segments").glob("*.seg"))
    kept = first.read_bytes()
    spoil_frames(first)
    done = snapfs("verify", "--repair", mounted.path, check=False)
    assert done.returncode == 5
    assert "snapfs drop" in done.stderr
    states = {each["name"]: each["state"] for each in json.loads(snapfs("list", "--json", mounted.path).stdout)}
    assert states == {"one": "damaged", "two": "good"}
    assert (mounted.path / ".snapfs/snapshots/two/file").read_bytes() == file.read_bytes()
    assert snapfs("verify", "--repair", mounted.path, check=False).returncode == 5
    snapfs("umount", mounted.path)
    first.write_bytes(kept)  # a copy was found
    assert "marked snapshot 1 as good" in snapfs("verify", "--repair", mounted.volume).stderr
    snapfs("restore", mounted.volume, "one", mounted.volume.parent / "out")
    assert (mounted.volume.parent / "out/file").read_bytes() == old
