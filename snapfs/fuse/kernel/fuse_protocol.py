"""The few bytes of the FUSE protocol that we read and write ourselves: the INIT exchange.

Everything else is libfuse's. The numbers are those of the kernel's include/uapi/linux/fuse.h as of 6.18; the
header of an older distribution lacks some of them, so they stand here. All integers are in the machine's order.

Invariants:
1. A field that we do not change keeps the bytes that libfuse gave it.
2. A flag is set in a reply only if the kernel offered it in the request.
"""

from __future__ import annotations

import resource
import struct
from dataclasses import dataclass, replace
from enum import IntFlag

FUSE_INIT = 26

_PAGE_BYTES = resource.getpagesize()
REQUEST_BUFFER = 8192
"""Bytes a read of the descriptor must offer at least, lest the kernel answers EINVAL (FUSE_MIN_READ_BUFFER)."""

_IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
_INIT_IN = struct.Struct("=IIIII")  # major, minor, max_readahead, flags, flags2; eleven unused words follow
_OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
_INIT_OUT = struct.Struct("=IIIIHHIIHHII")  # see InitReply; fourteen bytes and more, unused, follow
_SHORTEST_INIT_OUT = 24  # as before protocol 7.23: up to max_write
_LONGEST_INIT_OUT = 64


class Flag(IntFlag):
    """INIT flags. Bits 32 and up travel in `flags2`, which counts only if INIT_EXT is set."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    SECURITY_CTX = 1 << 32
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


def _join(flags: int, flags2: int) -> Flag:
    return Flag(flags | flags2 << 32 if flags & Flag.INIT_EXT else flags)


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the kernel offers."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: Flag

    @staticmethod
    def of_minor(raw: bytes, minor: int) -> bytes:
        """The same raw request from a kernel whose protocol is that old."""
        at = _IN_HEADER.size + 4
        return raw[:at] + struct.pack("=I", minor) + raw[at + 4 :]

    @staticmethod
    def parse(raw: bytes) -> InitRequest:
        """Decode a request read from the descriptor. ValueError if it is none of INIT of protocol 7."""
        if len(raw) < _IN_HEADER.size + 16:
            raise ValueError(f"an INIT request of {len(raw)} bytes")
        _, opcode, unique, *_ = _IN_HEADER.unpack_from(raw)
        padded = raw[_IN_HEADER.size :].ljust(_INIT_IN.size, b"\0")
        major, minor, readahead, flags, flags2 = _INIT_IN.unpack_from(padded)
        if opcode != FUSE_INIT or major != 7:
            raise ValueError(f"not an INIT request of protocol 7: opcode {opcode}, major {major}")
        return InitRequest(unique, major, minor, readahead, _join(flags, flags2))


@dataclass(frozen=True, slots=True)
class InitReply:
    """What is agreed. Sizes in bytes; `max_pages` pages a request; `max_background` requests in flight."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: Flag
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int
    rest: bytes  # map_alignment, then what follows flags2

    @staticmethod
    def parse(raw: bytes) -> InitReply:
        """Decode libfuse's answer. OSError with its errno if libfuse refused; ValueError if it is too short."""
        if len(raw) < _OUT_HEADER.size:
            raise ValueError(f"an INIT reply of {len(raw)} bytes")
        _, error, unique = _OUT_HEADER.unpack_from(raw)
        if error:
            raise OSError(-error, "libfuse refused INIT")
        if len(raw) < _OUT_HEADER.size + _SHORTEST_INIT_OUT:
            raise ValueError(f"an INIT reply of {len(raw)} bytes")
        raw = raw.ljust(_OUT_HEADER.size + _LONGEST_INIT_OUT, b"\0")
        fields = _INIT_OUT.unpack_from(raw, _OUT_HEADER.size)
        major, minor, readahead, flags, background, congestion, write, gran, pages, alignment, flags2, _ = fields
        tail = raw[_OUT_HEADER.size + _INIT_OUT.size - 4 :]
        rest = struct.pack("=H", alignment) + tail
        joined = _join(flags, flags2)
        return InitReply(unique, major, minor, readahead, joined, background, congestion, write, gran, pages, rest)

    def encode(self) -> bytes:
        """The bytes to write to the descriptor."""
        low, high = self.flags & 0xFFFFFFFF, self.flags >> 32
        body = struct.pack(
            "=IIIIHHIIH", self.major, self.minor, self.max_readahead, low,
            self.max_background, self.congestion_threshold, self.max_write, self.time_gran, self.max_pages,
        )  # fmt: skip
        body += self.rest[:2] + struct.pack("=I", high) + self.rest[2:]
        return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, self.unique) + body

    def changed(self, flags: Flag, max_background: int, congestion_threshold: int) -> InitReply:
        """The same reply with these fields."""
        return replace(self, flags=flags, max_background=max_background, congestion_threshold=congestion_threshold)

    def sized(self, max_pages: int) -> InitReply:
        """The same reply with requests of so many pages, and times to the nanosecond."""
        size = max_pages * _PAGE_BYTES
        return replace(self, time_gran=1, max_pages=max_pages, max_write=min(size, self.max_write or size))
