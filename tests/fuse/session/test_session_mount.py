"""A session from its mount to its end, on a toy filesystem: what INIT agrees on, adoption, and clear refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from snapfs.base.errors import BusyError, UserError
from snapfs.fuse.kernel import fuse_mount, init_handshake
from snapfs.fuse.kernel.fuse_mount import MountOptions, MountState
from snapfs.fuse.kernel.fuse_protocol import Flag, InitReply, InitRequest
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.session.session import Session
from tests.fakes.mounts.toy_mount import Toy
from tests.fakes.patience import PATIENCE_S

FAKES = Path(__file__).parent.parent.parent / "fakes" / "mounts"

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here")


@contextmanager
def serving(toy: Toy, mountpoint: Path) -> Iterator[Session]:
    """A mounted toy, served by a thread until the block ends."""
    session = Session.mount(toy, str(mountpoint), MountOptions.usual("a toy, with a comma"), reader=RequestReader())
    thread = threading.Thread(target=trio.run, args=(session.serve,))
    thread.start()
    try:
        yield session
    finally:
        if fuse_mount.mounted_type(str(mountpoint)):
            session.unmount(lazy=True)
        thread.join(PATIENCE_S)
        session.close()


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    (tmp_path / "files").mkdir()
    return Toy(str(tmp_path / "files"))


def append(path: Path, times: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(times):
            os.write(fd, bytes(128))
    finally:
        os.close(fd)


def test_appends_do_not_ask_for_xattrs(toy: Toy, mountpoint: Path) -> None:
    with serving(toy, mountpoint) as session:
        assert Flag.HANDLE_KILLPRIV_V2 in session.flags
        append(mountpoint / "7", 1000)
        assert toy.requests["getxattr"] <= 2
        assert toy.requests["write"] <= 40
        assert (mountpoint / "7").stat().st_size == 128_000


def test_without_killpriv_every_append_asks(toy: Toy, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the test above would notice; and that a kernel without the flag is served all the same."""
    monkeypatch.setattr(init_handshake, "WANTED", Flag(0))
    with serving(toy, mountpoint) as session:
        assert Flag.HANDLE_KILLPRIV_V2 not in session.flags
        append(mountpoint / "7", 200)
        assert toy.requests["getxattr"] >= 200


def test_a_mount_is_shown_as_what_it_is(toy: Toy, mountpoint: Path) -> None:
    assert fuse_mount.state_of(str(mountpoint)) is MountState.EMPTY
    with serving(toy, mountpoint):
        assert fuse_mount.state_of(str(mountpoint)) is MountState.SNAPFS
        lines = Path("/proc/mounts").read_text(errors="replace").splitlines()
        line = next(line for line in lines if str(mountpoint) in line)
        assert line.startswith("a\\040toy,\\040with\\040a\\040comma ")
        assert "default_permissions" in line
        with pytest.raises(BusyError, match="already is a snapfs mount"):
            Session.mount(toy, str(mountpoint), MountOptions.usual("x"))
    assert fuse_mount.state_of(str(mountpoint)) is MountState.EMPTY


def test_unmounting_what_is_in_use_is_refused(toy: Toy, mountpoint: Path) -> None:
    with serving(toy, mountpoint) as session:
        fd = os.open(mountpoint / "7", os.O_CREAT | os.O_RDWR)
        with pytest.raises(BusyError, match="in use"):
            session.unmount()
        os.close(fd)
        session.unmount()
        with pytest.raises(UserError, match="not mounted"):
            session.unmount()


@contextmanager
def adopting(mountpoint: Path, fuse_fd: int, saved_init: bytes, toy: Toy) -> Iterator[None]:
    """Another process serves the mount until it is killed at the end of the block."""
    command = [sys.executable, str(FAKES / "toy_mount.py"), str(mountpoint), str(fuse_fd), saved_init.hex(), toy.folder]
    with subprocess.Popen(command, pass_fds=[fuse_fd], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "adopted\n"
            yield
        finally:
            child.send_signal(signal.SIGKILL)


APPLICATION = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.write(file, b"first")
os.fsync(file)
print("written", flush=True)
sys.stdin.readline()
os.pwrite(file, b"F", 0)
os.fsync(file)
print("again", flush=True)
"""


def test_a_mount_outlives_the_daemons_that_serve_it(toy: Toy, mountpoint: Path) -> None:
    """The application is a process of its own: one that starts daemons must have nothing open on the mount."""
    fuse_fd = fuse_mount.open_mount(str(mountpoint), MountOptions.usual("toy"))
    held = os.dup(fuse_fd)
    saved_init = init_handshake.read_init(fuse_fd)
    attached = init_handshake.attach(toy, fuse_fd, saved_init, answer_kernel=True)
    Session(str(mountpoint), attached.fd, saved_init, attached.flags, router=attached.router).close()
    command = [sys.executable, "-c", APPLICATION, str(mountpoint / "7")]
    application = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert application.stdin is not None
    assert application.stdout is not None
    try:
        with adopting(mountpoint, held, saved_init, toy):
            assert application.stdout.readline() == "written\n"
        application.stdin.write("go on, with no daemon\n")
        application.stdin.flush()
        with adopting(mountpoint, held, saved_init, toy):
            assert application.stdout.readline() == "again\n"
            assert application.wait(PATIENCE_S) == 0
        assert (Path(toy.folder) / "7").read_bytes() == b"First"
    finally:
        os.close(held)  # a process that still waits for a reply gets an error
        application.communicate()
        fuse_mount.unmount(str(mountpoint), lazy=True)


def test_a_dead_mount_is_seen_and_cleared(toy: Toy, mountpoint: Path) -> None:
    os.close(fuse_mount.open_mount(str(mountpoint), MountOptions.usual("toy")))
    assert fuse_mount.state_of(str(mountpoint)) is MountState.DEAD
    with serving(toy, mountpoint):
        assert fuse_mount.state_of(str(mountpoint)) is MountState.SNAPFS


def test_one_clear_line_for_what_is_no_mountpoint(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, words in (("missing", "does not exist"), ("file", "is not a directory"), (".", "is not empty")):
        with pytest.raises(UserError, match=words) as caught:
            fuse_mount.check_mountpoint(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    fuse_mount.check_mountpoint(str(tmp_path), nonempty=True)
    with pytest.raises(BusyError, match="something else"):
        fuse_mount.check_mountpoint("/proc")


def test_without_the_helper_root_mounts_itself(toy: Toy, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    if os.geteuid() != 0:
        with pytest.raises(UserError, match="fuse3"):
            fuse_mount.open_mount(str(mountpoint), MountOptions.usual("toy"))
        return
    with serving(toy, mountpoint):
        append(mountpoint / "7", 3)
        assert (mountpoint / "7").read_bytes() == bytes(384)


def test_the_helpers_own_words_reach_the_user(mountpoint: Path) -> None:
    mountpoint.rmdir()
    with pytest.raises(UserError, match="No such file or directory"):
        fuse_mount.open_mount(str(mountpoint), MountOptions.usual("toy"))
    mountpoint.mkdir()


def test_the_layouts_of_init_survive_a_round_trip() -> None:
    body = bytes(range(64))
    raw = (80).to_bytes(4, "little") + bytes(4) + (9).to_bytes(8, "little") + body
    raw = raw[:28] + (1 << 30 | 1).to_bytes(4, "little") + raw[32:]  # flags
    reply = InitReply.parse(raw)
    assert reply.encode() == raw
    assert Flag.INIT_EXT in reply.flags
    old = reply.changed(Flag.ASYNC_READ, 12, 9)
    assert InitReply.parse(old.encode()).flags == Flag.ASYNC_READ
    assert (old.max_background, old.congestion_threshold) == (12, 9)


@pytest.mark.parametrize("raw", [b"", bytes(40), bytes(104)])
def test_what_is_no_init_request_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="INIT"):
        InitRequest.parse(raw)


def test_only_what_the_kernel_offers_is_agreed_on() -> None:
    everything = InitRequest(1, 7, 45, 0, Flag.INIT_EXT | init_handshake.WANTED)
    old = InitRequest(1, 7, 31, 0, Flag.DONT_MASK)
    reply = InitReply(1, 7, 38, 0, Flag.ASYNC_READ | Flag.AUTO_INVAL_DATA, 0, 0, 1 << 20, 1, 256, bytes(30))
    assert init_handshake.agree(everything, reply).flags == Flag.ASYNC_READ | Flag.INIT_EXT | init_handshake.WANTED
    assert init_handshake.agree(old, reply).flags == Flag.ASYNC_READ | Flag.DONT_MASK
