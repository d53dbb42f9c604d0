"""A daemon as its supervisor sees it: a child process, its channel, and the descriptor that shows its death."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator

from snapfs.daemon.supervision.daemon_handle import CANARY, LEAVE, MESSAGE_BYTES, READY

_PIDFD_THREAD = os.O_EXCL  # of linux/pidfd.h, since Linux 6.9


class RunningDaemon:
    """`reported`: the words that it has sent. `ready_s`: since when it answers requests, monotonic; 0: not yet."""

    def __init__(
        self,
        pid: int,
        channel: socket.socket,
        canary: int = 0,
        reported: Iterable[str] = (),
        *,
        pidfd: int = -1,
        ready_s: float = 0.0,
    ) -> None:
        """`pid`: a child that was not reaped. The others: of a daemon that an earlier program started."""
        self.pid, self.channel, self.canary = pid, channel, canary
        self.reported = set(reported)
        self.ready_s = ready_s or (time.monotonic() if reported else 0.0)
        self.was_signalled = False
        self.pidfd = pidfd if pidfd >= 0 else os.pidfd_open(pid)
        if canary and pidfd < 0:
            self._watch(canary)
        channel.setblocking(False)

    def _watch(self, canary: int) -> None:
        with contextlib.suppress(OSError):  # it is dead already, or the kernel is older than 6.9
            watched = os.pidfd_open(canary, _PIDFD_THREAD)
            os.close(self.pidfd)
            self.pidfd, self.canary = watched, canary

    def messages(self) -> Iterator[tuple[str, bytes, list[int]]]:
        """What it sent: word, the rest of the message, descriptors. Ends when no message is there."""
        while self.channel.fileno() >= 0:
            try:
                message, descriptors, _, _ = socket.recv_fds(self.channel, MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self.channel.close()
                return
            word, _, rest = message.decode().partition(" ")
            self._note(word, rest)
            yield word, rest.encode(), descriptors

    def _note(self, word: str, rest: str) -> None:
        self.reported.add(word)
        if word == CANARY:
            self._watch(int(rest))
        elif word == READY:
            self.ready_s = time.monotonic()

    def register(self, poll: select.poll) -> None:
        """Have `poll` wait for its messages and its death."""
        if self.channel.fileno() >= 0:
            poll.register(self.channel, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)

    @property
    def is_dead(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def request_leave(self) -> None:
        """It shall finish what is under way, and exit."""
        with contextlib.suppress(OSError):
            self.channel.send(LEAVE.encode())

    def signal(self, number: int) -> None:
        self.was_signalled = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> None:
        os.close(self.pidfd)
        self.channel.close()
