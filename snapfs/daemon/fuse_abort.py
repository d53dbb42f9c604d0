"""The abort of a FUSE connection that is stuck: requests of a killed daemon to its own mount are answered for it.

A thread of a daemon may be waiting for the mount that this daemon serves: a flush before a cut opens a file there. If
the daemon is killed meanwhile, the kernel lets that thread wait for a reply whatever happens, and the process, with its
locks on the database, is not gone before its successor answers, which waits for the locks.

So before it opens anything the successor has all requests sent again, replies EINTR to those of the killed daemon's
threads, and leaves the rest unanswered: they come once more when the successor has them sent again.

Invariants:
1. No other process reads the descriptor meanwhile: there is one daemon at a time, and the killed one reads no more.
2. No request of an application is answered, nor lost: what was read is unanswered still. (A FORGET has no reply and is
   lost: an orphan then stays until the end of the mount.) The memory that they are read into is there before, lest they
   are lost if this daemon is killed, too (fuse/native/request_memory.c).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import struct
import time

from snapfs.base.errors import SnapfsError
from snapfs.fuse.kernel import notices

PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.01
_READ_BYTES = (1 << 20) + (1 << 16)
_IN_HEADER = struct.Struct("=IIQQIII")  # len, opcode, unique, nodeid, uid, gid, pid
_OUT_HEADER = struct.Struct("=IiQ")
_NO_REPLY = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET


def abort_connection(device: int, pid: int) -> None:
    """Return when the process `pid`, which was killed, is gone with its locks. SnapfsError if it stays."""
    try:
        gone = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(gone, select.POLLIN)
    os.set_blocking(device, False)
    memory = mmap.mmap(-1, _READ_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        notices.resend(device)
        while not poll.poll(_LOOK_SECONDS * 1000):
            if time.monotonic() > deadline:
                raise SnapfsError(f"the daemon before this one, process {pid}, was killed and does not go away")
            _interrupt(device, _threads(pid), memory)
    finally:
        memory.close()
        os.close(gone)
        os.set_blocking(device, True)


def _threads(pid: int) -> set[int]:
    try:
        return {pid, *map(int, os.listdir(f"/proc/{pid}/task"))}
    except (FileNotFoundError, ProcessLookupError):
        return {pid}


def _interrupt(device: int, threads: set[int], memory: mmap.mmap) -> None:
    """Read all requests that are there, and reply EINTR to those of these threads."""
    while True:
        try:
            os.readv(device, [memory])
        except BlockingIOError:
            return
        except OSError as failure:
            if failure.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: it was taken back while being read
                continue
            return  # the mount is gone, and every waiting request with it
        _, opcode, unique, _, _, _, sender = _IN_HEADER.unpack_from(memory)
        if sender in threads and opcode not in _NO_REPLY:
            _write(device, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.EINTR, unique))


def _write(device: int, reply: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):  # the request was interrupted meanwhile
        os.write(device, reply)
