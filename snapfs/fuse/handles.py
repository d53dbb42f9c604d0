"""File handles: what the kernel gives back with each request on an open file. Computed, never remembered.

    bit 63      the handle of a virtual node, in its own form
    bit 61      opened for writing by a process that is not root: its writes take setuid and setgid away
    bit 60      opened for writing
    bits 34-0   the inode number

pyfuse3 passes a handler of READ, WRITE, FSYNC or RELEASE nothing but the handle; a daemon that is started anew under a
living mount knows from it what its predecessor had opened.
"""

from __future__ import annotations

from typing import NewType

import pyfuse3

from snapfs.blocks import Ino

Handle = NewType("Handle", int)

_WRITING = 1 << 60
_UNPRIVILEGED = 1 << 61
_INO_MASK = (1 << 35) - 1


def handle(ino: Ino, *, writing: bool, privileged: bool) -> pyfuse3.FileHandleT:
    """The handle of inode `ino`, opened so."""
    value = ino | (_WRITING if writing else 0) | (_UNPRIVILEGED if writing and not privileged else 0)
    return pyfuse3.FileHandleT(value)


def ino_of(fh: int) -> Ino:
    return Ino(fh & _INO_MASK)


def is_writing(fh: int) -> bool:
    return bool(fh & _WRITING)


def is_unprivileged(fh: int) -> bool:
    return bool(fh & _UNPRIVILEGED)
