"""The kernel's cache, flushed: get every write that returned, and that is still in there, before a cut.

syncfs(2) sends the dirty pages off but, on FUSE, does not wait until the daemon answered. So a flush is:
(1) syncfs on the mount; (2) open, read and close `.snapfs/fence`, whose RELEASE queues up behind those pages;
(3) when it arrives all of them were received, by this thread or by those of a router; (4) wait until the router has
answered or sent on what it had received, and the handlers of what it sent have begun; (5) wait until those that are
still being answered are done.
A page can be held back behind a truncation or fsync of its file that is under way, and follows it; so after a wait
for such requests the flush is made once more.

Invariants:
1. Nothing of this runs in the trio thread, which must answer the very requests that it causes.
2. No descriptor of the mount is left open, so an unmount is not in the way for longer than a flush.
3. After `close` no flush is under way, and none begins. The daemon must answer requests until then: a flush that is not
   answered any more never ends, and would keep its thread, and so the daemon, for ever.
4. Without a file open for writing there is nothing to flush: the kernel writes a file's pages out, and waits for
   the replies, before it releases the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Awaitable, Callable, Iterator

import trio

from snapfs.base.mountinfo import mount_at
from snapfs.fuse.kernel.request_reader import InThread
from snapfs.fuse.virtual.control_nodes import FenceSwitch

_ROUNDS = 2


_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
"""Of writes of cached pages that we answered with an error, now or before the last flush: LiveTree.lose counts them."""


def _syncfs(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
        number = ctypes.get_errno()
        if number not in _OURS:
            raise OSError(number, os.strerror(number))


class Unsettled:
    """The changing requests that were received and wait for something before they can be answered."""

    def __init__(self) -> None:
        self._waiting: dict[object, trio.Event] = {}

    @contextlib.contextmanager
    def change(self) -> Iterator[None]:
        """Around the answering of one such request."""
        key = object()
        done = self._waiting[key] = trio.Event()
        try:
            yield
        finally:
            del self._waiting[key]
            done.set()

    async def settle(self) -> None:
        """Return when all that wait now are answered."""
        for done in list(self._waiting.values()):
            await done.wait()


class Flusher:
    """Flushes one mount. One flush at a time. `any_writer`: whether the kernel has a file open for writing."""

    def __init__(
        self,
        mountpoint: str,
        fence: FenceSwitch,
        unsettled: Unsettled,
        any_writer: Callable[[], bool],
        catch_up: Callable[..., Awaitable[None]],
        outside: Callable[[int], int] | None = None,
    ) -> None:
        """`outside`: `send_off` of a device by another process (syncfs_helper.py), where the mount outlives us."""
        self._mountpoint = mountpoint
        self._fence = fence
        self._unsettled = unsettled
        self._any_writer = any_writer
        self._catch_up = catch_up
        self._device: int | None = None
        self._limiter = trio.CapacityLimiter(1)
        self._under_way = Unsettled()
        self._closed = False
        self._outside = outside

    def learn_device(self, first_at: str = "") -> None:
        """Remember which device the mount is, which may still be at `first_at`. One that is detached already has none:
        a daemon that adopts it serves the processes that still use it, or the session is over."""
        for place in filter(None, (self._mountpoint, first_at)):
            if (mount := mount_at(place)) is not None:
                self._device = mount.device
                return

    async def flush(self) -> None:
        """Return when all that was written before is in the live tree.

        OSError; ENODEV if the mount is detached, ECANCELED if it is being closed.
        """
        with self._under_way.change():
            for _ in range(_ROUNDS if self._any_writer() else 0):
                await self._round()

    async def flush_once(self, in_thread: InThread) -> None:
        """The same in one round, what blocks by `in_thread`: what is held back behind a change of its file is not
        waited for. OSError."""
        with self._under_way.change():
            if self._any_writer():
                await self._fence.wait(await in_thread(self._send_off))
                await self._catch_up(in_thread)
                await self._unsettled.settle()

    async def _round(self) -> None:
        token = await trio.to_thread.run_sync(self._send_off, limiter=self._limiter)
        await self._fence.wait(token)
        await self._catch_up()
        await self._unsettled.settle()

    async def close(self) -> None:
        """Begin no flush any more, and return when the last one has ended."""
        self._closed = True
        await self._under_way.settle()

    def _send_off(self) -> int:
        if self._closed:
            raise OSError(errno.ECANCELED, "the volume is being unmounted")
        if self._device is None:
            raise OSError(errno.ENODEV, "the mount is detached from its mountpoint")
        if self._outside is not None:
            return self._outside(self._device)
        return send_off(self._mountpoint, self._device)


def send_off(mountpoint: str, device: int) -> int:
    """Steps 1 and 2; the token of the fence. Waits for the daemon. OSError, ENODEV if the mount is detached."""
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_dev != device:
            raise OSError(errno.ENODEV, "the mount is detached from its mountpoint")
        _syncfs(fd)
        fence = os.open(".snapfs/fence", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
        try:
            return int(os.read(fence, 64))
        finally:
            os.close(fence)
    finally:
        os.close(fd)
