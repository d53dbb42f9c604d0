"""How many files are dirty, new ones included, without a query of the database each time."""

from __future__ import annotations

import random
import stat
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def opened(folder: Path) -> LiveTree:
    (folder / "live").mkdir(parents=True, exist_ok=True)
    names = Namespace(str(folder / "live/namespace.db"), Disk())
    return LiveTree(str(folder / "live"), names, Disk(), boot_id="boot")


def truth(tree: LiveTree) -> int:
    """By a query of the database."""
    new_from = tree._content.current.new_from
    sql = f"SELECT count(*) FROM inode WHERE ino >= ? AND nlink > 0 AND (mode & {0o170000}) = {stat.S_IFREG}"
    return int(tree.names._writer.rows(sql, (new_from,))[0][0]) + len(tree._content.current.files)


def test_files_that_are_made_and_go_are_counted(tmp_path: Path) -> None:
    tree = opened(tmp_path)
    for number in range(5):
        tree.mknod(ROOT_INO, b"f%d" % number, FILE, 0, 0, 0)
    tree.mknod(ROOT_INO, b"d", DIRECTORY, 0, 0, 0)
    tree.symlink(ROOT_INO, b"s", b"target", 0, 0)
    assert tree.dirty_files == 5
    ino = tree.lookup(ROOT_INO, b"f0").ino
    tree.link(ino, ROOT_INO, b"second")
    tree.unlink(ROOT_INO, b"f0")
    assert tree.dirty_files == 5
    tree.unlink(ROOT_INO, b"second")
    tree.rename(ROOT_INO, b"f1", ROOT_INO, b"f2")
    assert tree.dirty_files == 3
    with pytest.raises(FileExistsError):
        tree.mknod(ROOT_INO, b"f3", FILE, 0, 0, 0)
    assert tree.dirty_files == 3
    tree.close()
    tree = opened(tmp_path)
    assert tree.dirty_files == truth(tree) == 3
    tree.cut().finish(True)
    assert tree.dirty_files == 0
    tree.close()


@pytest.mark.parametrize("seed", range(12))
def test_the_count_is_what_the_database_would_say(tmp_path: Path, seed: int) -> None:
    rng, tree, cut = random.Random(seed), opened(tmp_path), None
    for step in range(300):
        names = [name for _, name, _ in tree.readdir(ROOT_INO, 0, 10_000)]
        act = rng.choices(("make", "unlink", "rename", "cut", "end", "reopen"), (8, 4, 2, 1, 1, 1))[0]
        if act == "make":
            tree.mknod(ROOT_INO, b"%d" % step, FILE if rng.random() < 0.8 else stat.S_IFIFO | 0o644, 0, 0, 0)
        elif act == "unlink" and names:
            tree.unlink(ROOT_INO, rng.choice(names))
        elif act == "rename" and len(names) > 1:
            old, new = rng.sample(names, 2)
            tree.rename(ROOT_INO, old, ROOT_INO, new)
        elif act == "cut" and cut is None:
            cut = tree.cut()
        elif act == "end" and cut is not None:
            cut.finish(rng.random() < 0.5)
            tree.tidy()
            cut = None
        elif act == "reopen" and cut is None and rng.random() < 0.3:
            tree.close()
            tree = opened(tmp_path)
        assert tree.dirty_files == truth(tree), (step, act)
    if cut is not None:
        cut.finish(False)
    tree.close()
