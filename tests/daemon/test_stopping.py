"""The end of a daemon that gets a signal while everything is in motion: it comes, and leaves no mount behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from snapfs.fuse.kernel.writeback import Flusher, Unsettled
from tests.fakes.patience import PATIENCE_S, eventually

WRITER = """
import os, random, sys
files = [open(f"{sys.argv[1]}/f{number}", "wb") for number in range(6)]
print("open", flush=True)
while True:
    for file in files:
        file.seek(random.randrange(8_000_000)); file.write(os.urandom(300_000)); file.flush()
"""
SNAPSHOTS = """
import os, sys
while True:
    fd = os.open(f"{sys.argv[1]}/.snapfs/control", os.O_RDWR)
    try:
        os.write(fd, b"snapshot")
    except OSError:
        pass
    finally:
        os.close(fd)
"""


class SlowFence:
    """A fence that is passed when the test lets it."""

    def __init__(self) -> None:
        self.passed = trio.Event()

    async def wait(self, token: int) -> None:
        assert token == 7
        await self.passed.wait()


def test_the_end_waits_for_a_flush_and_lets_none_begin(tmp_path: Path) -> None:
    """A flush is a request to ourselves: if it were not answered any more its thread would keep the daemon for ever."""
    (tmp_path / ".snapfs").mkdir()
    (tmp_path / ".snapfs/fence").write_text("7")

    async def main() -> None:
        fence = SlowFence()
        flusher = Flusher(str(tmp_path), fence, Unsettled(), lambda: True, trio.lowlevel.checkpoint)  # type: ignore[arg-type]
        flusher._device = os.stat(tmp_path).st_dev  # as of a mount, which this is not
        closed = trio.Event()

        async def close() -> None:
            await flusher.close()
            closed.set()

        async def flush() -> None:
            with pytest.raises(OSError, check=lambda error: error.errno == errno.ECANCELED):
                await flusher.flush()  # its second round is not begun

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await trio.testing.wait_all_tasks_blocked(0.2)
            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert not closed.is_set()
            fence.passed.set()
            with trio.fail_after(PATIENCE_S):
                await closed.wait()
        with pytest.raises(OSError, check=lambda error: error.errno == errno.ECANCELED):
            await flusher.flush()

    trio.run(main)


@pytest.mark.parametrize("round_", range(int(os.environ.get("SNAPFS_STOPS", "3"))))
def test_two_signals_end_it_whatever_it_is_doing(tmp_path: Path, mountpoint: Path, round_: int) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-m", "snapfs", "mount", "--foreground", "-o", "snapshots.every=200ms,snapshots.keep=3",
         tmp_path / "volume", mountpoint],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    users: list[subprocess.Popen[bytes]] = []
    try:
        eventually((mountpoint / ".snapfs/status").exists, "the mount")
        for script, out in ((WRITER, subprocess.PIPE), (SNAPSHOTS, None), (SNAPSHOTS, None)):
            command = [sys.executable, "-c", script, mountpoint]
            users.append(subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL))
        assert users[0].stdout is not None
        assert users[0].stdout.readline() == b"open\n"  # on the mount, and not in the folder beneath
        time.sleep(0.5 + 0.2 * round_)
        daemon.send_signal(signal.SIGTERM)
        time.sleep(0.1 * round_)
        daemon.send_signal(signal.SIGTERM)
        _, words = daemon.communicate(timeout=PATIENCE_S)
        assert daemon.returncode == 0, words
        assert not os.path.ismount(mountpoint)
        assert os.listdir(mountpoint) == []  # no dead mount either
    finally:
        for user in users:
            user.kill()
            user.communicate()
        if daemon.poll() is None:
            daemon.kill()
            daemon.communicate()
