"""Exchanges what two paths mean in one step, although one of them is a mountpoint.

The kernel refuses to rename a mountpoint, but only in a mount namespace in which it is one. So a process of our own
enters a namespace without the mount, and exchanges the two directories there (renameat2, RENAME_EXCHANGE): everywhere
else the mount goes along with the directory it is on. For every other process each of the two paths is there at every
instant, before as after.

Without the right to make a namespace (a container) there is no such process: `Exchange.begin` returns None.

This module is run as a program by itself: `python -m snapfs.commands.moving.path_exchange ONE OTHER [MOUNTPOINT]`. It
says `ready` when it is in a namespace of its own, where MOUNTPOINT is not mounted, waits for a line, exchanges, and
says `done` or why not. The end of its input ends it without an act.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import snapfs
from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 1 << 18, 2


class Exchange:
    """The process that waits to exchange `one` and `other`. Use in a ``with``: what is not made then never is."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @staticmethod
    def begin(one: str, other: str, mountpoint: str = "") -> Exchange | None:
        """Start it before the mount is made, or name the `mountpoint` of one that is. None if it may not be."""
        own = os.path.dirname(os.path.dirname(os.path.abspath(snapfs.__file__)))
        path = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __spec__.name, one, other, *filter(None, [mountpoint])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd="/",
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        exchange = Exchange(process)
        if exchange._answer() == "ready":
            return exchange
        exchange.close()
        return None

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def make(self) -> None:
        """Do it now. UserError with the kernel's reason if it cannot be; then nothing has changed."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer != "done":
            raise UserError(f"the two directories cannot be exchanged: {answer or 'its process died'}")
        self.close()

    def close(self) -> None:
        """End the process, and with it its namespace."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _enter_namespace(mountpoint: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _CLONE_NEWNS | (0 if os.geteuid() == 0 else _CLONE_NEWUSER)
    _checked(libc.unshare(flags))
    _checked(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    if mountpoint:
        _checked(libc.umount2(os.fsencode(mountpoint), _MNT_DETACH))


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(one: str, other: str, mountpoint: str = "") -> None:
    try:
        _enter_namespace(mountpoint)
    except OSError as failure:
        print(failure.strerror, flush=True)
        return
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    try:
        Disk().exchange("adopt:exchange", one, other)
        print("done", flush=True)
    except OSError as failure:
        print(failure.strerror, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
