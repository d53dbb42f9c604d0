"""Trees from seeds: imported, sealed, exported by restore: what comes out is what went in, to the last attribute."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs.base.blocks import Ino
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.restore.restore import restore
from tests.fakes.trees.move_world import is_absent, let_settle, move_in, sealed
from tests.fakes.trees.random_tree import Growing, random_tree
from tests.fakes.trees.same_tree import allocated, picture, without_link_access

pytestmark = pytest.mark.usefixtures("data_path")


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_out_is_what_went_in(tmp_path: Path, seed: int) -> None:
    source, volume, out = tmp_path / "source", tmp_path / "volume", tmp_path / "out"
    source.mkdir()
    random_tree(os.fsencode(source), seed, sockets=True)
    before = picture(os.fsencode(source))
    changed_ns = os.lstat(source).st_ctime_ns
    report = move_in(source, volume)
    assert report.changes == 0
    assert report.sockets == [b"socket"]
    assert without_link_access(picture(os.fsencode(source))) == without_link_access(before), "the source was changed"
    assert is_absent(tmp_path / "volume.importing")
    with sealed(volume) as (repository, record):
        result = restore(repository, record, str(out))
        tree = SnapshotTree(repository, record.root)
        ctime_ns = {each.ino: each.ctime_ns for each in tree.inodes()}
    assert result.not_restored == {}
    assert picture(os.fsencode(out)) == before
    assert allocated(os.fsencode(out)) <= allocated(os.fsencode(source))
    assert ctime_ns[Ino(1)] == changed_ns
    assert is_absent(volume / "import.db")


def test_an_import_takes_what_changed_since_an_earlier_one_that_was_left(tmp_path: Path) -> None:
    """Prepared while the application worked; then it is stopped, and only what changed is copied."""
    import contextlib

    from snapfs.base.blocks import Disk
    from snapfs.transfer.move_in.directory_import import DirectoryImport

    source, volume, out = tmp_path / "source", tmp_path / "volume", tmp_path / "out"
    source.mkdir()
    growing = Growing(os.fsencode(source), 4)
    growing.grow(80)
    let_settle()
    with contextlib.closing(DirectoryImport(str(source), str(volume), Disk(), threads=2)) as first:
        first.copy(1, lambda size: None)
        copied = first.copied_bytes
    growing.change(12)
    with contextlib.closing(DirectoryImport(str(source), str(volume), Disk(), threads=2)) as second:
        assert second.was_begun
        assert second.copy(5, lambda size: None).changes == 0
        assert second.copied_bytes < copied / 2
        second.check(lambda done, total: None)
        second.publish()
    with sealed(volume) as (repository, record):
        restore(repository, record, str(out))
    seen = [without_link_access(picture(os.fsencode(each))) for each in (out, source)]
    assert seen[0] == seen[1]
