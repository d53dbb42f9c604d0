"""The range of each field is one: what the live tree takes is what a snapshot, a restore and another volume hold.

Values that live accepts and a later stage cannot hold. The extremes of every field, drawn by hypothesis,
go from the live tree through a snapshot to a restored directory and to a clone; what a host cannot hold is named, and
the rest goes on.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.base.limits import (  # fmt: skip
    LINK_MAX,
    NAME_MAX,
    TARGET_MAX,
    TIME_MAX_NS,
    TIME_MIN_NS,
    XATTR_BYTES,
    XATTR_VALUE_MAX,
    XATTRS_MAX,
    HostLimits,
)
from snapfs.base.volumes.volume import Volume
from snapfs.live.attributes import Attr
from snapfs.live.backing import host_filesystem
from snapfs.live.content import datapath
from snapfs.live.database.namespace_rows import Inode
from snapfs.store.tables.inode_table import InodeRecord
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.inode_records import row_of
from snapfs.transfer.restore.clone import clone
from snapfs.transfer.restore.restore import restore
from tests.transfer.restore.test_restore_clone import Opened, needs_root

YEAR_NS = 365 * 86400 * 10**9
FAR_NS = [(1601 - 1970) * YEAR_NS, (1700 - 1970) * YEAR_NS, (2300 - 1970) * YEAR_NS, (2400 - 1970) * YEAR_NS]
EDGES_NS = [TIME_MIN_NS - 1, TIME_MIN_NS, -1, 0, 1, (1 << 31) * 10**9, TIME_MAX_NS, TIME_MAX_NS + 1, 1 << 63]
times = st.one_of(st.sampled_from(EDGES_NS + FAR_NS), st.integers(-(1 << 90), 1 << 90))
ids = st.one_of(st.sampled_from([0, 1, 65534, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 2]))
names = st.one_of(
    st.binary(min_size=1, max_size=NAME_MAX), st.sampled_from([b"\xff" * NAME_MAX, b"\n", b" ", b"a" * NAME_MAX])
).filter(lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name)
targets = st.sampled_from([b"x", b"\xff/\n", b"t" * 1024, b"t" * TARGET_MAX])
values = st.sampled_from([b"", b"v", b"\0" * 255, b"v" * 3000])
BOTH = pytest.mark.parametrize("path", ["native", "python"])


@pytest.fixture
def opened(volume_dir: Path) -> Iterator[Opened]:
    volume = Opened(Volume.create(str(volume_dir), Disk()))
    yield volume
    volume.close()


def recorded(record: InodeRecord) -> tuple[object, ...]:
    return (
        record.mode, record.uid, record.gid, record.rdev, record.nlink, record.size or len(record.target),
        record.atime_ns, record.mtime_ns, record.ctime_ns,
    )  # fmt: skip


def shown(attr: Attr) -> tuple[object, ...]:
    return (
        attr.mode, attr.uid, attr.gid, attr.rdev, attr.nlink, attr.size, attr.atime_ns, attr.mtime_ns, attr.ctime_ns
    )  # fmt: skip


@needs_root
@BOTH
@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(
    kind=st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK, stat.S_IFCHR]),
    name=names, mode=st.sampled_from([0, 0o777, 0o7777]), uid=ids, gid=ids, atime=times, mtime=times,
    size=st.sampled_from([0, 1, 65535, 65537, (1 << 40) + 1, (1 << 44) - 8192]), target=targets, value=values,
    rdev=st.sampled_from([0, os.makedev(1, 3), os.makedev(4095, 255), os.makedev(4095, (1 << 20) - 1)]),
)  # fmt: skip
def test_the_extremes_of_every_field_are_the_same_in_live_store_restore_and_clone(
    path: str, kind: int, name: bytes, mode: int, uid: int, gid: int, atime: int, mtime: int, size: int, target: bytes,
    value: bytes, rdev: int,
) -> None:  # fmt: skip
    """Each field's range is one place, checked at the door, equal in live, store and restore."""
    before, datapath.DEFAULT = datapath.DEFAULT, path
    folder = tempfile.TemporaryDirectory(dir="/var/tmp")
    try:
        volume = Opened(Volume.create(f"{folder.name}/volume", Disk()))
        ino = made(volume, kind, name, mode, target, rdev)
        tree = volume.tree
        tree.setattr(ino, uid=uid, gid=gid, mode=None if kind == stat.S_IFLNK else mode)
        if kind == stat.S_IFREG and size <= tree.limits.max_bytes:
            tree.setattr(ino, size=size)
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            tree.setxattr(ino, b"user." + b"n" * 200, value)
        live = tree.setattr(ino, atime_ns=atime, mtime_ns=mtime, ctime_ns=atime)
        record = volume.seal()
        stored = SnapshotTree(volume.repository, record.root).inode(ino)
        assert stored is not None
        assert recorded(stored) == shown(live) == shown(tree.getattr(ino))
        report = restore(volume.repository, record, f"{folder.name}/out", verify=True, threads=1)
        assert report.verified
        assert not report.not_restored
        clone(volume.volume, volume.repository, record, f"{folder.name}/clone", Disk())
        volume.close()
        volume = Opened(volume.volume)
        assert shown(volume.tree.getattr(ino)) == shown(live), "a remount changes nothing"
        volume.close()
        volume = Opened(Volume.open(f"{folder.name}/clone", Disk()))
        assert shown(volume.tree.getattr(ino)) == shown(live)
        volume.close()
    finally:
        datapath.DEFAULT = before
        folder.cleanup()


def made(volume: Opened, kind: int, name: bytes, mode: int, target: bytes, rdev: int) -> Ino:
    if kind == stat.S_IFLNK:
        return volume.tree.symlink(ROOT_INO, name, target, 0, 0).ino
    return volume.make(ROOT_INO, name, kind | mode, rdev if kind == stat.S_IFCHR else 0)


@pytest.mark.parametrize("time_ns", EDGES_NS + FAR_NS)
@BOTH
def test_a_time_beyond_the_range_is_the_nearest_one_for_good(
    volume_dir: Path, monkeypatch: pytest.MonkeyPatch, path: str, time_ns: int
) -> None:
    """One file dated 2300 and no snapshot is ever made again; times before 1901 change at a remount."""
    monkeypatch.setattr(datapath, "DEFAULT", path)
    volume = Opened(Volume.create(str(volume_dir), Disk()))
    ino = volume.make(ROOT_INO, b"file")
    held = min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)
    assert volume.tree.setattr(ino, mtime_ns=time_ns, ctime_ns=time_ns).mtime_ns == held
    assert volume.tree.take_misread() == ({ino} if held != time_ns else set())
    volume.seal()
    volume.close()
    volume = Opened(volume.volume)
    assert volume.tree.getattr(ino).mtime_ns == held
    volume.close()


def test_what_an_older_version_stored_beyond_the_range_is_clamped_as_it_comes_in() -> None:
    record = InodeRecord(Ino(7), stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, -(1 << 63), FAR_NS[1], (1 << 63) - 1)
    row = row_of(record)
    assert (row.atime_ns, row.mtime_ns, row.ctime_ns) == (TIME_MIN_NS, TIME_MIN_NS, TIME_MAX_NS)


def test_the_limits_of_the_host_are_those_that_it_keeps(tmp_path: Path) -> None:
    limits = host_filesystem.probe_limits(str(tmp_path))
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, limits.max_bytes)
    if limits.max_bytes < (1 << 63) - 1:
        with pytest.raises(OSError, match="large") as failure:
            os.truncate(path, limits.max_bytes + 1)
        assert failure.value.errno == errno.EFBIG
    for time_ns in (limits.time_min_ns, limits.time_max_ns):
        os.utime(path, ns=(time_ns, time_ns))
        assert path.stat().st_mtime_ns == time_ns
    assert not [each for each in os.listdir(tmp_path) if each != "file"]
    assert host_filesystem.probe_limits(str(tmp_path / "not there")) == HostLimits()


@BOTH
def test_nothing_grows_beyond_the_largest_file_of_the_host(
    volume_dir: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A pwrite past the host's 16 TiB; EFBIG from write, truncate, fallocate and copy_file_range."""
    monkeypatch.setattr(datapath, "DEFAULT", path)
    limit = 1 << 30
    monkeypatch.setattr(host_filesystem, "probe_limits", lambda folder: HostLimits(max_bytes=limit))
    volume = Opened(Volume.create(str(volume_dir), Disk()))
    tree, ino = volume.tree, volume.make(ROOT_INO, b"file")
    source = volume.make(ROOT_INO, b"source")
    volume.write(source, 0, b"s" * 10000)
    calls = (
        lambda: volume.write(ino, limit, b"x"),
        lambda: volume.write(ino, limit + 1, b""),
        lambda: tree.setattr(ino, size=limit + 1),
        lambda: tree.fallocate(ino, 0, limit, 1),
        lambda: tree.fallocate(ino, 1, limit - 4096, 4097),
        lambda: tree.copy_range(source, 0, ino, limit, 1),
    )
    for number, call in enumerate(calls):
        with pytest.raises(OSError, match="large") as failure:
            call()
        assert failure.value.errno == errno.EFBIG, number
        assert tree.getattr(ino).size == 0, number
    with pytest.raises(OSError, match="large"):
        volume.write(ino, limit - 5, b"0123456789")
    assert tree.take_misread() == {ino}
    assert tree.getattr(ino).size == limit
    assert tree.read(ino, limit - 5, 10) == b"01234", "what fits is there"
    assert tree.copy_range(source, 0, ino, limit - 100, 10000) == 100
    volume.seal()
    volume.close()


def test_attributes_of_one_inode_are_refused_before_no_snapshot_holds_them(opened: Opened) -> None:
    """Sibling of B6: the sum of extended attributes that a snapshot's record holds is refused at the door."""
    ino = opened.make(ROOT_INO, b"file")
    fill = XATTRS_MAX // (XATTR_VALUE_MAX + XATTR_BYTES + 9)
    rows = [(ino, b"user.%04d" % number, b"x" * XATTR_VALUE_MAX) for number in range(fill)]
    writer = opened.tree.names._writer
    with writer.change:
        writer.db.executemany("INSERT INTO xattr VALUES (?,?,?)", rows)
    with pytest.raises(OSError, match="space") as failure:
        opened.tree.setxattr(ino, b"user.more", b"x" * XATTR_VALUE_MAX)
    assert failure.value.errno == errno.ENOSPC
    opened.tree.setxattr(ino, b"user.0000", b"y" * XATTR_VALUE_MAX)  # in the place of one that counts already


def test_a_target_is_as_long_as_a_path(opened: Opened) -> None:
    opened.tree.symlink(ROOT_INO, b"fits", b"t" * TARGET_MAX, 0, 0)
    with pytest.raises(OSError, match="long") as failure:
        opened.tree.symlink(ROOT_INO, b"long", b"t" * (TARGET_MAX + 1), 0, 0)
    assert failure.value.errno == errno.ENAMETOOLONG


def link_many(opened: Opened, ino: Ino, count: int) -> None:
    """Give the file so many names more, in one transaction."""
    names = opened.tree.names
    with names.bulk() as bulk:
        bulk.put_inode(Inode(*names.inode(ino)[:5], count + 1, *names.inode(ino)[6:]))
        for number in range(count):
            bulk.put_entry(ROOT_INO, b"%06d" % number, ino)


@pytest.mark.on_disk
def test_a_file_of_more_names_than_the_host_gives_is_restored_as_several(opened: Opened, tmp_path: Path) -> None:
    """A file with more than 65,000 links makes the whole restore fail."""
    most = os.pathconf(tmp_path, "PC_LINK_MAX")
    if not 1000 < most < 100_000:
        pytest.skip(f"a file of this host has up to {most} names")
    ino = opened.make(ROOT_INO, b"first")
    opened.write(ino, 0, b"content")
    link_many(opened, ino, most + 5)
    opened.write(opened.make(ROOT_INO, b"zzz"), 0, b"the rest")
    report = restore(opened.repository, opened.seal(), str(tmp_path / "out"), verify=True)
    assert report.verified
    assert report.not_restored == {"links": 1}
    assert (tmp_path / "out/zzz").read_bytes() == b"the rest"
    held = {(path.stat().st_ino, path.read_bytes()) for path in (tmp_path / "out").iterdir() if path.name != "zzz"}
    assert len(held) == 2
    assert {content for _, content in held} == {b"content"}
    assert len(os.listdir(tmp_path / "out")) == most + 7
    assert most < LINK_MAX


def test_a_file_larger_than_the_host_holds_is_named_and_the_rest_restored(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be restored is named, and the rest goes on."""
    import resource

    large = opened.make(ROOT_INO, b"large")
    opened.tree.setattr(large, size=1 << 30)
    opened.write(opened.make(ROOT_INO, b"small"), 0, b"small")
    record = opened.seal()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 29, before[1]))  # the host's largest file, as far as we know
    try:
        report = restore(opened.repository, record, str(tmp_path / "out"), verify=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert report.verified
    assert report.not_restored == {"files": 1}
    assert report.examples == {"files": ["large"]}
    assert (tmp_path / "out/small").read_bytes() == b"small"
    assert report.left_out == [large]
