"""A supervisor while nothing happens is a small program in C (daemon/native/supervisor.c), in the same process.

Python with what a supervisor imports takes some 13 MiB for each mount, for weeks of waiting; the program takes 0.2. The
supervisor becomes it by `exec`, with what it holds in a memory file, as for an upgrade (supervisor_upgrade.py), and it
becomes Python again when the daemon has died or a signal has come. It takes nothing in between, so nothing is lost.

Invariants:
1. It sleeps only while a daemon serves and nothing is under way: whatever comes, only the daemon's death and signals
   need a supervisor. What the daemon has sent meanwhile is still in the channel.
2. An installation that is being replaced, or is damaged, ends no mount: what cannot be imported is tried again. Nor
   does one without a build that goes with it, for some time (installation_wait.py).
3. Without the program (there was no compiler) the supervisor stays what it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import snapfs
from snapfs.base import native_build

PROGRAM: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "snapfs-supervisor")
AWAKE_SECONDS: Final = 3.0
"""Without an event for so long it sleeps: daemons that die one after another are started without a start of Python."""
WAKE: Final = """
import os, sys, time
sys.path.append(sys.argv[2])
try:
    from snapfs.commands.wake import main
except BaseException as failure:
    os.write(2, f"snapfs: the supervisor cannot be started, and tries again: {failure!r}\\n".encode())
    time.sleep(1.0)
    words = sys.orig_argv
    if getattr(failure, "name", "") == "snapfs.commands.wake":
        try:
            import snapfs.commands.cli, snapfs.daemon.daemon
            words = [words[0], *sys.argv[4:]]
        except BaseException:
            pass
    os.execv(sys.executable, words)
main(float(sys.argv[1]), int(sys.argv[3]), sys.argv[4:])
"""
"""For the snapfs that is installed then: only names that stay. One that knows no sleep goes on as after an upgrade."""


def program() -> str | None:
    """The program; None if it was not built, or from other sources than this package goes with."""
    if not os.access(PROGRAM, os.X_OK) or not native_build.is_of(Path(PROGRAM), native_build.expected().sources_hash):
        return None
    return PROGRAM


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What a supervisor was started with: the words of the interpreter, the last of which are ours."""

    words: Sequence[str]
    arguments: int

    @staticmethod
    def of_process() -> CommandLine:
        return CommandLine(sys.orig_argv[1:], len(sys.argv) - 1)

    def asleep(self, program: str, pidfd: int) -> list[str]:
        """The words of the program, which waits for `pidfd` to show a death. It replaces the 0 by when it woke up."""
        return [program, "wait", str(pidfd), *self.awake(0.0)]

    def awake(self, woken_s: float) -> list[str]:
        """The words of Python that goes on, as the snapfs that is installed then. `woken_s`: since when, monotonic."""
        folder = os.path.dirname(os.path.dirname(os.path.abspath(snapfs.__file__)))
        return [sys.executable, "-P", "-c", WAKE, str(woken_s), folder, str(self.arguments), *self.words]
