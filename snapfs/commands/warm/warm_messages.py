"""What a command and a warm process say to each other: one message each way on a SOCK_SEQPACKET, and one at the end.

    command -> warm    {"words": [...], "environment": {...}}, with the ends of the report and go pipes
    warm -> command    {"pid": N}, with a pidfd of the process, when it is forked
    warm -> command    {"code": N}, when it has ended (negative: by which signal)

Both ends make sure that the other is a process of the same user.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

MOST_BYTES: Final = 192 << 10
"""Of a message: it has to fit into the buffer of a socket."""
_CREDENTIALS: Final = struct.Struct("iII")


def is_ours(connection: socket.socket) -> bool:
    """Whether a process of this very user is at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())


def send(connection: socket.socket, facts: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises OSError, also for what is too long."""
    socket.send_fds(connection, [json.dumps(facts).encode(errors="surrogateescape")], descriptors)


def receive(connection: socket.socket, most_descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Raises OSError; ({}, []) at the end of the connection, or for what is no message."""
    data, descriptors, flags, _ = socket.recv_fds(connection, MOST_BYTES, most_descriptors)
    try:
        facts = json.loads(data.decode(errors="surrogateescape")) if data else {}
    except ValueError:
        facts = {}
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not isinstance(facts, dict):
        facts = {}
    if not facts:
        for each in descriptors:
            os.close(each)
        return {}, []
    for each in descriptors:
        os.set_inheritable(each, False)
    return facts, list(descriptors)
