"""The pipe by which a daemon reports, once, to the command that waits for its mount.

Invariant: the number of the descriptor is forgotten before it is closed. The next file that the process opens gets the
same number, be it a file of the application: what is reported after that must not reach it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgspec


class ReportPipe:
    """Owns the descriptor `fd`; -1 where no command waits. One thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def report(self, facts: dict[str, Any]) -> None:
        """Send one line of JSON, and close the pipe. The second report of a process goes nowhere."""
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            if fd >= 0:
                os.write(fd, msgspec.json.encode(facts) + b"\n")
                os.close(fd)

    def close(self) -> None:
        """Report nothing: this process is not the one that the command waits for."""
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            if fd >= 0:
                os.close(fd)
