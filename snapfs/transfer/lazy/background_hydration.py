"""Hydration: fetches, in the background, all that a lazily mounted volume does not have yet.

In this order: the names of all directories; what the last life used most or, where no source has a list of that, what
the newest snapshots wrote (newest_objects.py); the whole snapshot that was taken over into the store (backfill.py), so
that the sources are needed no more, and into large files as it arrives; from the store the rest of the files. Then the
volume is an ordinary one.

Of a PostgreSQL that was killed the list has what recovery asks for: with it first the first query was answered 2.6 to
3.1 s after the mount, with the newest objects before it after 4.9 to 6.9 s.

Invariants:
1. The application goes first: between two small steps hydration sleeps for as long as the step took if requests arrived
   meanwhile, but for what the last life used most, which those requests wait for. It never fetches more bytes in a
   second than the settings allow.
2. It is idempotent: it can be paused, killed and begun anew at any step; what is here is not fetched again.
3. A source that fails delays it, more and more up to a limit, and never ends it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable
from enum import Enum
from typing import Any

import trio

from snapfs.base.blocks import Ino, chunk_count
from snapfs.base.errors import SnapfsError
from snapfs.base.settings.volume_settings import HydrationSettings
from snapfs.live.tree import LiveTree
from snapfs.transfer.lazy.attachment import Attachment

log = logging.getLogger(__name__)

STEP_CHUNKS = 64
DIRECTORIES_AT_ONCE = 32
FILES_AT_ONCE = 256
STEP_BYTES = 16 << 20
KEEP_EVERY_S = 1.0
HOLD_EVERY_S = 6 * 3600.0
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
MOST_YIELD_S = 0.25


class HydrationPhase(Enum):
    """The step that hydration is at."""

    NAMES = "names"
    HOT = "hot"
    NEWEST = "newest"
    STORE = "store"
    FILES = "files"
    DONE = "done"


class _Stopped(Exception):  # noqa: N818 - no failure
    """The volume is being unmounted, or hydration was paused."""


class Hydration:
    """Hydrates one mounted volume. Lives in the trio thread. `requests`: the count of the kernel's requests so far."""

    def __init__(
        self, attachment: Attachment, tree: LiveTree, settings: HydrationSettings, requests: Callable[[], int]
    ) -> None:
        self._attachment, self._tree, self._settings, self._requests = attachment, tree, settings, requests
        self.phase = HydrationPhase.NAMES
        self.paused = not settings.background
        self.last_error: str | None = None
        self._wake = trio.Event()
        self._stopping = False
        self._seen_requests = 0
        self._limiter = trio.CapacityLimiter(1)
        self._directories = self._files = 0
        self._budget_bytes, self._budget_s = 0.0, time.monotonic()

    # -- by command

    def pause(self) -> None:
        """Stop at the next step. What applications read is still fetched."""
        self.paused = True

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        self._wake.set()

    def stop(self) -> None:
        """Stop at the next step, for good."""
        self._stopping = True
        self._wake.set()

    def facts(self) -> dict[str, Any]:
        """For the status."""
        record, states = self._attachment.record, self._attachment.states()
        return {
            "phase": self.phase.value,
            "paused": self.paused,
            "snapshot": record.number,
            "snapshot_age_s": time.time() - record.cut_time_ns / 1e9,
            "unloaded_directories": self._tree.names.unloaded_count(),
            "loaded_directories": self._directories,
            "hydrated_files": self._files,
            "hydrated_bytes": self._tree.hydrated_bytes,
            "fetched_bytes": sum(state.bytes for state in states),
            "last_error": self.last_error,
            "sources": [
                {
                    "name": state.name, "objects": state.objects, "bytes": state.bytes, "failures": state.failures,
                    "last_error": state.last_error,
                }
                for state in states
            ],
        }  # fmt: skip

    # -- running

    async def run(self) -> None:
        """Run until everything is here, or `stop`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            delay_s = FIRST_RETRY_S
            while not await self._try():
                if self._stopping:
                    break
                if not self.paused:
                    with trio.move_on_after(delay_s):
                        await self._wake.wait()
                    delay_s = min(delay_s * 2, LAST_RETRY_S)
                else:
                    await self._wake.wait()
                    delay_s = FIRST_RETRY_S
                self._wake = trio.Event()
            nursery.cancel_scope.cancel()

    @property
    def is_under_way(self) -> bool:
        """Whether there is more to fetch, and it is not paused."""
        return not self.paused and self.phase is not HydrationPhase.DONE

    async def _try(self) -> bool:
        """Whether everything is here."""
        if self.paused or self._stopping:
            return False
        try:
            await self._hydrate_all()
        except _Stopped:
            return False
        except (OSError, SnapfsError, sqlite3.Error) as error:  # SQLite's: a full disk
            if self.last_error != str(error):
                log.warning("hydration waits: %s", error)
            self.last_error = str(error)
            return False
        log.info("all of the state is here; nothing is needed from elsewhere any more")
        return True

    async def _hydrate_all(self) -> None:
        await self._load_names()
        self.phase = HydrationPhase.HOT
        if not await self._hydrate_hot():
            self.phase = HydrationPhase.NEWEST
            await self._run_steps(self._attachment.newest(self._tree.supply))
        self.phase = HydrationPhase.STORE
        await self._run_steps(self._attachment.backfill(self._settings.rate, self._tree.supply))
        self.phase = HydrationPhase.FILES
        await self._hydrate_files()
        self._tree.tidy()
        if self._tree.names.absent_count() or self._tree.names.is_lazy:
            raise OSError(errno.EAGAIN, "files have become absent meanwhile")
        await self._in_thread(self._attachment.finish, self._pause_thread)
        self.phase, self.last_error = HydrationPhase.DONE, None

    async def _load_names(self) -> None:
        while found := self._tree.names.unloaded(DIRECTORIES_AT_ONCE):
            for directory, listing in found:
                started = time.monotonic()
                entries = await self._in_thread(self._tree.fetch_names, listing)
                self._tree.load(directory, entries)
                self._directories += 1
                await self._yield(started, 0)

    async def _hydrate_hot(self) -> bool:
        """Whether a source has a list of what was used most."""
        hot = await self._in_thread(self._attachment.hot)
        absent = self._tree.names.absent
        for ino, first, count in hot:
            if (found := absent(ino)) is not None:
                await self._hydrate(ino, chunks_within(found.size, first, count))
        return bool(hot)

    async def _run_steps(self, backfill: Generator[int, None, None]) -> None:
        with contextlib.closing(backfill) as steps:
            while True:
                started = time.monotonic()
                size = await self._in_thread(next, steps, None)
                if size is None:
                    return
                await self._yield(started, size)

    async def _hydrate_files(self) -> None:
        after = Ino(0)
        while batch := self._tree.names.absent_after(after, FILES_AT_ONCE):
            started = time.monotonic()
            self._files += await self._in_thread(self._tree.hydrate_small, batch, STEP_BYTES)
            self._tree.tidy()
            await self._yield(started, 0)
            for ino in batch:
                await self._hydrate(ino, None)
            after = batch[-1]
            self._tree.tidy()

    async def _hydrate(self, ino: Ino, chunks: Iterable[int] | None) -> None:
        """Hydrate a file, or these chunks of it. One that was removed meanwhile is passed over."""
        while self._tree.names.absent(ino) is not None:
            started, before = time.monotonic(), self._tree.hydrated_bytes
            whole = await self._in_thread(self._tree.hydrate, ino, STEP_CHUNKS, chunks)
            hydrated_bytes = 0 if self.phase is HydrationPhase.FILES else self._tree.hydrated_bytes - before
            await self._yield(started, hydrated_bytes)
            if whole or chunks is not None:
                self._files += whole
                return

    async def _keep(self) -> None:
        held_s = -HOLD_EVERY_S
        while True:
            if time.monotonic() - held_s > HOLD_EVERY_S:
                await trio.to_thread.run_sync(self._attachment.hold, abandon_on_cancel=True)
                held_s = time.monotonic()
            await trio.sleep(KEEP_EVERY_S)
            if not self._attachment.is_open:
                return
            try:
                await trio.to_thread.run_sync(self._attachment.keep)
            except OSError as error:
                log.error("what was fetched could not be written to the disk: %s", error)

    # -- yielding to the application

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._check()
        return await trio.to_thread.run_sync(lambda: function(*arguments), limiter=self._limiter)

    def _check(self) -> None:
        if self._stopping or self.paused:
            raise _Stopped

    async def _yield(self, started_s: float, size: int) -> None:
        self._check()
        await trio.sleep(self._yield_s(time.monotonic() - started_s, size))

    def _yield_s(self, took_s: float, size: int) -> float:
        """How long to sleep after a step that took `took_s` and fetched `size` bytes."""
        requests = self._requests()
        busy, self._seen_requests = requests != self._seen_requests, requests
        pause_s = min(took_s, MOST_YIELD_S) if busy and self.phase is not HydrationPhase.HOT else 0.0
        if self._settings.rate:
            now_s = time.monotonic()
            self._budget_bytes = max(self._budget_bytes - (now_s - self._budget_s) * self._settings.rate, 0) + size
            self._budget_s = now_s
            pause_s = max(pause_s, self._budget_bytes / self._settings.rate)
        return pause_s

    def _pause_thread(self) -> None:
        """Called between objects, in a worker thread."""
        self._check()


def chunks_within(size: int, first: int, count: int) -> range:
    """Those of the chunks that a file of this size has: a damaged hot list may name four billion others."""
    return range(first, min(first + count, chunk_count(size)))
