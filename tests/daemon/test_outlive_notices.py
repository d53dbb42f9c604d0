"""A daemon that is killed while the kernel drops pages for it: the next answers for those that are written first."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Ino
from snapfs.daemon.supervision import asleep
from snapfs.fuse.kernel import router
from snapfs.fuse.kernel.notices import BATCH_BYTES, Kernel, about_entry, about_inode
from snapfs.fuse.session.notice_helper import NoticeHelper
from tests.fakes.mounts.outlive_run import supervisor_facts
from tests.fakes.patience import PATIENCE_S

BLOCK, BLOCKS = 4096, 16384
LIMIT = 1 << 30
WRITE = 2  # SYNC_FILE_RANGE_WRITE

libc = ctypes.CDLL(None, use_errno=True)
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
needs_program = pytest.mark.skipif(asleep.program() is None, reason="the program was not built")


def family(pid: int) -> Iterator[Path]:
    """The threads of a process and of its children, as folders in /proc."""
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield thread
            for child in (thread / "children").read_text().split():
                yield from family(int(child))


def is_dropping_pages(pid: int) -> bool:
    """Whether the kernel drops pages at this moment, for a thread of the process or of its children."""
    for thread in family(pid):
        with contextlib.suppress(OSError):
            if "fuse_reverse_inval_inode" in (thread / "stack").read_text():
                return True
    return False


def have_pages_dropped(fd: int, daemon: int) -> None:
    """Return while the kernel drops the pages of a file whose blocks are dirty, because the write of another failed."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for number in range(BLOCKS):
            os.pwrite(fd, number.to_bytes(8) * (BLOCK // 8), number * BLOCK)
        os.pwrite(fd, bytes(BLOCK), 2 * LIMIT)
        libc.sync_file_range(fd, 2 * LIMIT, BLOCK, WRITE)
        until_s = time.monotonic() + 2.0
        while time.monotonic() < until_s:
            if is_dropping_pages(daemon):
                return
    raise AssertionError("the kernel never dropped pages")


@pytest.mark.skipif(router.why_not() is not None, reason=str(router.why_not()))
@pytest.mark.skipif(os.geteuid() != 0, reason="/proc/PID/stack is root's")
@needs_program
def test_a_daemon_killed_while_pages_are_dropped_has_a_successor_at_once(mount: Callable[..., Any]) -> None:
    mounted = mount()
    daemon = mounted.status()["pid"]
    resource.prlimit(daemon, resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    fd = os.open(mounted.path / "file", os.O_RDWR | os.O_CREAT)
    have_pages_dropped(fd, daemon)
    os.kill(daemon, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while (facts := supervisor_facts(mounted.volume))["daemon"] == daemon or facts["state"] != "serving":
        assert time.monotonic() < deadline, facts
        assert facts["restarts"] < 2, "the first successor could not serve"
        time.sleep(0.01)
    with contextlib.suppress(OSError):  # what was not stored may be reported once
        mounted.snapshot("first")
    mounted.snapshot("after")
    with open(mounted.path / ".snapfs/snapshots/after/file", "rb") as file:
        assert [int.from_bytes(file.read(BLOCK)[:8]) for _ in range(BLOCKS)] == list(range(BLOCKS))
    with contextlib.suppress(OSError):  # as above
        os.close(fd)


def helpers() -> list[int]:
    """The helpers of this process."""
    command = ["pgrep", "-P", str(os.getpid()), "-f", " notify "]
    return [int(pid) for pid in subprocess.run(command, check=False, capture_output=True).stdout.split()]


@needs_program
def test_helpers_send_what_the_process_would_and_need_not_live() -> None:
    """The pipe stands for the device: a write to it waits when it is full."""
    reading, writing = os.pipe()
    kernel = Kernel(NoticeHelper(asleep.program))
    kernel.connect(writing)
    long = about_entry(1, b"name" * 200)
    try:
        notices = [long, about_inode(7)] * (BATCH_BYTES // len(long))
        kernel.forget(notices)
        assert os.read(reading, 1 << 16) == b"".join(notices)
        assert kernel.forget_pages(iter([Ino(1), Ino(2)])) == [1, 2]
        assert os.read(reading, 1 << 16) == about_inode(1) + about_inode(2)
        (child,) = helpers()
        os.kill(child, signal.SIGKILL)
        assert kernel.forget_pages([Ino(3)]) == [3]
        assert os.read(reading, 1 << 16) == about_inode(3), "not sent by the process itself"
        threads = [threading.Thread(target=kernel.forget, args=([long] * 200,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while len(helpers()) < 2:
            assert time.monotonic() < deadline, "one thread waits for what the other sends"
        while any(thread.is_alive() for thread in threads):
            if select.select([reading], [], [], 0.01)[0]:
                os.read(reading, 1 << 16)
    finally:
        kernel.close()
        os.close(reading)
        os.close(writing)
    assert helpers() == []


@needs_program
def test_what_the_kernel_refuses_is_reported() -> None:
    reading, writing = os.pipe()
    kernel = Kernel(NoticeHelper(asleep.program))
    kernel.connect(reading)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        kernel.forget([about_inode(5)])
    assert kernel.forget_pages([Ino(5)]) == []
    kernel.close()
    os.close(reading)
    os.close(writing)
