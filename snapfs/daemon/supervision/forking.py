"""The forks of a supervisor: a daemon, and the helper that flushes the mount for it.

A child lets go of what is the supervisor's alone, and leaves its process group, lest the terminal's signals come twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snapfs.daemon.supervision.asleep import program
from snapfs.daemon.supervision.child_process import prefer_for_oom
from snapfs.daemon.supervision.signal_pipe import SignalPipe
from snapfs.daemon.supervision.signals import ENDING
from snapfs.daemon.supervision.syncfs_helper import serve


@dataclass(frozen=True, slots=True)
class Forked:
    """A child, seen from one side: `pid` is 0 in the child itself; `channel` is the own end."""

    pid: int
    channel: socket.socket


def fork_daemon(signals: SignalPipe, close: Sequence[int]) -> Forked:
    """Fork a daemon. It takes the signals that end it when it can note them (signals.py): blocked until then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _release(signals, close)
        prefer_for_oom()
        return Forked(0, theirs)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    theirs.close()
    return Forked(pid, ours)


def fork_helper(signals: SignalPipe, close: Sequence[int], mountpoint: str, after_start: Callable[[], None]) -> Forked:
    """Fork a helper (syncfs_helper.py); `channel` is the end for the daemon. `after_start` is called in the helper."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _release(signals, close)
            after_start()
            if (helper := program()) is not None:
                theirs.set_inheritable(True)
                with contextlib.suppress(OSError):  # Python does it, too
                    os.execv(helper, [helper, "flush", str(theirs.fileno()), mountpoint])
            serve(theirs, mountpoint)
        finally:
            os._exit(0)
    theirs.close()
    return Forked(pid, ours)


def _release(signals: SignalPipe, close: Sequence[int]) -> None:
    signals.release()
    for fd in close:
        if fd >= 0:
            os.close(fd)
    os.setpgid(0, 0)
