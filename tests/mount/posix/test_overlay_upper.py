"""What overlayfs needs of the filesystem of its upper layer: whiteouts, files without a name, trusted attributes.

A real overlay, with its upper layer on a mount, does the same as one with its upper layer on the host.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount an overlay"),
    pytest.mark.usefixtures("data_path"),
]
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def rename(old: Path, new: Path, flags: int) -> int:
    """renameat2(2); its errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    return ctypes.get_errno() if done else 0


def name_it(fd: int, path: Path) -> int:
    """linkat(2) of an open file; its errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.linkat(fd, b"", AT_FDCWD, os.fsencode(path), AT_EMPTY_PATH) else 0


def tree_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder: kind, mode, owner, device, links of files, content, overlay's own attributes."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        look = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(look.st_mode) else b""
        hides_lower = "trusted.overlay.opaque" in os.listxattr(path, follow_symlinks=False)
        links = look.st_nlink if not path.is_dir() else 0
        found[str(path.relative_to(folder))] = (look.st_mode, look.st_uid, look.st_rdev, links, content, hides_lower)
    return found


@pytest.fixture
def plain() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="snapfs-plain-", dir="/var/tmp") as folder:
        yield Path(folder)


def use_overlay(place: Path, lower: Path, merged: Path) -> dict[str, tuple[Any, ...]]:
    """Mount an overlay with its upper layer in `place`, change it in every way, unmount; what it showed last."""
    (place / "upper").mkdir()
    (place / "work").mkdir()
    options = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work,index=off,redirect_dir=on"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        (merged / "removed").unlink()
        (merged / "moved").rename(merged / "into" / "moved")
        with (merged / "appended").open("ab") as file:
            file.write(b" more")
        for child in (merged / "replaced").iterdir():
            child.unlink()
        (merged / "replaced").rmdir()
        (merged / "replaced").mkdir()
        (merged / "replaced" / "new").write_bytes(b"new")
        (merged / "into").rename(merged / "elsewhere")
        os.link(merged / "appended", merged / "linked")
        (merged / "mode").chmod(0o4711)
        os.chown(merged / "mode", 5, 6)
        (merged / "target").symlink_to("appended")
        (merged / "new over old").write_bytes(b"1")
        (merged / "new over old").replace(merged / "old")
        fd = os.open(merged, os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(fd, b"unnamed")
        assert name_it(fd, merged / "named") == 0
        os.close(fd)
        return tree_of(merged)
    finally:
        subprocess.run(["umount", merged], check=True)


def test_an_overlay_with_its_upper_layer_on_a_mount(mount: Callable[..., Any], plain: Path, snapfs: Any) -> None:
    """RENAME_WHITEOUT and O_TMPFILE are served (overlayfs upperdir)."""
    mounted, lower, merged = mount(), plain / "lower", plain / "merged"
    for folder in (lower, merged, lower / "replaced", lower / "into"):
        folder.mkdir()
    for name in ("removed", "moved", "appended", "mode", "old", "replaced/a", "replaced/b", "into/c"):
        (lower / name).write_bytes(name.encode())
    shown = use_overlay(mounted.path, lower, merged)
    (plain / "host").mkdir()
    assert shown == use_overlay(plain / "host", lower, merged)
    upper = tree_of(mounted.path / "upper")
    assert upper == tree_of(plain / "host" / "upper")
    assert any(stat.S_ISCHR(mode) and device == 0 for mode, _, device, *_ in upper.values())
    mounted.snapshot("after")
    assert tree_of(mounted.path / ".snapfs/snapshots/after/upper") == upper
    snapfs("umount", mounted.path)
    mount()
    assert tree_of(mounted.path / "upper") == upper


@pytest.mark.parametrize("apart", [False, True])
def test_a_rename_leaves_a_whiteout(mount: Callable[..., Any], plain: Path, apart: bool) -> None:
    outcomes = []
    for folder in (mount().path, plain):
        (folder / "sub").mkdir()
        (folder / "set").mkdir()
        os.chown(folder / "set", 7, 8)
        (folder / "set").chmod(0o2777)
        old, new = folder / "old", (folder / "sub" if apart else folder) / "new"
        seen: list[Any] = []
        for flags, prepare in (
            (WHITEOUT, lambda old=old: old.write_bytes(b"1")),
            (WHITEOUT, lambda old=old: (old.unlink(), old.write_bytes(b"2"))),
            (WHITEOUT | NOREPLACE, lambda old=old: (old.unlink(), old.write_bytes(b"3"))),
            (WHITEOUT | NOREPLACE, lambda new=new: new.unlink()),
            (WHITEOUT, lambda new=new: new.unlink()),
            (WHITEOUT | EXCHANGE, lambda: None),
            (8, lambda: None),
        ):
            prepare()
            seen += [rename(old, new, flags), tree_of(folder)]
        (folder / "set/file").write_bytes(b"")
        seen += [rename(folder / "set/file", folder / "set/other", WHITEOUT), (folder / "set/file").lstat().st_gid]
        (folder / "directory").mkdir()
        seen += [rename(folder / "directory", folder / "sub/directory", WHITEOUT), tree_of(folder)]
        outcomes.append([*seen, folder.stat().st_nlink, sorted(os.listdir(folder))])
    assert outcomes[0][:-1] == outcomes[1][:-1]
    assert outcomes[0][-1] == outcomes[1][-1]


def test_a_file_without_a_name(mount: Callable[..., Any], plain: Path) -> None:
    outcomes = []
    for folder in (mount().path, plain):
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o604)
        hidden = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL, 0o600)
        os.write(fd, b"x" * 10_000)
        os.write(hidden, b"y")
        os.fsync(fd)
        look = os.fstat(fd)
        seen = [look.st_nlink, look.st_size, look.st_mode, os.listdir(folder), folder.stat().st_nlink]
        seen += [name_it(hidden, folder / "hidden"), name_it(fd, folder / "a"), name_it(fd, folder / "b")]
        seen += [os.fstat(fd).st_nlink, (folder / "a").read_bytes(), sorted(os.listdir(folder))]
        (folder / "a").unlink()
        (folder / "b").unlink()
        seen += [os.fstat(fd).st_nlink, name_it(fd, folder / "c"), os.listdir(folder), os.pread(fd, 5, 9_990)]
        os.close(fd)
        os.close(hidden)
        outcomes.append(seen)
    assert outcomes[0] == outcomes[1]


def test_a_name_given_after_snapshots_is_in_the_next_with_all_bytes(mount: Callable[..., Any], snapfs: Any) -> None:
    """No snapshot has the bytes of a file without a name, and it is none of the new files any more."""
    mounted = mount()
    content = os.urandom(300_000)
    fd = os.open(mounted.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, content)
    for number in range(2):
        mounted.snapshot(f"before{number}")
        assert os.listdir(mounted.path / f".snapfs/snapshots/before{number}") == []
    assert name_it(fd, mounted.path / "named") == 0
    os.pwrite(fd, b"late", 100_000)
    os.close(fd)
    mounted.snapshot("after")
    content = content[:100_000] + b"late" + content[100_004:]
    assert (mounted.path / ".snapfs/snapshots/after/named").read_bytes() == content
    assert snapfs("verify", mounted.path).returncode == 0
    snapfs("umount", mounted.path)
    mount()
    assert (mounted.path / "named").read_bytes() == content


@pytest.mark.parametrize("named", [False, True])
def test_a_file_without_a_name_and_daemons_that_die(mount: Callable[..., Any], named: bool) -> None:
    mounted = mount()
    fd = os.open(mounted.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"survives")
    os.fsync(fd)
    os.kill(mounted.status()["pid"], signal.SIGKILL)
    assert os.fstat(fd).st_nlink == 0
    if named:
        assert name_it(fd, mounted.path / "named") == 0
        os.kill(mounted.status()["pid"], signal.SIGKILL)
    assert os.pread(fd, 100, 0) == b"survives"
    os.close(fd)
    mounted.kill()
    mount()
    assert os.listdir(mounted.path) == (["named"] if named else [])
    data = [path for path in (mounted.volume / "live/data").rglob("*") if path.is_file()]
    assert len(data) == (1 if named else 0), "the bytes of a file without a name go with a crash"


def test_a_user_without_a_quota_of_flags_gets_an_error(mount: Callable[..., Any]) -> None:
    mounted = mount()
    with pytest.raises(OSError, match=".") as refused:
        os.open(mounted.path / "missing", os.O_TMPFILE | os.O_RDWR, 0o600)
    assert refused.value.errno == errno.ENOENT
    with pytest.raises(OSError, match=".") as refused:
        os.open(mounted.path / ".snapfs", os.O_TMPFILE | os.O_RDWR, 0o600)
    assert refused.value.errno in (errno.EROFS, errno.EPERM)
