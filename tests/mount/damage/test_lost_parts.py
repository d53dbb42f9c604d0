"""Parts of a volume that are gone: what can be made good is, and all else stops the mount and touches nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_snapfs


def everything(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def kept(volume: Path) -> dict[str, bytes]:
    """The bytes of files, and the history."""
    return {name: data for name, data in everything(volume).items() if name.startswith(("live/data", "store"))}


def lose_names(volume: Path) -> None:
    for path in (volume / "live").glob("namespace.db*"):
        path.unlink()


def lose_bytes(volume: Path) -> None:
    shutil.rmtree(volume / "live/data")


def lose_store(volume: Path) -> None:
    shutil.rmtree(volume / "store")


def tear_log(volume: Path) -> None:
    """As a bad disk leaves it: the line of a snapshot that was made, and of who asked for it."""
    assert b'"kind":"snapshot"' in (volume / "store/snapshots.log").read_bytes().splitlines()[-1]
    os.truncate(volume / "store/snapshots.log", (volume / "store/snapshots.log").stat().st_size - 5)


def older_store(volume: Path) -> None:
    """The store was put back from a copy."""
    shutil.rmtree(volume / "store")
    shutil.copytree(volume / "store.copy", volume / "store")


@pytest.mark.parametrize(
    ("lose", "word"),
    [
        (lose_names, "namespace.db is damaged: it is missing"),
        (lose_bytes, "its folder data/ is missing"),
        (lose_store, "its folder store/ is missing"),
    ],
)
def test_what_cannot_be_made_good_stops_the_mount_and_is_left_as_it_is(
    mounted: Any, snapfs: Any, lose: Callable[[Path], None], word: str
) -> None:
    (mounted.path / "file").write_bytes(b"kept")
    mounted.snapshot()
    snapfs("umount", mounted.path)
    lose(mounted.volume)
    left = kept(mounted.volume)
    refused = snapfs("mount", mounted.volume, mounted.path, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (5, 1)
    assert word in refused.stderr
    assert kept(mounted.volume) == left
    assert snapfs("doctor", mounted.volume, check=False).returncode == 5


def test_a_history_alone_is_not_mounted_as_an_empty_volume(mounted: Any, snapfs: Any) -> None:
    """As a target has it, or what is fetched from one: its message explains how a volume is made of it."""
    (mounted.path / "file").write_bytes(b"kept")
    mounted.snapshot()
    snapfs("umount", mounted.path)
    shutil.rmtree(mounted.volume / "live")
    (mounted.volume / "live").mkdir()
    refused = snapfs("mount", mounted.volume, mounted.path, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert f"`snapfs mount --from {mounted.volume} NEW_VOLUME MOUNTPOINT`" in refused.stderr
    assert not os.listdir(mounted.volume / "live")
    snapfs("mount", "--from", mounted.volume, mounted.volume.with_name("new"), mounted.path)
    assert (mounted.path / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("path", ["python", "native"])
def test_a_file_whose_bytes_are_lost_cannot_be_opened(mounted: Any, mount: Callable[..., Any], path: str) -> None:
    """It must not look like an empty one: a reader gets an error, and so does a writer."""
    (mounted.path / "lost").write_bytes(b"lost")
    (mounted.path / "kept").write_bytes(b"kept")
    ino = (mounted.path / "lost").stat().st_ino
    subprocess.run(["umount", str(mounted.path)], check=True)
    (mounted.volume / f"live/data/{ino & 255:02x}/{ino:x}").unlink()
    mounted = mount("-o", f"live.data_path={path}")
    for mode in ("rb", "ab", "wb"):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            open(mounted.path / "lost", mode).close()
    assert (mounted.path / "kept").read_bytes() == b"kept"
    (mounted.path / "lost").unlink()
    (mounted.path / "lost").write_bytes(b"new")
    assert (mounted.path / "lost").read_bytes() == b"new"


def lose_after_a_snapshot(mounted: Any, mount: Callable[..., Any], lose: Callable[[Path], None]) -> Any:
    """Two snapshots, a change after each, and the store loses something of the second."""
    (mounted.path / "old").write_bytes(b"old")
    mounted.snapshot("first")
    shutil.copytree(mounted.volume / "store", mounted.volume / "store.copy")
    (mounted.path / "between").write_bytes(b"between")
    (mounted.path / "old").write_bytes(b"changed between")
    mounted.snapshot("lost")
    (mounted.path / "later").write_bytes(b"later")
    subprocess.run(["umount", str(mounted.path)], check=True)
    lose(mounted.volume)
    return mount()


def test_a_snapshot_after_the_last_one_was_lost_has_everything(mounted: Any, mount: Callable[..., Any]) -> None:
    """What changed between the newest snapshot that is left and the one that is lost is in no list of changes."""
    mounted = lose_after_a_snapshot(mounted, mount, older_store)
    assert any("the next one will have everything" in line for line in mounted.status()["recovered"])
    mounted.snapshot("after")
    assert everything(mounted.path / ".snapfs/snapshots/after") == {
        "old": b"changed between", "between": b"between", "later": b"later",
    }  # fmt: skip
    subprocess.run(["umount", str(mounted.path)], check=True)
    assert not any("everything" in line for line in mount().status()["recovered"])


def test_a_snapshot_whose_record_is_torn_is_recovered_from_its_segment(mount: Callable[..., Any]) -> None:
    mounted = mount()
    (mounted.path / "old").write_bytes(b"old")
    mounted.snapshot("before")
    (mounted.path / "old").write_bytes(b"changed between")
    (mounted.path / "between").write_bytes(b"between")
    content = {"old": b"changed between", "between": b"between"}
    mounted.snapshot("lost")
    subprocess.run(["umount", str(mounted.path)], check=True)
    tear_log(mounted.volume)
    mounted = mount()
    acts = [json.loads(line) for line in run_snapfs("audit", mounted.volume, "--json").stdout.splitlines()]
    assert [each["by"] for each in acts if each["fields"].get("name") == "lost"] == [acts[1]["by"]]
    assert acts[1]["fields"]["by"]["uid"] == os.getuid()
    assert everything(mounted.path / ".snapfs/snapshots/lost") == content
    (mounted.path / "later").write_bytes(b"later")
    mounted.snapshot("after")
    assert everything(mounted.path / ".snapfs/snapshots/after") == {
        "old": b"changed between", "between": b"between", "later": b"later",
    }  # fmt: skip
