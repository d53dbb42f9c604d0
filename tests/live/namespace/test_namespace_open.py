"""Which files are opened, and the errors for those that are not."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.live.database.schema import APPLICATION_ID, PLAIN_VERSION, SCHEMA_VERSION
from snapfs.live.namespace.namespace import Namespace


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A namespace with a thousand files, closed."""
    where = str(tmp_path / "namespace.db")
    ns = Namespace(where, Disk())
    for i in range(1000):
        ns.create(ROOT_INO, b"file %d" % i, 0o100644, 0, 0)
    ns.close()
    return where


def edit(path: str, *statements: str) -> None:
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()
    Path(f"{path}-sums").unlink(missing_ok=True)  # else these find it first


def refuse(path: str, kind: type[Exception], words: str) -> None:
    before = Path(path).read_bytes()
    with pytest.raises(kind, match=words) as caught:
        Namespace(path, Disk())
    assert "\n" not in str(caught.value)
    assert Path(path).read_bytes() == before


def test_the_file_says_what_it_is(path: str) -> None:
    head = Path(path).read_bytes()[:100]
    assert int.from_bytes(head[60:64], "big") == PLAIN_VERSION
    assert int.from_bytes(head[68:72], "big") == APPLICATION_ID
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_a_later_version_is_refused(path: str) -> None:
    edit(path, f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    refuse(path, VersionError, f"format {SCHEMA_VERSION + 1}.*use a newer snapfs")


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    foreign = str(tmp_path / "foreign.db")
    edit(foreign, "CREATE TABLE t (x)")
    refuse(foreign, CorruptionError, "not written by snapfs")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello, this is no database at all\n" * 100)
    refuse(str(text), CorruptionError, "not an SQLite database")


def test_a_database_without_its_head_is_refused(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[100:2048] = b"\xa5" * 1948
    Path(path).write_bytes(content)
    refuse(path, CorruptionError, "namespace in .* is damaged")


def test_a_database_without_a_table_is_refused(path: str) -> None:
    edit(path, "DROP TABLE meta")
    refuse(path, CorruptionError, "no such table: meta")


def test_a_database_without_its_counters_is_refused(path: str) -> None:
    edit(path, "DELETE FROM meta")
    refuse(path, CorruptionError, "counter")


def test_a_database_cut_short_is_refused(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    refuse(path, CorruptionError, "malformed|shorter")


def test_damage_within_is_an_error_of_what_needs_it(path: str) -> None:
    """Pages of names are overwritten: listings fail with EIO, cuts with a CorruptionError; nothing is made up."""
    content = bytearray(Path(path).read_bytes())
    for spot in (content.index(b"file 500"), content.rindex(b"file 500")):
        page = spot // 2048 * 2048
        content[page : page + 2048] = b"\xa5" * 2048
    Path(path).write_bytes(content)
    refuse(path, CorruptionError, "fails its checksum")
    ns = Namespace(path, Disk(), verify=False)  # as damage that comes while it is open
    with pytest.raises(OSError, match="Input/output"):
        ns.readdir(ROOT_INO, 0, 1000)
    frozen = ns.cut(ns.epoch)
    with pytest.raises(CorruptionError, match=r"namespace in .* is damaged"):
        list(frozen.entries(ROOT_INO))
    frozen.close()
    ns.close()


def test_a_creation_that_was_killed_begins_again(tmp_path: Path) -> None:
    """Before its tables are committed, the file is empty or an empty database."""
    empty = str(tmp_path / "empty.db")
    Path(empty).touch()
    plain = str(tmp_path / "plain.db")
    edit(plain, "PRAGMA journal_mode=WAL")
    for where in (empty, plain):
        ns = Namespace(where, Disk())
        ns.check_invariants()
        ns.close()


def test_a_broken_invariant_is_named(path: str) -> None:
    edit(path, "UPDATE inode SET nlink = 7 WHERE ino = 5", "DELETE FROM inode WHERE ino = 6")
    ns = Namespace(path, Disk(), verify=False)
    with pytest.raises(AssertionError, match="means no inode") as caught:
        ns.check_invariants()
    assert "link count is not the number of its names: [(5, 7, 1)]" in str(caught.value)
    ns.close()
