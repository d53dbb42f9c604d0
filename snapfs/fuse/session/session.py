"""The session: one mount from its descriptor to its end.

A `Session` owns the descriptor that libfuse reads, the flags agreed on and the raw INIT request. It is either
mounted here or adopted: a supervisor that holds the descriptor of a living mount hands it over with the INIT
request that the first daemon saved.

Invariants:
1. One session a process; pyfuse3 keeps its state in the module.
2. `serve` returns when the mount is gone or `stop` was called; the router, where there is one, is stopped then. Only
   `close` after that ends libfuse's descriptor.
3. libfuse's descriptor is never read while no request is pending: libfuse's read blocks.

A daemon that dies at any point leaves a dead mount (ENOTCONN), unless another process holds the descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyfuse3
import trio

from snapfs.fuse.handlers.handler_base import Handlers
from snapfs.fuse.kernel import fuse_mount, init_handshake, notices, router
from snapfs.fuse.kernel.fuse_mount import MountOptions
from snapfs.fuse.kernel.fuse_protocol import Flag
from snapfs.fuse.kernel.init_handshake import Attached
from snapfs.fuse.kernel.request_reader import RequestReader, install
from snapfs.fuse.session.upcalls import Upcalls
from snapfs.live.tree import LiveTree

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

MAX_TASKS = 99
BLOCKS_SECONDS = 1.0


@dataclass(slots=True)
class Session:
    """A mount that is being served. `fd` is read by libfuse, `device` is /dev/fuse (the same without a router).

    `saved_init` and `flags` are what `adopt` needs. The router answers requests about bytes itself where it and the
    live tree of the handlers can.
    """

    mountpoint: str
    fd: int
    saved_init: bytes
    flags: Flag
    device: int = -1
    router: Router | None = None
    reader: RequestReader | None = None
    handlers: Handlers | None = None  # those that the router answers requests about bytes for, if it does
    kernel: notices.Kernel = field(default_factory=notices.Kernel)

    @staticmethod
    def mount(
        operations: pyfuse3.Operations,
        mountpoint: str,
        options: MountOptions,
        *,
        reader: RequestReader | None = None,
        nonempty: bool = False,
        routed: bool | None = None,
        first_at: str = "",
    ) -> Session:
        """Mount and agree with the kernel; the mount answers as soon as `serve` runs.

        `first_at`: the place where it is made, if it is to be at `mountpoint` only later.

        `reader` waits for the requests in place of pyfuse3's own way; a router needs one. `routed`: see
        `init_handshake.attach`. Blocks; not to be called from a thread in which trio runs. UserError, BusyError: see
        `fuse_mount`.
        """
        place = first_at or mountpoint
        fuse_mount.check_mountpoint(place, nonempty=nonempty)
        if reader is not None:
            install(reader)
        fuse_fd = fuse_mount.open_mount(place, options)
        try:
            raw_init = init_handshake.read_init(fuse_fd)
            attached = init_handshake.attach(
                operations, fuse_fd, raw_init, answer_kernel=True, routed=_may_route(routed, reader)
            )
        except BaseException:
            fuse_mount.unmount(place, lazy=True)
            raise
        if attached.router is not None:
            attached.router.cache_listings()
        return _session(operations, mountpoint, raw_init, attached, reader)

    @staticmethod
    def adopt(
        operations: pyfuse3.Operations,
        mountpoint: str,
        fuse_fd: int,
        saved_init: bytes,
        *,
        reader: RequestReader | None = None,
        flags: Flag | None = None,
        routed: bool | None = None,
    ) -> Session:
        """Serve a living mount whose daemon is gone. What it had read and not answered is sent again.

        `fuse_fd` is consumed. `flags` are those that the first daemon agreed on; None: what this one would. Blocks;
        not to be called from a thread in which trio runs.
        """
        if reader is not None:
            install(reader)
        attached = init_handshake.attach(
            operations, fuse_fd, saved_init, answer_kernel=False, routed=_may_route(routed, reader)
        )
        if flags is not None:
            attached = attached._replace(flags=flags)
        if attached.flags & Flag.HAS_RESEND:
            notices.resend(attached.device)
        return _session(operations, mountpoint, saved_init, attached, reader)

    async def serve(self) -> None:
        """Answer requests until the mount is gone or `stop` is called."""
        if self.router is None:
            await self._answer()
            return
        if self.handlers is not None:
            self.router.attach_core(self.handlers.tree.native, Upcalls(self.handlers))
        self.router.start(self.reader is not None and self.reader.runs_first)
        try:
            await self._answer()
        finally:
            self.router.stop()

    async def _answer(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh_blocks)
            await pyfuse3.main(max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()

    async def _refresh_blocks(self) -> None:
        """With the writeback cache the kernel reads st_blocks at close(2), and not when it writes pages back: for
        files that stay open it is notified, lest `du` shows 0 for a log that grew for days."""
        while True:
            await (self.reader.idleness.pause if self.reader is not None else trio.sleep)(BLOCKS_SECONDS)
            await trio.to_thread.run_sync(self._forget_attributes, self.kernel.take_written())

    def _forget_attributes(self, inos: set[int]) -> None:
        if self.router is not None:
            self.router.invalidate_written()
        for ino in inos:
            self.kernel.forget_attributes(ino)

    def stop(self) -> None:
        """Let `serve` return after the requests that are being answered. Called from the trio thread."""
        pyfuse3.terminate()
        if self.reader is not None:
            self.reader.lock.end()

    def unmount(self, *, lazy: bool = False) -> None:
        """Take the mount away, after which `serve` returns. Called from another thread, for the kernel may send
        requests meanwhile. BusyError if it is in use."""
        fuse_mount.unmount(self.mountpoint, lazy=lazy, apart=True)

    def close(self) -> None:
        """Give up the descriptor. A mount still in place is dead from here on, unless another process holds it."""
        if self.router is not None:
            self.router.stop()
        self.kernel.close()
        if self.reader is not None:
            self.reader.disconnect()
        pyfuse3.close(unmount=False)


def _may_route(routed: bool | None, reader: RequestReader | None) -> bool | None:
    return False if reader is None else routed


def _session(
    operations: pyfuse3.Operations, mountpoint: str, saved_init: bytes, attached: Attached, reader: RequestReader | None
) -> Session:
    handlers = operations if isinstance(operations, Handlers) else None
    kernel = handlers.kernel if handlers is not None else notices.Kernel()
    kernel.connect(attached.device)
    if reader is not None:
        reader.connect(attached.router)
    native = handlers is not None and handlers.tree.native is not None and attached.router is not None
    return Session(
        mountpoint, attached.fd, saved_init, attached.flags, attached.device, attached.router, reader,
        handlers if native else None, kernel,
    )  # fmt: skip


def data_path(reader: RequestReader, tree: LiveTree) -> dict[str, str | bool | None]:
    """For the status: what serves bytes, and why Python does if it does; whether a router stands before it, and whether
    its threads run before all that computes."""
    active = reader.router is not None and tree.native is not None
    why = router.why_not() or "by choice (live.data_path), or the extension snapfs.live.content._content is not there"
    return {
        "active": "native" if active else "python", "why": None if active else why,
        "routed": reader.router is not None, "realtime": reader.router is not None and reader.router.runs_first(),
    }  # fmt: skip
