"""Damage of namespace.db that SQLite accepts is found at the mount, and shows no other attributes."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.live.database import checkpointer
from snapfs.live.database.page_checksums import BLOCKS_AT, HEADER_BYTES, Sums
from snapfs.live.database.schema import PLAIN_VERSION
from snapfs.live.format_versions import refuse_later
from snapfs.live.namespace.namespace import Namespace

NAMES = 300


def fill(folder: Path) -> Namespace:
    names = Namespace(str(folder / "namespace.db"), Disk())
    for number in range(NAMES):
        inode = names.create(ROOT_INO, b"name %d" % number, stat.S_IFREG | 0o644, number, number, target=b"")
        names.setxattr(inode.ino, b"user.n", b"%d" % number)
    return names


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In order: all of it is in the database."""
    folder = tmp_path_factory.mktemp("closed")
    fill(folder).close()
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By a kill, with most of it written back, and the rest in the log alone."""
    folder = tmp_path_factory.mktemp("killed")
    child = os.fork()
    if not child:
        checkpointer.CHECKPOINT_AT_BYTES = 1
        names = fill(folder)
        names.checkpoint()
        names.setattr(names.lookup(ROOT_INO, b"name 3").ino, mode=0o600)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    (folder / "namespace.db-shm").unlink()
    return folder


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ 1 << bit]))


def seen(folder: Path) -> list[tuple[object, ...]]:
    """All its rows."""
    names = Namespace(str(folder / "namespace.db"), Disk())
    try:
        entries = names.readdir(ROOT_INO, 0, 10_000)
        return [(name, inode, names.listxattr(inode.ino)) for _, name, inode in entries]
    finally:
        names.close()


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_a_flipped_bit_is_refused_or_harmless(state: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """80 places all over the file; the pages that are in the log count for nothing."""
    folder: Path = request.getfixturevalue(state)
    chance = random.Random(10)
    copy = Path(shutil.copytree(folder, tmp_path / "whole"))
    whole = seen(copy)
    size, refused = (folder / "namespace.db").stat().st_size, 0
    for number in range(80):
        at = chance.randrange(100) if number < 10 else chance.randrange(size)
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        flip(copy / "namespace.db", at, number % 8)
        try:
            found = seen(copy)
        except (CorruptionError, VersionError):
            refused += 1
        else:
            assert found == whole, at
        shutil.rmtree(copy)
    assert refused > 60


def test_a_database_that_was_cut_off_is_refused(closed: Path, tmp_path: Path) -> None:
    size = (closed / "namespace.db").stat().st_size
    for length in (0, 1, 50, 2047, 2048, 4096, size // 2, size - 2048, size - 1):
        copy = Path(shutil.copytree(closed, tmp_path / "copy"))
        os.truncate(copy / "namespace.db", length)
        if length:
            with pytest.raises((CorruptionError, VersionError)):
                seen(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("damage", ["header", "both headers", "block", "cut off", "gone", "garbage"])
def test_damage_of_the_checksums_is_harmless_and_mended(closed: Path, tmp_path: Path, damage: str) -> None:
    """Then the structure of the database is verified instead."""
    copy = Path(shutil.copytree(closed, tmp_path / "copy"))
    path = copy / "namespace.db-sums"
    harm: dict[str, Callable[[], object]] = {
        "header": lambda: flip(path, 9, 1),
        "both headers": lambda: (flip(path, 11, 1), flip(path, HEADER_BYTES + 11, 1)),
        "block": lambda: flip(path, BLOCKS_AT + 100, 3),
        "cut off": lambda: os.truncate(path, BLOCKS_AT + 50),
        "gone": path.unlink,
        "garbage": lambda: path.write_bytes(os.urandom(9000)),
    }
    harm[damage]()
    assert len(seen(copy)) == NAMES
    with (copy / "namespace.db").open("rb") as database:
        sums = Sums(str(path), Disk(), 2048)
        assert sums.load()
        assert sums.check("", database.fileno(), set())


def test_every_flip_of_the_headers_of_the_checksums_leaves_them_right_or_unknown(closed: Path, tmp_path: Path) -> None:
    """Exhaustive."""
    path, whole = tmp_path / "sums", (closed / "namespace.db-sums").read_bytes()
    for at in range(20):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            assert Sums(str(path), Disk(), 2048).load(), "the other copy counts"


def test_a_structure_that_means_nothing_is_corruption_and_no_bug(closed: Path, tmp_path: Path) -> None:
    """Without checksums, as an earlier snapfs left it, and with rows that contradict each other."""
    import sqlite3

    copy = Path(shutil.copytree(closed, tmp_path / "copy"))
    db = sqlite3.connect(copy / "namespace.db")
    db.execute("UPDATE inode SET nlink = 7 WHERE ino = 5")
    db.commit()
    db.close()
    with pytest.raises(CorruptionError, match="fails its checksum"):
        seen(copy)
    (copy / "namespace.db-sums").unlink()
    with pytest.raises(CorruptionError, match="link count"):
        seen(copy)


class DyingDisk(Disk):
    def __init__(self, left: int) -> None:
        self.left = left

    def fdatasync(self, label: str, fd: int) -> None:
        self.left -= 1
        if not self.left:
            os._exit(0)
        super().fdatasync(label, fd)


def test_kills_in_the_middle_of_checkpoints_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "CHECKPOINT_AT_BYTES", 20_000)
    monkeypatch.setattr(checkpointer, "FORCE_AT_BYTES", 60_000)
    for life in range(30):
        child = os.fork()
        if not child:
            names = Namespace(str(tmp_path / "namespace.db"), DyingDisk(random.Random(life).randrange(1, 60)))
            names.start_mark()
            for number in range(400):
                names.create(ROOT_INO, b"%d %d" % (life, number), stat.S_IFREG | 0o600, 0, 0)
                if number % 5 == 0:
                    names.checkpoint()
            names.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        names = Namespace(str(tmp_path / "namespace.db"), Disk())
        names.check_invariants()
        names.close()


def test_the_version_says_that_there_are_checksums(closed: Path, tmp_path: Path) -> None:
    """A snapfs that does not know them would change pages without them: it refuses the file. We read its."""
    assert (closed / "namespace.db").read_bytes()[60:64] == bytes([0, 0, 0, PLAIN_VERSION])
    copy = Path(shutil.copytree(closed, tmp_path / "copy"))
    later = bytearray((copy / "namespace.db").read_bytes())
    later[63] = 99
    (copy / "namespace.db").write_bytes(later)
    with pytest.raises(VersionError, match="namespace format 99"):
        refuse_later(str(copy))
