"""A takeover goes on from what was acknowledged to the last writer before the claim, also if that was a moment ago.

And a standby is led back from a past that the new writer went on without.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.base.errors import BusyError, UserError
from snapfs.transfer.failover.standby_volume import ReceivedSnapshot, Standby
from snapfs.transfer.failover.takeover import take_over
from snapfs.transfer.lazy import remount as remounting
from snapfs.transfer.sources.late_source import LateSource
from snapfs.transfer.sources.source_access import Access
from tests.transfer.lazy.test_lazy_model import Life, make_source

Claim = Callable[..., Any]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A volume whose writer seals one more snapshot just before it is fenced off."""
    path = tmp_path / "source"
    make_source(str(path), random.Random(3))
    claim: Claim = remounting.claim_generation

    def late(*arguments: Any) -> Any:
        life = Life(str(path))
        ino = life.tree.mknod(ROOT_INO, b"acknowledged", 0o100644, 0, 0, 0).ino
        life.tree.write(ino, 0, b"a moment before")
        life.seal()
        life.close()
        return claim(*arguments)

    monkeypatch.setattr(remounting, "claim_generation", late)
    return path


def test_the_last_moment_counts(source: Path, tmp_path: Path) -> None:
    report = remounting.remount(str(tmp_path / "new"), [str(source)], Disk())
    assert report is not None
    assert (report.snapshot, report.passed_over) == (3, [])
    life = Life(str(tmp_path / "new"))
    assert life.tree.read(life.tree.lookup(ROOT_INO, b"acknowledged").ino, 0, 100) == b"a moment before"
    life.close()


def test_no_writer_is_fenced_for_a_volume_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_source(str(tmp_path / "source"), random.Random(3))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "something").touch()
    monkeypatch.setattr(remounting, "claim_generation", lambda *arguments: pytest.fail("it was claimed"))
    with pytest.raises(UserError, match="exists, and is no volume"):
        remounting.remount(str(tmp_path / "new"), [str(tmp_path / "source")], Disk())


def write(path: Path, name: bytes, generation: int = 1) -> None:
    """One more file, in one more snapshot."""
    life = Life(str(path))
    if life.volume.generation < generation:
        life.volume.lock()
        life.volume.bump_generation(generation)
        life.volume.unlock()
    ino = life.tree.mknod(ROOT_INO, name, 0o100644, 0, 0, 0).ino
    life.tree.write(ino, 0, name)
    life.seal()
    life.close()


def names(path: Path) -> set[bytes]:
    """Those of the files that `write` made."""
    life, found = Life(str(path)), set()
    for name in (b"one", b"two", b"other"):
        with contextlib.suppress(FileNotFoundError):
            assert life.tree.read(life.tree.lookup(ROOT_INO, name).ino, 0, 100) == name
            found.add(name)
    life.close()
    return found


def follow(standby_path: Path, source: Path) -> list[int]:
    """What the standby takes in."""
    standby = Standby(str(standby_path), [str(source)], Access(), Disk())
    received: list[ReceivedSnapshot] = []
    try:
        standby.follow(received.append, once=True)
    finally:
        standby.close()
    return [each.record.number for each in received]


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """A volume of three snapshots; a standby has the last of them, and a copy all but that."""
    path = tmp_path / "followed"
    make_source(str(path), random.Random(4))
    shutil.copytree(path, tmp_path / "copy")
    write(path, b"one")
    assert follow(tmp_path / "standby", path) == [3]
    return path


def test_a_standby_takes_in_what_is_there_when_it_takes_over(followed: Path, tmp_path: Path) -> None:
    write(followed, b"two")
    report = take_over(str(tmp_path / "standby"), Disk())
    assert report is not None
    assert report.snapshot == 4
    assert names(tmp_path / "standby") == {b"one", b"two"}


def test_a_standby_does_not_leave_behind_what_it_cannot_take_in(followed: Path, tmp_path: Path) -> None:
    write(followed, b"two")
    newest = max((followed / "store" / "segments").iterdir())
    data = newest.read_bytes()
    newest.write_bytes(data[:100] + bytes(len(data) - 200) + data[-100:])
    with pytest.raises(BusyError, match="give --force"):
        take_over(str(tmp_path / "standby"), Disk())
    newest.write_bytes(data)
    report = take_over(str(tmp_path / "standby"), Disk())
    assert report is not None
    assert report.snapshot == 4
    assert names(tmp_path / "standby") == {b"one", b"two"}


def test_a_standby_leaves_the_branch_that_the_new_writer_never_saw(followed: Path, tmp_path: Path) -> None:
    write(tmp_path / "copy", b"other", generation=2)
    assert follow(tmp_path / "standby", tmp_path / "copy") == [3]
    report = take_over(str(tmp_path / "standby"), Disk())
    assert report is not None
    assert (report.snapshot, report.generation) == (3, 3)
    assert names(tmp_path / "standby") == {b"other"}


def test_a_long_list_of_snapshots_is_not_requested_in_vain(
    followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standby = Standby(str(tmp_path / "standby"), [str(followed)], Access(), Disk())
    standby.feed.sources[0].is_near = False  # as a mirror is
    listed: list[str] = []
    snapshots = LateSource.snapshots
    monkeypatch.setattr(LateSource, "snapshots", lambda source: listed.append(source.name) or snapshots(source))
    assert list(standby.catch_up()) == []
    assert listed == []
    write(followed, b"two")
    assert [received.record.number for received in standby.catch_up()] == [4]
    assert len(listed) == 1
    standby.close()


def test_a_lost_segment_makes_the_older_whole_snapshot_the_one_that_is_taken(tmp_path: Path) -> None:
    """It was called good, the last writer was fenced off, and a file read EIO."""
    source = tmp_path / "source"
    make_source(str(source), random.Random(3))
    write(source, b"newest")
    segments = sorted((source / "store" / "segments").glob("*.seg"))
    newest = segments[-1]
    kept = newest.read_bytes()
    newest.unlink()
    report = remounting.remount(str(tmp_path / "new"), [str(source)], Disk())
    assert report is not None
    assert report.snapshot == 2
    assert report.passed_over == ["snapshot 3 is known to be damaged; an older one is used"]
    newest.write_bytes(kept)
    found = remounting.remount(str(tmp_path / "other"), [str(source)], Disk())
    assert found is not None
    assert (found.snapshot, found.passed_over) == (3, [])


def test_where_no_snapshot_is_whole_no_writer_is_fenced_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The roots of all are there, and the files of the first are not."""
    source = tmp_path / "source"
    make_source(str(source), random.Random(3))
    sorted((source / "store" / "segments").glob("*.seg"))[0].unlink()
    monkeypatch.setattr(remounting, "claim_generation", lambda *arguments: pytest.fail("it was claimed"))
    with pytest.raises(UserError, match="known to be damaged"):
        remounting.remount(str(tmp_path / "new"), [str(source)], Disk())
    assert not (tmp_path / "new").exists()
