"""The metrics of all mounts of this host beside the agent's own: one endpoint to scrape for a host.

The mounts are read by a helper process (mount_reader.py), which is started at the first scrape that asks, and again
when it died.

Invariants:
1. A mount that does not answer, or a helper that does not, costs a scrape a few seconds and nothing else: the agent's
   own metrics are shown in any case, and `snapfs_mount_up` says which mounts are missing.
2. The helper has no descriptor of the agent's but the two pipes, so it holds none of its locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from replicator.agent.mount_reader import WAIT_S, MountMetrics
from snapfs.base.counting.exposition import Family, render
from snapfs.base.counting.merged_metrics import merged

_HELPER_WAIT_S: Final = WAIT_S + 4.0
"""Also for its start; within the ten seconds that Prometheus gives a scrape."""
_LINE_BYTES: Final = 64 << 20
_COMMAND: Final = (sys.executable, "-m", "replicator.agent.mount_reader")
_decode: Final = msgspec.json.Decoder(list[MountMetrics]).decode


class HostMetrics:
    """One reader of the mounts. Lives in one event loop; `close` it."""

    def __init__(self) -> None:
        self._helper: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._last: list[MountMetrics] = []

    async def with_mounts(self, own: bytes) -> bytes:
        """The agent's own text and those of all mounts as one. Raises nothing."""
        found = await self._mounts()
        return merged([({}, own.decode()), ({}, _up(found)), *_texts(found)]).encode()

    async def close(self) -> None:
        """End the helper."""
        helper, self._helper = self._helper, None
        if helper is not None and helper.stdin is not None:
            helper.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(helper.wait(), 1)
                return
            with contextlib.suppress(ProcessLookupError):
                helper.kill()

    async def _mounts(self) -> list[MountMetrics]:
        """Of all mounts; where the helper fails those of the last time, none of which answers."""
        async with self._turn:
            try:
                self._last = _decode(await asyncio.wait_for(self._asked(), _HELPER_WAIT_S))
            except (OSError, ValueError, TimeoutError, msgspec.MsgspecError):
                await self.close()
                self._last = [MountMetrics(each.volume, each.mountpoint, None) for each in self._last]
            return self._last

    async def _asked(self) -> bytes:
        if self._helper is None or self._helper.returncode is not None:
            self._helper = await asyncio.create_subprocess_exec(
                *_COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES
            )
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write(b"\n")
        await self._helper.stdin.drain()
        return await self._helper.stdout.readline()


def _texts(found: Sequence[MountMetrics]) -> list[tuple[dict[str, str], str]]:
    return [
        ({"volume": each.volume, "mountpoint": each.mountpoint}, each.text) for each in found if each.text is not None
    ]


def _up(found: Sequence[MountMetrics]) -> str:
    family = Family("snapfs_mount_up", "gauge", "1 if the mount's daemon answered with its metrics.")
    for each in found:
        family.add(each.text is not None, volume=each.volume, mountpoint=each.mountpoint)
    return render([family]).decode()
