"""The one thread in which a feeder's source is used: everything of a VolumeSource blocks, and one thread may use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from replicator.source.volume_source import VolumeSource

T = TypeVar("T")


class SourceThread:
    """Runs calls that use `source`, one after the other. Used from the event loop."""

    def __init__(self, source: VolumeSource, name: str) -> None:
        self.source = source
        self._executor = ThreadPoolExecutor(1, name)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Call `work` when all earlier calls have ended, also those whose caller was cancelled. Raises as `work`."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def refresh(self) -> None:
        """Read what the daemon has written since. Raises CorruptionError, UserError, OSError."""
        await self.run(self.source.refresh)

    async def close(self) -> None:
        """Close the source and end the thread."""
        await self.run(self.source.close)
        self._executor.shutdown()
