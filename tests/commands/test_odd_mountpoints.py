"""Mountpoints that anybody may choose: symbolic links, carriage returns, bytes that are no text, forged lines."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base import mountinfo
from snapfs.base.mountinfo import MountLine, mount_at, mounts, resolved
from snapfs.daemon.supervision import fuse_connection
from tests.conftest import _wait_gone, force_unmount
from tests.fakes.patience import PATIENCE_S

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
ODD = [
    b"a\rb",
    b"a\r1 2 0:1 / /forged rw - fuse.snapfs none rw",
    b"\xff\xfe",
    b"a b\tc\nd\\e",
    "ä\u2028\x85\x1c".encode(),
]


def mount_tmpfs(place: bytes, source: bytes) -> None:
    os.makedirs(place)
    if ctypes.CDLL(None, use_errno=True).mount(source, place, b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[list[bytes]]:
    """Mounts of something else on places with all kinds of names, from sources with such names."""
    places = [os.fsencode(tmp_path) + b"/" + name for name in ODD]
    made = []
    try:
        for place, source in zip(places, ODD, strict=True):
            mount_tmpfs(place, source)
            made.append(place)
        yield places
    finally:
        for place in made:
            subprocess.run(["umount", place], check=True)


@needs_root
def test_mountinfo_has_every_name_whole_and_no_line_that_is_not_there(odd: list[bytes]) -> None:
    found = {os.fsencode(mount.mountpoint): mount for mount in mounts()}
    assert set(odd) <= set(found)
    assert b"/forged" not in found
    for place, source in zip(odd, ODD, strict=True):
        assert os.fsencode(found[place].source) == source
        assert (found[place].kind, found[place].device) == ("tmpfs", os.stat(place).st_dev)
        assert mount_at(os.fsdecode(place)) == found[place]


@needs_root
def test_odd_mounts_of_others_break_no_command(
    odd: list[bytes], volume_dir: Path, mountpoint: Path, snapfs: Callable[..., Any]
) -> None:
    """An unprivileged user's mount with a carriage return in its name breaks every command on the host."""
    snapfs("mount", volume_dir, mountpoint)
    for command in ("status", "list", "snapshot", "verify", "doctor", "upgrade"):
        done = snapfs(command, mountpoint, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    facts = json.loads((mountpoint / ".snapfs/status").read_bytes())
    os.kill(facts["pid"], signal.SIGKILL)
    assert (mountpoint / ".snapfs").stat()
    snapfs("umount", mountpoint)


@needs_root
def test_giving_up_ends_the_own_mount_and_nobody_elses(
    mount: Callable[..., Any], tmp_path: Path, snapfs: Callable[..., Any]
) -> None:
    """The next daemon death takes other people's mounts down with ECONNABORTED; or the own one hangs, while a process
    that cannot be killed has its descriptor, where nobody has mounted the kernel's switches."""
    other = tmp_path / "mnt\rb"  # it begins as the other's
    other.mkdir()
    snapfs("mount", tmp_path / "other-volume", other)
    try:
        own = mount()
        facts = own.status()
        fuse_connection.abort(str(own.path), os.open("/dev/null", os.O_RDONLY))
        (other / "file").write_bytes(b"alive")
        with pytest.raises(OSError, match="."):
            (own.path / "file").write_bytes(b"dead")
        force_unmount(str(own.path))
        for pid in (facts["supervisor"], facts["pid"]):
            _wait_gone(pid)
    finally:
        snapfs("umount", other)


def test_lines_that_are_no_mounts_are_left_out() -> None:
    good = b"36 35 98:0 / /mnt\\040x\\134\\012 rw,noatime master:1 shared:2 - fuse.snapfs a\\040b rw,user_id=7"
    lines = [b"", b"nonsense", b"1 2 x:y / /a rw - t s o", b"1 2 3:4 / /b rw", good, b"1 2 0:5 / /c rw - tmpfs  rw"]
    parsed = [mountinfo._parse(line) for line in lines]
    assert parsed[:4] == [None] * 4
    one, other = parsed[4:]
    assert isinstance(one, MountLine)
    assert isinstance(other, MountLine)
    assert (one.mountpoint, one.source, one.owner, one.device) == ("/mnt x\\\n", "a b", 7, os.makedev(98, 0))
    assert (other.mountpoint, other.source, other.owner) == ("/c", "", None)


def test_a_path_is_resolved_to_its_last_part(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (tmp_path / "up").symlink_to("real")
    (tmp_path / "twice").symlink_to(tmp_path / "up")
    (tmp_path / "into").symlink_to("up/sub/../sub")
    (tmp_path / "nowhere").symlink_to("missing/child")
    (tmp_path / "loop").symlink_to("loop")
    base = os.path.realpath(tmp_path)
    for given, wanted in (
        ("up", "real"), ("twice", "real"), ("twice/sub", "real/sub"), ("into", "real/sub"), ("into/", "real/sub"),
        ("nowhere", "missing/child"), ("real/../up/.", "real"),
    ):  # fmt: skip
        assert resolved(f"{tmp_path}/{given}") == f"{base}/{wanted}"
    assert resolved("/") == "/"
    with pytest.raises(OSError, match="symbolic links"):
        resolved(str(tmp_path / "loop"))


def test_a_symbolic_link_as_mountpoint_works_in_every_command(
    mountpoint: Path, volume_dir: Path, tmp_path: Path, snapfs: Callable[..., Any]
) -> None:
    """A mountpoint that is a symbolic link."""
    link, far = tmp_path / "link", tmp_path / "far"
    link.symlink_to(mountpoint.name)
    far.symlink_to(link)
    for place in (link, far):
        snapfs("mount", volume_dir, place)
        assert os.path.ismount(mountpoint)
        (place / "file").write_bytes(b"content")
        for command in ("status", "snapshot", "list", "doctor", "verify", "upgrade", "log"):
            snapfs(command, place)
        snapfs("show", place, "1")
        assert snapfs("mount", volume_dir, place, check=False).returncode == 4
        assert json.loads((place / ".snapfs/status").read_bytes())["mountpoint"] == str(mountpoint)
        snapfs("rollback", place, "1", "--force")
        snapfs("umount", place)
        assert not os.path.ismount(mountpoint)
    snapfs("mount", volume_dir, far, "--", "touch", mountpoint / "under")
    assert not os.path.ismount(mountpoint)
    snapfs("mount", volume_dir, far)
    pid = json.loads((mountpoint / ".snapfs/status").read_bytes())
    for number in (pid["supervisor"], pid["pid"]):
        os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while snapfs("mount", volume_dir, link, check=False).returncode and time.monotonic() < deadline:
        time.sleep(0.1)
    assert snapfs("status", link).returncode == 0


def test_a_mount_by_a_stranger_in_the_name_of_a_volume_is_not_asked(tmp_path: Path) -> None:
    from snapfs.commands.support.locate import MountEntry

    volume = tmp_path / "volume"
    volume.mkdir()
    own = os.stat(volume).st_uid
    assert MountEntry("/x", str(volume), own).is_of(str(volume))
    assert MountEntry("/x", str(volume), 0).is_of(str(volume))
    assert not MountEntry("/x", str(volume), own + 12345).is_of(str(volume))


@needs_root
def test_a_process_with_an_odd_name_is_looked_at_and_named(
    mount: Callable[..., Any], snapfs: Callable[..., Any]
) -> None:
    mounted = mount()
    code = (
        "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'\\xff\\rState: Z'); f = open('f', 'w'); "
        "print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=mounted.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        from snapfs.fuse.kernel.openers import writers_of

        assert writers_of(str(mounted.path)) >= 1
        done = snapfs("umount", mounted.path, check=False)
        assert done.returncode == 4
        assert f"({process.pid})" in done.stderr
    finally:
        process.communicate()
