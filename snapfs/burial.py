"""The end of a daemon that cannot die: what its threads asked of its own mount is answered in its place.

A thread of a daemon may be waiting for the mount that this daemon serves: a flush before a cut opens a file there. If
the daemon is killed meanwhile, the kernel lets that thread wait for an answer whatever happens, and the process, with
its locks on the database, is not gone before its successor answers, which waits for the locks.

So before it opens anything the successor has everything sent again, answers EINTR to what threads of the dead one
asked, and leaves the rest unanswered: it comes once more when the successor asks for it.

Invariants:
1. Nobody else reads the descriptor meanwhile: there is one daemon at a time, and this one is as good as dead.
2. No request of an application is answered, nor lost: what was read is unanswered still. (A FORGET has no answer and is
   lost: an orphan then waits for the end of the mount.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import time

from snapfs.errors import SnapfsError
from snapfs.fuse import notices

PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.01
_READ_BYTES = (1 << 20) + (1 << 16)
_IN_HEADER = struct.Struct("=IIQQIII")  # len, opcode, unique, nodeid, uid, gid, pid
_OUT_HEADER = struct.Struct("=IiQ")
_NO_ANSWER = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET


def bury(device: int, pid: int) -> None:
    """Return when the process `pid`, which was killed, is gone with its locks. SnapfsError if it stays."""
    try:
        gone = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(gone, select.POLLIN)
    os.set_blocking(device, False)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        notices.resend(device)
        while not poll.poll(_LOOK_SECONDS * 1000):
            if time.monotonic() > deadline:
                raise SnapfsError(f"the daemon before this one, process {pid}, was killed and does not go away")
            _answer(device, _threads(pid))
    finally:
        os.close(gone)
        os.set_blocking(device, True)


def _threads(pid: int) -> set[int]:
    try:
        return {pid, *map(int, os.listdir(f"/proc/{pid}/task"))}
    except (FileNotFoundError, ProcessLookupError):
        return {pid}


def _answer(device: int, threads: set[int]) -> None:
    """Read all there is, and answer what these threads asked."""
    while True:
        try:
            request = os.read(device, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as failure:
            if failure.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: it was taken back while being read
                continue
            return  # the mount is gone: whoever waited has been told
        _, opcode, unique, _, _, _, asker = _IN_HEADER.unpack_from(request)
        if asker in threads and opcode not in _NO_ANSWER:
            _write(device, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.EINTR, unique))


def _write(device: int, reply: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
        os.write(device, reply)
