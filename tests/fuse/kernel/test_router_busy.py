"""A request never waits behind another one's disk while a thread is free; and at a stop nothing is dropped.

The router between a kernel that is this test and a live tree whose fsyncs take as long as the test wants.
"""

from __future__ import annotations

import fcntl
import stat
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.fuse.kernel import router as routing
from snapfs.live.content import datapath
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

if routing.why_not() or datapath.why_not_native():
    pytest.skip(routing.why_not() or datapath.why_not_native(), allow_module_level=True)

from snapfs.fuse.kernel import _router
from snapfs.fuse.session.upcalls import UpcallKind
from tests.fakes.patience import PATIENCE_S

LOOKUP, FSYNC = 1, 20
IN = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
FSYNC_IN = struct.Struct("=QII")
DEADLINE_S = PATIENCE_S
ROUNDS = 300
LOOKS = 400


class Slow:
    """The upcalls of the router: an fsync ends when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, kind: int, *arguments: int) -> int:
        assert self.go.wait(DEADLINE_S) or kind != UpcallKind.FSYNC
        return 0


class Bench:
    def __init__(self, tree: LiveTree, ino: int, threads: int, spin_s: float) -> None:
        self.kernel, device = routing.socket_pair()
        ours, self.libfuse = routing.socket_pair()
        self.router: Router = _router.Router(
            device.detach(), ours.detach(), self.libfuse.fileno(), 70_000, threads, spin_s
        )
        for end in (self.kernel, self.libfuse):
            end.settimeout(DEADLINE_S)
        self.ino, self.slow = ino, Slow()
        self.router.attach_core(tree.native, self.slow)
        self.router.start()

    def fsync(self, unique: int) -> bytes:
        body = FSYNC_IN.pack(self.ino, 0, 0)
        return IN.pack(IN.size + len(body), FSYNC, unique, self.ino, 0, 0, 0, 0) + body

    def lookup(self, unique: int) -> bytes:
        return IN.pack(IN.size + 5, LOOKUP, unique, ROOT_INO, 0, 0, 0, 0) + b"name\0"

    def answered(self) -> int:
        return int(OUT.unpack_from(self.kernel.recv(1 << 16))[2])

    def is_read(self) -> bool:
        """Whether the router has read all that was sent."""
        return not struct.unpack("=i", fcntl.ioctl(self.kernel, termios.TIOCOUTQ, bytes(4)))[0]

    def wait_until_read(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.is_read():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def close(self) -> None:
        self.slow.go.set()
        self.router.stop()
        self.kernel.close()
        self.libfuse.close()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[LiveTree]:
    disk = Disk()
    made = LiveTree(
        str(tmp_path), Namespace(str(tmp_path / "namespace.db"), disk), disk, boot_id="boot", data_path="native"
    )
    yield made
    made.close(clean=False)


@pytest.fixture
def ino(tree: LiveTree) -> int:
    """A file whose name is not durable, so that an fsync of it needs Python."""
    return tree.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o600, 0, 0, 0).ino


def test_a_request_that_comes_right_behind_an_fsync_does_not_wait_for_it(tree: LiveTree, ino: int) -> None:
    bench = Bench(tree, ino, 3, 0.0)
    try:
        for number in range(ROUNDS):
            bench.slow.go.clear()
            bench.kernel.send(bench.fsync(4 * number + 2))
            bench.kernel.send(bench.lookup(4 * number + 4))
            try:
                assert bench.answered() == 4 * number + 4
            except TimeoutError:
                pytest.fail(f"round {number}: the lookup waits behind the fsync")
            bench.slow.go.set()
            assert bench.answered() == 4 * number + 2
    finally:
        bench.close()


def test_what_the_thread_of_trio_handed_over_is_answered_at_a_stop_and_a_settle_ends(tree: LiveTree, ino: int) -> None:
    """The only other thread is busy with an fsync when one more is handed off, and is then stopped."""
    bench = Bench(tree, ino, 1, 0.05)
    settled = threading.Event()

    def settle() -> None:
        bench.router.settle()
        settled.set()

    watcher = threading.Thread(target=settle, daemon=True)
    try:
        bench.kernel.send(bench.fsync(2))
        bench.wait_until_read()
        bench.kernel.send(bench.fsync(4))
        for _ in range(LOOKS):
            if bench.is_read():
                break
            bench.router.next(0.05)
        assert bench.is_read(), "the thread of trio has read it, for the other one is busy"
        watcher.start()
        threading.Timer(0.3, bench.slow.go.set).start()
        bench.router.stop()
        assert {bench.answered(), bench.answered()} == {2, 4}
        assert settled.wait(DEADLINE_S)
    finally:
        bench.close()


def test_the_kinds_of_upcalls_have_the_same_numbers_in_c_and_in_python() -> None:
    """A failed host, a full disk and lost pages go by these numbers: with one off, Python took each for another."""
    assert {kind.name: kind.value for kind in UpcallKind} == _router.UPCALLS
