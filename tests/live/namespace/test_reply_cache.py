"""What is noted of a request is committed with its change or not at all, and the notes never grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.live.namespace import reply_cache
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.namespace.reply_cache import RESENT, SLOTS

FILE = 0o100644


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "namespace.db")


def reopened(ns: Namespace) -> Namespace:
    """As a daemon finds it that comes after one that was killed: from the files, not from memory."""
    again = Namespace(ns.path, Disk())
    ns.close()
    return again


CHANGES: dict[str, Callable[[Namespace, Ino], int]] = {
    "create": lambda ns, ino: ns.create(ROOT_INO, b"new", FILE, 0, 0).ino,
    "mkdir": lambda ns, ino: ns.create(ROOT_INO, b"new", 0o040755, 0, 0).ino,
    "link": lambda ns, ino: ns.link(ino, ROOT_INO, b"new").ino,
    "unlink": lambda ns, ino: ns.unlink(ROOT_INO, b"file") and 0,
    "rmdir": lambda ns, ino: ns.rmdir(ROOT_INO, b"folder") and 0,
    "rename": lambda ns, ino: ns.rename(ROOT_INO, b"file", ROOT_INO, b"new") or 0,
    "replace": lambda ns, ino: ns.rename(ROOT_INO, b"file", ROOT_INO, b"other") and 0,
    "exchange": lambda ns, ino: ns.rename(ROOT_INO, b"file", ROOT_INO, b"folder", 2) or 0,
    "setattr": lambda ns, ino: ns.setattr(ino, mode=0o600).ino,
    "setxattr": lambda ns, ino: ns.setxattr(ino, b"user.new", b"x") or 0,
    "removexattr": lambda ns, ino: ns.removexattr(ino, b"user.old") or 0,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_change_is_noted_with_its_outcome(path: str, kind: str) -> None:
    ns = Namespace(path, Disk())
    ino = ns.create(ROOT_INO, b"file", FILE, 0, 0).ino
    ns.create(ROOT_INO, b"other", FILE, 0, 0)
    ns.create(ROOT_INO, b"folder", 0o040755, 0, 0)
    ns.setxattr(ino, b"user.old", b"x")
    ns.reply_cache.set_request(46)
    outcome = int(CHANGES[kind](ns, ino) or 0)
    ns = reopened(ns)
    assert ns.reply_cache.past(46 | RESENT) == outcome
    assert ns.reply_cache.past(46) is None  # a request that never came before has no past
    assert ns.reply_cache.past(48 | RESENT) is None
    ns.close()


def test_a_failure_and_what_follows_leave_no_note(path: str) -> None:
    ns = Namespace(path, Disk())
    ns.reply_cache.set_request(2)
    with pytest.raises(FileNotFoundError):
        ns.unlink(ROOT_INO, b"nothing")
    ns.reply_cache.set_request(0)
    ns.create(ROOT_INO, b"file", FILE, 0, 0)  # of no request
    ns.reply_cache.set_request(4)
    ns.create(ROOT_INO, b"one", FILE, 0, 0)
    ns.setattr(ROOT_INO, mode=0o700)  # the second change of the same request
    ns = reopened(ns)
    assert ns.reply_cache.past(2 | RESENT) is None
    assert ns.reply_cache.past(4 | RESENT) == ns.lookup(ROOT_INO, b"one").ino
    ns.close()


def test_a_change_that_is_rolled_back_takes_its_note_along(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ns = Namespace(path, Disk())
    ns.reply_cache.set_request(2)

    def fail() -> None:
        raise OSError(5, "the disk")

    monkeypatch.setattr(ns._writer.epochs, "purge_some", fail)
    with pytest.raises(OSError, match="the disk"):
        ns.create(ROOT_INO, b"file", FILE, 0, 0)
    monkeypatch.undo()
    ns = reopened(ns)
    assert ns.reply_cache.past(2 | RESENT) is None
    ns.close()


def test_the_newest_are_kept_over_many_lives_and_no_more(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_cache, "SLOTS", 64)
    ns = Namespace(path, Disk())
    for number in range(1, 201):
        if number % 50 == 0:
            ns = reopened(ns)
        ns.reply_cache.set_request(number)
        ns.setattr(ROOT_INO, mode=0o700 + number % 8)
    ns = reopened(ns)
    kept = [number for number in range(1, 201) if ns.reply_cache.past(number | RESENT) is not None]
    assert kept == list(range(137, 201))
    assert ns._writer.rows("SELECT count(*) FROM answer") == [(64,)]
    ns.close()


def test_a_new_mount_forgets(path: str) -> None:
    ns = Namespace(path, Disk())
    ns.reply_cache.set_request(2)
    ns.create(ROOT_INO, b"file", FILE, 0, 0)
    ns.reply_cache.begin_command(1 << 63 | 10, 4, 7)
    ns = reopened(ns)
    ns.reply_cache.forget()
    assert ns.reply_cache.past(2 | RESENT) is None
    ns = reopened(ns)
    assert ns.reply_cache.past(2 | RESENT) is None
    assert ns.reply_cache.command(1 << 63 | 10) is None
    ns.close()


def test_a_command_is_known_by_its_handle(path: str) -> None:
    ns = Namespace(path, Disk())
    one, other = 1 << 63 | 10, 1 << 63 | 18
    ns.reply_cache.begin_command(one, 4 | RESENT, 7)
    ns.reply_cache.begin_command(other, 6, 7)
    ns.reply_cache.end_command(other, b"reply", 17)
    ns = reopened(ns)
    assert ns.reply_cache.command(one) == (4, 7, None, 0)
    assert ns.reply_cache.command(other) == (6, 7, b"reply", 17)
    ns.reply_cache.forget_command(one)
    assert ns.reply_cache.command(one) is None
    ns.close()


def test_a_namespace_from_before_gets_its_tables(path: str) -> None:
    ns = Namespace(path, Disk())
    ns._writer.db.execute("DROP TABLE answer")
    ns._writer.db.execute("DROP TABLE command")
    ns = reopened(ns)
    ns.reply_cache.set_request(2)
    ns.create(ROOT_INO, b"file", FILE, 0, 0)
    ns.close()
    assert SLOTS >= 4096
