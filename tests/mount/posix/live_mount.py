"""A live tree without snapshots, mounted as some user, for tests of the operations."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.patience import PATIENCE_S

RUNNER = Path(__file__).parent.parent.parent / "fakes" / "mounts" / "mount_tree.py"

PROJECT = Path(__file__).parent.parent.parent.parent

UNPRIVILEGED = 65534

IS_ROOT = os.geteuid() == 0

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can do this")


def as_user(uid: int, *command: str | Path) -> list[str]:
    """The command line that runs `command` as `uid`, who may read what the interpreter is made of wherever it is."""
    words = [str(word) for word in command]
    if uid == os.geteuid():
        return words
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *reading, *words]


class Mount:
    """A live tree, mounted by a process of its own as the user `uid`."""

    def __init__(self, folder: Path, uid: int) -> None:
        self.live, self.path, self.uid = folder / "live", folder / "mnt", uid
        for place in (self.live, self.path):
            place.mkdir()
            if IS_ROOT:
                os.chown(place, uid, uid)
        self._daemon: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = as_user(self.uid, sys.executable, RUNNER, self.live, self.path)
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        self._daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._daemon.stdout is not None
        assert self._daemon.stdout.readline() == "mounted\n"

    def stop(self) -> None:
        if self._daemon is None:
            return
        unmounted = subprocess.run(["fusermount3", "-u", str(self.path)], check=False, timeout=PATIENCE_S)
        if unmounted.returncode:
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False, timeout=PATIENCE_S)
        code = self._daemon.wait(PATIENCE_S)
        if self._daemon.stdout is not None:
            self._daemon.stdout.close()
        self._daemon = None
        assert (unmounted.returncode, code) == (0, 0), "in use at the end, or the daemon found its invariants broken"

    def remount(self) -> None:
        self.stop()
        self.start()

    def run(self, code: str, *arguments: str | Path) -> str:
        """Run Python code as a process of the mount's user."""
        return run_as(self.uid, code, *arguments)


def run_as(uid: int, code: str, *arguments: str | Path) -> str:
    """Run Python code as a process of the user `uid`; what it prints."""
    command = as_user(uid, sys.executable, "-c", code, *arguments)
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mounted_as(folder: Path, uid: int) -> Iterator[Mount]:
    mount = Mount(folder, uid)
    try:
        mount.start()
        yield mount
    finally:
        mount.stop()


def refused(number: int, function: Callable[..., object], *arguments: object, **options: object) -> None:
    with pytest.raises(OSError, match=".") as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, errno.errorcode[caught.value.errno or 0]
