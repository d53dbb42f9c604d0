"""Messages to a service manager, and what it kept for us: sd_notify(3) and its descriptor store.

Without NOTIFY_SOCKET in the environment nothing is sent, and nothing was kept.

Invariants:
1. A message is one datagram; descriptors go with it. A manager that cannot be reached is no error of ours.
2. Descriptors that were kept are taken once: the variables that name them are removed, so that no child believes
   they are its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence

_FIRST_FD = 3
_NAME_MAX = 255
_SEND_SECONDS = 5.0
"""A manager that does not listen for so long gets no message: nothing here is worth hanging for."""


def notify(state: str, descriptors: Sequence[int] = ()) -> bool:
    """Send `state`, lines of VARIABLE=VALUE; whether there was anybody to send it to."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_SEND_SECONDS)
        sock.connect(address)
        socket.send_fds(sock, [state.encode()], list(descriptors))
        return True
    return False


def store(name: str, descriptor: int) -> bool:
    """Have the manager keep a descriptor, also beyond our death; whether the message was sent."""
    assert name
    assert len(name) <= _NAME_MAX
    assert ":" not in name
    return notify(f"FDSTORE=1\nFDNAME={name}", [descriptor])


def forget(name: str) -> None:
    """Let the manager close what it keeps under this name."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def is_restarting(unit: str) -> bool:
    """Whether the manager stops the unit only to start it again. False where there is no manager."""
    command = ["systemctl", "list-jobs", "--plain", "--no-legend", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    jobs = (line.split() for line in done.stdout.splitlines())
    return any(job[1:3] == [unit, "restart"] for job in jobs)


def kept() -> dict[str, int]:
    """The descriptors that the manager kept from an earlier run, by name, close-on-exec from here on."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found = dict(zip(names, range(_FIRST_FD, _FIRST_FD + count), strict=False))
    for descriptor in range(_FIRST_FD, _FIRST_FD + count):
        os.set_inheritable(descriptor, False)
    return found
