"""What a listing costs once the kernel knows the names, and that what it keeps of them is never wrong.

Requests are counted, not timed. The names are those that a plain folder would show: all that exist from the first
call to the last, once each, whatever else comes and goes, and with other listings meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.live.content import datapath
from tests.fakes.mounts import outlive_run
from tests.fakes.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native() or "native")
FILES = 1000
PER_PAGE = 128  # entries of a page of the kernel's cache, of names of up to eight bytes


def requests(mounted: Any) -> dict[str, tuple[int, int]]:
    """By operation: how many there were, and how many of them C answered."""
    text = (mounted.path / ".snapfs/metrics").read_text()
    all_of_them = dict(re.findall(r'^snapfs_requests_total{operation="(\w+)"} ([\d.]+)', text, re.MULTILINE))
    in_c = dict(re.findall(r'^snapfs_native_request_seconds_count{operation="(\w+)"} ([\d.]+)', text, re.MULTILINE))
    return {name: (int(float(count)), int(float(in_c.get(name, 0)))) for name, count in all_of_them.items()}


@contextlib.contextmanager
def counted(mounted: Any) -> Iterator[dict[str, tuple[int, int]]]:
    """What was requested meanwhile, once it is over; that of reading the metrics included."""
    before, found = requests(mounted), dict[str, tuple[int, int]]()
    yield found
    for name, (total, in_c) in requests(mounted).items():
        was_total, was_in_c = before.get(name, (0, 0))
        if total > was_total:
            found[name] = total - was_total, in_c - was_in_c


def make(folder: Path, count: int) -> list[str]:
    folder.mkdir()
    names = [f"f{number:06}" for number in range(count)]
    for name in names:
        (folder / name).touch()
    return names


def list_long(folder: Path) -> list[str]:
    """As `ls -l` does, but for what it asks of SELinux."""
    names = []
    for entry in os.scandir(folder):
        entry.stat(follow_symlinks=False)
        with pytest.raises(OSError, check=lambda error: error.errno == errno.ENODATA):
            os.getxattr(entry.path, "system.posix_acl_access")
        names.append(entry.name)
    return sorted(names)


def test_a_warm_listing_costs_no_request_a_file(mounted: Any) -> None:
    names = make(mounted.path / "d", FILES)
    assert list_long(mounted.path / "d") == names
    assert list_long(mounted.path / "d") == names  # the ACLs: the first listing made the kernel forget them
    with counted(mounted) as found:
        assert list_long(mounted.path / "d") == names
    assert "readdirplus" not in found
    assert sum(total for total, _ in found.values()) < 20, found
    # this asks for security.selinux of each file, which the kernel never keeps
    command = ["ls", "-l", mounted.path / "d"]
    with counted(mounted) as found:
        listed = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S).stdout
    assert listed.count(b"\n") == FILES + 1
    total, in_c = found.pop("getxattr", (0, 0))
    assert total == in_c <= FILES + 10
    assert "readdirplus" not in found
    assert sum(total for total, _ in found.values()) < 20, found


def test_a_listing_after_each_change_shows_it(mounted: Any) -> None:
    folder = mounted.path / "d"
    names = set(make(folder, 300))
    kept = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number, name in enumerate(sorted(names)[:40]):
            match number % 4:
                case 0:
                    (folder / name).unlink()
                    names.remove(name)
                case 1:
                    (folder / name).rename(folder / f"r{number}")
                    names.symmetric_difference_update({name, f"r{number}"})
                case 2:
                    (folder / name).rename(mounted.path / name)
                    names.remove(name)
                case _:
                    os.link(folder / name, folder / f"l{number}")
                    names.add(f"l{number}")
            assert set(os.listdir(folder)) == names
            assert set(os.listdir(kept)) == names  # the same open directory, from its beginning
    finally:
        os.close(kept)


def test_a_listing_names_the_directory_that_is_above_now(mounted: Any) -> None:
    def up(path: Path) -> int:
        listing = Listing(path)
        try:
            while listing.read(4096):
                pass
        finally:
            os.close(listing.fd)
        return listing.inos[listing.names.index("..")]

    folders = [mounted.path / name for name in ("a", "b")]
    for folder in folders:
        (folder / "d").mkdir(parents=True)
    for path in (folders[0] / "d", folders[1] / "d"):
        assert {up(path) for _ in range(2)} == {path.parent.stat().st_ino}
    (folders[0] / "d").rename(folders[1] / "e")
    for path in (folders[1] / "e", folders[1] / "d"):
        assert {up(path) for _ in range(2)} == {folders[1].stat().st_ino}


class Listing:
    """A directory that is read in small portions."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.names: list[str] = []
        self.inos: list[int] = []

    def read(self, size: int) -> bool:
        """Whether there were more names."""
        buffer = ctypes.create_string_buffer(size)
        count = ctypes.CDLL(None, use_errno=True).getdents64(self.fd, buffer, size)
        assert count >= 0, os.strerror(ctypes.get_errno())
        at = 0
        while at < count:
            ino, _, length, _ = struct.unpack_from("=QqHB", buffer, at)
            self.inos.append(ino)
            self.names.append(buffer.raw[at + 19 : at + length].split(b"\0")[0].decode())
            at += length
        return count > 0

    def finish(self) -> list[str]:
        while self.read(32768):
            pass
        os.close(self.fd)
        return sorted(set(self.names) - {".", ".."})


def test_a_listing_goes_on_behind_a_name_that_is_gone(mounted: Any) -> None:
    """As `rm -r` does while somebody else lists the folder, whose names then fill the last page of the cache."""
    for pages in (1, 3):
        folder = mounted.path / f"d{pages}"
        names = make(folder, pages * PER_PAGE - 1)  # and two dots, and less the one that goes
        assert sorted(os.listdir(folder)) == names
        listing = Listing(folder)
        assert listing.read(32 * 50)  # from the kernel's cache
        gone = listing.names[-1]
        (folder / gone).unlink()
        for _ in range(2):
            assert len(os.listdir(folder)) == len(names) - 1
        assert listing.finish() == names
        assert sorted(os.listdir(folder)) == sorted(set(names) - {gone})


def test_a_folder_is_removed_while_others_list_it(mounted: Any) -> None:
    folder = mounted.path / "d"
    make(folder, 20 * PER_PAGE)
    listers = [
        subprocess.Popen(["sh", "-c", 'while ls "$1"; do :; done', "sh", folder], stdout=-3, stderr=-3)
        for _ in range(2)
    ]
    try:
        subprocess.run(["rm", "-r", folder], check=True, capture_output=True, timeout=PATIENCE_S)
        assert not folder.exists()
    finally:
        for lister in listers:
            lister.wait(PATIENCE_S)


def test_a_rollback_brings_back_names_that_were_listed(mounted: Any) -> None:
    """Neither those that went nor those that came were ever looked up."""
    folder = mounted.path / "d"
    names = make(folder, 200)
    (mounted.path / "empty").mkdir()
    mounted.snapshot("good")
    for name in names[:100]:
        (folder / name).unlink()
    os.mknod(folder / "later")
    os.mknod(mounted.path / "empty/later")
    for _ in range(2):
        assert sorted(os.listdir(folder)) == [*names[100:], "later"]
        assert os.listdir(mounted.path / "empty") == ["later"]
    mounted.command("rollback good")
    assert sorted(os.listdir(folder)) == names
    assert os.listdir(mounted.path / "empty") == []


def test_a_daemon_that_took_the_mount_over_lets_the_kernel_keep_no_names(mounted: Any) -> None:
    """For it does not know which directories are open."""
    names = make(mounted.path / "d", 10)
    assert sorted(os.listdir(mounted.path / "d")) == names
    assert outlive_run.kill_daemon(mounted.volume)
    eventually(lambda: mounted.status()["daemons_before"] == 1)
    for _ in range(2):
        with counted(mounted) as found:
            assert sorted(os.listdir(mounted.path / "d")) == names
        assert "readdirplus" in found
