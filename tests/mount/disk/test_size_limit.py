"""live.limit: what the sizes of all files add up to. Beyond it EDQUOT, and nothing that was answered is lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.live.content.datapath import why_not_native
from snapfs.live.content.size_limit import limited
from tests.conftest import Mounted, run_snapfs
from tests.fakes.patience import eventually

pytestmark = pytest.mark.skipif(bool(why_not_native()), reason=why_not_native())

MIB = 1 << 20
LIMIT = 4 * MIB
OVERDRAFT = 64 * MIB
KEEP_SIZE, PUNCH_HOLE = 1, 2
both_who_change_names = pytest.mark.parametrize("data_path", ["native", "native, names in Python"], indirect=True)


@pytest.fixture
def limited_mount(mount: Callable[..., Mounted]) -> Mounted:
    return mount("-o", f"live.limit={LIMIT}B")


def used(folder: Path) -> int:
    """As df shows it."""
    room = os.statvfs(folder)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


def sizes(folder: Path) -> int:
    """Of all regular files, each inode once."""
    found = {path.lstat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(found.values())


def counts_right(folder: Path) -> bool:
    return used(folder) == -(-sizes(folder) // 4096) * 4096


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    number = ctypes.get_errno()
    os.close(fd)
    if failed:
        raise OSError(number, os.strerror(number))


def write_directly(path: Path, offset: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page:
            os.pwrite(fd, page, offset)
    finally:
        os.close(fd)


def write_until_refused(path: Path) -> bytes:
    """Append pieces through the kernel's cache until write(2) is EDQUOT; all that it took."""
    taken, piece = bytearray(), os.urandom(50_000)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            while len(taken) < LIMIT + OVERDRAFT * 3:
                done = os.write(fd, piece)
                taken += piece[:done]
                if len(taken) % (300 * len(piece)) == 0:  # a host with much memory keeps more than that
                    os.fdatasync(fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    return bytes(taken)


@both_who_change_names
def test_what_needs_more_room_is_refused_and_changes_nothing(data_path: str, limited_mount: Mounted) -> None:
    place = limited_mount.path
    full, small = place / "full", place / "small"
    small.write_bytes(b"x" * 4096)
    full.touch()
    os.truncate(full, LIMIT - 4096 - 1)
    fd = os.open(place, os.O_RDONLY)

    def make_unnamed() -> None:
        os.close(os.open(place, os.O_TMPFILE | os.O_RDWR))

    def copy() -> None:
        with small.open("rb") as old, full.open("r+b") as new:
            os.copy_file_range(old.fileno(), new.fileno(), 4096, 0, LIMIT - 4096 - 1)

    nearly: dict[str, Callable[[], Any]] = {
        "truncate": lambda: os.truncate(small, 4098),
        "fallocate": lambda: fallocate(small, 0, 0, 4098),
        "fallocate, size kept": lambda: fallocate(small, KEEP_SIZE, 4096, 100),
        "copy": copy,
        "direct": lambda: write_directly(small, 4096),
    }
    reached: dict[str, Callable[[], Any]] = {
        "create": (place / "new").touch,
        "mkdir": (place / "new").mkdir,
        "symlink": lambda: (place / "new").symlink_to("full"),
        "mknod": lambda: os.mkfifo(place / "new"),
        "unnamed": make_unnamed,
    }
    for name, attempt in (
        *nearly.items(),
        ("up to the limit", lambda: os.truncate(full, LIMIT - 4096)),
        *reached.items(),
    ):
        if name == "up to the limit":
            attempt()
            continue
        before = used(place), small.stat().st_size, full.stat().st_size, sorted(os.listdir(place))
        with pytest.raises(OSError, match=".") as refused:
            attempt()
        assert refused.value.errno == errno.EDQUOT, name
        assert before == (used(place), small.stat().st_size, full.stat().st_size, sorted(os.listdir(place))), name
    with pytest.raises(FileExistsError):
        (place / "full").mkdir()
    metrics = (place / ".snapfs/metrics").read_text()
    shown = dict(re.findall(r"^snapfs_live_(limit|limited)_bytes(?:{.*})? (\S+)$", metrics, re.MULTILINE))
    assert {name: float(value) for name, value in shown.items()} == {"limit": LIMIT, "limited": LIMIT}
    os.close(fd)
    assert counts_right(place)


@both_who_change_names
def test_what_needs_no_room_works_at_the_limit(data_path: str, limited_mount: Mounted) -> None:
    place = limited_mount.path
    path = place / "file"
    path.touch()
    os.truncate(path, LIMIT)
    assert os.statvfs(place).f_bavail == 0
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), LIMIT) as mapped:
        mapped[MIB : MIB + 5] = b"in it"
        mapped.flush()
        os.pwrite(file.fileno(), b"over", 2 * MIB)
        os.fsync(file.fileno())
        assert file.seek(0, os.SEEK_END) == LIMIT
    write_directly(path, 0)
    fallocate(path, 0, 0, LIMIT)
    fallocate(path, KEEP_SIZE | PUNCH_HOLE, 3 * MIB, 4096)
    path.open("ab").close()
    path.chmod(0o600)
    os.setxattr(path, "user.note", b"x")
    os.link(path, place / "link")
    os.rename(place / "link", place / "renamed")
    (place / "renamed").unlink()
    assert path.read_bytes()[MIB : MIB + 5] == b"in it"
    assert limited_mount.snapshot("full")["ok"]
    os.truncate(path, LIMIT - 10)
    (place / "new").write_bytes(b"x" * 10)
    path.unlink()
    eventually(lambda: used(place) == 4096, "what is removed does not count")


@pytest.mark.parametrize("end", ["umount", "kill", "the next daemon"])
def test_what_write_took_is_there_whatever_the_limit(
    limited_mount: Mounted, mount: Callable[..., Mounted], end: str
) -> None:
    place = limited_mount.path
    (place / "old").write_bytes(b"o" * MIB)
    taken = write_until_refused(place / "log")
    assert (place / "log").read_bytes() == taken
    assert counts_right(place)
    with (place / "log").open("r+b", buffering=0) as file:
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            file.write(b"x")
        assert file.seek(0, os.SEEK_END) == len(taken) == os.fstat(file.fileno()).st_size
        assert file.read(100) == b""
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
            file.write(b"x")
    with (place / "old").open("r+b", buffering=0) as file:
        assert file.write(b"new") == 3, "another file is overwritten in place"
        os.fsync(file.fileno())
    assert limited_mount.snapshot("beyond")["ok"]
    assert (place / ".snapfs/snapshots/beyond/log").read_bytes() == taken
    if end == "the next daemon":
        pid = limited_mount.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        assert limited_mount.status()["pid"] != pid
    else:
        limited_mount.kill() if end == "kill" else run_snapfs("umount", place)
        mount("-o", f"live.limit={LIMIT}B")
    assert (place / "log").read_bytes() == taken
    assert counts_right(place)
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        (place / "another").touch()
    os.truncate(place / "log", 100)
    (place / "another").write_bytes(b"x" * 1000)
    assert counts_right(place)


def test_many_files_pass_the_limit_by_a_bounded_part(limited_mount: Mounted) -> None:
    place, piece, refused = limited_mount.path, os.urandom(MIB), 0
    for number in range(100):
        (place / str(number)).touch()
    for number in range(100):
        with contextlib.suppress(OSError), (place / str(number)).open("ab", buffering=0) as file:
            refused += 1
            file.write(piece)
            refused -= 1
    assert refused
    eventually(lambda: counts_right(place), "what is written counts")
    assert used(place) <= LIMIT + OVERDRAFT + 2 * MIB


def test_what_is_in_the_kernel_as_a_daemon_dies_counts_with_the_next(limited_mount: Mounted) -> None:
    fd = os.open(limited_mount.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 3 * MIB)
    os.kill(limited_mount.status()["pid"], signal.SIGKILL)
    os.write(fd, b"y" * 3 * MIB)
    os.fsync(fd)
    assert os.pread(fd, 10, 3 * MIB - 5) == b"xxxxxyyyyy"
    assert used(limited_mount.path) == 6 * MIB
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        os.write(fd, b"z")
    os.close(fd)


@both_who_change_names
def test_the_count_stays_right_under_changes_from_many_threads(data_path: str, limited_mount: Mounted) -> None:
    place = limited_mount.path

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for step in range(150):
            path, length = place / f"{seed % 2}-{chance.randrange(6)}", chance.randrange(1, 200_000)
            kind = chance.choice(("write", "write", "truncate", "unlink", "replace", "fallocate", "direct"))
            with contextlib.suppress(FileNotFoundError, PermissionError), contextlib.suppress(OSError):
                if kind == "write":
                    path.write_bytes(bytes(length))
                elif kind == "truncate":
                    os.truncate(path, length)
                elif kind == "unlink":
                    path.unlink()
                elif kind == "replace":
                    (place / f"tmp{seed}").write_bytes(bytes(length))
                    (place / f"tmp{seed}").replace(path)
                elif kind == "fallocate":
                    fallocate(path, 0, 0, length)
                else:
                    write_directly(path, length // 4096 * 4096)
            if step % 50 == 25:
                with contextlib.suppress(OSError):
                    limited_mount.snapshot()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: counts_right(place), "the sum of the sizes")


def test_a_rollback_counts_anew(limited_mount: Mounted) -> None:
    place = limited_mount.path
    (place / "file").write_bytes(bytes(2 * MIB))
    (place / "gone").write_bytes(bytes(MIB))
    limited_mount.snapshot("before")
    os.truncate(place / "file", 10)
    (place / "gone").unlink()
    (place / "new").write_bytes(bytes(100))
    limited_mount.command("rollback before")
    assert sizes(place) == 3 * MIB
    eventually(lambda: counts_right(place), "the sizes of before")


def test_a_volume_from_elsewhere_counts_what_is_not_here_yet(mounted: Mounted, other: Path, tmp_path: Path) -> None:
    (mounted.path / "folder").mkdir()
    for name in ("a", "folder/b"):
        (mounted.path / name).write_bytes(os.urandom(MIB))
    os.link(mounted.path / "a", mounted.path / "folder/link")
    mounted.snapshot("all")
    options = f"live.limit={LIMIT}B,hydration.background=false"
    run_snapfs("mount", "-o", options, "--from", mounted.volume, tmp_path / "new", other)
    assert used(other) == MIB, "the names of the root are here"
    assert len(os.listdir(other / "folder")) == 2
    assert used(other) == 2 * MIB
    (other / "a").unlink()
    os.truncate(other / "folder/b", 4096)
    (other / "folder/link").unlink()
    eventually(lambda: used(other) == 4096, "absent files that are removed")
    run_snapfs("umount", other)


def test_a_file_that_is_not_here_grows_up_to_the_limit(mounted: Mounted, other: Path, tmp_path: Path) -> None:
    """Its writes are answered in Python, which has the same rules."""
    content = os.urandom(2 * MIB)
    (mounted.path / "file").write_bytes(content)
    mounted.snapshot("all")
    options = f"live.limit={LIMIT}B,hydration.background=false"
    run_snapfs("mount", "-o", options, "--from", mounted.volume, tmp_path / "new", other)
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        os.truncate(other / "file", LIMIT + 1)
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        fallocate(other / "file", 0, LIMIT, 1)
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        write_directly(other / "file", LIMIT)
    assert used(other) == len(content)
    taken = write_until_refused(other / "file")
    assert (other / "file").read_bytes() == content + taken
    assert counts_right(other)
    run_snapfs("umount", other)


def test_what_df_shows_is_the_smaller_of_limit_and_host() -> None:
    host = os.statvfs_result((4096, 4096, 1000, 500, 400, 90, 80, 80, 0, 255))
    for limit, count, shown in (
        (4096 * 10, 0, (10, 10, 10)),
        (4096 * 10, 4097, (10, 8, 8)),
        (4096 * 10, 4096 * 50, (50, 0, 0)),
        (4096 * 9000, 4096 * 100, (500, 400, 400)),
    ):
        assert tuple(limited(host, limit, count))[2:5] == shown
        assert tuple(limited(host, limit, count))[5:] == tuple(host)[5:]


def test_a_limit_needs_the_native_data_path(mount: Callable[..., Mounted], volume_dir: Path, mountpoint: Path) -> None:
    options = f"live.limit={LIMIT}B,live.data_path=python"
    done = run_snapfs("mount", "-o", options, volume_dir, mountpoint, check=False)
    assert done.returncode
    assert "live.limit needs the native data path" in done.stderr
