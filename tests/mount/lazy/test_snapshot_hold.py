"""A clone's files live on the snapshot they come from: it cannot be dropped before the last of them has arrived."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.store.log.holds import Holds
from tests.fakes.patience import PATIENCE_S

WHY = "files of the live tree have their bytes only there until they have all arrived"
HELD = [{"holder": "absent-files", "why": WHY, "until_ns": None}]


@pytest.fixture
def clone(mounted: Any, snapfs: Callable[..., Any], tmp_path: Path) -> Iterator[Path]:
    """The folder of a clone of a volume with three files, `origin`."""
    for name in "abc":
        (mounted.path / name).write_bytes(os.urandom(100_000))
    mounted.snapshot("origin")
    snapfs("clone", mounted.path, "origin", tmp_path / "clone")
    snapfs("umount", mounted.path)
    yield tmp_path / "clone"
    snapfs("umount", mounted.path, check=False)


def holders(snapfs: Callable[..., Any], place: Path) -> dict[str, Any]:
    return {each["name"]: each["held_by"] for each in json.loads(snapfs("list", "--json", place).stdout)}


def test_the_origin_is_held_until_the_last_file_has_arrived(
    mounted: Any, clone: Path, snapfs: Callable[..., Any]
) -> None:
    place = mounted.path
    assert holders(snapfs, clone) == {"origin": HELD}
    for life in range(2):
        snapfs("mount", clone, place)
        (place / "new").write_text(str(life))
        snapfs("snapshot", place, f"later-{life}")
        assert holders(snapfs, place)["origin"] == HELD
        refused = snapfs("drop", place, "origin", check=False)
        assert refused.returncode == 4
        assert "absent-files" in refused.stderr
        snapfs("umount", place)
    assert "good, held" in snapfs("list", clone).stdout
    assert "held by     absent-files" in snapfs("show", clone, "origin").stdout
    snapfs("mount", clone, place)
    for name in "abc":
        with open(place / name, "ab") as file:
            file.write(b"more")
    deadline = time.monotonic() + PATIENCE_S
    while holders(snapfs, place)["origin"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    snapfs("snapshot", place, "whole")
    snapfs("drop", place, "origin")
    assert {(place / name).stat().st_size for name in "abc"} == {100_004}


def test_a_clone_without_a_hold_gets_one_at_its_mount(mounted: Any, clone: Path, snapfs: Callable[..., Any]) -> None:
    Holds(str(clone / "store"), Disk()).release("absent-files")
    assert holders(snapfs, clone) == {"origin": []}
    snapfs("mount", clone, mounted.path)
    assert holders(snapfs, mounted.path) == {"origin": HELD}


def test_readers_never_miss_an_absent_file_that_is_evicted_or_arrives(
    mounted: Any, clone: Path, snapfs: Callable[..., Any]
) -> None:
    """Between a look at what is known of a file and the reading of it, that knowledge may go, or the file come."""
    snapfs("mount", clone, mounted.path)
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                for name in "abc":
                    fd = os.open(mounted.path / name, os.O_RDONLY)
                    try:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                        assert len(os.pread(fd, 50_000, 30_000)) == 50_000
                    finally:
                        os.close(fd)
        except BaseException as failure:
            failures.append(failure)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(60):
        (mounted.path / f"other-{number}").write_bytes(b"x" * 5000)
    for name in "abc":
        with open(mounted.path / name, "r+b") as file:
            file.write(b"changed")
        time.sleep(0.2)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
