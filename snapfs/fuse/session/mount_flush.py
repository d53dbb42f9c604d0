"""The flush of a mount before a cut, a rollback and an unmount: what applications wrote is in the live tree then."""

from __future__ import annotations

from snapfs.fuse.handlers.reclaimer import Reclaimer
from snapfs.fuse.kernel.stale_pages import StalePages
from snapfs.fuse.kernel.writeback import Flusher


class MountFlush:
    """Flushes one mount. Lives in the trio thread."""

    def __init__(self, flusher: Flusher, stale_pages: StalePages, reclaimer: Reclaimer) -> None:
        self._flusher, self._stale_pages, self._reclaimer = flusher, stale_pages, reclaimer

    async def __call__(self) -> None:
        """Flush; pages that could not be stored are dropped from the kernel's cache, also when it fails. OSError."""
        try:
            await self._flusher.flush()
        finally:
            await self._stale_pages.drop()
        await self._reclaimer.reclaim()
