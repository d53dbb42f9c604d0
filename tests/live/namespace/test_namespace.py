"""What each operation on names does, and the errno of each that cannot be done."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.base.limits import LINK_MAX, TIME_MAX_NS
from snapfs.live.database.namespace_rows import (
    FIRST_COOKIE,
    INO_LIMIT,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    AbsentFile,
    Inode,
)
from snapfs.live.namespace.namespace import Namespace

FILE, DIR, LINK = 0o100644, 0o040755, 0o120777
GONE = Ino(9999)


@pytest.fixture
def ns(tmp_path: Path) -> Iterator[Namespace]:
    """A namespace whose clock shows 1000, 1001, ... so that every update of a time can be seen."""
    ticks = count(1000)
    namespace = Namespace(str(tmp_path / "namespace.db"), Disk(), lambda: next(ticks))
    yield namespace
    namespace.check_invariants()
    namespace.close()


def file(ns: Namespace, name: bytes, parent: Ino = ROOT_INO) -> Ino:
    return ns.create(parent, name, FILE, 1, 2).ino


def folder(ns: Namespace, name: bytes, parent: Ino = ROOT_INO) -> Ino:
    return ns.create(parent, name, DIR, 1, 2).ino


def names(ns: Namespace, parent: Ino = ROOT_INO) -> dict[bytes, int]:
    return {entry.name: entry.inode.ino for entry in ns.readdir(parent, 0, 1000)}


def refused(number: int, act: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=r".*") as caught:
        act()
    assert caught.value.errno == number, errno.errorcode.get(caught.value.errno or 0)


# -- create


@pytest.mark.parametrize(
    ("mode", "rdev", "target", "nlink"),
    [
        (FILE, 0, b"", 1),
        (DIR, 0, b"", 2),
        (LINK, 0, b"\xff/over there", 1),
        (stat.S_IFCHR | 0o600, os.makedev(1, 3), b"", 1),
        (stat.S_IFBLK | 0o600, os.makedev(259, 1 << 19), b"", 1),
        (stat.S_IFIFO | 0o600, 0, b"", 1),
        (stat.S_IFSOCK | 0o600, 0, b"", 1),
    ],
)
def test_create_keeps_what_it_is_given(ns: Namespace, mode: int, rdev: int, target: bytes, nlink: int) -> None:
    made = ns.create(ROOT_INO, b"x", mode, 4294967294, 7, rdev, target)
    parent = ROOT_INO if stat.S_ISDIR(mode) else 0
    assert made == Inode(made.ino, mode, 4294967294, 7, rdev, nlink, 1001, 1001, 1001, target, parent)
    assert ns.lookup(ROOT_INO, b"x") == made == ns.inode(made.ino)
    root = ns.inode(ROOT_INO)
    assert (root.mtime_ns, root.ctime_ns, root.nlink) == (1001, 1001, 2 + stat.S_ISDIR(mode))


@pytest.mark.parametrize("name", [b"\xff\xfe", b"n" * 255, b" ", b"...", b"\n", "ü".encode()])
def test_names_are_any_bytes(ns: Namespace, name: bytes) -> None:
    ino = file(ns, name)
    assert ns.lookup(ROOT_INO, name).ino == ino
    assert names(ns) == {name: ino}


def test_create_refuses(ns: Namespace) -> None:
    plain, gone = file(ns, b"file"), folder(ns, b"gone")
    ns.rmdir(ROOT_INO, b"gone")
    refused(errno.EEXIST, lambda: file(ns, b"file"))
    refused(errno.ENOTDIR, lambda: file(ns, b"x", plain))
    refused(errno.ENOENT, lambda: file(ns, b"x", gone))
    refused(errno.ESTALE, lambda: file(ns, b"x", GONE))
    refused(errno.ENAMETOOLONG, lambda: file(ns, b"n" * 256))
    for name in (b"", b".", b"..", b"a/b", b"a\0b"):
        refused(errno.EINVAL, lambda name=name: file(ns, name))  # type: ignore[misc]
    assert names(ns) == {b"file": plain}


def test_a_refused_create_changes_nothing(ns: Namespace) -> None:
    file(ns, b"file")
    before = ns.inode(ROOT_INO), ns.counts()
    refused(errno.EEXIST, lambda: folder(ns, b"file"))
    assert (ns.inode(ROOT_INO), ns.counts()) == before


def test_setgid_directory_hands_down_its_group(ns: Namespace) -> None:
    parent = ns.create(ROOT_INO, b"shared", DIR | stat.S_ISGID, 1, 55).ino
    assert ns.create(parent, b"file", FILE, 3, 4).gid == 55
    assert ns.create(parent, b"file2", FILE, 3, 4).mode == FILE
    below = ns.create(parent, b"dir", DIR, 3, 4)
    assert (below.gid, below.mode) == (55, DIR | stat.S_ISGID)


def test_numbers_are_given_in_advance_and_never_twice(ns: Namespace) -> None:
    early = ns.allocate_ino()
    later = file(ns, b"later")
    assert ns.create(ROOT_INO, b"early", FILE, 0, 0, ino=early).ino == early
    seen = {early, later}
    for name in (b"a", b"b"):
        ino = file(ns, name)
        assert ino not in seen
        seen.add(ino)
        ns.unlink(ROOT_INO, name)
        ns.remove_orphans([ino])


def test_numbers_run_out_with_enospc(ns: Namespace) -> None:
    with ns.bulk() as bulk:
        bulk.raise_next_ino(INO_LIMIT - 1)
    assert file(ns, b"last") == INO_LIMIT - 1
    refused(errno.ENOSPC, lambda: file(ns, b"none left"))
    assert ns.lookup(ROOT_INO, b"last").ino == INO_LIMIT - 1


# -- lookup, link, unlink, rmdir


def test_lookup_refuses(ns: Namespace) -> None:
    plain = file(ns, b"file")
    refused(errno.ENOENT, lambda: ns.lookup(ROOT_INO, b"other"))
    refused(errno.ENOTDIR, lambda: ns.lookup(plain, b"x"))
    refused(errno.ESTALE, lambda: ns.inode(GONE))
    refused(errno.ENAMETOOLONG, lambda: ns.lookup(ROOT_INO, b"n" * 256))


def test_link_adds_a_name(ns: Namespace) -> None:
    ino, below = file(ns, b"file"), folder(ns, b"dir")
    linked = ns.link(ino, below, b"other")
    now = linked.ctime_ns
    assert linked.nlink == 2
    assert linked.mtime_ns < now
    assert (ns.inode(below).mtime_ns, ns.inode(below).ctime_ns, ns.inode(below).nlink) == (now, now, 2)
    assert ns.lookup(below, b"other") == ns.lookup(ROOT_INO, b"file") == linked


def test_link_refuses(ns: Namespace) -> None:
    ino, below = file(ns, b"file"), folder(ns, b"dir")
    orphan = file(ns, b"orphan")
    ns.unlink(ROOT_INO, b"orphan")
    refused(errno.EPERM, lambda: ns.link(below, ROOT_INO, b"x"))
    refused(errno.EEXIST, lambda: ns.link(ino, ROOT_INO, b"dir"))
    refused(errno.ENOENT, lambda: ns.link(orphan, ROOT_INO, b"x"))
    refused(errno.ENOTDIR, lambda: ns.link(ino, ino, b"x"))
    refused(errno.ENAMETOOLONG, lambda: ns.link(ino, ROOT_INO, b"n" * 256))
    assert ns.inode(ino).nlink == 1


def test_a_symlink_can_be_linked(ns: Namespace) -> None:
    ino = ns.create(ROOT_INO, b"s", LINK, 0, 0, target=b"t").ino
    assert ns.link(ino, ROOT_INO, b"t").nlink == 2


def set_links(ns: Namespace, ino: Ino, nlink: int) -> None:
    with ns.bulk() as bulk:
        bulk.put_inode(ns.inode(ino)._replace(nlink=nlink))


def test_links_have_a_limit(ns: Namespace) -> None:
    ino, full, other = file(ns, b"file"), folder(ns, b"full"), folder(ns, b"other")
    set_links(ns, ino, LINK_MAX)
    set_links(ns, full, LINK_MAX)
    refused(errno.EMLINK, lambda: ns.link(ino, ROOT_INO, b"x"))
    refused(errno.EMLINK, lambda: folder(ns, b"x", full))
    refused(errno.EMLINK, lambda: ns.rename(ROOT_INO, b"other", full, b"x"))
    plain = file(ns, b"y", full)
    refused(errno.EMLINK, lambda: ns.rename(full, b"y", ROOT_INO, b"other", RENAME_EXCHANGE))
    assert ns.lookup(full, b"y").ino == plain
    set_links(ns, ino, 1)
    set_links(ns, full, 2)
    assert ns.inode(other).nlink == 2


def test_unlink_takes_one_name(ns: Namespace) -> None:
    ino = file(ns, b"a")
    ns.link(ino, ROOT_INO, b"b")
    after = ns.unlink(ROOT_INO, b"a")
    root = ns.inode(ROOT_INO)
    assert (after.nlink, after.ctime_ns) == (1, root.mtime_ns)
    assert ns.orphans() == []
    assert ns.unlink(ROOT_INO, b"b").nlink == 0
    assert ns.orphans() == [ino]
    assert ns.inode(ino).nlink == 0
    refused(errno.ENOENT, lambda: ns.unlink(ROOT_INO, b"b"))


def test_an_orphan_goes_with_all_that_hangs_on_it(ns: Namespace) -> None:
    ino, kept = file(ns, b"a"), file(ns, b"kept")
    ns.setxattr(ino, b"user.x", b"1")
    ns.set_absent(ino, AbsentFile(10, 1, 2, b"o"))
    ns.unlink(ROOT_INO, b"a")
    before = ns.counts()
    ns.remove_orphans([ino, kept, GONE])
    assert ns.counts() == before - 1
    refused(errno.ESTALE, lambda: ns.inode(ino))
    assert ns.inode(kept).nlink == 1
    assert ns.absent(ino) is None


def test_unlink_and_rmdir_distinguish_files_from_directories(ns: Namespace) -> None:
    file(ns, b"file")
    below = folder(ns, b"dir")
    file(ns, b"inside", below)
    refused(errno.EISDIR, lambda: ns.unlink(ROOT_INO, b"dir"))
    refused(errno.ENOTDIR, lambda: ns.rmdir(ROOT_INO, b"file"))
    refused(errno.ENOTEMPTY, lambda: ns.rmdir(ROOT_INO, b"dir"))
    refused(errno.ENOENT, lambda: ns.rmdir(ROOT_INO, b"none"))


def test_rmdir(ns: Namespace) -> None:
    below = folder(ns, b"dir")
    assert ns.parent_of(below) == ROOT_INO
    after = ns.rmdir(ROOT_INO, b"dir")
    root = ns.inode(ROOT_INO)
    assert (after.nlink, after.parent) == (0, 0)
    assert root.nlink == 2
    assert root.mtime_ns == root.ctime_ns == after.ctime_ns
    assert ns.readdir(below, 0, 10) == []
    refused(errno.ENOENT, lambda: ns.parent_of(below))
    assert ns.orphans() == [below]


# -- rename


def test_rename_to_a_free_name(ns: Namespace) -> None:
    ino = file(ns, b"a")
    assert ns.rename(ROOT_INO, b"a", ROOT_INO, b"b") is None
    assert names(ns) == {b"b": ino}
    root, moved = ns.inode(ROOT_INO), ns.inode(ino)
    assert moved.ctime_ns == root.mtime_ns == root.ctime_ns
    assert moved.mtime_ns < moved.ctime_ns


def test_rename_moves_a_directory(ns: Namespace) -> None:
    old, new = folder(ns, b"old"), folder(ns, b"new")
    moved = folder(ns, b"d", old)
    assert ns.rename(old, b"d", new, b"e") is None
    assert (ns.inode(old).nlink, ns.inode(new).nlink) == (2, 3)
    assert ns.parent_of(moved) == new
    assert ns.inode(old).mtime_ns == ns.inode(new).mtime_ns == ns.inode(moved).ctime_ns


@pytest.mark.parametrize("elsewhere", [False, True])
def test_rename_replaces_a_file(ns: Namespace, elsewhere: bool) -> None:
    target = folder(ns, b"dir") if elsewhere else ROOT_INO
    new, old = file(ns, b"new"), file(ns, b"old", target)
    replaced = ns.rename(ROOT_INO, b"new", target, b"old")
    assert replaced is not None
    assert (replaced.ino, replaced.nlink, replaced.ctime_ns) == (old, 0, ns.inode(new).ctime_ns)
    assert names(ns, target)[b"old"] == new
    assert ns.orphans() == [old]


def test_rename_over_one_of_two_names(ns: Namespace) -> None:
    file(ns, b"new")
    old = file(ns, b"old")
    ns.link(old, ROOT_INO, b"other")
    replaced = ns.rename(ROOT_INO, b"new", ROOT_INO, b"old")
    assert replaced == ns.inode(old)
    assert replaced.nlink == 1


@pytest.mark.parametrize("elsewhere", [False, True])
def test_rename_replaces_an_empty_directory(ns: Namespace, elsewhere: bool) -> None:
    target = folder(ns, b"dir") if elsewhere else ROOT_INO
    new, old = folder(ns, b"new"), folder(ns, b"old", target)
    before = ns.inode(target).nlink
    replaced = ns.rename(ROOT_INO, b"new", target, b"old")
    assert replaced is not None
    assert (replaced.ino, replaced.nlink) == (old, 0)
    assert ns.inode(target).nlink == before - (not elsewhere)
    assert ns.parent_of(new) == target


def test_rename_of_two_names_of_one_file_does_nothing(ns: Namespace) -> None:
    ino = file(ns, b"a")
    ns.link(ino, ROOT_INO, b"b")
    before = ns.inode(ino), ns.inode(ROOT_INO)
    for flags in (0, RENAME_EXCHANGE):
        assert ns.rename(ROOT_INO, b"a", ROOT_INO, b"b", flags) is None
    assert ns.rename(ROOT_INO, b"a", ROOT_INO, b"a") is None
    assert (ns.inode(ino), ns.inode(ROOT_INO)) == before
    assert names(ns) == {b"a": ino, b"b": ino}


def test_rename_refuses(ns: Namespace) -> None:
    plain, a = file(ns, b"file"), folder(ns, b"a")
    b, gone = folder(ns, b"b", a), folder(ns, b"gone")
    ns.rmdir(ROOT_INO, b"gone")
    folder(ns, b"empty")
    before = names(ns)
    refused(errno.ENOENT, lambda: ns.rename(ROOT_INO, b"none", ROOT_INO, b"x"))
    refused(errno.ENOENT, lambda: ns.rename(ROOT_INO, b"file", gone, b"x"))
    refused(errno.ENOTDIR, lambda: ns.rename(ROOT_INO, b"file", plain, b"x"))
    refused(errno.EISDIR, lambda: ns.rename(ROOT_INO, b"file", ROOT_INO, b"empty"))
    refused(errno.ENOTDIR, lambda: ns.rename(ROOT_INO, b"empty", ROOT_INO, b"file"))
    refused(errno.ENOTEMPTY, lambda: ns.rename(ROOT_INO, b"empty", ROOT_INO, b"a"))
    refused(errno.ENOTEMPTY, lambda: ns.rename(a, b"b", ROOT_INO, b"a"))
    refused(errno.EINVAL, lambda: ns.rename(ROOT_INO, b"a", a, b"x"))
    refused(errno.EINVAL, lambda: ns.rename(ROOT_INO, b"a", b, b"x"))
    refused(errno.EEXIST, lambda: ns.rename(ROOT_INO, b"file", ROOT_INO, b"a", RENAME_NOREPLACE))
    refused(errno.EEXIST, lambda: ns.rename(ROOT_INO, b"file", ROOT_INO, b"file", RENAME_NOREPLACE))
    refused(errno.ENOENT, lambda: ns.rename(ROOT_INO, b"file", ROOT_INO, b"x", RENAME_EXCHANGE))
    refused(errno.EINVAL, lambda: ns.rename(ROOT_INO, b"file", a, b"b", 8))
    refused(errno.EINVAL, lambda: ns.rename(ROOT_INO, b"file", a, b"b", RENAME_EXCHANGE | RENAME_NOREPLACE))
    refused(errno.EINVAL, lambda: ns.rename(ROOT_INO, b"file", a, b"b", RENAME_EXCHANGE | 4))
    refused(errno.EINVAL, lambda: ns.rename(ROOT_INO, b"a", a, b"b", RENAME_EXCHANGE))
    refused(errno.EINVAL, lambda: ns.rename(a, b"b", ROOT_INO, b"a", RENAME_EXCHANGE))
    refused(errno.ENAMETOOLONG, lambda: ns.rename(ROOT_INO, b"file", ROOT_INO, b"n" * 256))
    refused(errno.ENAMETOOLONG, lambda: ns.rename(ROOT_INO, b"n" * 256, ROOT_INO, b"x"))
    assert names(ns) == before


def test_noreplace_onto_a_free_name(ns: Namespace) -> None:
    ino = file(ns, b"a")
    ns.rename(ROOT_INO, b"a", ROOT_INO, b"b", RENAME_NOREPLACE)
    assert names(ns) == {b"b": ino}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_exchange_of_a_file_and_a_full_directory(ns: Namespace, elsewhere: bool) -> None:
    other = folder(ns, b"other") if elsewhere else ROOT_INO
    plain, full = file(ns, b"x"), folder(ns, b"y", other)
    file(ns, b"inside", full)
    links = ns.inode(ROOT_INO).nlink, ns.inode(other).nlink
    assert ns.rename(ROOT_INO, b"x", other, b"y", RENAME_EXCHANGE) is None
    assert names(ns)[b"x"] == full
    assert names(ns, other)[b"y"] == plain
    assert (ns.inode(ROOT_INO).nlink, ns.inode(other).nlink) == (links[0] + elsewhere, links[1] - elsewhere)
    assert ns.parent_of(full) == ROOT_INO
    assert ns.inode(plain).ctime_ns == ns.inode(full).ctime_ns == ns.inode(ROOT_INO).mtime_ns


# -- attributes


def test_setattr_sets_what_is_given(ns: Namespace) -> None:
    ino = file(ns, b"a")
    before = ns.inode(ino)
    changed = ns.setattr(ino, mode=0o4711, uid=5)
    assert changed == before._replace(mode=stat.S_IFREG | 0o4711, uid=5, ctime_ns=changed.ctime_ns)
    assert changed.ctime_ns > before.ctime_ns
    changed = ns.setattr(ino, gid=6, atime_ns=-5, mtime_ns=7, ctime_ns=8)
    assert changed[3:9] == (6, 0, 1, -5, 7, 8)
    assert ns.setattr(ino, mtime_ns=1 << 90).mtime_ns == TIME_MAX_NS
    refused(errno.ESTALE, lambda: ns.setattr(GONE, uid=1))


def test_setattr_cannot_change_the_type(ns: Namespace) -> None:
    assert ns.setattr(file(ns, b"a"), mode=stat.S_IFDIR | 0o700).mode == stat.S_IFREG | 0o700


def test_xattrs(ns: Namespace) -> None:
    ino = ns.create(ROOT_INO, b"s", LINK, 0, 0, target=b"t").ino
    assert ns.listxattr(ino) == []
    refused(errno.ENODATA, lambda: ns.getxattr(ino, b"security.capability"))
    refused(errno.ENODATA, lambda: ns.setxattr(ino, b"user.a", b"", os.XATTR_REPLACE))
    refused(errno.ENODATA, lambda: ns.removexattr(ino, b"user.a"))
    before = ns.inode(ino)
    ns.setxattr(ino, b"user.b", b"\0" * 65536, os.XATTR_CREATE)
    ns.setxattr(ino, b"user.a", b"")
    assert ns.inode(ino).ctime_ns > before.ctime_ns
    refused(errno.EEXIST, lambda: ns.setxattr(ino, b"user.b", b"", os.XATTR_CREATE))
    ns.setxattr(ino, b"user.b", b"new", os.XATTR_REPLACE)
    assert ns.listxattr(ino) == [b"user.a", b"user.b"]
    assert (ns.getxattr(ino, b"user.a"), ns.getxattr(ino, b"user.b")) == (b"", b"new")
    ns.removexattr(ino, b"user.a")
    ns.removexattr(ino, b"user.b")
    refused(errno.ENODATA, lambda: ns.getxattr(ino, b"user.b"))
    assert ns.listxattr(ino) == []


def test_xattrs_refuse(ns: Namespace) -> None:
    ino = file(ns, b"a")
    refused(errno.E2BIG, lambda: ns.setxattr(ino, b"user.a", b"x" * 65537))
    refused(errno.ERANGE, lambda: ns.setxattr(ino, b"u" * 256, b""))
    refused(errno.ERANGE, lambda: ns.setxattr(ino, b"", b""))
    refused(errno.ESTALE, lambda: ns.setxattr(GONE, b"user.a", b""))
    refused(errno.ESTALE, lambda: ns.removexattr(GONE, b"user.a"))


# -- listings


def listing(ns: Namespace, parent: Ino, step: int, between: Callable[[], None] = lambda: None) -> list[bytes]:
    """All names, read in portions of `step`, with something going on between them."""
    found: list[bytes] = []
    after = 0
    while entries := ns.readdir(parent, after, step):
        found += [entry.name for entry in entries]
        after = entries[-1].cookie
        between()
    return found


@pytest.mark.parametrize("step", [1, 3, 100])
def test_listing_in_portions(ns: Namespace, step: int) -> None:
    expected = [b"%d" % i for i in range(20)]
    for name in expected:
        file(ns, name)
    assert listing(ns, ROOT_INO, step) == expected
    assert ns.readdir(ROOT_INO, 0, 1)[0].cookie >= FIRST_COOKIE
    assert ns.readdir(ROOT_INO, 0, 1)[0].inode == ns.lookup(ROOT_INO, b"0")


def test_listing_refuses_what_is_no_directory(ns: Namespace) -> None:
    plain = file(ns, b"file")
    refused(errno.ENOTDIR, lambda: ns.readdir(plain, 0, 10))
    refused(errno.ESTALE, lambda: ns.readdir(GONE, 0, 10))


def test_a_listing_survives_the_removal_of_what_it_stands_on(ns: Namespace) -> None:
    for i in range(9):
        file(ns, b"%d" % i)
    first = ns.readdir(ROOT_INO, 0, 3)
    for entry in first:
        ns.unlink(ROOT_INO, entry.name)
    rest = [entry.name for entry in ns.readdir(ROOT_INO, first[-1].cookie, 100)]
    assert rest == [b"%d" % i for i in range(3, 9)]


def test_a_file_saved_by_rename_is_listed_once(ns: Namespace) -> None:
    for i in range(6):
        file(ns, b"%d" % i)

    def save_all() -> None:
        for i in range(6):
            file(ns, b"tmp")
            ns.rename(ROOT_INO, b"tmp", ROOT_INO, b"%d" % i)

    found = listing(ns, ROOT_INO, 1, save_all)
    assert found == [b"%d" % i for i in range(6)]


def test_a_renamed_entry_keeps_its_place_and_a_recreated_one_gets_a_new_one(ns: Namespace) -> None:
    for i in range(3):
        file(ns, b"%d" % i)
    before = {entry.name: entry.cookie for entry in ns.readdir(ROOT_INO, 0, 9)}
    ns.rename(ROOT_INO, b"0", ROOT_INO, b"zero")
    ns.unlink(ROOT_INO, b"1")
    file(ns, b"1")
    after = {entry.name: entry.cookie for entry in ns.readdir(ROOT_INO, 0, 9)}
    assert after[b"zero"] == before[b"0"]
    assert after[b"1"] > max(before.values())
    ns.rename(ROOT_INO, b"zero", ROOT_INO, b"2", RENAME_EXCHANGE)
    assert {entry.name: entry.cookie for entry in ns.readdir(ROOT_INO, 0, 9)} == after


# -- what waits to be done


def test_absent_files(ns: Namespace) -> None:
    ino = file(ns, b"a")
    assert ns.absent(ino) is None
    ns.set_absent(ino, AbsentFile(1 << 40, -1, 2, b"origin"))
    assert ns.absent(ino) == AbsentFile(1 << 40, -1, 2, b"origin")
    assert ns.absent_inos() == [ino]
    ns.clear_absent(ino)
    assert ns.absent(ino) is None


def test_bulk_fills_in_a_tree(ns: Namespace) -> None:
    old = file(ns, b"old")
    cookie = ns.readdir(ROOT_INO, 0, 1)[0].cookie
    with ns.bulk() as bulk:
        bulk.put_inode(Inode(Ino(50), DIR, 1, 2, 0, 2, 3, 4, 5))
        bulk.put_inode(Inode(Ino(60), FILE, 1, 2, 0, 1, 3, 4, 5), [(b"user.a", b"1"), (b"user.b", b"2")])
        bulk.put_inode(ns.inode(ROOT_INO)._replace(nlink=3))
        bulk.put_entry(ROOT_INO, b"dir", Ino(50))
        bulk.put_entry(ROOT_INO, b"old", Ino(60))
        bulk.delete_inode(old)
        bulk.set_absent(Ino(60), AbsentFile(1, 2, 3, b""))
        bulk.add_swap(Ino(60))
    assert names(ns) == {b"dir": 50, b"old": 60}
    assert ns.lookup(ROOT_INO, b"old") == Inode(Ino(60), FILE, 1, 2, 0, 1, 3, 4, 5)
    assert ns.readdir(ROOT_INO, 0, 1)[0].cookie == cookie
    assert ns.parent_of(Ino(50)) == ROOT_INO
    assert ns.listxattr(Ino(60)) == [b"user.a", b"user.b"]
    assert (ns.pending_swaps(), ns.absent_inos(), ns.counts()) == ([60], [60], 3)
    assert file(ns, b"next") == 61
    ns.clear_swaps()
    assert ns.pending_swaps() == []


def test_a_failed_bulk_changes_nothing(ns: Namespace) -> None:
    file(ns, b"a")
    before = names(ns), ns.inode(ROOT_INO)

    def fail() -> None:
        with ns.bulk() as bulk:
            bulk.delete_entry(ROOT_INO, b"a")
            bulk.put_inode(ns.inode(ROOT_INO)._replace(nlink=77))
            raise OSError(errno.EIO, "the store is gone")

    refused(errno.EIO, fail)
    assert (names(ns), ns.inode(ROOT_INO)) == before
    assert file(ns, b"b")
