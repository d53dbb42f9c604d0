"""What a daemon must not do itself, because it serves the mount that it would be done on: flush it before a cut.

syncfs(2) waits, whatever signal comes, for the kernel's writing back, and that for answers of the daemon. A daemon that
is killed while a thread of its own is in there is not gone, and keeps its locks, before a successor answers, which
waits for the locks. So a process of its own does it: it may wait for the successor as everybody else.

Invariants:
1. The helper holds nothing of the mount but what a flush has open: it can be forgotten while it waits.
2. It ends when its daemon is gone and its flush is done.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass, field

_MESSAGE_BYTES = 64


def serve(requests: socket.socket, mountpoint: str) -> None:
    """Flush at each message; answer with the token of the fence, or minus an errno. Until the other is gone."""
    from snapfs.fuse.writeback import device_of, send_off  # what it needs takes long to import, and is there by then

    device: int | None = None
    while requests.recv(_MESSAGE_BYTES):
        try:
            device = device_of(mountpoint) if device is None else device
            answer = send_off(mountpoint, device)
        except OSError as failure:
            answer = -(failure.errno or 5)
        requests.send(b"%d" % answer)


@dataclass(slots=True)
class Helper:
    """The daemon's side. `flush` from worker threads."""

    requests: socket.socket
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def flush(self) -> int:
        """As `writeback.send_off`, by the helper."""
        with self._one_at_a_time:
            self.requests.send(b"flush")
            answer = int(self.requests.recv(_MESSAGE_BYTES) or b"-5")
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.requests.close()
