"""Browsing on a real mount: every kind of file as it was, read-only, under the same node ids for ever."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ODD = b"odd \xff\xfe name"
ROOT = os.geteuid() == 0
ATTRIBUTES = (
    "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip


def raises(*numbers: int) -> Any:
    return pytest.raises(OSError, check=lambda error: error.errno in numbers)


@dataclass
class Picture:
    """All that can be seen of one path."""

    attributes: tuple[int, ...]
    content: bytes | str | list[bytes]
    xattrs: dict[str, bytes]


def look(path: bytes) -> Picture:
    found = os.lstat(path)
    content: bytes | str | list[bytes] = b""
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISDIR(found.st_mode):
        content = sorted(os.listdir(path))
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    return Picture(tuple(getattr(found, name) for name in ATTRIBUTES), content, xattrs)


def look_at_all(top: Path) -> dict[bytes, Picture]:
    found = {b".": look(os.fsencode(top))}
    for folder, directories, files in os.walk(os.fsencode(top)):
        for name in [*directories, *files]:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, os.fsencode(top))] = look(path)
    return found


def build(top: Path) -> None:
    """One of everything."""
    (top / "sub/deeper").mkdir(parents=True)
    (top / "file").write_bytes(os.urandom(300_000))
    (top / "empty").touch()
    os.link(top / "file", top / "sub/hard")
    (top / "symlink").symlink_to("sub/../file")
    (top / "dangling").symlink_to("x" * 1000)
    os.mkfifo(top / "fifo", 0o640)
    (top / os.fsdecode(ODD)).write_text("odd")
    (top / ("n" * 255)).touch()
    with open(top / "sparse", "wb") as file:
        file.seek(5 << 30)
        file.write(b"end")
    os.setxattr(top / "file", "user.colour", b"blue\0green")
    os.setxattr(top / "sub", "user.of-directory", b"x" * 2000)
    (top / "file").chmod(0o4751)
    (top / "sub").chmod(0o1777)
    os.utime(top / "empty", ns=(1, 123_456_789_987_654_321))
    os.utime(top / "symlink", ns=(5, 7), follow_symlinks=False)
    if ROOT:
        os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(250, 70000))
        os.chown(top / "empty", 12345, 54321)
        subprocess.run(["setfacl", "-m", "u:1234:rw,g:99:r", str(top / "empty")], check=True)
        subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", str(top / "sub")], check=True)


def test_everything_is_as_it_was_by_number_and_by_name(mounted: Any) -> None:
    build(mounted.path)
    (mounted.path / "sparse").unlink()  # five gigabytes of zeros are not read here; see below
    before = look_at_all(mounted.path)
    mounted.snapshot("x")
    subprocess.run(["rm", "-rf", *(str(path) for path in mounted.path.iterdir())], check=True)
    for name in ("1", "x"):
        assert look_at_all(mounted.path / ".snapfs/snapshots" / name) == before


def test_hard_links_are_one_inode_and_node_ids_stay(mounted: Any, mount: Callable[..., Any]) -> None:
    build(mounted.path)
    mounted.snapshot("x")
    past = mounted.path / ".snapfs/snapshots/x"
    assert (past / "file").stat().st_ino == (past / "sub/hard").stat().st_ino
    other = mounted.path / ".snapfs/snapshots/1"
    assert (past / "sub").stat().st_ino != (other / "sub").stat().st_ino  # no directory has two parents
    ids = {path: path.lstat().st_ino for path in past.rglob("*")}
    subprocess.run(["umount", str(mounted.path)], check=True)
    mount()
    assert {path: path.lstat().st_ino for path in past.rglob("*")} == ids


def test_a_large_sparse_file_reads_as_it_was(mounted: Any) -> None:
    build(mounted.path)
    mounted.snapshot("x")
    with open(mounted.path / ".snapfs/snapshots/x/sparse", "rb") as file:
        assert os.fstat(file.fileno()).st_size == (5 << 30) + 3
        assert os.pread(file.fileno(), 100, (5 << 30) - 4) == bytes(4) + b"end"
        assert os.pread(file.fileno(), 1 << 17, 1 << 30) == bytes(1 << 17)
        assert os.pread(file.fileno(), 10, 6 << 30) == b""


def test_reading_at_odd_places_and_through_a_mapping(mounted: Any) -> None:
    content = os.urandom(200_001)
    (mounted.path / "file").write_bytes(content)
    mounted.snapshot("x")
    with open(mounted.path / ".snapfs/snapshots/x/file", "rb") as file:
        for offset, size in [(0, 1), (65535, 2), (65536, 65536), (199_999, 100), (4095, 130_000)]:
            assert os.pread(file.fileno(), size, offset) == content[offset : offset + size]
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[:] == content


def test_a_large_directory_is_listed_whole_and_goes_on_from_any_place(mounted: Any) -> None:
    names = {f"name-{number:05}" for number in range(3000)}
    for name in names:
        (mounted.path / name).touch()
    mounted.snapshot("x")
    past = mounted.path / ".snapfs/snapshots/x"
    listed = os.listdir(past)
    assert len(listed) == len(names)
    assert set(listed) == names
    iterators = [os.scandir(past) for _ in range(3)]  # read in turns, so that no position is the last one
    try:
        assert all({entry.name for entry in group} for group in zip(*iterators, strict=True))
    finally:
        for iterator in iterators:
            iterator.close()


def attempts(past: Path, live: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "create", (past / "new").touch
    yield "mkdir", (past / "new").mkdir
    yield "symlink", lambda: (past / "new").symlink_to("x")
    yield "mkfifo", lambda: os.mkfifo(past / "new")
    yield "unlink", (past / "file").unlink
    yield "rmdir", (past / "sub").rmdir
    yield "rename", lambda: os.rename(past / "file", past / "other")
    yield "link", lambda: os.link(past / "file", past / "other")
    yield "open", lambda: os.open(past / "file", os.O_RDWR)
    yield "truncate", lambda: os.truncate(past / "file", 0)
    yield "chmod", lambda: (past / "file").chmod(0o600)
    yield "utime", lambda: os.utime(past / "file")
    yield "setxattr", lambda: os.setxattr(past / "file", "user.x", b"y")
    yield "removexattr", lambda: os.removexattr(past / "file", "user.colour")


def test_nothing_can_be_changed(mounted: Any) -> None:
    build(mounted.path)
    mounted.snapshot("x")
    past = mounted.path / ".snapfs/snapshots/x"
    before = look(os.fsencode(past / "file")), sorted(os.listdir(past))
    for what, attempt in attempts(past, mounted.path):
        with raises(errno.EROFS) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS, what
    assert (look(os.fsencode(past / "file")), sorted(os.listdir(past))) == before


def test_what_does_not_exist_is_not_found(mounted: Any) -> None:
    (mounted.path / "file").touch()
    mounted.snapshot("x")
    snapshots = mounted.path / ".snapfs/snapshots"
    for path in ("2", "0", "y", "x/nothing", "01x", "99999999999999999999", os.fsdecode(b"\xff")):
        with raises(errno.ENOENT):
            (snapshots / path).stat()
    with raises(errno.ENOTDIR):
        (snapshots / "x/file/below").stat()
    with raises(errno.ENODATA):
        os.getxattr(snapshots / "x/file", "user.nothing")


def test_who_is_inside_a_dropped_snapshot_finds_it_stale(mounted: Any) -> None:
    (mounted.path / "sub").mkdir()
    (mounted.path / "sub/file").write_text("text")
    mounted.snapshot("x")
    inside = os.open(mounted.path / ".snapfs/snapshots/x/sub", os.O_RDONLY | os.O_DIRECTORY)
    try:
        mounted.snapshot()
        mounted.command("drop x")
        with raises(errno.ESTALE, errno.ENOENT):
            os.close(os.open("file", os.O_RDONLY, dir_fd=inside))
    finally:
        os.close(inside)


def damage(volume: Path, content: bytes) -> None:
    """Flip a bit of the stored form of `content`, which does not compress."""
    for segment in (volume / "store/segments").glob("*.seg"):
        data = segment.read_bytes()
        at = data.find(content)
        if at >= 0:
            with open(segment, "r+b") as file:
                file.seek(at + 1000)
                file.write(bytes([data[at + 1000] ^ 1]))
            return
    raise AssertionError("not stored in this form")


def test_a_damaged_object_is_eio_for_its_reader_alone(mounted: Any, mount: Callable[..., Any]) -> None:
    bad, good = os.urandom(65536), os.urandom(65536)
    (mounted.path / "bad").write_bytes(bad)
    (mounted.path / "good").write_bytes(good)
    mounted.snapshot("x")
    subprocess.run(["umount", str(mounted.path)], check=True)
    damage(mounted.volume, bad)
    mount()
    past = mounted.path / ".snapfs/snapshots/x"
    with raises(errno.EIO):
        (past / "bad").read_bytes()
    assert (past / "good").read_bytes() == good
    assert (mounted.path / "bad").read_bytes() == bad
    assert "damaged" in (mounted.volume / "daemon.log").read_text()
    assert "snapfs_damaged_reads_total 0.0" not in (mounted.path / ".snapfs/metrics").read_text()
