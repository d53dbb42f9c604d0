"""syncfs(2) on the mount, by a process of its own: a daemon must not flush the mount that it serves.

syncfs(2) waits, whatever signal comes, for the kernel's writing back, and that waits for replies of the daemon. A
daemon that is killed while a thread of its own is in there is not gone, and keeps its locks, until a successor answers,
which waits for the locks. The helper may wait for the successor as any other process.

Where the program of asleep.py was built, it is the helper, without Python's memory (daemon/native/supervisor.c).

Invariants:
1. The helper holds nothing of the mount but what a flush has open: it can be abandoned while it waits.
2. It ends when its daemon is gone and its flush is done.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass, field

_MESSAGE_BYTES = 64


def serve(requests: socket.socket, mountpoint: str) -> None:
    """Flush at each message, which is the device of the mount, and reply with the token of the fence or minus an errno,
    until the daemon is gone."""
    from snapfs.fuse.kernel.writeback import send_off  # what it needs takes long to import, and is there by then

    while device := requests.recv(_MESSAGE_BYTES):
        try:
            reply = send_off(mountpoint, int(device))
        except OSError as failure:
            reply = -(failure.errno or 5)
        requests.send(b"%d" % reply)


@dataclass(slots=True)
class SyncfsHelper:
    """The daemon's side. `flush` from worker threads."""

    requests: socket.socket
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def flush(self, device: int) -> int:
        """As `writeback.send_off`, by the helper."""
        with self._one_at_a_time:
            self.requests.send(b"%d" % device)
            reply = int(self.requests.recv(_MESSAGE_BYTES) or b"-5")
        if reply < 0:
            raise OSError(-reply, os.strerror(-reply))
        return reply
