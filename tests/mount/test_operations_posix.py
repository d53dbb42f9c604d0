"""The operations on a real mount, by system calls: for root, and for a user without privileges.

An unprivileged daemon mounts through fusermount3 and keeps what it is told exactly; what only root may ask for (chown,
device nodes) is tried by root alone, who then finds it again after a remount.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here"),
    pytest.mark.usefixtures("data_path"),
]

RUNNER = Path(__file__).parent.parent / "fakes" / "mount_tree.py"
PROJECT = Path(__file__).parent.parent.parent
NOBODY = 65534
IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can do this")


def as_user(uid: int, *command: str | Path) -> list[str]:
    """The command line that runs `command` as `uid`, who may read what the interpreter is made of wherever it is."""
    words = [str(word) for word in command]
    if uid == os.geteuid():
        return words
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *reading, *words]


class Mount:
    """A live tree, mounted by a process of its own as the user `uid`."""

    def __init__(self, folder: Path, uid: int) -> None:
        self.live, self.path, self.uid = folder / "live", folder / "mnt", uid
        for place in (self.live, self.path):
            place.mkdir()
            if IS_ROOT:
                os.chown(place, uid, uid)
        self._daemon: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = as_user(self.uid, sys.executable, RUNNER, self.live, self.path)
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        self._daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._daemon.stdout is not None
        assert self._daemon.stdout.readline() == "mounted\n"

    def stop(self) -> None:
        if self._daemon is None:
            return
        unmounted = subprocess.run(["fusermount3", "-u", str(self.path)], check=False, timeout=60)
        if unmounted.returncode:
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False, timeout=60)
        code = self._daemon.wait(60)
        if self._daemon.stdout is not None:
            self._daemon.stdout.close()
        self._daemon = None
        assert (unmounted.returncode, code) == (0, 0), "in use at the end, or the daemon found its invariants broken"

    def remount(self) -> None:
        self.stop()
        self.start()

    def run(self, code: str, *arguments: str | Path) -> str:
        """Run Python code as a process of the mount's user."""
        return run_as(self.uid, code, *arguments)


def run_as(uid: int, code: str, *arguments: str | Path) -> str:
    """Run Python code as a process of the user `uid`; what it prints."""
    command = as_user(uid, sys.executable, "-c", code, *arguments)
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder that other users can reach."""
    folder = Path(tempfile.mkdtemp(prefix="snapfs-ops-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def mounted_as(folder: Path, uid: int) -> Iterator[Mount]:
    mount = Mount(folder, uid)
    try:
        mount.start()
        yield mount
    finally:
        mount.stop()


@pytest.fixture
def mnt(short_dir: Path) -> Iterator[Mount]:
    """Mounted by whoever runs the tests."""
    yield from mounted_as(short_dir, os.geteuid())


@pytest.fixture(params=["same", "nobody"])
def any_mnt(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Mount]:
    """Mounted by whoever runs the tests, and by a user without privileges, who then does the work too."""
    if request.param == "nobody" and not IS_ROOT:
        pytest.skip("the tests run as an unprivileged user anyway")
    mode = os.stat("/dev/fuse").st_mode
    if request.param == "nobody":
        os.chmod("/dev/fuse", 0o666)  # as udev has it
    try:
        yield from mounted_as(short_dir, NOBODY if request.param == "nobody" else os.geteuid())
    finally:
        if request.param == "nobody":
            os.chmod("/dev/fuse", stat.S_IMODE(mode))


def refused(number: int, function: Callable[..., object], *arguments: object, **options: object) -> None:
    with pytest.raises(OSError, match=".") as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, errno.errorcode[caught.value.errno or 0]


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


def test_open_flags(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb", buffering=0) as reader:
        assert reader.read(2) == b"01"
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert path.stat().st_size == 0
        assert reader.read() == b""
    refused(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL)
    refused(errno.EISDIR, os.open, mnt.path, os.O_WRONLY)
    refused(errno.ENOTDIR, os.open, path, os.O_DIRECTORY)
    refused(errno.ENOENT, os.open, mnt.path / "missing", os.O_RDONLY)
    refused(errno.ENOENT, os.open, mnt.path / "missing", os.O_RDONLY)  # now from the kernel's memory
    (mnt.path / "missing").touch()
    assert (mnt.path / "missing").stat().st_size == 0


def test_direct_io_and_the_page_cache_agree(mnt: Mount) -> None:
    path = mnt.path / "file"
    block = mmap.mmap(-1, 8192)
    block.write(os.urandom(8192))
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwritev(fd, [block], 4096) == 8192
        assert path.read_bytes() == bytes(4096) + block[:]
        with path.open("r+b") as cached:
            cached.seek(4096)
            cached.write(b"through the cache")
        again = mmap.mmap(-1, 4096)
        assert os.preadv(fd, [again], 4096) == 4096
        assert again[:17] == b"through the cache"
        assert again[17:] == block[17:4096]
    finally:
        os.close(fd)


def test_shared_mappings(mnt: Mount) -> None:
    path = mnt.path / "file"
    with path.open("x+b") as file:
        file.truncate(3 * 4096 + 100)
        with mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as two:
            one[5000:5005] = b"hello"
            assert two[5000:5005] == b"hello"
            one.flush()
            os.pwrite(file.fileno(), b"HELLO", 5000)
            assert two[5000:5005] == b"HELLO"
    mnt.remount()
    data = path.read_bytes()
    assert len(data) == 3 * 4096 + 100
    assert data[5000:5005] == b"HELLO"
    assert data.strip(b"\0") == b"HELLO"


def test_locks_hold_between_processes(mnt: Mount) -> None:
    path = mnt.path / "file"
    code = """import fcntl, sys
with open(sys.argv[1], "r+") as f:
    try: fcntl.{}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: print("held")
"""
    with path.open("w") as file:
        for name in ("flock", "lockf"):
            getattr(fcntl, name)(file, fcntl.LOCK_EX)
            assert mnt.run(code.format(name), path) == "held\n"
            getattr(fcntl, name)(file, fcntl.LOCK_UN)
            assert mnt.run(code.format(name), path) == ""


def test_listing_while_names_come_and_go(mnt: Mount) -> None:
    keep = {f"keep{i:04}" for i in range(400)}
    for name in keep | {f"go{i:04}" for i in range(400)}:
        (mnt.path / name).touch()
    seen = []
    with os.scandir(mnt.path) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count % 2 == 0 and count < 800:
                with_suffix = mnt.path / f"go{count // 2:04}"
                with_suffix.unlink()
                (mnt.path / f"new{count:04}").touch()
    assert len(seen) == len(set(seen))
    assert keep <= set(seen)
    assert set(os.listdir(mnt.path)) == keep | {f"new{i:04}" for i in range(0, 800, 2)}
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


def test_extended_attributes(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.touch()
    refused(errno.ENODATA, os.getxattr, path, "user.none")
    refused(errno.ENODATA, os.removexattr, path, "user.none")
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    refused(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr(path, "user.big", b"x" * 65536)
    refused(errno.E2BIG, os.setxattr, path, "user.bigger", b"x" * 65537)
    refused(errno.ERANGE, os.setxattr, path, "user." + "n" * 251, b"")
    refused(errno.EOPNOTSUPP, os.setxattr, path, "system.other", b"")
    os.setxattr(path, "user.empty", b"")
    assert sorted(os.listxattr(path)) == ["user.a", "user.big", "user.empty"]
    assert os.getxattr(path, "user.big") == b"x" * 65536
    assert os.getxattr(path, "user.empty") == b""
    if IS_ROOT:
        os.symlink("file", mnt.path / "link")
        os.setxattr(mnt.path / "link", "trusted.t", b"of the link", follow_symlinks=False)
        assert os.listxattr(mnt.path / "link", follow_symlinks=False) == ["trusted.t"]
        os.chmod(mnt.path, 0o755)
        os.setxattr(path, "trusted.t", b"of root")
        shown = "import os, sys; print(sorted(os.listxattr(sys.argv[1])))"
        assert run_as(NOBODY, shown, path) == "['user.a', 'user.big', 'user.empty']\n"


def setfacl(*arguments: str | Path) -> None:
    subprocess.run(["setfacl", *map(str, arguments)], check=True)


def getfacl(path: Path) -> list[str]:
    shown = subprocess.run(["getfacl", "-cpn", str(path)], check=True, capture_output=True, text=True).stdout
    return [line.split("\t")[0] for line in shown.split("\n") if line]


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the package acl")
def test_acls_and_modes_keep_step(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.touch()
    path.chmod(0o640)
    setfacl("-m", "u:1234:rwx", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o670
    path.chmod(0o600)
    assert getfacl(path) == ["user::rw-", "user:1234:rwx", "group::r--", "mask::---", "other::---"]
    setfacl("-b", path)
    assert getfacl(path) == ["user::rw-", "group::---", "other::---"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listxattr(path) == []


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs the package acl")
def test_default_acls_are_inherited_and_the_umask_is_not_asked(mnt: Mount) -> None:
    folder = mnt.path / "folder"
    folder.mkdir()
    setfacl("-d", "-m", "u::rwx,g::rwx,o::r-x,u:1234:rwx", folder)
    old = os.umask(0o077)
    try:
        (folder / "file").touch()
        (folder / "sub").mkdir()
        os.mkfifo(folder / "fifo")
        (mnt.path / "plain").touch()
    finally:
        os.umask(old)
    assert stat.S_IMODE((mnt.path / "plain").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o664
    assert getfacl(folder / "file") == ["user::rw-", "user:1234:rwx", "group::rwx", "mask::rw-", "other::r--"]
    assert getfacl(folder / "fifo") == getfacl(folder / "file")
    assert getfacl(folder / "sub")[5:] == getfacl(folder)[3:]
    mnt.remount()
    assert getfacl(folder / "file") == ["user::rw-", "user:1234:rwx", "group::rwx", "mask::rw-", "other::r--"]


@needs_root
def test_setuid_goes_when_somebody_else_writes(mnt: Mount) -> None:
    path = mnt.path / "file"
    path.touch()
    act = "import os, sys; os.chdir(sys.argv[1]); {}"
    actions = [
        "f = os.open('file', os.O_WRONLY); os.write(f, b'x')",
        "os.truncate('file', 1)",
        "os.open('file', os.O_WRONLY | os.O_TRUNC)",
    ]
    for action in actions:
        path.chmod(0o6777)
        run_as(NOBODY, act.format(action), mnt.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777, action
        path.chmod(0o6777)
        mnt.run(act.format(action), mnt.path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o6777, action
    os.chown(path, 1, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_random_reads_writes_truncates_and_mappings_agree_with_a_model(mnt: Mount) -> None:
    """What fsx does: one file, every way to change it, compared with bytes in memory."""
    chance = random.Random(7)
    path, model = mnt.path / "file", bytearray()
    path.touch()
    for step in range(600):
        kind = chance.choice(("write", "append", "truncate", "map", "read", "reopen", "fsync", "direct"))
        offset, length = chance.randrange(300_000), chance.randrange(1, 70_000)
        data = chance.randbytes(length)
        with path.open("r+b", buffering=0) as file:
            if kind == "write":
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + length] = data
                os.pwrite(file.fileno(), data, offset)
            elif kind == "append":
                model.extend(data[:500])
                with path.open("ab", buffering=0) as log:
                    log.write(data[:500])
            elif kind == "truncate":
                model[offset:] = b"" if offset < len(model) else bytes(offset - len(model))
                file.truncate(offset)
            elif kind == "map" and len(model) > length:
                start = chance.randrange(len(model) - length)
                model[start : start + length] = data
                with mmap.mmap(file.fileno(), 0) as mapping:
                    mapping[start : start + length] = data
            elif kind == "fsync":
                os.fsync(file.fileno())
            elif kind == "direct" and len(model) >= 8192:
                fd = os.open(path, os.O_RDWR | os.O_DIRECT)
                block = mmap.mmap(-1, 4096)
                block[:] = data[:4096].ljust(4096, b".")
                model[4096:8192] = block[:]
                os.pwritev(fd, [block], 4096)
                os.close(fd)
            elif kind == "reopen" and step % 7 == 0:
                Path("/proc/sys/vm/drop_caches").write_text("1") if IS_ROOT else None
            at = chance.randrange(len(model) + 1)
            assert os.pread(file.fileno(), 10_000, at) == model[at : at + 10_000], (step, kind)
    assert path.read_bytes() == model
    mnt.remount()
    assert path.read_bytes() == model


def test_many_files_with_few_descriptors(mnt: Mount) -> None:
    """The daemon's descriptors are bounded, however many files are known or open."""
    files = [(mnt.path / f"{i:04}").open("x+b", buffering=0) for i in range(700)]
    for number, file in enumerate(files):
        file.write(b"%d" % number)
    for number, file in enumerate(files):
        file.seek(0)
        assert file.read() == b"%d" % number
        file.close()


def test_statfs_is_the_hosts(mnt: Mount) -> None:
    here, host = os.statvfs(mnt.path), os.statvfs(mnt.live)
    assert (here.f_bsize, here.f_blocks, here.f_namemax) == (host.f_bsize, host.f_blocks, 255)


def test_sockets_work(mnt: Mount) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(mnt.path / "socket"))
        server.listen()
        client.connect(str(mnt.path / "socket"))
