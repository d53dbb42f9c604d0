"""The bytes of files through a real mount, on the native and on Python's data path, against a plain file.

A seeded mix of every kind of change, snapshots in between, other descriptors and processes; then what the kernel leaves
to us of setuid and setgid, and the holes of a snapshot.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.limits import TIME_MAX_NS, TIME_MIN_NS
from snapfs.live.backing.host_filesystem import probe_limits
from tests.fakes.patience import PATIENCE_S

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
LIMIT = 300_000
BOTH = pytest.mark.parametrize("data_path", ["native", "python"], indirect=True)
NATIVE = pytest.mark.parametrize("data_path", ["native"], indirect=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Pair:
    """A file on the mount and a plain one, to which the same is done. Python's path cannot allocate or punch."""

    def __init__(self, shown: Path, plain: Path, native: bool) -> None:
        self.fds = [os.open(path, os.O_CREAT | os.O_RDWR, 0o600) for path in (shown, plain)]
        self.shown, self.plain, self.native = shown, plain, native

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def both(self, change: Callable[[int], object]) -> None:
        first, second = (change(fd) for fd in self.fds)
        assert first == second

    def step(self, chance: random.Random) -> None:
        offset, length = chance.randrange(LIMIT), chance.randrange(1, 40_000)
        data = chance.randbytes(length)
        size = os.fstat(self.fds[1]).st_size
        match chance.randrange(9 if self.native else 5):
            case 0 | 1:
                self.both(lambda fd: os.pwrite(fd, data, offset))
            case 2:
                self.both(lambda fd: os.pread(fd, length, offset))
            case 3:
                self.both(lambda fd: os.ftruncate(fd, offset))
            case 4:
                self.both(lambda fd: self.poke(fd, offset % max(size, 1), data, size))
            case 5:
                self.both(lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length))
            case 6:
                self.both(lambda fd: fallocate(fd, chance_mode(offset), offset, length))
            case 7:
                target = (offset + LIMIT // 2) % LIMIT
                self.both(lambda fd: copy(fd, offset, target, min(length, abs(offset - target))))
            case 8:
                self.both(os.fsync)

    @staticmethod
    def poke(fd: int, offset: int, data: bytes, size: int) -> None:
        """Write through a mapping."""
        if size:
            with mmap.mmap(fd, size) as mapping:
                piece = data[: size - offset]
                mapping[offset : offset + len(piece)] = piece

    def check(self) -> bytes:
        found = self.plain.read_bytes()
        assert self.shown.read_bytes() == found
        return found


def chance_mode(offset: int) -> int:
    return (0, KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)[offset % 4]


def copy(fd: int, source: int, target: int, length: int) -> bytes:
    """Copy all of the range that there is; what the target holds then."""
    while length:
        done = os.copy_file_range(fd, fd, length, source, target)
        if not done:
            break
        source, target, length = source + done, target + done, length - done
    return os.pread(fd, 4096, target)


@BOTH
@pytest.mark.parametrize("seed", [1, 2])
def test_a_file_is_what_a_plain_one_is(mount: Callable[..., Any], tmp_path: Path, data_path: str, seed: int) -> None:
    mounted = mount()
    assert mounted.status()["data_path"]["active"] == data_path
    chance = random.Random(seed)
    pairs = [Pair(mounted.path / f"f{n}", tmp_path / f"f{n}", data_path == "native") for n in range(2)]
    wanted: list[dict[str, bytes]] = []
    try:
        for step in range(240):
            chance.choice(pairs).step(chance)
            if step % 60 == 59:
                wanted.append({pair.shown.name: pair.check() for pair in pairs})
                mounted.snapshot(f"s{len(wanted)}")
        for number, files in enumerate(wanted, 1):
            for name, content in files.items():
                assert (mounted.path / f".snapfs/snapshots/s{number}" / name).read_bytes() == content
    finally:
        for pair in pairs:
            pair.close()


@BOTH
def test_a_snapshot_has_every_write_that_returned(mount: Callable[..., Any], data_path: str) -> None:
    """While other threads keep the data path busy, without any fsync."""
    mounted = mount()
    over = threading.Event()

    def write_on(name: str) -> None:
        with open(mounted.path / name, "wb", buffering=0) as file:
            while not over.is_set():
                file.write(os.urandom(50_000))
                if file.tell() > 5_000_000:
                    file.seek(0)

    noise = [threading.Thread(target=write_on, args=(f"noise{n}",)) for n in range(2)]
    for thread in noise:
        thread.start()
    try:
        with open(mounted.path / "counted", "wb", buffering=0) as file:
            for number in range(8):
                file.write(b"%08d" % number * 1000)
                mounted.snapshot(f"at{number}")
                seen = (mounted.path / f".snapfs/snapshots/at{number}/counted").read_bytes()
                assert seen == b"".join(b"%08d" % n * 1000 for n in range(number + 1))
    finally:
        over.set()
        for thread in noise:
            thread.join()


UNPRIVILEGED = """
import ctypes, mmap, os, sys
path, other, how = sys.argv[1:]
os.setgid(65534); os.setuid(65534)
fd = os.open(path, os.O_RDWR)
if how == "write": os.write(fd, b"x")
elif how == "direct":
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096); page[:] = b"d" * 4096
    os.pwritev(direct, [page], 0)
elif how == "fallocate":
    assert ctypes.CDLL(None).fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(10000)) == 0
elif how == "copy": assert os.copy_file_range(os.open(other, os.O_RDONLY), fd, 4096, 0, 0) == 4096
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
@BOTH
@pytest.mark.parametrize("how", ["write", "direct", "fallocate", "copy"])
def test_setuid_goes_with_a_change_by_somebody_else(mount: Callable[..., Any], data_path: str, how: str) -> None:
    if data_path == "python" and how == "fallocate":
        pytest.skip("Python's path cannot allocate")
    mounted = mount()
    file, other = mounted.path / "program", mounted.path / "other"
    other.write_bytes(bytes(8192))
    other.chmod(0o644)
    file.write_bytes(bytes(8192))
    for _ in range(2):  # the second time our set of plain files must have let it go
        file.chmod(0o6777)
        file.write_bytes(bytes(8192)) if how != "direct" else None
        assert stat.S_IMODE(file.stat().st_mode) == 0o6777, "root's own writes take nothing"
        command = [sys.executable, "-c", UNPRIVILEGED, file.name, other.name, how]
        subprocess.run(command, check=True, cwd=mounted.path)  # a user cannot walk through its folders
        assert stat.S_IMODE(file.stat().st_mode) == 0o777


@NATIVE
def test_holes_are_reported_of_files_and_of_snapshots(mount: Callable[..., Any], data_path: str) -> None:
    mounted = mount()
    with open(mounted.path / "sparse", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data" * 1024)
    fd = os.open(mounted.path / "sparse", os.O_RDONLY)
    try:
        os.fsync(fd)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 19
        assert os.lseek(fd, 1 << 19, os.SEEK_HOLE) == (1 << 19) + 4096
        with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
            os.lseek(fd, 1 << 20, os.SEEK_DATA)
    finally:
        os.close(fd)
    mounted.snapshot("holes")
    snapshot = mounted.path / ".snapfs/snapshots/holes/sparse"
    with contextlib.closing(open(snapshot, "rb")) as file:
        assert os.lseek(file.fileno(), 10, os.SEEK_DATA) == 1 << 19
        assert os.lseek(file.fileno(), 10, os.SEEK_HOLE) == 10
        assert os.lseek(file.fileno(), 1 << 19, os.SEEK_HOLE) == (1 << 19) + (64 << 10), "to the chunk"
        for offset, whence in ((1 << 20, os.SEEK_DATA), (1 << 20, os.SEEK_HOLE), (700_000, os.SEEK_DATA)):
            with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                os.lseek(file.fileno(), offset, whence)
        assert os.fstat(file.fileno()).st_blocks == (64 << 10) // 512
    shutil.copy(snapshot, mounted.path / "copy")  # by copy_file_range, across what cannot
    assert (mounted.path / "copy").read_bytes() == snapshot.read_bytes()


@NATIVE
def test_requests_about_bytes_are_counted_and_timed(mount: Callable[..., Any], data_path: str) -> None:
    mounted = mount()
    with open(mounted.path / "f", "wb") as file:
        file.write(bytes(100_000))
        os.fsync(file.fileno())
    text = (mounted.path / ".snapfs/metrics").read_text()
    assert 'snapfs_requests_total{operation="fsync"} 1.0' in text
    assert 'snapfs_native_request_seconds_count{operation="fsync"} 1.0' in text
    assert 'snapfs_native_request_seconds_bucket{le="+Inf",operation="fsync"} 1.0' in text


@NATIVE
@pytest.mark.parametrize("in_c", [True, False])
def test_requests_about_names_are_counted_on_both_paths(
    mount: Callable[..., Any], data_path: str, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with two opcodes (RENAME and RENAME2) count as one operation."""
    monkeypatch.setenv("SNAPFS_NATIVE_CHANGES", str(int(in_c)))
    mounted = mount()
    for name in ("a", "b"):
        (mounted.path / name).mkdir()
    (mounted.path / "a").rename(mounted.path / "c")
    rename_noreplace(mounted.path / "b", mounted.path / "d")
    assert sorted(os.listdir(mounted.path)) == ["c", "d"]
    text = (mounted.path / ".snapfs/metrics").read_text()
    for operation in ("mkdir", "rename"):
        assert f'snapfs_requests_total{{operation="{operation}"}} 2.0' in text
        assert (f'snapfs_native_request_seconds_count{{operation="{operation}"}} 2.0' in text) == in_c


def rename_noreplace(old: Path, new: Path) -> None:
    """By renameat2(2), with a flag, as RENAME2."""
    libc, here = ctypes.CDLL(None, use_errno=True), -100
    assert libc.renameat2(here, os.fsencode(old), here, os.fsencode(new), 1) == 0, os.strerror(ctypes.get_errno())


@NATIVE
def test_an_unmount_in_the_middle_of_everything(mount: Callable[..., Any], data_path: str, snapfs: Any) -> None:
    """Detached under load: all errors are the application's to see, nothing hangs, and the daemon ends."""
    mounted = mount()
    begun = threading.Barrier(4)

    def work(path: Path) -> None:
        path.touch()  # on the mount for certain: once it is detached the name is not found in the folder beneath
        begun.wait(PATIENCE_S)
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                with path.open("r+b") as file:
                    file.write(os.urandom(20_000))
                    os.fsync(file.fileno())

    workers = [threading.Thread(target=work, args=(mounted.path / f"w{n}",)) for n in range(3)]
    for worker in workers:
        worker.start()
    begun.wait(PATIENCE_S)
    subprocess.run(["fusermount3", "-u", "-z", mounted.path], check=True)
    for worker in workers:
        worker.join(PATIENCE_S)
        assert not worker.is_alive()


@BOTH
def test_large_reads_of_a_file_that_shrinks_and_grows_meanwhile(mount: Callable[..., Any], data_path: str) -> None:
    """A read has what the file has: its bytes, or zeros where it was cut off and grew again; no more and no others."""
    path, size = mount().path / "f", 1 << 20
    pattern = b"".join(b"%07x\n" % place for place in range(0, size, 8))
    path.write_bytes(pattern)
    zeros, begun, ended, odd = bytes(8), threading.Event(), threading.Event(), list[int]()

    def read() -> None:
        fd, chance = os.open(path, os.O_RDONLY), random.Random(1)
        try:
            while not ended.is_set():
                offset, length = chance.randrange(0, size, 8), chance.choice((16384, 65536, 131072))
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                data = os.pread(fd, length, offset)
                begun.set()
                words = ((data[at : at + 8], offset + at) for at in range(0, len(data) & ~7, 8))
                odd.extend(place for word, place in words if word not in (zeros, pattern[place : place + 8]))
        finally:
            os.close(fd)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(PATIENCE_S)
    chance = random.Random(2)
    fd = os.open(path, os.O_RDWR)
    try:
        for _ in range(300):
            short = chance.randrange(0, size, 8)
            os.ftruncate(fd, short)
            os.ftruncate(fd, size)
            os.pwrite(fd, pattern[short:], short)
    finally:
        os.close(fd)
        ended.set()
        reader.join()
    assert not odd
    assert path.read_bytes() == pattern


def until(what: Callable[[], object], wanted: object) -> None:
    """The kernel is notified in a moment; what it returns then stays."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := what()) != wanted:
        assert time.monotonic() < deadline, f"{found!r}, not {wanted!r}"
        time.sleep(0.05)


@BOTH
def test_a_write_beyond_the_largest_file_of_the_host_is_refused_and_leaves_snapshots_alone(
    mount: Callable[..., Any], tmp_path: Path, data_path: str
) -> None:
    """A pwrite past the host's 16 TiB returns success and then every snapshot of the mount fails."""
    mounted = mount()
    limit = probe_limits(str(tmp_path)).max_bytes
    if limit > 1 << 60:
        pytest.skip("the host's files have no limit that the kernel's are not held to as well")
    path = mounted.path / "file"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        os.pwrite(fd, b"held", 0)
        os.pwrite(fd, b"beyond", limit + 8192)
        mounted.snapshot("dirty")
        os.pwrite(fd, b"beyond", limit + 8192)
        with pytest.raises(OSError, match="large") as failure:
            os.fsync(fd)
        assert failure.value.errno == errno.EFBIG
        with pytest.raises(OSError, match="large"):
            os.ftruncate(fd, limit + 1)
        if data_path == "native":  # where it cannot be had, glibc makes a write of it
            with pytest.raises(OSError, match="large"):
                fallocate(fd, 0, limit, 4096)
        mounted.snapshot("after")
    finally:
        with contextlib.suppress(OSError):  # what fails once more as the kernel writes the file's last state
            os.close(fd)
    until(lambda: path.stat().st_size < limit, True)
    assert path.read_bytes()[:4] == b"held"
    shown = mounted.path / ".snapfs/snapshots/after/file"
    assert shown.stat().st_size == path.stat().st_size


@BOTH
def test_a_time_beyond_the_range_is_shown_as_it_is_kept(mount: Callable[..., Any], data_path: str) -> None:
    """Times before 1901 change at a remount. The kernel, too, has what is kept, in a moment."""
    mounted = mount()
    path = mounted.path / "file"
    path.touch()
    for time_ns, held in ((-(270 * 365 * 86400) * 10**9, TIME_MIN_NS), (330 * 365 * 86400 * 10**9, TIME_MAX_NS)):
        os.utime(path, ns=(time_ns, time_ns))
        until(lambda: path.stat().st_mtime_ns, held)
        assert path.stat().st_atime_ns == held
    mounted.snapshot("dated")
    assert (mounted.path / ".snapfs/snapshots/dated/file").stat().st_mtime_ns == TIME_MAX_NS


@NATIVE
def test_a_file_that_is_being_written_does_not_switch_holes_off(mount: Callable[..., Any], data_path: str) -> None:
    """SEEK_DATA on one file must not switch holes off for the mount. Nor may it miss what was just written."""
    mounted = mount()
    huge = mounted.path / "huge"
    fd = os.open(mounted.path / "written", os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(fd, 1 << 30)
        for place in (300 << 20, 100 << 20, 700 << 20):
            os.pwrite(fd, b"just written", place)  # in the kernel's cache alone
            assert os.lseek(fd, place - (10 << 20), os.SEEK_DATA) == place
            assert os.lseek(fd, place, os.SEEK_HOLE) == place + 4096
        os.pwrite(fd, b"longer", 2 << 30)
        assert os.lseek(fd, 1 << 30, os.SEEK_DATA) == 2 << 30
        assert os.lseek(fd, 2 << 30, os.SEEK_HOLE) == (2 << 30) + 6
        with huge.open("wb") as file:
            file.truncate(20 << 30)
            file.seek(10 << 30)
            file.write(b"in the middle")
        with huge.open("rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 10 << 30
            with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                os.lseek(file.fileno(), 11 << 30, os.SEEK_DATA)
        subprocess.run(["cp", "--sparse=auto", huge, mounted.path / "copy"], check=True, timeout=PATIENCE_S)
        assert (mounted.path / "copy").stat().st_size == 20 << 30
    finally:
        os.close(fd)


@BOTH
def test_a_listing_ends_though_each_name_makes_another(mount: Callable[..., Any], data_path: str) -> None:
    """Listing a folder ends although each name seen creates another."""
    folder = mount().path
    for number in range(300):
        (folder / f"first{number}").touch()
    seen = []
    with os.scandir(folder) as entries:
        for entry in entries:
            seen.append(entry.name)
            (folder / f"then{len(seen)}").touch()
            assert len(seen) <= 2000, "it does not end"
    assert {f"first{number}" for number in range(300)} <= set(seen)
    assert len(seen) == len(set(seen))
    assert len(os.listdir(folder)) == 300 + len(seen)
