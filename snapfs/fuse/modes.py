"""When the setuid and setgid bits go: pure functions on a mode.

The kernel leaves this to us, since the session asks for HANDLE_KILLPRIV_V2. File capabilities it removes by itself, as
the xattr security.capability.
"""

from __future__ import annotations

import stat

_SGID_EXECUTABLE = stat.S_ISGID | stat.S_IXGRP


def is_privileged(mode: int) -> bool:
    """Whether a write by an unprivileged process must take something from `mode`."""
    return stat.S_ISREG(mode) and (bool(mode & stat.S_ISUID) or mode & _SGID_EXECUTABLE == _SGID_EXECUTABLE)


def without_privileges(mode: int) -> int:
    """`mode` after a write or truncate by an unprivileged process, or a chown by anybody.

    A setgid bit without group execution marks mandatory locking and stays, as do both bits of a directory.
    """
    if stat.S_ISDIR(mode):
        return mode
    kept = mode & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if kept & stat.S_IXGRP else kept
