"""Small acts on the children of a supervisor: reap one, and have the kernel prefer one when memory is short."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from snapfs.transfer.seal.seal_attempts import memory_limit_bytes

_OOM_PREFERENCE = 100
"""By so much (of 1000) the kernel prefers a daemon to its supervisor when their control group's memory is short: a
daemon that was just forked is smaller than its supervisor by 65 in 64 MiB."""
_POLL_SECONDS = 0.001


def reap(pid: int, seconds: float) -> int | None:
    """The exit code (negative: the signal) of a child that ends within this time; None if it does not."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return -signal.SIGKILL
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)


def not_reaped(pids: list[int]) -> list[int]:
    """Those that have not ended yet; the others are reaped."""
    return [pid for pid in pids if reap(pid, 0.0) is None]


def prefer_for_oom() -> None:
    """Where memory is limited, have the kernel end this process before its supervisor, which is to start another."""
    if memory_limit_bytes() is None:
        return
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        score = min(int(file.read()) + _OOM_PREFERENCE, 1000)
        file.seek(0)
        file.write(str(score))
