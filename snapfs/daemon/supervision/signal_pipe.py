"""The signals of a supervisor, which wakes up for them and acts in its own time.

Invariant: none is lost over an `exec`. What came is in the pipe, which the next program does not have; so those that
were not acted on are raised again, and stay pending until that program listens.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

PASSED_ON = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
"""To the daemon, as which signal."""
UPGRADE, LEAVE = signal.SIGUSR2, signal.SIGUSR1
ALL = (*PASSED_ON, UPGRADE, LEAVE)


class SignalPipe:
    """Takes the signals from its construction on. Of the main thread, as all handlers of signals are."""

    def __init__(self) -> None:
        """Signals that were blocked across an `exec` are let through."""
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in ALL:
            signal.signal(number, lambda _number, _frame: None)
        self.unblock()

    def received(self) -> Iterator[signal.Signals]:
        """The signals that came since the last call; `fd` is readable when there are any."""
        with contextlib.suppress(BlockingIOError):
            while came := os.read(self.fd, 1):  # one by one: acting on the first may be an `exec`
                yield signal.Signals(came[0])

    def block(self) -> None:
        """Before an `exec`: take no more, and leave those that were not acted on pending. `unblock` takes it back."""
        signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
        for number in list(self.received()):
            os.kill(os.getpid(), number)

    def unblock(self) -> None:
        """The `exec` failed: what is pending comes now."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)

    def release(self) -> None:
        """In a child: take signals as any process does."""
        signal.set_wakeup_fd(-1)
        for number in ALL:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for fd in (self.fd, self._write_fd):
            os.close(fd)
