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

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyfuse3

from snapfs.fuse import handshake, mounting, notices, router
from snapfs.fuse.base import Handlers
from snapfs.fuse.handshake import Attached
from snapfs.fuse.mounting import MountOptions
from snapfs.fuse.protocol import Flag
from snapfs.fuse.reader import RequestReader, install
from snapfs.fuse.upcalls import Upcalls

if TYPE_CHECKING:
    from snapfs.fuse._router import Router

MAX_TASKS = 99


@dataclass(slots=True)
class Session:
    """A mount that is being served. `fd` is read by libfuse, `device` is /dev/fuse (the same without a router).

    `saved_init` and `flags` are what `adopt` needs.
    """

    mountpoint: str
    fd: int
    saved_init: bytes
    flags: Flag
    device: int = -1
    router: Router | None = None
    reader: RequestReader | None = None
    handlers: Handlers | None = None

    @staticmethod
    def mount(
        operations: pyfuse3.Operations,
        mountpoint: str,
        options: MountOptions,
        *,
        reader: RequestReader | None = None,
        nonempty: bool = False,
        routed: bool | None = None,
    ) -> Session:
        """Mount and agree with the kernel; the mount answers as soon as `serve` runs.

        `reader` waits for the requests in place of pyfuse3's own way; a router needs one. `routed`: see
        `handshake.attach`. Blocks; not to be called from a thread in which trio runs. UserError, BusyError: see
        `mounting`.
        """
        mounting.check_mountpoint(mountpoint, nonempty=nonempty)
        if reader is not None:
            install(reader)
        fuse_fd = mounting.open_mount(mountpoint, options)
        try:
            raw_init = handshake.read_init(fuse_fd)
            attached = handshake.attach(
                operations, fuse_fd, raw_init, answer_kernel=True, routed=_may_route(routed, reader)
            )
        except BaseException:
            mounting.unmount(mountpoint, lazy=True)
            raise
        return _session(mountpoint, raw_init, attached, reader)

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
        attached = handshake.attach(
            operations, fuse_fd, saved_init, answer_kernel=False, routed=_may_route(routed, reader)
        )
        if flags is not None:
            attached = attached._replace(flags=flags)
        if attached.flags & Flag.HAS_RESEND:
            notices.resend(attached.device)
        return _session(mountpoint, saved_init, attached, reader)

    def answer_from(self, handlers: Handlers) -> None:
        """Before `serve`: let the router answer requests about bytes itself, where it and the live tree can."""
        if self.router is not None and handlers.tree.native is not None:
            self.handlers = handlers

    def data_path(self) -> dict[str, str | bool | None]:
        """For status: who serves bytes, and why Python if it does; whether a router stands before it."""
        active = self.handlers is not None
        why = router.why_not() or "by choice (live.data_path), or the extension snapfs.live._content is not there"
        return {
            "active": "native" if active else "python", "why": None if active else why,
            "routed": self.router is not None,
        }  # fmt: skip

    async def serve(self) -> None:
        """Answer requests until the mount is gone or `stop` is called."""
        if self.router is None:
            await pyfuse3.main(max_tasks=MAX_TASKS)
            return
        assert self.reader is not None
        self.reader.router = self.router
        if self.handlers is not None:
            self.router.answer_from(self.handlers.tree.native, Upcalls(self.handlers))
            self.handlers.plain.router = self.router
        self.router.start()
        try:
            await pyfuse3.main(max_tasks=MAX_TASKS)
        finally:
            self.router.stop()

    def stop(self) -> None:
        """Let `serve` return after the requests that are being answered. Called from the trio thread."""
        pyfuse3.terminate()
        if self.reader is not None:
            self.reader.lock.end()

    def unmount(self, *, lazy: bool = False) -> None:
        """Take the mount away, after which `serve` returns. Called from another thread, for the kernel may ask us
        things meanwhile. BusyError if it is in use."""
        mounting.unmount(self.mountpoint, lazy=lazy, apart=True)

    def close(self) -> None:
        """Give up the descriptor. A mount still in place is dead from here on, unless another process holds it."""
        if self.router is not None:
            self.router.stop()
        if self.reader is not None:
            self.reader.router = None
        pyfuse3.close(unmount=False)


def _may_route(routed: bool | None, reader: RequestReader | None) -> bool | None:
    return False if reader is None else routed


def _session(mountpoint: str, saved_init: bytes, attached: Attached, reader: RequestReader | None) -> Session:
    return Session(
        mountpoint, attached.fd, saved_init, attached.flags, attached.device, attached.router, reader
    )
