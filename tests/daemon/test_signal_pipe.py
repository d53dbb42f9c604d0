"""What comes while a supervisor becomes another program finds that program listening."""

from __future__ import annotations

import subprocess
import sys

from tests.fakes.patience import PATIENCE_S

BECOME = """
import os, signal, sys
from snapfs.daemon.supervision.signal_pipe import LEAVE, UPGRADE, SignalPipe

signals = SignalPipe()
os.kill(os.getpid(), signal.SIGTERM)
acted_on = next(signals.received())
os.kill(os.getpid(), UPGRADE)
os.kill(os.getpid(), LEAVE)
signals.block()
os.kill(os.getpid(), signal.SIGHUP)
if sys.argv[1] == "exec":
    os.execv(sys.executable, [sys.executable, "-c", "import signal; print(*sorted(map(int, signal.sigpending())))"])
signals.unblock()
print(acted_on, *sorted(signals.received()))
"""


def run(what: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", BECOME, what], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    return list(map(int, done.stdout.split()))


def test_signals_that_were_not_acted_on_stay_pending_over_an_exec() -> None:
    assert run("exec") == [1, 10, 12]  # HUP, USR1, USR2: not TERM, which was


def test_signals_are_there_again_if_there_was_no_exec() -> None:
    assert run("none") == [15, 1, 10, 12]
