"""Ports for servers that are given one, and for those that are started again on the one they had.

A port that the kernel chose may be given to another socket before the server is there, or while it is dead: to a client
of another test, for one. So these lie outside of the range that the kernel chooses from, and those of each process
that runs tests are others.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

_FIRST, _LAST = 10_000, 65_000
_SHARE = 1_000
"""How many ports a process goes through before it begins anew."""


def _candidates() -> Iterator[int]:
    """Ports of this process, the next one first; for ever."""
    chosen = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    low, high = int(chosen[0]), int(chosen[1])
    ports = [port for port in range(_FIRST, _LAST) if not low <= port <= high]
    worker = re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", ""))
    shares = max(1, len(ports) // _SHARE)
    share = int(worker or os.getpid()) % shares * _SHARE  # of one run, or of one process
    own = ports[share : share + _SHARE] or [0]
    at = os.getpid() * 37 % len(own)  # two runs on one host
    while True:
        yield own[at]
        at = (at + 1) % len(own)


_ports = _candidates()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    while True:
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind(("127.0.0.1", next(_ports)))
            except OSError:
                continue
            return int(found.getsockname()[1])
