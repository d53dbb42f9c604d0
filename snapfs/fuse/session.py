"""The session: one mount from its descriptor to its end.

A `Session` owns the descriptor that libfuse reads, the flags agreed on and the raw INIT request. It is either
mounted here or adopted: a supervisor that holds the descriptor of a living mount hands it over with the INIT
request that the first daemon saved.

Invariants:
1. One session a process; pyfuse3 keeps its state in the module.
2. `serve` returns when the mount is gone or `stop` was called; only `close` after that ends the descriptor.
3. The descriptor is never read while no request is pending: libfuse's read blocks.

A daemon that dies at any point leaves a dead mount (ENOTCONN), unless another process holds the descriptor.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pyfuse3

from snapfs.fuse import handshake, mounting
from snapfs.fuse.mounting import MountOptions
from snapfs.fuse.protocol import Flag, resend_notification
from snapfs.fuse.reader import RequestReader, install

MAX_TASKS = 99


@dataclass(slots=True)
class Session:
    """A mount that is being served. `fd` is read by libfuse; `saved_init` is what `adopt` needs."""

    mountpoint: str
    fd: int
    saved_init: bytes
    flags: Flag

    @staticmethod
    def mount(
        operations: pyfuse3.Operations,
        mountpoint: str,
        options: MountOptions,
        *,
        reader: RequestReader | None = None,
        nonempty: bool = False,
    ) -> Session:
        """Mount and agree with the kernel; the mount answers as soon as `serve` runs.

        `reader` waits for the requests in place of pyfuse3's own way. Blocks; not to be called from a thread in
        which trio runs. UserError, BusyError: see `mounting`.
        """
        mounting.check_mountpoint(mountpoint, nonempty=nonempty)
        if reader is not None:
            install(reader)
        fuse_fd = mounting.open_mount(mountpoint, options)
        try:
            raw_init = handshake.read_init(fuse_fd)
            fd, flags = handshake.attach(operations, fuse_fd, raw_init, answer_kernel=True)
        except BaseException:
            mounting.unmount(mountpoint, lazy=True)
            raise
        return Session(mountpoint, fd, raw_init, flags)

    @staticmethod
    def adopt(
        operations: pyfuse3.Operations,
        mountpoint: str,
        fuse_fd: int,
        saved_init: bytes,
        *,
        reader: RequestReader | None = None,
    ) -> Session:
        """Serve a living mount whose daemon is gone. What it had read and not answered is sent again.

        `fuse_fd` is consumed. Blocks; not to be called from a thread in which trio runs.
        """
        if reader is not None:
            install(reader)
        fd, flags = handshake.attach(operations, fuse_fd, saved_init, answer_kernel=False)
        if flags & Flag.HAS_RESEND:
            os.write(fd, resend_notification())
        return Session(mountpoint, fd, saved_init, flags)

    async def serve(self) -> None:
        """Answer requests until the mount is gone or `stop` is called."""
        await pyfuse3.main(max_tasks=MAX_TASKS)

    def stop(self) -> None:
        """Let `serve` return after the requests that are being answered. Called from the trio thread."""
        pyfuse3.terminate()

    def unmount(self, *, lazy: bool = False) -> None:
        """Take the mount away, after which `serve` returns. Called from another thread, for the kernel may ask us
        things meanwhile. BusyError if it is in use."""
        mounting.unmount(self.mountpoint, lazy=lazy)

    def close(self) -> None:
        """Give up the descriptor. A mount still in place is dead from here on, unless another process holds it."""
        pyfuse3.close(unmount=False)
