"""A daemon that is killed while a thread of its own waits for its own mount is gone when that is answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapfs.daemon.fuse_abort import abort_connection
from snapfs.fuse.kernel import fuse_mount, init_handshake
from snapfs.fuse.kernel.fuse_mount import MountOptions
from snapfs.fuse.kernel.fuse_protocol import Flag
from snapfs.fuse.session.session import Session
from tests.fakes.mounts.toy_mount import Toy
from tests.fakes.patience import PATIENCE_S

FAKES = Path(__file__).parent.parent / "fakes" / "mounts"

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="no /dev/fuse here")

DAEMON = """
import os, sys, threading
device, path = int(sys.argv[1]), sys.argv[2]
threading.Thread(target=os.stat, args=[path]).start()
request = os.read(device, 1 << 21)
print("read", flush=True)
threading.Event().wait()
"""
APPLICATION = "import os, sys; print('waiting', flush=True); os.stat(sys.argv[1])"


def is_there(pid: int) -> bool:
    """Whether any thread of the process is left."""
    try:
        return any(tid != str(pid) for tid in os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return False


def test_what_it_asked_itself_is_answered_and_nothing_else(mountpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    fuse_fd = fuse_mount.open_mount(str(mountpoint), MountOptions.usual("toy"))
    held = os.dup(fuse_fd)
    saved_init = init_handshake.read_init(fuse_fd)
    attached = init_handshake.attach(
        Toy(str(tmp_path / "files")), fuse_fd, saved_init, answer_kernel=True, routed=False
    )
    Session(str(mountpoint), attached.fd, saved_init, attached.flags, attached.device).close()
    if not attached.flags & Flag.HAS_RESEND:
        pytest.skip("this kernel sends nothing again")
    command = [sys.executable, "-c", DAEMON, str(held), str(mountpoint / "7")]
    daemon = subprocess.Popen(command, pass_fds=[held], stdout=subprocess.PIPE, text=True)
    application = None
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "read\n"
        application = subprocess.Popen(
            [sys.executable, "-c", APPLICATION, str(mountpoint / "8")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert application.stdout is not None
        assert application.stdout.readline() == b"waiting\n"
        daemon.send_signal(signal.SIGKILL)
        time.sleep(0.3)
        assert is_there(daemon.pid), "it was not held up"
        abort_connection(held, daemon.pid)
        assert daemon.wait(PATIENCE_S) == -signal.SIGKILL
        assert application.poll() is None, "an application's request was answered"
    finally:
        os.close(held)  # the end of the connection
        daemon.kill()
        daemon.communicate()
        if application is not None:
            application.communicate(timeout=PATIENCE_S)
        fuse_mount.unmount(str(mountpoint), lazy=True)
    abort_connection(-1, daemon.pid)  # there is nothing left to do
