"""What changes without a request of the kernel is what the next system call sees: modes, capabilities, times, sizes.

The kernel keeps attributes for as long as replies allow. Each test does the same on the mount and on a plain folder of
the host, whose filesystem is the judge; each way of changing a file is tried, on both data paths.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.host_clock import wait_for_the_hosts_clock
from tests.fakes.patience import eventually

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="takes two users"),
    pytest.mark.usefixtures("data_path"),
]
UNPRIVILEGED = 65534
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep, of no harm
WAYS = ["write", "append", "direct", "fallocate", "copy", "O_TRUNC", "creat", "truncate"]

CHANGE = """
import ctypes, mmap, os, sys
path, other, how, user = sys.argv[1:]
os.setgroups([]); os.setgid(int(user)); os.setuid(int(user))
whole = open(path, "rb").read()
if how == "creat": os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
elif how == "truncate": os.truncate(path, len(whole) + 10)
else:
    flags = {"append": os.O_APPEND, "direct": os.O_DIRECT, "O_TRUNC": os.O_TRUNC}.get(how, 0)
    fd = os.open(path, os.O_RDWR | flags)
    if how in ("write", "append"): os.write(fd, whole[:1] if how == "write" else b"x")
    elif how == "direct":
        page = mmap.mmap(-1, 4096); page[:] = whole[:4096]
        os.pwritev(fd, [page], 0)
    elif how == "fallocate":
        done = ctypes.CDLL(None, use_errno=True).fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(len(whole) + 10000))
        if done: sys.exit(ctypes.get_errno())
    elif how == "copy":
        try: os.copy_file_range(os.open(other, os.O_RDONLY), fd, 4096, 0, 0)
        except OSError as error: sys.exit(error.errno)
"""


@pytest.fixture
def plain() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="snapfs-plain-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mounted(mount: Callable[..., Any]) -> Any:
    found = mount()
    found.path.chmod(0o755)
    return found


def program(folder: Path, name: str = "program") -> Path:
    """A program that prints the user it runs as, and a file with the same bytes beside it."""
    for each in (name, "other"):
        shutil.copyfile("/usr/bin/id", folder / each)
        (folder / each).chmod(0o666)
    fd = os.open(folder / name, os.O_RDONLY)
    os.fsync(fd)  # or else the pages that are written back would bring the attributes along
    os.close(fd)
    return folder / name


def runs_as(path: Path) -> int:
    """The effective user of a program that user 65534 runs, which may not walk through its folders."""
    done = subprocess.run(
        [f"./{path.name}", "-u"], cwd=path.parent, user=UNPRIVILEGED, group=UNPRIVILEGED, extra_groups=[], check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return int(done.stdout)


def change(path: Path, how: str, user: int = UNPRIVILEGED) -> None:
    """Change the file as `user`. Skips what the data path cannot do (Python's: allocate, copy)."""
    done = subprocess.run(
        [sys.executable, "-c", CHANGE, path.name, "other", how, str(user)],
        cwd=path.parent, check=False, stderr=subprocess.PIPE,
    )  # fmt: skip
    if done.returncode in (errno.EOPNOTSUPP, errno.EXDEV):
        pytest.skip(f"{how} is not served here")
    assert not done.returncode, done.stderr.decode()


def as_nobody(folder: Path, code: str) -> None:
    start = f"import os; os.setgroups([]); os.setgid({UNPRIVILEGED}); os.setuid({UNPRIVILEGED})\n"
    subprocess.run([sys.executable, "-c", start + code], cwd=folder, check=True)


def shown(path: Path) -> str:
    return oct(stat.S_IMODE(os.stat(path).st_mode))


@pytest.mark.parametrize("how", WAYS)
def test_setuid_is_gone_for_exec_and_stat_with_an_unprivileged_change(mounted: Any, plain: Path, how: str) -> None:
    """A setuid bit stays effective after an unprivileged write."""
    outcomes = []
    modes = (0o4777, 0o2777, 0o6777, 0o2767, 0o1777, 0o4766)
    for folder, mode in itertools.product((mounted.path, plain), modes):
        path = program(folder)
        path.chmod(mode)
        if mode == 0o4777:
            assert runs_as(path) == 0, "the kernel knows the old mode well"
        assert shown(path) == oct(mode)
        change(path, how)
        is_program = how not in ("O_TRUNC", "creat")
        outcomes.append((shown(path), runs_as(path) if mode == 0o4777 and is_program else None))
    assert outcomes[: len(modes)] == outcomes[len(modes) :]


@pytest.mark.parametrize("how", ["O_TRUNC", "creat"])
def test_a_program_that_was_emptied_and_written_anew_has_no_privileges(mounted: Any, how: str) -> None:
    path = program(mounted.path)
    path.chmod(0o4777)
    assert runs_as(path) == 0
    flags = os.O_WRONLY | os.O_TRUNC | (os.O_CREAT if how == "creat" else 0)
    as_nobody(mounted.path, f"os.write(os.open('program', {flags}), open('other', 'rb').read())")
    assert runs_as(path) == UNPRIVILEGED


def test_roots_own_changes_take_nothing(mounted: Any, plain: Path, data_path: str) -> None:
    ways = [how for how in WAYS if data_path == "native" or how not in ("fallocate", "copy")]  # as Python's path does
    for how in ways:
        outcomes = []
        for folder in (mounted.path, plain):
            path = program(folder)
            path.chmod(0o6777)
            change(path, how, user=0)
            outcomes.append(shown(path))
        assert outcomes[0] == outcomes[1] == oct(0o6777)


def test_a_chown_takes_setuid_be_it_to_nobody_else(mounted: Any, plain: Path) -> None:
    """A chown(-1,-1) clears setuid as on ext4."""
    outcomes = []
    for folder in (mounted.path, plain):
        path, made = program(folder), folder / "folder"
        made.mkdir()
        for owner, mode in itertools.product([(-1, -1), (0, 0), (1, -1), (-1, 1)], (0o6777, 0o2767)):
            for call in (os.chown, _fchown):
                path.chmod(mode)
                assert shown(path) == oct(mode)
                call(path, *owner)
                outcomes.append(shown(path))
            made.chmod(mode)
            os.chown(made, *owner)
            outcomes.append(shown(made))
    assert outcomes[: len(outcomes) // 2] == outcomes[len(outcomes) // 2 :]


def _fchown(path: Path, uid: int, gid: int) -> None:
    with open(path, "rb") as file:
        os.fchown(file.fileno(), uid, gid)


@pytest.mark.parametrize("opener", [0, UNPRIVILEGED])
def test_who_writes_counts_and_not_who_opened(mounted: Any, plain: Path, opener: int) -> None:
    """A descriptor of root's in an unprivileged process takes setuid away, one of user 65534's in root's does not."""
    outcomes = []
    for folder in (mounted.path, plain):
        path = program(folder)
        path.chmod(0o4777)
        writer = UNPRIVILEGED if opener == 0 else 0
        code = (
            f"import os; os.setegid({opener}); os.seteuid({opener}); fd = os.open('program', os.O_RDWR); "
            f"os.seteuid(0); os.setegid({writer}); os.seteuid({writer}); os.write(fd, os.pread(fd, 1, 0)); os.fsync(fd)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        outcomes.append(shown(path))
    assert outcomes[0] == outcomes[1] == oct(0o777 if opener == 0 else 0o4777)


def test_setuid_that_the_owner_gave_after_writing_stays_when_the_pages_are_written(mounted: Any) -> None:
    """As `cp -p` does it: pages that are written back are not a write by anybody."""
    os.chown(mounted.path, UNPRIVILEGED, UNPRIVILEGED)
    as_nobody(
        mounted.path,
        """
fd = os.open('own', os.O_CREAT | os.O_RDWR); os.write(fd, b'x' * 100000); os.fchmod(fd, 0o4755); os.fsync(fd)
""",
    )
    assert shown(mounted.path / "own") == oct(0o4755)


@pytest.mark.parametrize("how", WAYS)
def test_file_capabilities_go_with_a_change_as_on_the_host(mounted: Any, plain: Path, how: str) -> None:
    outcomes = []
    for folder, user in itertools.product((mounted.path, plain), (0, UNPRIVILEGED)):
        path = program(folder)
        os.setxattr(path, "security.capability", CAPABILITY)
        assert os.getxattr(path, "security.capability") == CAPABILITY
        change(path, how, user=user)
        outcomes.append("security.capability" in os.listxattr(path))
        with contextlib.suppress(OSError):
            os.getxattr(path, "security.capability")
            outcomes[-1] = True
    assert outcomes[:2] == outcomes[2:]


def test_a_setuid_mode_is_not_left_in_the_kernel_by_a_daemon_that_died(mounted: Any) -> None:
    """Whichever daemon gave the kernel the mode."""
    path = program(mounted.path)
    path.chmod(0o4777)
    assert runs_as(path) == 0
    before = mounted.status()["pid"]
    os.kill(before, 9)
    for how in ("O_TRUNC", "write"):
        path.write_bytes(Path("/usr/bin/id").read_bytes())
        path.chmod(0o4777)
        assert runs_as(path) == 0
        change(path, how)
        assert shown(path) == oct(0o777)
    assert mounted.status()["pid"] != before


@pytest.mark.parametrize("sync", [True, False])
def test_blocks_of_a_file_that_stays_open_are_refreshed(mounted: Any, sync: bool) -> None:
    """The kernel learns of the blocks at close(2): of a file that stays open, within a moment, by us."""
    path = mounted.path / "log"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        for size in (1 << 20, 3 << 20):
            os.pwrite(fd, b"x" * size, 0)
            os.stat(path)
            if sync:
                os.fsync(fd)
            else:
                mounted.command("sync")
                subprocess.run(["sync", "-f", path], check=True)
            eventually(lambda size=size: os.fstat(fd).st_blocks == path.stat().st_blocks >= size // 512, "its blocks")
    finally:
        os.close(fd)


def story(folder: Path) -> list[Any]:
    """What stat shows before and after each change of a file or its names, by whatever call."""
    path, made, moved = folder / "file", folder / "made", folder / "into/moved"
    path.write_bytes(bytes(100_000))
    fd = os.open(path, os.O_RDWR)
    steps: list[Callable[[], Any]] = [
        lambda: os.link(path, folder / "other"),
        made.mkdir,
        (folder / "into").mkdir,
        lambda: made.rename(moved),
        lambda: os.link(path, moved / "third"),
        lambda: (folder / "new").write_bytes(b""),
        lambda: (folder / "new").replace(folder / "other"),
        (moved / "third").unlink,
        lambda: os.truncate(path, 5000),
        lambda: os.ftruncate(fd, 50_000),
        lambda: os.pwrite(fd, b"x" * 4096, 60_000),
        lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        lambda: os.pwrite(fd, b"y" * 9000, 0),
        lambda: os.copy_file_range(fd, fd, 4096, 0, 20_000),
        lambda: path.chmod(0o751),
        lambda: os.chown(path, 5, 6),
        lambda: os.utime(path, (5, 6)),
        moved.rmdir,
    ]
    seen: list[Any] = []
    for step in steps:
        before = os.fstat(fd)
        wait_for_the_hosts_clock()
        step()
        found, top = os.fstat(fd), folder.stat()
        times = found.st_ctime_ns > before.st_ctime_ns, found.st_mtime_ns != before.st_mtime_ns
        owner = found.st_uid, found.st_gid
        seen.append((found.st_nlink, found.st_size, oct(found.st_mode), owner, top.st_nlink, times))
    os.close(fd)
    return seen


def test_links_sizes_times_and_owners_are_what_the_host_shows(mounted: Any, plain: Path) -> None:
    assert story(mounted.path) == story(plain)


def test_extended_attributes_of_namespaces_that_nobody_serves(mounted: Any, plain: Path) -> None:
    """A setxattr in an unknown namespace is EOPNOTSUPP."""
    shows = []
    for folder in (mounted.path, plain):
        path, seen = folder / "file", []
        path.write_bytes(b"")
        for name in ("user.a", "trusted.a", "security.a", "user.", "other.a", "a", "system.other", "User.a"):
            for call in (lambda path, name: os.setxattr(path, name, b"value"), os.removexattr):
                try:
                    seen.append((name, call(path, name)))
                except OSError as error:
                    seen.append((name, errno.errorcode[error.errno or 0]))
        shows.append(seen)
    assert shows[0] == shows[1]
