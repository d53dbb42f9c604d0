"""The router as Python uses it: the extension `_router`, its socket pair, and why it may not be there.

The router owns /dev/fuse; libfuse gets one end of a socket pair. What the threads of the router do not answer comes
through it unchanged, and the replies go back (native/router.h).

Invariants:
1. `Router` consumes the device and our end of the pair; libfuse closes the other.
2. A reply of the largest piece fits the empty socket, whatever limits an unprivileged user has.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from snapfs.base import native_build

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

WANTED_SOCKET_BYTES = 4 << 20
MOST_PIECE_BYTES = 256 << 10
_SOCKET_OVERHEAD = 4096
_SPIN_SECONDS = 50e-6
"""Measured on a busy machine with four cores: direct reads of 4 KiB one after another 15,300 a second, 10,700 without;
overwrites with fdatasync 813 and 712. A thread that is preempted while it looks pauses, for then it is in the way."""
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # of asm/socket.h; the socket module does not name them


def why_not() -> str | None:
    """Why there is no router; None if there is one."""
    fault = native_build.fault(native_build.ROUTER)
    return fault.words if fault else None


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The channel between the router and libfuse."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        _widen(end, socket.SO_SNDBUF, _SO_SNDBUFFORCE)
        _widen(end, socket.SO_RCVBUF, _SO_RCVBUFFORCE)
    return pair


def _widen(end: socket.socket, option: int, forced: int) -> None:
    try:
        end.setsockopt(socket.SOL_SOCKET, forced, WANTED_SOCKET_BYTES)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, option, WANTED_SOCKET_BYTES)  # as far as net.core.wmem_max lets


def open_router(device: int, ours: socket.socket, libfuse_fd: int, threads: int) -> Router:
    """A router that is not started yet; there is one (`why_not`). `device` and `ours` are consumed. OSError."""
    from snapfs.fuse.kernel import _router

    room = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _SOCKET_OVERHEAD
    return _router.Router(device, ours.detach(), libfuse_fd, min(room, MOST_PIECE_BYTES), threads, spin_s())


def spin_s() -> float:
    """How long a thread may look for the next request before it sleeps, in seconds. With one core: not at all."""
    return _SPIN_SECONDS if (os.cpu_count() or 1) > 1 else 0.0


def default_threads() -> int:
    """Enough that flushes and cold reads, which wait for the disk, do not keep others waiting."""
    return min(16, 4 * (os.cpu_count() or 1))


OPERATIONS: Mapping[int, str] = {
    1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir",
    10: "unlink", 11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs",
    18: "release", 20: "fsync", 21: "setxattr", 22: "getxattr", 23: "listxattr", 24: "removexattr", 25: "flush",
    27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir", 34: "access", 35: "create", 38: "destroy",
    39: "ioctl", 42: "forget", 43: "fallocate", 44: "readdirplus", 45: "rename", 46: "lseek", 47: "copy_file_range",
}  # fmt: skip
"""The names of requests by opcode, as metrics show them."""


class Latency(NamedTuple):
    """How long requests took that the router answered: (upper bound in seconds, requests up to it) ascending, and their
    sum in seconds."""

    buckets: list[tuple[float, int]]
    sum_s: float


def answered(router: Router | None) -> dict[str, int]:
    """Requests that the router answered itself, by operation: some have two opcodes."""
    found: Counter[str] = Counter()
    for code, count in {} if router is None else router.answered().items():
        found[OPERATIONS.get(code, str(code))] += count
    return dict(found)


def latencies(router: Router | None) -> dict[str, Latency]:
    """The same by how long they took."""
    codes: dict[str, list[int]] = {}
    for code in () if router is None else router.answered():
        codes.setdefault(OPERATIONS.get(code, str(code)), []).append(code)
    return {} if router is None else {name: _latency(router, each) for name, each in codes.items()}


def _latency(router: Router, opcodes: list[int]) -> Latency:
    found = [router.latency(opcode) for opcode in opcodes]
    counts = [sum(column) for column in zip(*(counts for counts, _ in found), strict=True)]
    bounds = [1e-6 * 2**n for n in range(len(counts) - 1)] + [math.inf]
    return Latency(list(zip(bounds, itertools.accumulate(counts), strict=True)), sum(sum_s for _, sum_s in found))
