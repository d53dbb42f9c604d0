"""The operations on a real mount, by system calls: for root, and for a user without privileges.

An unprivileged daemon mounts through fusermount3 and keeps what it is given exactly; what only root may request (chown,
device nodes) is tried by root alone, who then finds it again after a remount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount.posix.live_mount import IS_ROOT, Mount, needs_root, refused

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here"),
    pytest.mark.usefixtures("data_path"),
]


EXERCISE = r"""
import errno, os, random, socket, stat, sys
os.chdir(sys.argv[1]); os.umask(0o022)
odd = bytes([0xff, 0x80]) + b"\n\t \\" + b"n" * 249
with open(odd, "xb") as f: f.write(b"named oddly")
assert os.listdir(b".") == [odd]
try: open(odd + b"n", "xb")
except OSError as e: assert e.errno == errno.ENAMETOOLONG
os.utime(odd, ns=(1_000_000_001, 2_000_000_002))
os.mkdir("d", 0o1777); os.chmod("d", 0o3751)
os.mkfifo("fifo", 0o640)
socket.socket(socket.AF_UNIX).bind("socket")
os.symlink(b"\xfe" * 300, "link")
os.link(odd, "d/hard"); os.link("fifo", "d/fifo")
os.setxattr(odd, "user.note", bytes(range(256)))
with open("sparse", "xb") as f:
    f.seek(5 << 30); f.write(b"end"); f.seek(1 << 20); f.write(b"middle")
os.chmod("sparse", 0o6750)
with open("log", "ab") as a, open("log", "ab") as b:
    for i in range(100):
        for f in (a, b): f.write(b"%d\n" % i); f.flush()
os.utime("d", ns=(3, 4))
"""


SURVEY = r"""
import hashlib, os, sys
os.chdir(sys.argv[1])
def show(path):
    s = os.lstat(path)
    facts = [path, oct(s.st_mode), s.st_ino, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns, s.st_ctime_ns]
    facts += [] if os.path.isdir(path) else [s.st_size]
    names = sorted(os.listxattr(path, follow_symlinks=False))
    facts += [(n, os.getxattr(path, n, follow_symlinks=False)) for n in names]
    if os.path.islink(path): facts.append(os.readlink(path))
    elif os.path.isfile(path) and s.st_size < 1 << 30: facts.append(open(path, "rb").read())
    elif os.path.isfile(path):
        with open(path, "rb") as f:
            f.seek(1 << 20); facts.append(f.read(8)); f.seek(5 << 30); facts.append(f.read())
    print(ascii(facts))
    if os.path.isdir(path) and not os.path.islink(path):
        for name in sorted(os.listdir(path)): show(os.path.join(path, name))
show(b".")
"""


def test_all_kinds_of_things_stay_as_they_are_over_a_remount(any_mnt: Mount) -> None:
    any_mnt.run(EXERCISE, any_mnt.path)
    before = any_mnt.run(SURVEY, any_mnt.path)
    assert before.count("\n") == 10
    any_mnt.remount()
    assert any_mnt.run(SURVEY, any_mnt.path) == before


@needs_root
def test_owners_and_devices_are_kept_exactly(mnt: Mount) -> None:
    os.mknod(mnt.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(mnt.path / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.chmod(mnt.path / "null", 0o666)
    (mnt.path / "file").touch()
    os.chown(mnt.path / "file", 4_000_000_000, 3_000_000_000)
    mnt.remount()
    assert os.stat(mnt.path / "file").st_uid == 4_000_000_000
    assert os.stat(mnt.path / "file").st_gid == 3_000_000_000
    assert os.stat(mnt.path / "disk").st_rdev == os.makedev(259, 70_000)
    assert (mnt.path / "null").read_bytes() == b""
    assert subprocess.run(["dd", f"of={mnt.path}/null"], input=b"x", check=True, capture_output=True).returncode == 0


def test_unlinked_files_live_on_while_open(mnt: Mount) -> None:
    path = mnt.path / "file"
    with path.open("x+b") as file:
        file.write(b"still here")
        file.flush()
        path.unlink()
        (mnt.path / "file").write_bytes(b"another")
        assert os.fstat(file.fileno()).st_nlink == 0
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"still here"
        os.fchmod(file.fileno(), 0o600)
        os.ftruncate(file.fileno(), 5)
        assert os.fstat(file.fileno()).st_size == 5


def test_rename_in_all_its_ways(mnt: Mount) -> None:
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2

    def rename(old: Path, new: Path, flags: int) -> int:
        done = renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
        return ctypes.get_errno() if done else 0

    a, b, folder = mnt.path / "a", mnt.path / "b", mnt.path / "folder"
    a.write_text("a")
    b.write_text("b")
    folder.mkdir()
    (folder / "c").write_text("c")
    assert rename(a, b, 1) == errno.EEXIST
    assert rename(a, b, 2) == 0
    assert (a.read_text(), b.read_text()) == ("b", "a")
    assert rename(a, folder, 2) == 0
    assert (a / "c").read_text() == "c"
    assert folder.read_text() == "b"
    refused(errno.EINVAL, os.rename, a, a / "inside")
    refused(errno.EISDIR, os.rename, b, a)
    refused(errno.ENOTDIR, os.rename, a, b)
    with b.open() as replaced:
        os.rename(folder, b)
        assert b.read_text() == "b"
        assert replaced.read() == "a"
    assert sorted(os.listdir(mnt.path)) == ["a", "b"]


def test_listing_while_names_come_and_go(mnt: Mount) -> None:
    keep = {f"keep{i:04}" for i in range(400)}
    for name in keep | {f"go{i:04}" for i in range(400)}:
        (mnt.path / name).touch()
    there = keep | {f"go{i:04}" for i in range(400)}
    seen = []
    with os.scandir(mnt.path) as entries:
        for count, entry in enumerate(entries):  # a name that went before the listing came to it may be seen or not
            seen.append(entry.name)
            if count % 2 == 0 and count < 800:
                old, new = f"go{count // 2:04}", f"new{count:04}"
                (mnt.path / old).unlink()
                (mnt.path / new).touch()
                there = there - {old} | {new}
    assert len(seen) == len(set(seen))
    assert keep <= set(seen)
    assert len(there & {f"new{i:04}" for i in range(0, 800, 2)}) >= 200, "names came and went until the listing's end"
    assert set(os.listdir(mnt.path)) == there
    raw = subprocess.run(["ls", "-ai", str(mnt.path)], capture_output=True, text=True, check=True).stdout.split()
    assert raw[1] == "."
    assert raw[3] == ".."


def test_handles_open_files_without_their_names(mnt: Mount) -> None:
    if not IS_ROOT:
        pytest.skip("open_by_handle_at is root's")
    libc = ctypes.CDLL(None, use_errno=True)
    path = mnt.path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("by handle")
    raw = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132))
    mount_id = ctypes.c_int()
    assert libc.name_to_handle_at(-100, os.fsencode(path), raw, ctypes.byref(mount_id), 0) == 0, ctypes.get_errno()
    os.rename(path, mnt.path / "moved")
    Path("/proc/sys/vm/drop_caches").write_text("2")
    root = os.open(mnt.path, os.O_RDONLY)
    fd = libc.open_by_handle_at(root, raw, os.O_RDONLY)
    try:
        assert fd >= 0, ctypes.get_errno()
        assert os.read(fd, 100) == b"by handle"
    finally:
        os.close(root)
        os.close(fd)


@pytest.mark.parametrize("made", ["file", "folder"])
def test_a_handle_of_what_has_no_name_is_stale(mnt: Mount, made: str) -> None:
    """At once, as with a local filesystem: what could be opened for a moment would be gone in the next."""
    if not IS_ROOT:
        pytest.skip("open_by_handle_at is root's")
    libc = ctypes.CDLL(None, use_errno=True)
    path = mnt.path / "made"
    root = os.open(mnt.path, os.O_RDONLY)
    try:
        for _ in range(20):
            path.mkdir() if made == "folder" else path.write_text("content")
            raw = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(132))
            assert libc.name_to_handle_at(-100, os.fsencode(path), raw, ctypes.byref(ctypes.c_int()), 0) == 0
            path.rmdir() if made == "folder" else path.unlink()
            assert libc.open_by_handle_at(root, raw, os.O_RDONLY) == -1
            assert ctypes.get_errno() == errno.ESTALE
    finally:
        os.close(root)


def test_statfs_is_the_hosts(mnt: Mount) -> None:
    here, host = os.statvfs(mnt.path), os.statvfs(mnt.live)
    assert (here.f_bsize, here.f_blocks, here.f_namemax) == (host.f_bsize, host.f_blocks, 255)


def test_sockets_work(mnt: Mount) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(mnt.path / "socket"))
        server.listen()
        client.connect(str(mnt.path / "socket"))
