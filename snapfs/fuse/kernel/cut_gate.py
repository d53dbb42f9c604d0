"""The gate of a mount: for the cut of a group no request that begins a change is answered, on any member at a time.

Promise: if write A returned before write B was begun, on any two members whose gates are closed, then no state that is
cut while all of them are closed, and after a `flush` of each of them that was begun then, has B without A.

Why: B is in, so it was received, or its write(2) into the kernel's cache was begun, before its gate was closed. So A
had returned by then: it was received, or it is a dirty page when the flush begins, which brings it in. What is begun
later is held (native/gate.c). A write(2) into the cache asks for no permission but for attributes, once these are
invalid: so those of all files that are open for writing are invalidated behind the closed gate. Stores to a shared
mapping make no request; they are ordered by msync(2) alone, as in a crash.

A daemon that adopted its mount does not know which files were open before, so writes into the cache could not be held:
it makes no cut of a group (seen: an entry without the synced one before it, after a daemon was killed).

Invariants:
1. Closing waits for no application: only for requests that were received, until they are counted. Nothing of the group
   waits for a member that fails: `opened` opens whatever happened.
2. Between `close` and `open` pages, reads, and all of `.snapfs` are answered.
"""

from __future__ import annotations

from collections.abc import Callable

from snapfs.base.blocks import Ino
from snapfs.base.errors import UserError
from snapfs.base.run_first import run_as_usual, run_first
from snapfs.fuse.kernel.first_thread import FirstThread
from snapfs.fuse.kernel.notices import Kernel
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.kernel.writeback import Flusher, Unsettled


class CutGate:
    """Of one mount. For the trio thread."""

    def __init__(
        self, reader: RequestReader, unsettled: Unsettled, flusher: Flusher, kernel: Kernel,
        writers: Callable[[], list[Ino]], is_adopted: Callable[[], bool], *, runs_first: bool = False,
    ) -> None:  # fmt: skip
        """`writers`: files that are open for writing; `is_adopted`: whether there may be others. `runs_first`: let the
        trio thread run before all that computes while the gate is closed, if that is allowed."""
        self._runs_first, self._thread = runs_first, FirstThread()
        self._reader, self._unsettled, self._flusher, self._kernel = reader, unsettled, flusher, kernel
        self._writers, self._is_adopted = writers, is_adopted

    def check(self) -> None:
        """UserError if this mount has no gate."""
        if self._reader.router is None:
            raise UserError("groups need the native data path: `snapfs status` says why Python serves this mount")
        if self._is_adopted():
            raise UserError(
                "a daemon died here, and its successor does not know what is open: "
                "`snapfs umount` and `snapfs mount` it again"
            )

    def make_ready(self) -> None:
        """The gate is about to be closed, and `open` follows within a second."""
        if self._runs_first:
            run_first()
            self._thread.begin()

    async def close(self) -> None:
        """Hold what begins a change. UserError: nothing is held."""
        router = self._reader.router
        self.make_ready()
        try:
            assert router is not None
            router.gate(True)
        except (AssertionError, RuntimeError):
            raise UserError("groups need the native data path: set live.data_path to auto (`snapfs doctor`)") from None
        await self._reader.catch_up(self._thread.run)  # what opens a file is counted then
        await self._unsettled.settle()
        for ino in self._writers():
            self._kernel.forget_attributes(ino)

    async def flush(self) -> bool:
        """Receive the pages that the kernel holds; whether all could be. If not, truncations were in the way, which are
        admitted now: to be called again, on all members. OSError."""
        await self._flusher.flush_once(self._thread.run)
        router = self._reader.router
        return router is None or not router.admit()

    def open(self) -> None:
        """Let go what was held."""
        if self._reader.router is not None:
            self._reader.router.gate(False)
        if self._runs_first:
            self._thread.end()
            run_as_usual()
