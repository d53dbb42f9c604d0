"""The channel between a daemon and its supervisor, from the daemon's end, and the words that go over it.

One word a message, over a socket pair of datagrams. The two ends may be of different versions, so a word never changes:

    held      to the supervisor, with the descriptor: the mount is there, this is what outlives me
    canary    to the supervisor: the number of a thread that is gone as soon as the daemon is killed
    ready     to the supervisor: requests are being answered
    progress  to the supervisor, once: something was answered, sealed or done (daemon_progress.py)
    ended     to the supervisor: the mount is gone, no other daemon is needed
    leave     to the daemon: finish what is under way, and exit with `left`; another goes on
    left      to the supervisor: the next one may begin
    unfit     to the supervisor, with the reason: no daemon of the installed snapfs can begin
    stays     to the supervisor, with the reason: it cannot leave now, and serves on
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from dataclasses import dataclass
from typing import Final

from snapfs.daemon.supervision.syncfs_helper import SyncfsHelper

HELD: Final = "held"
CANARY: Final = "canary"
READY: Final = "ready"
PROGRESS: Final = "progress"
ENDED: Final = "ended"
LEAVE: Final = "leave"
LEFT: Final = "left"
STAYS: Final = "stays"
UNFIT: Final = "unfit"
MESSAGE_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Held:
    """A living mount, as a daemon hands it to the supervisor, and the supervisor to the next daemon.

    `device`: the descriptor of /dev/fuse; `init`: the kernel's INIT request; `flags`: those agreed on.
    """

    device: int
    init: bytes
    flags: int


@dataclass(slots=True)
class DaemonHandle:
    """What a daemon has of its supervisor. `number`: how many served this mount before; `held`: it is to be adopted.

    `predecessor`: a daemon that was killed and is not gone yet, or 0. `helper`: flushes the mount for this daemon.
    `supervisor`: its process, None once it is gone.
    """

    number: int
    held: Held | None
    predecessor: int
    channel: socket.socket
    helper: SyncfsHelper
    supervisor: int | None

    def start_canary(self) -> None:
        """Begin a thread that only sleeps: it dies with the process at once, even if another of its threads cannot."""
        canary = threading.Thread(target=threading.Event().wait, name="canary", daemon=True)
        canary.start()
        self.report(f"{CANARY} {canary.native_id}")

    def hold(self, device: int, init: bytes, flags: int) -> None:
        """Leave the mount to the supervisor, should this daemon die."""
        facts = json.dumps({"init": init.hex(), "flags": flags})
        with contextlib.suppress(OSError):
            socket.send_fds(self.channel, [f"{HELD} {facts}".encode()], [device])

    def report(self, word: str) -> None:
        """Send a word. It is dropped if the supervisor is gone."""
        with contextlib.suppress(OSError):
            self.channel.send(word.encode())

    def receive(self) -> str:
        """The next word of the supervisor. Waits for it; "" if the supervisor is gone."""
        with contextlib.suppress(OSError):
            return self.channel.recv(MESSAGE_BYTES).decode()
        return ""

    def supervisor_is_gone(self) -> None:
        """The mount ends with this daemon from now on."""
        self.supervisor = None
