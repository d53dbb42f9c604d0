"""Fetches objects from sources into the local store: each once, checked, kept before it is given out.

A reader of an object waits `wait_s` for a source that has it, and then gets EIO (source_pool.py).

Invariants:
1. An object is on its way at most once: other readers wait for the same request.
2. What arrives is kept before it is given out, unless the disk is full. What is kept decodes, with bases that are kept
   as well, to the content hash of its pointer (object_check.py). An object that does not is requested elsewhere.
3. What an application waits for never queues behind what is fetched ahead: they have threads of their own, and an
   object that is queued to be fetched ahead is fetched by the reader that needs it.
4. A reader's error is not cached: the next reader tries anew.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from snapfs.base.blocks import Number
from snapfs.base.errors import SnapfsError
from snapfs.store.lazy.lazy_objects import LazyObjects
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.sources.object_check import FetchedBatch, ObjectCheck, PendingObjects
from snapfs.transfer.sources.source_pool import NoRoomError, SourcePool, SourceState
from snapfs.transfer.sources.sources import Source

log = logging.getLogger(__name__)

BATCH_OBJECTS = 64
AHEAD_BATCH_OBJECTS = 16
"""Fewer, since a reader of one that is on its way waits for all of them."""
URGENT_THREADS = 8
AHEAD_THREADS = 2
AHEAD_LIMIT = 2048
"""Objects that may be on their way ahead of being needed; more are not begun."""


class Fetcher:
    """The fetcher of one repository. Any thread. `close` it."""

    def __init__(self, objects: LazyObjects, sources: Sequence[Source], *, wait_s: float = 30.0) -> None:
        self._objects, self._fetched = objects, objects.places.fetched
        self._check = ObjectCheck(objects)
        self._pool = SourcePool(sources, wait_s)
        self.sources, self.states = self._pool.sources, self._pool.states
        self._lock = threading.Lock()
        self._under_way: dict[Number, Future[None]] = {}
        self._queued: set[Number] = set()  # of `_under_way`, those that no thread has begun to fetch
        self._ahead = 0
        self._urgent = ThreadPoolExecutor(URGENT_THREADS, thread_name_prefix="fetch")
        self._later = ThreadPoolExecutor(AHEAD_THREADS, thread_name_prefix="fetch-ahead")
        self._is_full = False

    # -- what callers request

    def fetch(self, pointers: Sequence[Pointer]) -> None:
        """Return when all of them are kept. OSError (EIO after `wait_s` without a source that has it)."""
        while True:
            try:
                for waiting in self._begin(pointers, self._urgent, urgent=True):
                    waiting.result()
                return
            except NoRoomError:
                continue  # of one that was fetched ahead: an urgent one is given out all the same

    def fetch_in_background(self, pointers: Sequence[Pointer]) -> None:
        """As `fetch`, at low priority."""
        for waiting in self._begin(pointers, self._later, urgent=False):
            waiting.result()

    def prefetch(self, pointers: Sequence[Pointer]) -> None:
        """Begin to fetch them, unless AHEAD_LIMIT are on their way; an error is raised when one is needed."""
        if self._ahead < AHEAD_LIMIT and not self._pool.closing.is_set():
            self._begin(pointers, self._later, urgent=False)

    def fetch_missing(self, pointers: Sequence[Pointer]) -> FetchedBatch:
        """The objects, for a caller that keeps them, in the order of their numbers. OSError as for `fetch`.

        One whose pointer has no content hash may be missing at all sources, and is left out then.
        """
        batch = FetchedBatch()
        pending = PendingObjects({pointer.number: pointer for pointer in pointers}, batch)
        if pending.left:
            self._from_sources(pending, urgent=False)
        return batch

    def check(self, item: Item) -> bytes:
        """The content of an object that `fetch_missing` could not check, once its bases are here. OSError if
        damaged."""
        missing = [Pointer(base, b"") for base in item.bases_in_order() if base and not self._objects.places.has(base)]
        if missing:
            self.fetch_in_background(missing)
        return self._check.content(item)

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        """The bases of these objects, as far as sources know them; a missing one is fetched when it is needed."""
        found: list[Run] = []
        for source in self._pool.in_order():
            try:
                found += source.bases(runs)
            except (OSError, SnapfsError) as error:
                log.info("%s: %s", source.name, error)
        return found

    def take(self, items: Iterable[Item], name: str) -> None:
        """Keep objects of the source `name` that were not requested (the first tables), if they are good."""
        self._receive(items, PendingObjects({}), self.states[name])

    def close(self) -> None:
        """Stop waiting for sources, end the threads, close the sources."""
        self._pool.closing.set()
        self._urgent.shutdown(wait=True, cancel_futures=False)
        self._later.shutdown(wait=True, cancel_futures=False)
        self._pool.close()

    # -- who fetches what

    def _begin(self, pointers: Sequence[Pointer], pool: ThreadPoolExecutor, *, urgent: bool) -> list[Future[None]]:
        """Begin what is neither here nor on its way; the futures of all that is not here."""
        mine, waits = self._register(pointers, urgent)
        count = BATCH_OBJECTS if urgent else AHEAD_BATCH_OBJECTS
        batches = [mine[start : start + count] for start in range(0, len(mine), count)]
        for batch in batches[:-1] if urgent else batches:
            self._submit(pool, batch, urgent)
        if urgent and batches:
            self._fetch_batch(batches[-1], urgent)  # this thread would only wait
        return waits

    def _register(self, pointers: Sequence[Pointer], urgent: bool) -> tuple[list[Pointer], list[Future[None]]]:
        mine: list[Pointer] = []
        waits: list[Future[None]] = []
        with self._lock:
            for pointer in pointers:
                known = self._under_way.get(pointer.number)
                if known is None:
                    if self._objects.places.has(pointer.number):
                        continue
                    known = self._under_way[pointer.number] = Future()
                    mine.append(pointer)
                elif urgent and pointer.number in self._queued:
                    self._queued.remove(pointer.number)
                    self._ahead -= 1
                    mine.append(pointer)
                waits.append(known)
            if not urgent:
                self._ahead += len(mine)
                self._queued.update(pointer.number for pointer in mine)
        return mine, waits

    def _submit(self, pool: ThreadPoolExecutor, batch: list[Pointer], urgent: bool) -> None:
        try:
            pool.submit(self._fetch_batch, batch, urgent)
        except RuntimeError:  # closed meanwhile
            batch = batch if urgent else self._still_queued(batch)
            self._end(batch, OSError(errno.EIO, "the volume is being closed"), urgent)

    def _still_queued(self, batch: list[Pointer]) -> list[Pointer]:
        """Those that no urgent reader has taken over; none can from now on."""
        with self._lock:
            left = [pointer for pointer in batch if pointer.number in self._queued]
            self._queued.difference_update(pointer.number for pointer in left)
        return left

    def _fetch_batch(self, batch: list[Pointer], urgent: bool) -> None:
        if not urgent:
            batch = self._still_queued(batch)
            if not batch:
                return
        pending = PendingObjects({pointer.number: pointer for pointer in batch})
        failure: BaseException | None = None
        try:
            self._from_sources(pending, urgent)
        except BaseException as error:
            failure = error
        self._end(batch, failure, urgent, pending)

    def _end(
        self, batch: list[Pointer], failure: BaseException | None, urgent: bool, pending: PendingObjects | None = None
    ) -> None:
        with self._lock:
            self._ahead -= 0 if urgent else len(batch)
            futures = [(pointer, self._under_way.pop(pointer.number)) for pointer in batch]
        for pointer, waiting in futures:
            if failure is not None and (pending is None or pointer.number in pending.left):
                waiting.set_exception(failure)
            else:
                waiting.set_result(None)

    # -- from the sources to the store

    def _from_sources(self, pending: PendingObjects, urgent: bool) -> None:
        def take(source: Source, state: SourceState) -> None:
            pointers = list(pending.left.values())
            if pending.batch is not None:
                items = source.objects(pointers, urgent=False, bases=False)
                self._check.collect(items, pending, pending.batch, state)
            else:
                self._receive(source.objects(pointers, urgent=urgent), pending, state, urgent=urgent)

        self._pool.deliver(pending.left, lambda: pending.is_complete, take)

    def _receive(
        self, items: Iterable[Item], pending: PendingObjects, state: SourceState, *, urgent: bool = False
    ) -> None:
        """Check the items and keep the good ones, also those that came before a failure."""
        kept: list[tuple[bytes, bytes]] = []
        plains: dict[Number, bytes] = {}
        try:
            for item in items:
                plain = None if item.is_absent else self._check.accepted(item, pending, plains)
                if plain is None:
                    continue
                plains[item.frame.number] = plain
                kept.append((item.content_hash, item.framed))
                state.count(item)
        finally:
            self._keep(kept, urgent)
            for content_hash, framed in kept:
                number = Number(int.from_bytes(framed[:8], "little"))
                self._objects.recent.put(number, content_hash, plains[number])
                pending.left.pop(number, None)

    def _keep(self, kept: list[tuple[bytes, bytes]], urgent: bool) -> None:
        """Write the objects to the store. On a full disk an urgent reader gets them from memory, and the next one
        fetches them again."""
        try:
            self._fetched.add(kept)
            self._is_full = False
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not urgent:
                raise NoRoomError(error.errno, f"what is fetched cannot be kept: {error.strerror}") from None
            if not self._is_full:
                log.warning("what is fetched cannot be kept: %s", error)
            self._is_full = True
