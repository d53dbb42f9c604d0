"""Notices to the kernel that may wait, written by a process of its own, for a daemon whose mount outlives it.

To drop pages the kernel writes dirty ones first, and to forget a name it takes its directory's lock: inside the
write(2) of the notice, whatever signal comes, it waits for replies of the daemon. A daemon that is killed while a
thread of its own is in there is not gone, and keeps its locks, until a successor answers, which waits for the locks.
The helper may wait for the successor as any other process; what it still sends then is as true as before.

A helper is the supervisor's program (daemon/native/supervisor.c), started when it is needed first: most daemons never
send such a notice. Where it cannot be started, notices are written here, as where no supervisor holds the mount.

Invariants:
1. A helper holds nothing of the volume, only /dev/fuse, and ends when its daemon is gone and its notices are done.
2. Notices that are sent in two threads do not wait for each other: one may wait for what the other holds up.
3. What is not reported as sent by the helper is sent here. To send a notice twice does no harm.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from snapfs.fuse.kernel.notices import BATCH_BYTES, SendHere

_ERRNO: Final = struct.Struct("=i")
_REPLY_BYTES: Final = BATCH_BYTES
"""More than an errno for each notice: none is shorter than that."""
_END_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Helper:
    """One process, which writes the notices of one message, and then replies with their errnos."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    @staticmethod
    def start(program: str, device: int) -> _Helper:
        """OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                command = [program, "notify", str(theirs.fileno()), str(device)]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno(), device])
            except BaseException:
                ours.close()
                raise
        return _Helper(process, ours)

    def send(self, notices: Sequence[bytes]) -> list[int]:
        """OSError if the helper is gone."""
        self.channel.send(b"".join(notices))
        reply = self.channel.recv(_REPLY_BYTES)
        if len(reply) != _ERRNO.size * len(notices):
            raise OSError("the helper has ended")
        return [number for (number,) in _ERRNO.iter_unpack(reply)]

    def close(self) -> None:
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for the kernel, or for an answer of ours
            self.process.wait(_END_SECONDS)


class NoticeHelper:
    """A `NoticeSender`."""

    def __init__(self, program: Callable[[], str | None]) -> None:
        """`program`: where the helper is, None if it was not built."""
        self._program = program
        self._lock = threading.Lock()
        self._idle: list[_Helper] = []

    def send(self, device: int, notices: Sequence[bytes]) -> list[int]:
        helper = self._take(device)
        if helper is None:
            return SendHere().send(device, notices)
        try:
            numbers = helper.send(notices)
        except OSError:
            helper.close()
            return SendHere().send(device, notices)
        with self._lock:
            self._idle.append(helper)
        return numbers

    def _take(self, device: int) -> _Helper | None:
        """One that does nothing, or a new one; None if there can be none."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        with contextlib.suppress(OSError):
            if (program := self._program()) is not None:
                return _Helper.start(program, device)
        return None

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for helper in idle:
            helper.close()
