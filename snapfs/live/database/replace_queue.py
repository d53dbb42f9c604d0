"""Files that must be durable before the next transactions are: the ordering that a rename over a file needs.

A file that is renamed over another takes the old bytes away: a power cut must not leave the name with neither. So the
transaction of the rename must not be durable before the bytes of the new file are.

Invariant: whatever makes the log durable runs within `settled`: from before `settle` is called until the flush is over.
A writer that is about to commit a transaction which depends on a file calls `depend_on` first: the file is settled by
the next `settled`, or at once by the writer, if a flush has begun. What the kernel writes out on its own account, or
for sync(2), cannot be ordered.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from snapfs.base.blocks import Ino


class SharedDepends(Protocol):
    """Others whose transactions depend on files; with a flush under way they leave such a transaction to us."""

    def take_depends(self) -> list[int]: ...

    def flush_begins(self) -> None: ...

    def flush_ends(self) -> None: ...


class ReplaceQueue:
    """Any thread."""

    def __init__(self) -> None:
        self._settle: Callable[[], None] = lambda: None
        self._pending: set[Ino] = set()
        self._lock = threading.Lock()
        self._flushes = 0
        self._shared: SharedDepends | None = None

    def register(self, settle: Callable[[], None]) -> None:
        """`settle` takes the pending files and makes them durable. It raises nothing."""
        self._settle = settle

    def share(self, shared: SharedDepends | None) -> None:
        """Others add files as well from now on; None: not any more. No flush is under way."""
        with self._lock:
            if self._shared is not None:
                self._pending.update(map(Ino, self._shared.take_depends()))
            self._shared = shared

    def depend_on(self, inos: Iterable[Ino], *, soon: bool = False) -> None:
        """The caller's next transaction must not be durable before the bytes of these files are.

        `soon`: there is no such transaction, and the next `settled` is early enough.
        """
        with self._lock:
            self._pending.update(inos)
            is_late = self._flushes > 0
        if is_late and not soon:
            self._settle()

    def take(self) -> set[Ino]:
        """The files that became pending since the last call: the caller makes them durable."""
        with self._lock:
            taken, self._pending = self._pending, set()
            if self._shared is not None:
                taken.update(map(Ino, self._shared.take_depends()))
        return taken

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Runs a flush of the log; before it, the pending files are made durable."""
        with self._lock:
            self._flushes += 1
            shared = self._shared
            if shared is not None:
                shared.flush_begins()
        try:
            self._settle()
            yield
        finally:
            with self._lock:
                self._flushes -= 1
                if shared is not None:
                    shared.flush_ends()
