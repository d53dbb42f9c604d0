"""Who changes names: Python's writer or C (snapfs/live/native/names_writer.h), one after the other.

Where the native data path serves a mount, the threads of the router make most changes of names themselves, with a
connection of their own. What the writer keeps in memory next to the database, counters above all, belongs to the one
that has the turn.

Invariants:
1. Python takes the turn before it looks at a row that a change depends on, and gives it back after the commit. It is
   given the writer's numbers as it takes the turn (`adopt_numbers`), and hands them back with it.
2. Nothing waits for a disk or a network but the database itself while Python has the turn.
3. Python holds no other lock of lock_order.h as it takes the turn.
4. What is looked at outside a turn is read on another connection (outside_reads.py).
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Protocol

from snapfs.live.database.wal import SharedLog


class SharedNames(SharedLog, Protocol):
    """What C offers: `Core` of the native data path."""

    def unshare_names(self) -> int: ...

    def take_turn(self) -> tuple[int, ...]: ...

    def end_turn(self, numbers: tuple[int, ...], /) -> None: ...

    def needs_names(self, ino: int, /) -> bool: ...

    def cached_inode(self, ino: int, /) -> tuple[Any, ...] | None: ...


class WriterNumbers(Protocol):
    """Python's writer, as far as its numbers are concerned. In the order of `struct names_state`."""

    def numbers(self) -> tuple[int, ...]: ...

    def adopt_numbers(self, numbers: tuple[int, ...]) -> None: ...


class Turn:
    """To be entered for each change; again within one does nothing more. Any thread."""

    def __init__(self, writer: WriterNumbers) -> None:
        self._writer = writer
        self._own = threading.RLock()
        self._depth = 0
        self._owner = 0
        self._shared: SharedNames | None = None

    @property
    def shared(self) -> SharedNames | None:
        """Who else changes names; None if nobody does."""
        return self._shared

    @property
    def is_ours(self) -> bool:
        """Whether the calling thread has the turn."""
        return self._owner == threading.get_ident()

    def share(self, shared: SharedNames) -> None:
        """`shared` changes names as well from now on; `share_names` has returned true. Not within a turn."""
        with self._own:
            assert not self._depth
            self._shared = shared

    def end_sharing(self) -> int:
        """Within a turn: nobody else changes names any more. Returns the turn of the mark."""
        assert self._shared is not None
        shared, self._shared = self._shared, None
        return shared.unshare_names()

    def __enter__(self) -> None:
        self._own.acquire()
        try:
            if self._shared is not None and not self._depth:
                self._writer.adopt_numbers(self._shared.take_turn())
        except BaseException:
            self._own.release()
            raise
        self._depth += 1
        self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
        try:
            if self._shared is not None and not self._depth:
                self._shared.end_turn(self._writer.numbers())
        finally:
            self._own.release()
