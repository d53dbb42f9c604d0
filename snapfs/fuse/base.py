"""What the handlers in names.py, inodes.py and files.py share: the live tree, threads, waiting before a change."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pyfuse3
import trio

from snapfs.blocks import ROOT_INO, Ino
from snapfs.fuse import modes
from snapfs.fuse.flushing import FlushCost
from snapfs.fuse.nodes import is_virtual
from snapfs.fuse.plain import PlainFiles
from snapfs.fuse.reader import RequestReader
from snapfs.fuse.virtual import NAME as VIRTUAL_NAME
from snapfs.fuse.virtual import VirtualNodes
from snapfs.fuse.writeback import Unsettled
from snapfs.live.records import NotLoadedError
from snapfs.live.tree import LiveTree
from snapfs.transfer.replication import Tether

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 32


class Handlers(pyfuse3.Operations):
    """What the handlers of all kinds of requests work with."""

    def __init__(self, tree: LiveTree, virtual: VirtualNodes | None, reader: RequestReader) -> None:
        super().__init__()
        self.tree = tree
        self.virtual = virtual
        self.reader = reader
        self.unique: Callable[[], int] = lambda: 0
        """The number of the request that the present task handles; 0 where that cannot be known."""
        self.tether: Tether | None = None
        """What slows changes down where replication is bounded."""
        self.read_only = False
        """Nothing may change any more: another host writes this volume now."""
        self.refused: set[Ino] = set()  # files of which the kernel may show writes that were refused
        self.unsettled = Unsettled()  # changes that wait for something: what a flush before a cut waits for
        self._threads = trio.CapacityLimiter(MAX_THREADS)
        self._flush_cost = FlushCost()
        self.plain = PlainFiles()

    def forget_modes(self) -> None:
        """The live tree was changed by other means than requests (a rollback)."""
        self.plain.clear()

    def _once(self, change: Callable[[], T], again: Callable[[Ino], T]) -> T:
        """Make the change that the present request asks for, or give `again` the outcome if it was made already."""
        request, answers = self.unique(), self.tree.names.answers
        past = answers.past(request)
        if past is not None:
            return again(Ino(past))
        answers.ask(request)
        try:
            return change()
        finally:
            answers.ask(0)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._threads)

    async def load(self, missing: NotLoadedError) -> None:
        """Load the names of a directory that are still only in the store."""
        entries = await self._in_thread(self.tree.fetch_names, missing.listing, wanted=True)
        self.tree.load(missing.ino, entries)

    def _virtual(self) -> VirtualNodes:
        if self.virtual is None:
            raise failure(errno.ESTALE)
        return self.virtual

    def _refuse_change(self) -> None:
        if self.read_only:
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

    def _weakened_mode(self, ino: Ino) -> int | None:
        """The permission bits without setuid and setgid, None if that changes nothing."""
        mode = self.tree.getattr(ino).mode
        weaker = modes.without_privileges(mode)
        return None if weaker == mode else stat.S_IMODE(weaker)

    def weaken(self, ino: Ino) -> None:
        """Take setuid and setgid from a file that somebody without privileges changes."""
        if modes.is_privileged(self.tree.getattr(ino).mode):
            self.tree.setattr(ino, mode=self._weakened_mode(ino))
        self.plain.add(ino)

    async def getattr_of_virtual(self, node: int) -> pyfuse3.EntryAttributes:
        return await self._virtual().getattr(node)

    async def _ready_to_write(self, ino: Ino, offset: int = 0, length: int = 0) -> None:
        """Return when these bytes, and the times, can change without waiting. Nothing else runs before the caller."""
        if self.tree.ready_to_write(ino, offset, length):
            return
        with self.unsettled.change():
            while not self.tree.ready_to_write(ino, offset, length):
                await self._in_thread(self.tree.prepare_write, ino, offset, length)

    async def _ready_to_truncate(self, ino: Ino, size: int) -> None:
        """The same for a truncate to `size` bytes, which may have much to keep aside for a cut."""
        if self.tree.ready_to_truncate(ino, size):
            return
        with self.unsettled.change():
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
    """The answer to a change, made by an earlier daemon, that has nothing to tell."""
