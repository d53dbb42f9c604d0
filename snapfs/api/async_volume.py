"""`snapfs.AsyncVolume`: the same for programs with an event loop, trio or asyncio, whichever runs.

What a call waits for is a file of the mount or of the disk, for which neither loop can wait itself; so each call runs
in a worker thread of the loop that runs. A call that is cancelled is finished all the same: a snapshot or a fork that
was begun is not left half made.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import trio

from snapfs.api.volume_handle import ChangedPath, Fork, MadeSnapshot, VolumeHandle

T = TypeVar("T")


def _in_trio() -> bool:
    """Whether trio runs this task; else asyncio does."""
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


async def _in_thread(act: Callable[..., T], *arguments: Any, **options: Any) -> T:
    work = functools.partial(act, *arguments, **options)
    if _in_trio():
        return await trio.to_thread.run_sync(work)
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, work))


class AsyncVolume:
    """A volume of this host. `sync` is the same volume without a loop; what each call does is written there."""

    def __init__(self, volume: VolumeHandle) -> None:
        self.sync = volume

    @classmethod
    async def at(cls, place: str | os.PathLike[str]) -> AsyncVolume:
        """The volume of a place, as `Volume(place)`."""
        return cls(await _in_thread(VolumeHandle, place))

    async def status(self) -> dict[str, Any]:
        return await _in_thread(self.sync.status)

    async def list(self) -> list[MadeSnapshot]:
        return await _in_thread(self.sync.list)

    async def snapshot(self, name: str | None = None, *, flush: bool = True) -> MadeSnapshot:
        return await _in_thread(self.sync.snapshot, name, flush=flush)

    async def fork(
        self, mountpoint: str | os.PathLike[str], *, at: int | str | None = None,
        volume: str | os.PathLike[str] | None = None, options: Sequence[str] = (),
    ) -> AsyncFork:  # fmt: skip
        return AsyncFork(await _in_thread(self.sync.fork, mountpoint, at=at, volume=volume, options=options))

    async def diff(
        self, older: int | str, newer: int | str, *, other: AsyncVolume | None = None
    ) -> Sequence[ChangedPath]:
        """All changes at once."""
        sync = other.sync if other is not None else None
        return await _in_thread(lambda: tuple(self.sync.diff(older, newer, other=sync)))

    async def restore(self, snapshot: int | str, destination: str | os.PathLike[str], *, verify: bool = False) -> None:
        await _in_thread(self.sync.restore, snapshot, destination, verify=verify)

    async def rollback(self, snapshot: int | str, *, force: bool = False) -> None:
        await _in_thread(self.sync.rollback, snapshot, force=force)

    async def umount(self, *, timeout_s: float | None = None) -> None:
        await _in_thread(self.sync.umount, timeout_s=timeout_s)


class AsyncFork(AsyncVolume):
    """A fork. As a context it is discarded at the end of the block, also when that is cancelled."""

    sync: Fork

    def __init__(self, fork: Fork) -> None:
        super().__init__(fork)

    async def discard(self) -> None:
        await _in_thread(self.sync.discard)

    async def __aenter__(self) -> AsyncFork:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _in_trio():
            with trio.CancelScope(shield=True):
                await self.discard()
        else:
            await self.discard()
