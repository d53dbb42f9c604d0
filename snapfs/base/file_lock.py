"""flock(2) on a file or folder: taken, tested, and read who has it.

The kernel drops a flock with the process that holds it, so no stale lock exists. Its text only names the owner for the
messages of others. A test takes a shared lock for a moment: `try_lock` tries again, longer than that takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator


def try_lock(fd: int, tries: int) -> bool:
    """Lock `fd` exclusively, in so many attempts 10 ms apart; whether it worked."""
    for _ in range(tries):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
    return False


def lock_owner(path: str) -> str | None:
    """The text of the lock file at `path` if a process holds the lock; None if it is free. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace").strip()
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked_folder(path: str) -> Iterator[None]:
    """Hold the flock of a folder; waits until it is free. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
