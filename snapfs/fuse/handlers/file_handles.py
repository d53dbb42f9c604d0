"""File handles, which the kernel sends with each request on an open file. Computed, never stored.

    bit 63      the handle of a virtual node, in its own form
    bit 61      opened for writing by a process that is not root: its writes clear setuid and setgid. In a WRITE that
                a router passed on: this very write does
    bit 60      opened for writing
    bit 59      opened with O_DIRECT: its writes do not go through the kernel's cache. In a WRITE that a router passed
                on: this very write does not
    bit 58      of a directory: the kernel keeps the names that it reads through it (native/cached_listings.c)
    bits 34-0   the inode number

pyfuse3 passes a handler of READ, WRITE, FSYNC or RELEASE nothing but the handle; a daemon that adopts a living
mount knows from it what its predecessor had opened.
"""

from __future__ import annotations

from typing import NewType

import pyfuse3

from snapfs.base.blocks import Ino

Handle = NewType("Handle", int)

_WRITING = 1 << 60
_UNPRIVILEGED = 1 << 61
_DIRECT = 1 << 59
_INO_MASK = (1 << 35) - 1


def handle(ino: Ino, *, writing: bool, privileged: bool, direct: bool = False) -> pyfuse3.FileHandleT:
    """The handle of inode `ino`, opened in this way."""
    value = ino | (_WRITING if writing else 0) | (_UNPRIVILEGED if writing and not privileged else 0)
    value |= _DIRECT if writing and direct else 0
    return pyfuse3.FileHandleT(value)


def ino_of(fh: int) -> Ino:
    return Ino(fh & _INO_MASK)


def is_writing(fh: int) -> bool:
    return bool(fh & _WRITING)


def is_unprivileged(fh: int) -> bool:
    return bool(fh & _UNPRIVILEGED)


def is_direct(fh: int) -> bool:
    return bool(fh & _DIRECT)
