"""The line between a group's coordinator and a member: the steps at which gates are closed, without a way through the
kernel's filesystem.

A step by the control file is a request of the kernel, a record in a database so that a successor knows of it, and a
command to be understood: milliseconds on a busy host, three times, while applications are held. So `group prepare`
connects to the socket of the coordinator, whose name is made of the cut's id (128 random bits, in the abstract
namespace). Where that cannot be (another network namespace), the steps come by the control file.

The member sends its volume's id first. Then each way one line a step: `ready`, `close`, `settle` or `cut`, and its
answer: `ok`, `again`, or `failed ERRNO REASON`. Gates open by their lease when the connection ends.
"""

from __future__ import annotations

import errno
from typing import Final

import trio

from snapfs.base.errors import SnapfsError, SnapshotError
from snapfs.control.groups.group_member import AGAIN, GroupSession

STEPS: Final = ("ready", "close", "settle", "cut")
_LINE_BYTES: Final = 64
_SEND_S: Final = 1.0


def socket_name(cut: str) -> str:
    """Where the coordinator listens."""
    return f"\0snapfs-group-{cut}"


async def connected(cut: str, volume_id: str) -> trio.SocketStream | None:
    """The line of this cut's coordinator; None if there is none to be had."""
    try:
        stream = await trio.open_unix_socket(socket_name(cut))
        await stream.send_all(f"{volume_id}\n".encode())
    except (OSError, trio.BrokenResourceError):
        return None
    return stream


async def serve(stream: trio.SocketStream, session: GroupSession) -> None:
    """Pass the steps on and answer them, until either side ends it."""
    try:
        async with stream:
            while line := await stream.receive_some(_LINE_BYTES):
                answer = await _answer(session, line.decode(errors="replace").strip())
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _SEND_S):  # the last one, too
                    await stream.send_all(answer + b"\n")
    except (OSError, trio.BrokenResourceError):
        return  # the coordinator is gone: the session gives up by itself


async def _answer(session: GroupSession, step: str) -> bytes:
    if step not in STEPS:
        return b"failed %d no such step" % errno.EINVAL
    try:
        return b"again" if await session.ask(step) == AGAIN else b"ok"
    except (SnapfsError, OSError) as error:
        number = (error.errno if isinstance(error, SnapshotError | OSError) else errno.EBUSY) or errno.EIO
        return f"failed {number} {' '.join(str(error).split())}".encode()
