"""The id by which targets know the writer of a volume: the daemon that claims and the agent that pushes use one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket


def writer_id_of(volume_path: str) -> str:
    """The id of this machine and folder, as `HOST-HASH`; another machine with a copy of the volume has another one."""
    machine = ""
    with contextlib.suppress(OSError), open("/etc/machine-id", encoding="ascii") as file:
        machine = file.read().strip()
    host = socket.gethostname().partition(".")[0] or "host"
    digest = hashlib.sha256(f"{machine} {host} {os.path.realpath(volume_path)}".encode()).hexdigest()[:8]
    return f"{''.join(letter for letter in host if letter.isalnum() and letter.isascii())[:40] or 'host'}-{digest}"
