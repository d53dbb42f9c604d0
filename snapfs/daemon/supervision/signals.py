"""The signals that end a daemon, from the first moment of its process until it can act on them.

None is lost, and none ends the daemon halfway: a supervisor forks it with them blocked, `EarlySignals` records those
that come while the mount is being made, and raises them again when a task acts on signals. One that comes after that
task, while the daemon is on its way out, ends it as it would any process.
"""

from __future__ import annotations

import signal

ENDING = (signal.SIGTERM, signal.SIGINT)


class EarlySignals:
    """Records them. Of the main thread, as all handlers of signals are."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._are_early = True

    def listen(self) -> None:
        for number in ENDING:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)

    def _note(self, number: int, _frame: object) -> None:
        if self._are_early:
            self._came.append(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def raise_again(self) -> None:
        """A task acts on signals from now on: those that came before are raised for it."""
        self._are_early = False
        for number in self._came:
            signal.raise_signal(number)
