"""What we tell the kernel unasked: to forget a name or what it keeps of an inode, to send requests again.

Written straight to /dev/fuse, not by libfuse: so the caller learns the outcome also when a router stands between.

Invariant: none is written in the thread in which trio runs. To forget a name the kernel may wait for an operation in
the same directory, and to forget pages for their writing, which both need an answer of ours.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum

_OUT_HEADER = struct.Struct("=IiQ")  # len, error (here: the code), unique (here: 0)
_INVAL_INODE = struct.Struct("=Qqq")  # ino, offset, length
_INVAL_ENTRY = struct.Struct("=QII")  # parent, length of the name, flags; the name and a zero follow


class Notice(IntEnum):
    """Codes of notifications."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


def encode(notice: Notice, body: bytes = b"") -> bytes:
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), notice, 0) + body


def resend(device: int) -> None:
    """Ask for what was read from the descriptor and not answered (offered as HAS_RESEND). OSError."""
    os.write(device, encode(Notice.RESEND))


def invalidate_inode(device: int, ino: int) -> None:
    """Attributes and pages of an inode are no longer so; dirty pages are written first. FileNotFoundError if the
    kernel does not know it."""
    os.write(device, encode(Notice.INVAL_INODE, _INVAL_INODE.pack(ino, 0, 0)))


def invalidate_entry(device: int, parent: int, name: bytes) -> None:
    """A name is no longer so. FileNotFoundError if the kernel does not know it."""
    os.write(device, encode(Notice.INVAL_ENTRY, _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"))
