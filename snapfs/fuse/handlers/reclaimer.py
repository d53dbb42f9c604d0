"""The disk space of files that have no name any more, given back soon after the kernel forgot them.

Several files that are forgotten together share one flush of the namespace.
"""

from __future__ import annotations

import logging

import trio

from snapfs.live.tree import LiveTree

log = logging.getLogger(__name__)

RECLAIM_SECONDS = 0.02


class Reclaimer:
    """Removes the nameless files of one live tree. Lives in the trio thread."""

    def __init__(self, tree: LiveTree) -> None:
        self._tree = tree
        self._wanted = trio.Event()
        self._one_at_a_time = trio.Lock()

    def wake(self) -> None:
        """The kernel forgot or closed a file: reclaim soon, if there is anything to reclaim."""
        if self._tree.has_forgotten:
            self._wanted.set()

    async def run(self) -> None:
        """Reclaim whenever there is something, for ever."""
        while True:
            await self._wanted.wait()
            await trio.sleep(RECLAIM_SECONDS)
            self._wanted = trio.Event()
            await self.reclaim()

    async def reclaim(self) -> None:
        """Remove every nameless file that the kernel has forgotten. An OSError is logged: the next round retries."""
        async with self._one_at_a_time:
            try:
                while self._tree.remove_forgotten():
                    await trio.to_thread.run_sync(self._tree.reclaim)
            except OSError as error:
                log.error("the disk space of removed files could not be given back yet: %s", error)
