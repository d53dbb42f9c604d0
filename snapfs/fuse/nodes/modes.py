"""When the setuid and setgid bits go: pure functions on a mode.

The kernel leaves this to us, since the session requests HANDLE_KILLPRIV_V2. File capabilities it removes by itself, as
the xattr security.capability. What it sends (6.18):

    write, fallocate, copy_file_range    SETATTR without any field, before the request itself. Its reply sets the mode
                                         that exec sees, so no setuid is left when the bytes change. Then WRITE with
                                         FUSE_WRITE_KILL_SUIDGID; the two others are not marked.
    truncate, chown                      SETATTR with the field; its reply has the mode
    chown(-1, -1)                        SETATTR of ctime alone, which nothing else sends
    open with O_TRUNC                    OPEN, whose reply has no mode: a notice has the kernel forget the old one

Invariant: the kernel never caches the attributes of a file that a write would take privileges from (`may_be_kept`). So
exec reads the mode anew also where a daemon dies between the change of a mode and the notice of it.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

_SGID_EXECUTABLE = stat.S_ISGID | stat.S_IXGRP


def is_privileged(mode: int) -> bool:
    """Whether a write by an unprivileged process must take something from `mode`."""
    return stat.S_ISREG(mode) and (bool(mode & stat.S_ISUID) or mode & _SGID_EXECUTABLE == _SGID_EXECUTABLE)


def may_be_kept(mode: int) -> bool:
    """Whether the kernel may keep the attributes of an inode with this mode, until it changes them itself."""
    return not (stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID))


def without_privileges(mode: int, is_member: Callable[[], bool] = lambda: True) -> int:
    """`mode` after a write or truncate by an unprivileged process, or any chown.

    A setgid bit without group execution marks mandatory locking: it stays if `is_member()`, that is, if the process is
    root or in the file's group (Linux 6.2 and later). Both bits of a directory stay.
    """
    if stat.S_ISDIR(mode):
        return mode
    kept = mode & ~stat.S_ISUID
    if kept & stat.S_ISGID and (kept & stat.S_IXGRP or not is_member()):
        kept &= ~stat.S_ISGID
    return kept
