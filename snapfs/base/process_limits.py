"""The limits that this process was given (ulimit): the daemon fits itself into them, or names a too small one.

Open files: the soft limit is raised to the hard one. What is open beside the caches (the database, the device, sockets,
logs, threads that open a file for a moment) is `OTHERS`; the rest is divided among three caches, so that the sum never
reaches the limit: backing files, files that a seal reads, segments of the store.

File size: a file beyond the limit fails with EFBIG. The database's log alone takes MIN_FILE_BYTES.
"""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

from snapfs.base.errors import UserError

OTHERS = 72
MIN_OPEN_FILES = 112
MIN_FILE_BYTES = 64 << 20
MOST_READERS, MOST_SEGMENTS = 32, 128


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """How many descriptors each cache may hold."""

    backing: int
    readers: int
    segments: int


def divide(limit: int, wanted: int) -> OpenFiles:
    """The caches' shares of `limit` descriptors, at least MIN_OPEN_FILES; `wanted` backing files at most."""
    readers = min(MOST_READERS, limit // 16)
    segments = min(MOST_SEGMENTS, limit // 8)
    return OpenFiles(max(min(wanted, limit - OTHERS - readers - segments), 4), readers, segments)


def fit(wanted: int) -> OpenFiles:
    """Raise the limit of open files as far as we may, and divide it. UserError as `check`."""
    limit = check()
    return divide(limit, wanted)


def check() -> int:
    """The limit of open files, raised. UserError if it, or that of a file's size, is too small to go on."""
    files = _raise(resource.RLIMIT_NOFILE)
    if files < MIN_OPEN_FILES:
        raise UserError(
            f"no more than {files} files may be open here (ulimit -n): snapfs needs {MIN_OPEN_FILES}, and works best "
            "with 1024 or more: raise that limit"
        )
    size = _raise(resource.RLIMIT_FSIZE)
    if size < MIN_FILE_BYTES:
        raise UserError(
            f"no file may be larger than {size} bytes here (ulimit -f): snapfs needs {MIN_FILE_BYTES >> 20} MiB for "
            "its own, and no file in the mount can exceed the limit; set it to unlimited"
        )
    return files


def _raise(which: int) -> int:
    """The limit, after the soft one was raised to the hard one; a very large number for none."""
    soft, hard = resource.getrlimit(which)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (hard, hard))
        soft = hard
    return (1 << 62) if soft == resource.RLIM_INFINITY else soft
