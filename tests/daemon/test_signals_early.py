"""A signal that comes before the daemon can act on it is not lost, and does not end it halfway."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from snapfs.daemon.supervision.signals import ENDING, EarlySignals


@pytest.fixture
def early() -> Iterator[EarlySignals]:
    """Blocked as a supervisor leaves them to a daemon; the test's own handlers come back."""
    before = {number: signal.getsignal(number) for number in ENDING}
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    yield EarlySignals()
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


@pytest.mark.parametrize("number", ENDING)
def test_what_came_before_is_raised_again_for_who_acts(early: EarlySignals, number: signal.Signals) -> None:
    came: list[int] = []
    signal.raise_signal(number)  # while it is blocked
    early.listen()
    signal.raise_signal(number)  # while it is noted
    signal.signal(number, lambda number, _frame: came.append(number))
    assert came == []
    early.raise_again()
    assert came == [number, number]


@pytest.mark.parametrize("number", ENDING)
def test_on_the_way_out_a_signal_ends_the_process(number: signal.Signals) -> None:
    script = (
        "import os, sys; from snapfs.daemon.supervision.signals import EarlySignals; early = EarlySignals();"
        "early.listen();"
        "early.raise_again(); os.kill(os.getpid(), int(sys.argv[1])); print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(int(number))], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")
