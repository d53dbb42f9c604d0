"""What the handlers of names, inodes and files share: the live tree, worker threads, and waiting before a change."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pyfuse3
import trio

from snapfs.base.blocks import ROOT_INO, Ino
from snapfs.fuse.handlers.flush_cost import FlushCost
from snapfs.fuse.handlers.handler_context import HandlerContext, standalone
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.nodes import modes
from snapfs.fuse.nodes.node_ids import is_virtual
from snapfs.fuse.virtual.virtual_nodes import NAME as VIRTUAL_NAME
from snapfs.fuse.virtual.virtual_nodes import VirtualNodes
from snapfs.live.database.namespace_rows import NotLoadedError
from snapfs.live.tree import LiveTree

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 32


class Handlers(pyfuse3.Operations):
    """What the handlers of all kinds of requests work with. Their state is that of `context`; see there."""

    def __init__(
        self,
        tree: LiveTree,
        virtual: VirtualNodes | None,
        reader: RequestReader,
        context: HandlerContext | None = None,
    ) -> None:
        """`virtual`: the nodes of `.snapfs`, if there are to be any; without `context`, as in `standalone`."""
        super().__init__()
        context = context or standalone(tree, reader)
        self.tree, self.virtual, self.reader = tree, virtual, reader
        self.virtual_requests = 0
        self.kernel = context.kernel
        self.write_back = context.write_back
        self._unique = context.unique
        self._throttle = context.throttle
        self._read_only = context.read_only
        self._stale_pages = context.stale_pages
        self._unsettled = context.unsettled
        self._reclaimer = context.reclaimer
        self._no_suid_files = context.no_suid_files
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self._flush_cost = FlushCost()

    def forget_pages(self, ino: Ino) -> None:
        """Have the kernel soon read a file again: it took a write that could not be stored. The trio thread."""
        self._stale_pages.mark(ino)

    def _once(self, change: Callable[[], T], again: Callable[[Ino], T]) -> T:
        """Make the change of the present request, or call `again` with the outcome if an earlier daemon made it."""
        request, reply_cache = self._unique(), self.tree.names.reply_cache
        past = reply_cache.past(request)
        if past is not None:
            return again(Ino(past))
        reply_cache.set_request(request)
        try:
            return change()
        finally:
            reply_cache.set_request(0)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._threads)

    async def load(self, missing: NotLoadedError) -> None:
        """Load the names of a directory that are still only in the store."""
        entries = await self._in_thread(self.tree.fetch_names, missing.listing, wanted=True)
        self.tree.load(missing.ino, entries)

    def _virtual(self) -> VirtualNodes:
        if self.virtual is None:
            raise failure(errno.ESTALE)
        self.virtual_requests += 1
        return self.virtual

    def _refuse_change(self) -> None:
        if self._read_only.is_on:
            raise failure(errno.EROFS)

    def _refuse_virtual(self, *nodes: int) -> None:
        self._refuse_change()
        if any(is_virtual(node) for node in nodes):
            raise failure(errno.EROFS)

    def _refuse_name(self, parent: int, name: bytes) -> None:
        self._refuse_virtual(parent)
        if parent == ROOT_INO and name == VIRTUAL_NAME and self.virtual is not None:
            raise failure(errno.EPERM)

    def _xattr(self, ino: Ino, name: bytes) -> bytes | None:
        try:
            return self.tree.getxattr(ino, name)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return None

    def _weakened_mode(self, ino: Ino, ctx: pyfuse3.RequestContext | None = None) -> int | None:
        """The permission bits without setuid and setgid, None if nothing changes. `ctx`: of the process, if known."""
        attr = self.tree.getattr(ino)
        weaker = modes.without_privileges(attr.mode, lambda: ctx is None or ctx.uid == 0 or is_member(ctx, attr.gid))
        return None if weaker == attr.mode else stat.S_IMODE(weaker)

    def weaken(self, ino: Ino) -> None:
        """Clear setuid and setgid of a file that a process without privileges changes."""
        if modes.is_privileged(self.tree.getattr(ino).mode):
            self.tree.setattr(ino, mode=self._weakened_mode(ino))
            self.kernel.forget_attributes(ino)
        self._no_suid_files.add(ino)

    async def lseek_virtual(self, node: int, offset: int, whence: int) -> int:
        return await self._virtual().lseek(node, offset, whence)

    async def _ready_to_write(self, ino: Ino, offset: int = 0, length: int = 0) -> None:
        """Return when these bytes, and the times, can change without waiting. No other task runs before the caller."""
        if self.tree.ready_to_write(ino, offset, length):
            return
        with self._unsettled.change():
            while not self.tree.ready_to_write(ino, offset, length):
                await self._in_thread(self.tree.prepare_write, ino, offset, length)

    async def _ready_to_truncate(self, ino: Ino, size: int) -> None:
        """The same for a truncate to `size` bytes, which may have much to preserve for a cut."""
        if self.tree.ready_to_truncate(ino, size):
            return
        with self._unsettled.change():
            await self._in_thread(self.tree.prepare_truncate, ino, size)
            while not self.tree.has_to_truncate(ino, size):
                await self._in_thread(self.tree.prepare_truncate, ino, size)

    async def _flush(self, ino: Ino, flush: Callable[[], None]) -> None:
        small = self._flush_cost.is_small(ino)
        start = time.perf_counter()
        if small and self._flush_cost.is_cheap():
            flush()
        else:
            await self._in_thread(flush)
        if small:
            self._flush_cost.note(time.perf_counter() - start)


def failure(number: int) -> OSError:
    """The error with this errno."""
    return OSError(number, os.strerror(number))


def done(_outcome: Ino) -> None:
    """The reply to a change, made by an earlier daemon, that returns nothing."""


def is_member(ctx: pyfuse3.RequestContext, gid: int) -> bool:
    """Whether the process is in the group; one that is gone already is not."""
    if ctx.gid == gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(ctx.pid)
    except OSError:
        return False
