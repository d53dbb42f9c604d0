"""Two forks that gave the same numbers to their new inodes: the second is brought back only where no kind changes."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Generation, Ino
from snapfs.base.errors import UserError
from snapfs.base.volumes.volume import Volume
from snapfs.store.repository.repository import SnapshotRecord
from snapfs.transfer.restore.fork import fork
from snapfs.transfer.restore.fork_target import fork_target
from snapfs.transfer.restore.rollback import roll_back
from tests.transfer.restore.test_restore_clone import Opened


@pytest.fixture
def opened(volume_dir: Path) -> Iterator[Opened]:
    volume = Opened(Volume.create(str(volume_dir), Disk()))
    yield volume
    volume.close()


def forked(origin: Opened, record: SnapshotRecord, path: Path, kind: int) -> Ino:
    """A fork with a new inode of this kind, in its snapshot 2."""
    fork(origin.volume, origin.repository, record, str(path), Disk())
    copy = Opened(Volume.open(str(path), Disk()))
    ino = copy.make(ROOT_INO, path.name.encode(), kind | 0o755)
    assert copy.seal().number == 2
    copy.close()
    return ino


def bring_back(origin: Opened, path: Path) -> None:
    with fork_target(origin.volume, str(path), "2", Disk()) as (source, target):
        generations = Generation(1), Generation(1)
        roll_back(
            origin.tree, origin.repository, target, Disk(), parent=origin.repository.latest(), generations=generations,
            source=source,
        )  # fmt: skip


def test_an_inode_never_becomes_one_of_another_kind(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "randrange", lambda _: 3)
    record = opened.seal()
    kinds = {"one": stat.S_IFREG, "folder": stat.S_IFDIR, "two": stat.S_IFREG}
    numbers = {forked(opened, record, tmp_path / name, kind) for name, kind in kinds.items()}
    assert len(numbers) == 1
    bring_back(opened, tmp_path / "one")
    before = len(opened.repository.snapshots())
    with pytest.raises(UserError, match="another fork"):
        bring_back(opened, tmp_path / "folder")
    assert opened.tree.lookup(ROOT_INO, b"one").ino in numbers
    assert len(opened.repository.snapshots()) == before + 1  # the present was kept
    bring_back(opened, tmp_path / "two")
    assert opened.tree.lookup(ROOT_INO, b"two").ino in numbers
    opened.tree.check_invariants()
