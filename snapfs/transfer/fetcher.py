"""Brings objects from sources to the local store: each once, checked, kept before it is given out.

Several sources are tried in turn, those of this host first; one that failed is passed over for a while as long as
others answer. Who waits for an object waits `wait_s` for a source that has it, and then gets EIO.

Invariants:
1. An object is on its way at most once: whoever else needs it waits for that.
2. What comes is kept before it is given out, unless the disk is full. What is kept decodes, with bases that are kept as
   well, to the content that its pointer's proof says. An object that does not is asked for elsewhere.
3. What an application waits for never queues behind what is fetched ahead: they have threads of their own, and what
   was to be fetched ahead and is not on its way yet is fetched by who needs it.
4. An error is the waiting reader's, and nobody's else: the next one who asks tries anew.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import xxhash

from snapfs.blocks import Number
from snapfs.errors import SnapfsError
from snapfs.store import codec
from snapfs.store.codec import Bases
from snapfs.store.format import Pointer
from snapfs.store.lazy import LazyObjects
from snapfs.store.stream import Item
from snapfs.store.wire import Run
from snapfs.transfer.sources import Source, bases_in_order

log = logging.getLogger(__name__)

BATCH_OBJECTS = 64
AHEAD_BATCH_OBJECTS = 16
"""Fewer, since who needs one that is on its way waits for all of them."""
URGENT_THREADS = 8
AHEAD_THREADS = 2
AHEAD_LIMIT = 2048
"""Objects that may be on their way ahead of being needed; more are not begun."""
FIRST_RETRY_S, LAST_RETRY_S = 0.05, 2.0
ASIDE_S = 5.0


@dataclass(slots=True)
class SourceState:
    """What is known of a source, for the status."""

    name: str
    objects: int = 0
    bytes: int = 0
    failures: int = 0
    last_error: str | None = None
    aside_until_s: float = 0.0


@dataclass(slots=True)
class _Needed:
    """Objects that one thread is after."""

    left: dict[Number, Pointer]
    brought: Brought | None = None
    """Where they are put, for one who keeps them himself."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing but what may be missing."""
        return not self.left or (self.brought is not None and not any(p.proof for p in self.left.values()))


@dataclass(slots=True)
class Brought:
    """Objects that were asked for in bulk. Those without a plain content are not checked yet, since their bases are not
    here: `Fetcher.check` when they are."""

    items: dict[Number, Item] = field(default_factory=dict)
    plains: dict[Number, bytes] = field(default_factory=dict)


class _NoRoomError(OSError):
    """Our own disk is full, which is no fault of a source."""


class Fetcher:
    """Made for one repository. Any thread."""

    def __init__(self, objects: LazyObjects, sources: Sequence[Source], *, wait_s: float = 30.0) -> None:
        self._objects, self._fetched, self._seed = objects, objects.places.fetched, objects.seed
        self.sources = list(sources)
        self.states = {source.name: SourceState(source.name) for source in sources}
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._under_way: dict[Number, Future[None]] = {}
        self._queued: set[Number] = set()  # of `_under_way`, those that no thread has begun to fetch
        self._ahead = 0
        self._urgent = ThreadPoolExecutor(URGENT_THREADS, thread_name_prefix="fetch")
        self._later = ThreadPoolExecutor(AHEAD_THREADS, thread_name_prefix="fetch-ahead")
        self._closing = threading.Event()
        self._is_full = False

    def fetch(self, pointers: Sequence[Pointer]) -> None:
        """Return when all of them are kept. OSError (EIO after `wait_s` without a source that has it)."""
        while True:
            try:
                for waiting in self._begin(pointers, self._urgent, urgent=True):
                    waiting.result()
                return
            except _NoRoomError:
                continue  # of one that was fetched ahead: ours is given out all the same

    def fetch_in_background(self, pointers: Sequence[Pointer]) -> None:
        """The same at low priority, for who is in no hurry."""
        for waiting in self._begin(pointers, self._later, urgent=False):
            waiting.result()

    def prefetch(self, pointers: Sequence[Pointer]) -> None:
        """Begin to bring them, unless much is on its way already; errors come when they are needed."""
        if self._ahead < AHEAD_LIMIT and not self._closing.is_set():
            self._begin(pointers, self._later, urgent=False)

    def bring(self, pointers: Sequence[Pointer]) -> Brought:
        """The objects, for one who keeps them, in the order of their numbers. OSError as for `fetch`.

        One whose pointer has no proof may be missing at all sources, and is left out then.
        """
        needed = _Needed({pointer.number: pointer for pointer in pointers}, Brought())
        if needed.left:
            self._from_sources(needed, urgent=False)
        assert needed.brought is not None
        return needed.brought

    def check(self, item: Item) -> bytes:
        """The content of what `bring` could not check, its bases being here now. OSError if it is damaged."""
        missing = [Pointer(base, b"") for base in bases_in_order(item) if base and not self._objects.places.has(base)]
        if missing:
            self.fetch_in_background(missing)
        try:
            bases = Bases(*map(self._objects.full_plain, bases_in_order(item)))
            plain = item.decode(bases)
        except (codec.DecodeError, SnapfsError) as error:
            raise OSError(errno.EIO, f"object {item.frame.number:#x} cannot be decoded: {error}") from None
        if xxhash.xxh3_128_digest(plain, self._seed) != item.proof:
            raise OSError(errno.EIO, f"object {item.frame.number:#x} is damaged at its source")
        return plain

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        """The bases of these objects, as far as sources tell; who lacks one fetches it when it is needed."""
        found: list[Run] = []
        for source in self._in_order():
            try:
                found += source.bases(runs)
            except (OSError, SnapfsError) as error:
                log.info("%s: %s", source.name, error)
        return found

    def _begin(self, pointers: Sequence[Pointer], pool: ThreadPoolExecutor, *, urgent: bool) -> list[Future[None]]:
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
        count = BATCH_OBJECTS if urgent else AHEAD_BATCH_OBJECTS
        batches = [mine[start : start + count] for start in range(0, len(mine), count)]
        for batch in batches[:-1] if urgent else batches:
            self._submit(pool, batch, urgent)
        if urgent and batches:
            self._bring(batches[-1], urgent)  # this thread would only wait
        return waits

    def _submit(self, pool: ThreadPoolExecutor, batch: list[Pointer], urgent: bool) -> None:
        try:
            pool.submit(self._bring, batch, urgent)
        except RuntimeError:  # closed meanwhile
            batch = batch if urgent else self._begun(batch)
            self._end(batch, OSError(errno.EIO, "the volume is being closed"), urgent)

    def _begun(self, batch: list[Pointer]) -> list[Pointer]:
        """What of it is to be fetched ahead still: nobody takes it over any more."""
        with self._lock:
            left = [pointer for pointer in batch if pointer.number in self._queued]
            self._queued.difference_update(pointer.number for pointer in left)
        return left

    def _bring(self, batch: list[Pointer], urgent: bool) -> None:
        if not urgent:
            batch = self._begun(batch)
            if not batch:
                return
        needed = _Needed({pointer.number: pointer for pointer in batch})
        failure: BaseException | None = None
        try:
            self._from_sources(needed, urgent)
        except BaseException as error:
            failure = error
        self._end(batch, failure, urgent, needed)

    def _end(
        self, batch: list[Pointer], failure: BaseException | None, urgent: bool, needed: _Needed | None = None
    ) -> None:
        with self._lock:
            self._ahead -= 0 if urgent else len(batch)
            futures = [(pointer, self._under_way.pop(pointer.number)) for pointer in batch]
        for pointer, waiting in futures:
            if failure is not None and (needed is None or pointer.number in needed.left):
                waiting.set_exception(failure)
            else:
                waiting.set_result(None)

    def _from_sources(self, needed: _Needed, urgent: bool) -> None:
        deadline, delay = time.monotonic() + self._wait_s, FIRST_RETRY_S
        while True:
            answered = True
            for source in self._in_order():
                answered &= self._ask(source, needed, urgent)
                if not needed.left:
                    return
            some = next(iter(needed.left))
            if answered and needed.is_complete:
                return
            if answered:
                raise OSError(errno.EIO, f"object {some:#x} is at none of {', '.join(self.states)}")
            if time.monotonic() + delay > deadline or self._closing.wait(delay):
                errors = "; ".join(f"{state.name}: {state.last_error}" for state in self.states.values())
                raise OSError(errno.EIO, f"no source could deliver object {some:#x} ({errors})")
            delay = min(delay * 2, LAST_RETRY_S)

    def _in_order(self) -> list[Source]:
        """Near ones first; those that failed just now last."""
        now_s = time.monotonic()
        return sorted(self.sources, key=lambda each: (self.states[each.name].aside_until_s > now_s, not each.is_near))

    def _ask(self, source: Source, needed: _Needed, urgent: bool) -> bool:
        """Take what the source has of it; False if it failed."""
        state = self.states[source.name]
        try:
            pointers = list(needed.left.values())
            if needed.brought is not None:
                self._collect(source.objects(pointers, urgent=False, bases=False), needed, needed.brought, state)
            else:
                self._receive(source.objects(pointers, urgent=urgent), needed, state, urgent=urgent)
        except _NoRoomError:
            raise
        except (OSError, SnapfsError, codec.DecodeError) as error:
            state.failures += 1
            state.aside_until_s = time.monotonic() + ASIDE_S
            if state.last_error != str(error):
                log.warning("%s: %s", source.name, error)
            state.last_error = str(error)
            return False
        if state.last_error is not None and not source.is_near:
            log.info("%s answers again", source.name)
        state.last_error, state.aside_until_s = None, 0.0
        return True

    def take(self, items: Iterable[Item], name: str) -> None:
        """Keep objects that came unasked (the beginning of the tables), if they are what they say."""
        self._receive(items, _Needed({}), self.states[name])

    def _receive(self, items: Iterable[Item], needed: _Needed, state: SourceState, *, urgent: bool = False) -> None:
        kept: list[tuple[bytes, bytes]] = []
        plains: dict[Number, bytes] = {}
        try:
            for item in items:
                if item.is_absent:
                    continue
                number = item.frame.number
                plain = self._checked(item, needed, plains)
                if plain is None:
                    continue
                plains[number] = plain
                kept.append((item.proof, item.framed))
                state.objects += 1
                state.bytes += len(item.framed)
        finally:
            self._keep(kept, urgent)
            for proof, framed in kept:
                number = Number(int.from_bytes(framed[:8], "little"))
                self._objects.recent.put(number, proof, plains[number])
                needed.left.pop(number, None)

    def _keep(self, kept: list[tuple[bytes, bytes]], urgent: bool) -> None:
        """On a full disk who waits for it gets it all the same, from memory; it is fetched again when it is needed."""
        try:
            self._fetched.add(kept)
            self._is_full = False
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if not urgent:
                raise _NoRoomError(error.errno, f"what is fetched cannot be kept: {error.strerror}") from None
            if not self._is_full:
                log.warning("what is fetched cannot be kept: %s", error)
            self._is_full = True

    def _collect(self, items: Iterable[Item], needed: _Needed, brought: Brought, state: SourceState) -> None:
        for item in items:
            number, wanted = item.frame.number, needed.left.get(item.frame.number)
            if item.is_absent or wanted is None:
                continue
            if wanted.proof not in (b"", item.proof):
                log.error("object %#x has another proof than it must have; it is not taken", number)
                continue
            plain = self._decoded(item, brought)
            if plain is not None:
                if xxhash.xxh3_128_digest(plain, self._seed) != item.proof:
                    log.error("object %#x is damaged at its source; it is not taken", number)
                    continue
                brought.plains[number] = plain
            brought.items[number] = item
            del needed.left[number]
            state.objects += 1
            state.bytes += len(item.framed)

    def _decoded(self, item: Item, brought: Brought) -> bytes | None:
        """The content; None if a base is not here. Raises codec.DecodeError, SnapfsError, OSError."""
        if not item.frame.base:
            return item.decode(None)
        bases = []
        for number in bases_in_order(item):
            known = brought.plains.get(number)
            if known is not None:
                bases.append(known)
            elif not number or self._objects.places.has(number):
                bases.append(self._objects.full_plain(number))
            else:
                return None
        return item.decode(Bases(*bases))

    def _checked(self, item: Item, needed: _Needed, plains: dict[Number, bytes]) -> bytes | None:
        """The content, if it is what was asked for (or, of a base, what it says of itself)."""
        number = item.frame.number
        wanted = needed.left.get(number)
        if wanted is not None and wanted.proof not in (b"", item.proof):
            log.error("object %#x has another proof than it must have; it is not taken", number)
            return None
        base, before, after = bases_in_order(item)
        bases = None if not base else Bases(*(self._base(each, plains) for each in (base, before, after)))
        plain = item.decode(bases)
        if xxhash.xxh3_128_digest(plain, self._seed) != item.proof:
            log.error("object %#x is damaged at its source; it is not taken", number)
            return None
        return plain

    def _base(self, number: Number, plains: dict[Number, bytes]) -> bytes:
        found = plains.get(number)
        return found if found is not None else self._objects.full_plain(number)

    def close(self) -> None:
        """Give up what is on its way."""
        self._closing.set()
        self._urgent.shutdown(wait=True, cancel_futures=False)
        self._later.shutdown(wait=True, cancel_futures=False)
        for source in self.sources:
            source.close()
