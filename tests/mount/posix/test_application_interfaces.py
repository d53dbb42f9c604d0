"""Interfaces of Linux that applications use beside read and write: locks, notification, copies in the kernel, rings.

A table of small programs, each run in a folder of a mount and in a plain folder of the host: they print the same. What
is known to differ is a test of its own, which says how.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("data_path")

BEGIN = """
import ctypes, errno, fcntl, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(call, *arguments, **named):
    try: return call(*arguments, **named)
    except OSError as error: return errno.errorcode[error.errno]
def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), "")
    return result
"""

LOCKS = """
F_OFD_GETLK, F_OFD_SETLK = 36, 37
def lock(kind, start, length): return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
one, two = (os.open("file", os.O_RDWR | os.O_CREAT) for _ in range(2))
print(attempt(fcntl.fcntl, one, F_OFD_SETLK, lock(fcntl.F_WRLCK, 0, 10)) == lock(fcntl.F_WRLCK, 0, 10))
for start in (0, 9, 10): print(attempt(fcntl.fcntl, two, F_OFD_SETLK, lock(fcntl.F_WRLCK, start, 5)))
print(struct.unpack("hhqqi4x", fcntl.fcntl(two, F_OFD_GETLK, lock(fcntl.F_RDLCK, 0, 5))))
print(attempt(fcntl.lockf, two, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 0))
os.close(one)
print(attempt(fcntl.fcntl, two, F_OFD_SETLK, lock(fcntl.F_WRLCK, 0, 0)) == lock(fcntl.F_WRLCK, 0, 0))
print(attempt(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB))
three = os.open("file", os.O_RDWR)
print(attempt(fcntl.flock, three, fcntl.LOCK_EX | fcntl.LOCK_NB), attempt(fcntl.flock, three, fcntl.LOCK_SH))
"""

SENDFILE = """
content = os.urandom(300_001)
open("source", "wb").write(content)
source, target = os.open("source", os.O_RDONLY), os.open("target", os.O_RDWR | os.O_CREAT)
near, far = socket.socketpair()
sent, got = 0, b""
while sent < len(content):
    sent += os.sendfile(near.fileno(), source, sent, 70_000)
    while len(got) < sent: got += far.recv(1 << 16)
print(got == content, os.sendfile(target, source, 0, 1 << 20), open("target", "rb").read() == content)
read, write = os.pipe()
print(os.splice(source, write, 5000, offset_src=100), os.read(read, 5000) == content[100:5100])
print(os.write(write, b"from a pipe"), os.splice(read, target, 100, offset_dst=7), os.pread(target, 18, 0)[7:])
"""

SYMLINK_ATTRIBUTES = """
os.symlink("nowhere", "link")
os.mkfifo("fifo")
for path in ("link", "fifo"):
    for name in ("user.a", "trusted.a", "security.a"):
        print(path, name, attempt(os.setxattr, path, name, b"1", follow_symlinks=False))
        print(path, name, attempt(os.getxattr, path, name, follow_symlinks=False))
    print(sorted(os.listxattr(path, follow_symlinks=False)))
print(attempt(os.setxattr, "link", "user.a", b"1"))
"""

INOTIFY = """
watch = checked(libc.inotify_init1(os.O_NONBLOCK))
checked(libc.inotify_add_watch(watch, b".", 0xFFF))
os.mkdir("folder")
open("a", "w").write("x")
os.rename("a", "b")
os.link("b", "folder/c")
os.truncate("b", 100)
os.chmod("b", 0o600)
os.unlink("b")
seen, at = os.read(watch, 1 << 16), 0
while at < len(seen):
    _, mask, cookie, length = struct.unpack_from("iIII", seen, at)
    print(hex(mask), bool(cookie), seen[at + 16 : at + 16 + length].rstrip(b"\\0"))
    at += 16 + length
"""

FANOTIFY = """
ON_CHILD, ADD, MOUNT, FID = 0x08000000, 1, 0x10, 0x200
for flags, mark, mask in ((0, ADD, 0x3B | ON_CHILD), (FID, ADD, 0x3FB | ON_CHILD), (0xC00, ADD, 0x3C0 | ON_CHILD)):
    group = checked(libc.fanotify_init(flags | 2, os.O_RDONLY))
    checked(libc.fanotify_mark(group, mark, ctypes.c_uint64(mask), -100, b"."))
    open("file", "w").write("x")
    os.rename("file", "other")
    os.unlink("other")
    seen, at = os.read(group, 1 << 16), 0
    while at < len(seen):
        length, _, _, _, mask, fd, _ = struct.unpack_from("IBBHQii", seen, at)
        print(hex(mask), fd >= 0)
        if fd >= 0: os.close(fd)
        at += length
    os.close(group)
group = checked(libc.fanotify_init(4, os.O_RDONLY))  # asks for permission: denied, and granted
open("asked", "w").close()
checked(libc.fanotify_mark(group, ADD, ctypes.c_uint64(0x10000), -100, b"asked"))
for word in (2, 1):
    child = os.fork()
    if not child: os._exit(0 if attempt(os.open, "asked", os.O_RDONLY) != "EPERM" else 7)
    fd = struct.unpack_from("IBBHQii", os.read(group, 24))[5]
    os.write(group, struct.pack("iI", fd, word))
    os.close(fd)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

LEASES = """
import signal
signal.signal(signal.SIGIO, lambda *_: None)
fd = os.open("file", os.O_RDONLY | os.O_CREAT)
print(attempt(fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK), fcntl.fcntl(fd, fcntl.F_GETLEASE))
print(attempt(os.open, "file", os.O_WRONLY | os.O_NONBLOCK))
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
print(attempt(os.open, "file", os.O_WRONLY | os.O_NONBLOCK) != "EAGAIN")
"""

STATX_BASIC_STATS, STATX_BTIME = 0x7FF, 0x800

PROGRAMS = {
    "locks of open files, flock": LOCKS,
    "sendfile, splice": SENDFILE,
    "attributes of symlinks": SYMLINK_ATTRIBUTES,
    "inotify": INOTIFY,
    "fanotify": FANOTIFY,
    "leases": LEASES,
}


@pytest.fixture
def plain() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="snapfs-plain-", dir="/var/tmp") as folder:
        yield Path(folder)


def run_in(folder: Path, name: str, program: str) -> str:
    place = folder / name
    place.mkdir()
    command = [sys.executable, "-c", BEGIN + program]
    done = subprocess.run(command, cwd=place, text=True, capture_output=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="trusted attributes and fanotify are root's")
def test_programs_do_on_a_mount_what_they_do_on_the_host(mounted: Any, plain: Path) -> None:
    for name, program in PROGRAMS.items():
        here, host = (run_in(folder, name, program) for folder in (mounted.path, plain))
        assert here == host, name
        assert here, name


@pytest.mark.parametrize("kind", ["flock", "open file"])
def test_locks_outlive_the_daemon(mounted: Any, kind: str) -> None:
    """A lock is held through the death of the daemon, and another process still finds it with the next one."""
    path = mounted.path / "file"
    take = "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    if kind == "open file":
        take = "fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))"
    code = f"{BEGIN}\nfd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\nprint(attempt(lambda: {take}), flush=True)\n"

    def try_it(then: str = "") -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code + then, path], text=True, **pipes)  # type: ignore[call-overload,no-any-return]

    with try_it("sys.stdin.read()") as holder:
        assert holder.stdout is not None
        assert "E" not in holder.stdout.readline()
        os.kill(mounted.status()["pid"], signal.SIGKILL)
        assert try_it().communicate(timeout=PATIENCE_S)[0] == "EAGAIN\n"
        holder.communicate("", timeout=PATIENCE_S)
    assert "E" not in try_it().communicate(timeout=PATIENCE_S)[0]


def copied_in_the_kernel(old: int, new: int, length: int) -> int:
    """Bytes that copy_file_range copied from offset 1 on; 0 if these two filesystems have no such copy."""
    try:
        return os.copy_file_range(old, new, length, 1, 0)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return 0


def test_copies_between_mounts_and_the_host(mounted: Any, other: Path, tmp_path: Path, snapfs: Any) -> None:
    """copy_file_range copies from mount to mount where the kernel lets it, or is EXDEV; cp and sendfile always do."""
    snapfs("mount", tmp_path / "second", other)
    content = os.urandom(200_001)
    source = mounted.path / "source"
    source.write_bytes(content)
    for target in (other / "target", tmp_path / "target"):
        with source.open("rb") as old, target.open("w+b") as new:
            done = copied_in_the_kernel(old.fileno(), new.fileno(), len(content))
            assert os.pread(new.fileno(), 1 << 20, 0) == content[1 : 1 + done]
            assert os.sendfile(new.fileno(), old.fileno(), 0, len(content)) == len(content)
        assert target.read_bytes() == content
        target.unlink()
        subprocess.run(["cp", "--reflink=auto", "--sparse=auto", source, target], check=True)
        assert target.read_bytes() == content
    snapfs("umount", other)


@pytest.mark.parametrize("engine", ["io_uring", "libaio", "mmap"])
def test_asynchronous_and_direct_applications(mounted: Any, engine: str) -> None:
    """What fio wrote with 16 requests under way it reads back, each block checked."""
    if shutil.which("fio") is None:
        pytest.skip("there is no fio")
    command = ["fio", f"--name={engine}", f"--directory={mounted.path}", f"--ioengine={engine}", "--iodepth=16"]
    command += ["--rw=randrw", "--bsrange=4k-64k", "--ba=4k", "--size=2m", "--verify=crc32c", "--verify_fatal=1"]
    command += ["--fsync=32", "--fallocate=none", f"--direct={int(engine != 'mmap')}", "--do_verify=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd="/")
    if "Operation not permitted" in done.stderr and engine == "io_uring":
        pytest.skip("this host has switched io_uring off")
    assert done.returncode == 0, done.stderr + done.stdout


def test_times_that_are_not_kept_are_not_shown_as_kept(mounted: Any) -> None:
    """The mount is noatime and says so: a read changes no access time, utime does. statx(2) claims no birth time."""
    path = mounted.path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(1_000_000_000, 2_000_000_000))
    assert path.read_bytes() == b"content"
    assert path.stat().st_atime_ns == 1_000_000_000
    assert os.statvfs(mounted.path).f_flag & os.ST_NOATIME
    found = (ctypes.c_uint32 * 64)()
    assert ctypes.CDLL(None).statx(-100, os.fsencode(path), 0, STATX_BASIC_STATS | STATX_BTIME, found) == 0
    assert found[0] & STATX_BASIC_STATS == STATX_BASIC_STATS
    assert not found[0] & STATX_BTIME
