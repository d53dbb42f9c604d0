"""snapfs-volume(5) lists every file that a volume has: mounted, unmounted, cloned, and standing by for another one."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "snapfs-volume.5.md"
LISTED = re.compile(r"^ {6}([A-Za-z][\w.*/-]*)", re.MULTILINE)


def listed() -> list[str]:
    """The patterns of the page; a folder's name ends in a slash and stands for all in it."""
    text = PAGE.read_text(encoding="utf-8").partition("## DESCRIPTION")[2].partition("## STRAY FILES")[0]
    found = [name.replace("3f/...", "") for name in LISTED.findall(text)]
    return [*found, "live/namespace.db-wal", "live/namespace.db-shm"]


def not_listed(volume: Path) -> list[str]:
    patterns = listed()
    files = [str(path.relative_to(volume)) for path in volume.rglob("*") if not path.is_dir()]
    assert files
    return [
        name
        for name in files
        if not any(fnmatch.fnmatch(name, f"{each}*" if each.endswith("/") else each) for each in patterns)
    ]


def test_every_file_of_a_volume_is_in_its_manual_page(
    snapfs: Any, mount: Any, mountpoint: Path, volume_dir: Path, tmp_path: Path
) -> None:
    mount()
    (mountpoint / "file").write_bytes(b"content")
    snapfs("snapshot", mountpoint)
    assert not_listed(volume_dir) == []
    snapfs("clone", volume_dir, "1", tmp_path / "clone")
    assert not_listed(tmp_path / "clone") == []
    snapfs("umount", mountpoint)
    assert not_listed(volume_dir) == []
    snapfs("standby", "--once", "--from", volume_dir, tmp_path / "standby")
    assert not_listed(tmp_path / "standby") == []
    assert (tmp_path / "standby" / "standby.json").exists()


def test_a_file_that_the_page_does_not_list_is_found(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "snapshots.log").touch()
    (tmp_path / "store" / "surprise").touch()
    assert not_listed(tmp_path) == ["store/surprise"]
