"""A live tree that an earlier version of every format left behind opens, with all that is in it, on any boot.

live-v1: version 1 of all; live-v3: namespace.db 3 with sums and mark, presence 2, counted intent logs, `life`; live-v4:
namespace.db 4, in which a directory is unloaded.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.attributes import Attr
from snapfs.live.backing import host_life
from snapfs.live.database.namespace_rows import NotLoadedError
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.golden import make_live_v4 as lazy
from tests.golden.make_live_v1 import BIG, BIG_SIZE, FAR, Source, content

GOLDEN = Path(__file__).parent.parent / "golden"


def opened(folder: Path, boot_id: str, source: Source | None = None) -> LiveTree:
    names = Namespace(str(folder / "namespace.db"), Disk())
    try:
        return LiveTree(str(folder), names, Disk(), boot_id=boot_id, source=source or Source())
    except BaseException:
        names.close()
        raise


def unpacked(folder: Path, name: str) -> Path:
    with tarfile.open(GOLDEN / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="tar")
    return folder / "live"


@pytest.fixture(params=["live-v1", "live-v3"])
def live(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return unpacked(tmp_path, request.param)


def version_of(live: Path, copy: Path) -> int:
    """Of the database with its log."""
    shutil.copytree(live, copy)
    with contextlib.closing(sqlite3.connect(copy / "namespace.db")) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def check(tree: LiveTree) -> None:
    tree.check_invariants()
    tree.names.check_invariants()
    found = {name: attr for _, name, attr in tree.readdir(ROOT_INO, 0, 100)}
    assert sorted(found) == [b"big", b"far", b"kept", b"link", b"sub"]
    kept, big, far = found[b"kept"], found[b"big"], found[b"far"]
    assert (kept.mode, kept.uid, kept.gid, kept.size) == (0o104711, 11, 12, 160_000)
    assert tree.read(kept.ino, 0, 200_000) == content(kept.ino, 160_000)
    assert tree.getxattr(kept.ino, b"user.what") == b"an attribute"
    assert tree.readlink(found[b"link"].ino) == b"sub/late"
    late = tree.lookup(found[b"sub"].ino, b"late")
    assert (late.ino, late.nlink) == (tree.lookup(found[b"sub"].ino, b"again").ino, 2)
    assert tree.read(late.ino, 0, 9_000) == content(late.ino, 5_000)
    expected = bytearray(content(BIG, BIG_SIZE))
    expected[7 * CHUNK_SIZE + 100 : 7 * CHUNK_SIZE + 110] = b"0123456789"
    assert (big.ino, big.size, big.uid) == (BIG, BIG_SIZE, 5)
    assert tree.read(BIG, 0, 1 << 20) == expected
    assert (far.ino, far.size, far.mtime_ns) == (FAR, BIG_SIZE, 2_000)


@pytest.mark.parametrize("boot_id", ["boot-golden", "another"])
def test_the_golden_live_tree_opens_and_stays(live: Path, boot_id: str) -> None:
    tree = opened(live, boot_id)
    check(tree)
    tree.close()
    tree = opened(live, "a later boot")
    assert tree.recovered == []
    check(tree)
    tree.close()


def check_lazy(tree: LiveTree) -> None:
    tree.check_invariants()
    tree.names.check_invariants()
    found = {name: attr for _, name, attr in tree.readdir(ROOT_INO, 0, 100)}
    assert sorted(found) == [b"dir", b"far", b"kept"]
    kept, folder, far = found[b"kept"], found[b"dir"], found[b"far"]
    assert (kept.mode, kept.uid, kept.gid, kept.size) == (0o104711, 11, 12, 160_000)
    assert tree.read(kept.ino, 0, 200_000) == content(kept.ino, 160_000)
    assert (folder.ino, folder.mode, folder.uid, folder.gid, folder.nlink) == (lazy.DIR, 0o040750, 7, 8, 3)
    assert (far.ino, far.size, far.mtime_ns) == (FAR, BIG_SIZE, 2_000)
    assert tree.read(FAR, 0, 1 << 20) == content(FAR, BIG_SIZE)


def load(tree: LiveTree, directory: Ino, listing: bytes) -> dict[bytes, Attr]:
    with pytest.raises(NotLoadedError) as missing:
        tree.readdir(directory, 0, 100)
    assert (missing.value.ino, missing.value.listing) == (directory, listing)
    tree.load(directory, tree.fetch_names(listing))
    return {name: attr for _, name, attr in tree.readdir(directory, 0, 100)}


@pytest.mark.parametrize("boot_id", ["boot-golden", "another"])
def test_a_golden_tree_with_unloaded_directories_opens_and_loads_them(tmp_path: Path, boot_id: str) -> None:
    live = unpacked(tmp_path, "live-v4")
    assert version_of(live, tmp_path / "copy") == 4
    tree = opened(live, boot_id, lazy.LazySource())
    check_lazy(tree)
    tree.close()
    tree = opened(live, "a later boot", lazy.LazySource())
    check_lazy(tree)
    found = load(tree, lazy.DIR, lazy.LISTING)
    assert sorted(found) == [b"below", b"late"]
    assert (found[b"late"].ino, found[b"late"].size, found[b"late"].uid) == (lazy.LATE, BIG_SIZE, 5)
    assert tree.getxattr(lazy.LATE, b"user.what") == b"an attribute"
    assert tree.read(lazy.LATE, 0, 1 << 20) == content(lazy.LATE, BIG_SIZE)
    assert load(tree, lazy.BELOW, lazy.BELOW_LISTING) == {}
    assert not tree.names.is_lazy
    tree.check_invariants()
    tree.names.check_invariants()
    tree.close()


def test_the_golden_record_of_a_life_is_read() -> None:
    with tarfile.open(GOLDEN / "live-v3.tar.gz") as archive:
        file = archive.extractfile("live/life")
        assert file is not None
        data = file.read()
    record = host_life.LifeRecord("boot-golden", 2147483677, "5a26b4af-ae05-49cc-912e-7e3d5fddb9d3")
    assert host_life.unpack("life", data) == record
    assert record.pack() == data
