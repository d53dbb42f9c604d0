"""INIT: agree with the kernel on more than pyfuse3 requests, at no cost for any later request.

pyfuse3 cannot request HANDLE_KILLPRIV_V2, DONT_MASK and others, and libfuse answers INIT itself. So libfuse is
given one end of a socket pair in place of the descriptor: (1) the kernel's INIT request is read from the fuse
descriptor and put into the socket; (2) libfuse answers into the socket; (3) the answer is read from the other
end, improved, and written to the kernel. Then (4) either a router takes the descriptor, and the socket pair stays
(router.py); or there is none: the descriptor is laid over libfuse's end with dup2, and libfuse reads and writes
/dev/fuse itself.

Step 2 runs pyfuse3's own loop in a short trio run of its own, which is over before step 4: no task waits on
the socket when it is replaced. To libfuse before a router the kernel is made as old as protocol 7.13, the last that
could not splice: a splice from a socket costs twice what a read does, for it readies pages for the largest message.

Invariants:
1. A flag is agreed on if the kernel offered it, pyfuse3 or `WANTED` has it, and `UNWANTED` does not.
2. A kernel that lacks a flag gets the next best: each of `WANTED` is an improvement that the operations do without.
3. The raw INIT request is kept: another process that is handed the descriptor can go through 1 and 2 with it.

A process that dies between the steps leaves a mount whose requests wait until the last holder of the descriptor
is gone, and which then answers ENOTCONN; `fuse_mount.clear_dead` removes such a mount.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

import pyfuse3
import trio

from snapfs.fuse.kernel import router
from snapfs.fuse.kernel.fuse_protocol import REQUEST_BUFFER, Flag, InitReply, InitRequest

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

WANTED: Final = (
    Flag.HANDLE_KILLPRIV_V2  # without it each write(2) reads security.capability: 16,000 appends/s, not 700,000
    | Flag.DONT_MASK  # the umask must not apply where a default ACL does
    | Flag.PARALLEL_DIROPS  # libfuse requests it, too; 200 lookups of 2 ms from 8 threads: 83 ms, not 462
    | Flag.CACHE_SYMLINKS  # one request a link, not one a readlink(2)
    | Flag.EXPLICIT_INVAL_DATA  # only a rollback changes files behind the kernel's back, and it sends notices
    | Flag.HAS_EXPIRE_ONLY
    | Flag.HAS_RESEND
)
UNWANTED: Final = Flag.AUTO_INVAL_DATA | Flag.HANDLE_KILLPRIV

# PASSTHROUGH is not requested: where the writeback cache is on, the kernel registers no backing file (EPERM on 6.18,
# with and without tried), and without that cache appends are requests each.
# Without effect on local files, measured with 12, 64 and 256; for blocks that come over a network, many at a time.
# The read-ahead stays at the kernel's 128 KiB: 512 made sequential reads 1.6 times as fast and random faults of a
# mapping 2.5 times as slow.
MAX_BACKGROUND = 64
CONGESTION_THRESHOLD = 48


_NO_SPLICE_MINOR = 13
_MAX_PAGES = 256  # requests of 1 MiB
_OLD_MAX_PAGES = 32


class Attached(NamedTuple):
    """A session's descriptors: `fd` is read by libfuse, `device` is /dev/fuse; and the flags agreed on."""

    fd: int
    device: int
    flags: Flag
    router: Router | None


def agree(request: InitRequest, reply: InitReply) -> InitReply:
    """The reply to the kernel: libfuse's, with what we want of what the kernel offers."""
    extended = Flag.INIT_EXT if request.flags & Flag.INIT_EXT else Flag(0)
    flags = (reply.flags | (WANTED & request.flags) | extended) & ~UNWANTED
    pages = _MAX_PAGES if flags & Flag.MAX_PAGES else _OLD_MAX_PAGES
    return reply.changed(flags, MAX_BACKGROUND, CONGESTION_THRESHOLD).sized(pages)


def read_init(fuse_fd: int) -> bytes:
    """Read the INIT request, which a new mount's first read gives. OSError as read(2)."""
    return os.read(fuse_fd, REQUEST_BUFFER)


def attach(
    operations: pyfuse3.Operations,
    fuse_fd: int,
    raw_init: bytes,
    *,
    answer_kernel: bool,
    routed: bool | None = None,
) -> Attached:
    """Make libfuse serve `fuse_fd`, which is consumed.

    With `answer_kernel` false the reply is dropped: the kernel had it from the process before us. `routed`: by a
    router, which is there and not started yet; None: if there can be one. Blocks for some milliseconds; not to be
    called from a thread in which trio runs. One session a process (pyfuse3's rule).
    """
    if routed is None:
        routed = router.why_not() is None
    ours, theirs = router.socket_pair()
    with ours:
        libfuse_fd = theirs.detach()
        pyfuse3.init(operations, f"/dev/fd/{libfuse_fd}", set())
        shown = InitRequest.of_minor(raw_init, _NO_SPLICE_MINOR) if routed else raw_init
        reply = agree(InitRequest.parse(raw_init), InitReply.parse(_reply_of_libfuse(ours, shown)))
        if answer_kernel:
            os.write(fuse_fd, reply.encode())
        if routed:
            native = router.open_router(fuse_fd, ours, libfuse_fd, router.default_threads())
            return Attached(libfuse_fd, fuse_fd, reply.flags, native)
    os.set_blocking(fuse_fd, True)  # a router before us may have changed it
    os.dup2(fuse_fd, libfuse_fd, inheritable=False)
    os.close(fuse_fd)
    return Attached(libfuse_fd, libfuse_fd, reply.flags, None)


def _reply_of_libfuse(ours: socket.socket, raw_init: bytes) -> bytes:
    return trio.run(_exchange, ours, raw_init)


async def _exchange(ours: socket.socket, raw_init: bytes) -> bytes:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        ours.send(raw_init)
        await trio.lowlevel.wait_readable(ours)
        nursery.cancel_scope.cancel()
    return ours.recv(REQUEST_BUFFER)
