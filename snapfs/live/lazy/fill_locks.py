"""Locks by inode: one thread fills a file, others that need it wait for that one, or leave the file out.

A lock exists only while a thread holds it or waits for it, so the table never grows with the number of files.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from snapfs.base.blocks import Ino


@dataclass(slots=True)
class _FillLock:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class FillLocks:
    """Any thread."""

    def __init__(self) -> None:
        self._locks: dict[Ino, _FillLock] = {}
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def exclusive(self, ino: Ino) -> Iterator[None]:
        """Hold the lock of this file; waits for it."""
        with self._guard:
            found = self._locks.setdefault(ino, _FillLock())
            found.users += 1
        try:
            with found.lock:
                yield
        finally:
            self._end_use(ino, found)

    def try_exclusive(self, held: contextlib.ExitStack, ino: Ino) -> bool:
        """Hold the lock of this file until the end of `held`, if no thread has it; whether it is held."""
        with self._guard:
            found = self._locks.setdefault(ino, _FillLock())
            if not found.lock.acquire(blocking=False):
                return False
            found.users += 1
        held.callback(self._release, ino, found)
        return True

    def _release(self, ino: Ino, found: _FillLock) -> None:
        found.lock.release()
        self._end_use(ino, found)

    def _end_use(self, ino: Ino, found: _FillLock) -> None:
        with self._guard:
            found.users -= 1
            if not found.users:
                del self._locks[ino]
