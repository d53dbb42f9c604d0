"""Files whose pages in the kernel's cache differ from the live tree, until the kernel has dropped them.

A write of cached pages that is refused or fails for good leaves pages in the cache that were never stored. A handler
marks the file, which costs nothing; a task has the kernel drop the pages in a worker thread (notices.py, invariant 1).
Where the daemon adopted a mount whose earlier daemon may have lost writes, all files are gone through first
(adopted_pages.py).

Invariants:
1. A file that is marked while others are being dropped is dropped in the next round, which begins at once.
2. A loss is reported as dropped (lost_writes.py, invariant 2) when the kernel has dropped the pages.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from snapfs.base.blocks import Ino
from snapfs.fuse.kernel.notices import Kernel
from snapfs.live.lost_writes import LostWrites


class StalePages:
    """The files of one mount. Lives in the trio thread."""

    def __init__(self, kernel: Kernel, losses: LostWrites, go_through_all: Callable[[], None]) -> None:
        """`go_through_all`: drops the pages of all files, and calls `all_dropped` of `losses`; a worker thread."""
        self._kernel, self._losses, self._go_through_all = kernel, losses, go_through_all
        self._inos: set[Ino] = set()
        self._marked = trio.Event()
        self._one_at_a_time = trio.Lock()

    def mark(self, ino: Ino) -> None:
        """The kernel's pages of this file are to be dropped soon."""
        self._inos.add(ino)
        self._marked.set()

    async def wait(self) -> None:
        """Return when a file is marked."""
        await self._marked.wait()

    async def drop(self) -> None:
        """Have the kernel drop the pages of all marked files; return when it has."""
        async with self._one_at_a_time:
            if self._losses.is_unknown:
                await trio.to_thread.run_sync(self._go_through_all)
            losses = self._losses.undropped()
            if marked := self._take() | losses.keys():
                await trio.to_thread.run_sync(self._kernel.forget_pages, marked)
            self._losses.dropped(losses)

    def _take(self) -> set[Ino]:
        """The marked files, which are not marked any more. A task that waits for the next mark goes on waiting."""
        inos, self._inos = self._inos, set()
        if self._marked.is_set():
            self._marked = trio.Event()
        return inos
