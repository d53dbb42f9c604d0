"""The snapshotter: requests in, snapshots out, one at a time.

It owns the order of the steps of a snapshot while a volume is mounted: wait for the one before, flush the kernel's
pages if asked to, cut, seal in a worker thread, and what follows. What the steps do is others' work.

Invariants:
1. Snapshots are made one after another, in the order in which they were asked for. What else must not meet a seal (a
   rollback, an unmount) takes the same turn.
2. The cut is one plain call in the trio thread, and nothing but it is timed as the pause.
3. `parent` is the snapshot that the live tree's dirtiness is relative to. One that turns out damaged is marked so, and
   the next snapshot is made without a parent, of everything there is: a history goes on after damage.
4. A failed snapshot leaves its changes to the next one; it is counted, kept as `last_error` and told to who asked.
5. Who asked gets the answer of a snapshot that was cut after the request.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

import trio

from snapfs import policy
from snapfs.blocks import Generation
from snapfs.config import SnapshotSettings
from snapfs.errors import CorruptionError, SnapfsError, SnapshotError
from snapfs.live.cut import Cut
from snapfs.metrics import Metrics
from snapfs.policy import Action, Situation
from snapfs.store.records import DAMAGED, check_name
from snapfs.store.repository import Repository, SnapshotRecord

log = logging.getLogger(__name__)

PAUSES_KEPT = 1000
_POLL_SECONDS = 1.0
_BUSY_POLL_SECONDS = 0.05
_BACKOFF_SECONDS = 1.0
_BACKOFF_LIMIT_SECONDS = 60.0


class Phase(Enum):
    """What the running snapshot is doing."""

    FLUSH = "flush"
    CUT = "cut"
    SEAL = "seal"


@dataclass(slots=True)
class Running:
    """The snapshot on its way. Bytes are of changed chunks: read so far, and known of so far."""

    name: str | None
    trigger: str
    started_s: float
    phase: Phase = Phase.FLUSH
    done_bytes: int = 0
    planned_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A snapshot or command that failed. `time_ns` since 1970."""

    what: str
    message: str
    errno: int
    time_ns: int


class Tree(Protocol):
    """The part of the live tree that the snapshotter needs."""

    def cut(self) -> Cut: ...
    def distrust_all(self) -> None: ...
    def has_changes(self) -> bool: ...
    def pressure(self) -> bool: ...


class Seal(Protocol):
    """Make a snapshot of a cut; blocks until it is durable. SnapshotError after everything was put back."""

    def __call__(
        self,
        cut: Cut,
        repository: Repository,
        parent: SnapshotRecord | None,
        *,
        generation: Generation,
        name: str | None,
        trigger: str,
        progress: Callable[[int, int], None],
    ) -> SnapshotRecord: ...


class StoppedError(SnapshotError):
    """The seal was told to stop."""

    def __init__(self) -> None:
        super().__init__("the snapshot was stopped, because the volume is being unmounted", errno.EINTR)


class Snapshotter:
    """Makes the snapshots of a mounted volume. Lives in the trio thread."""

    def __init__(
        self,
        tree: Tree,
        repository: Repository,
        seal: Seal,
        flush: Callable[[], Awaitable[None]],
        metrics: Metrics,
        *,
        parent: SnapshotRecord | None,
        generation: Generation,
        sealed: Callable[[SnapshotRecord], None] = lambda record: None,
    ) -> None:
        self._tree = tree
        self._repository = repository
        self._seal = seal
        self._flush = flush
        self._metrics = metrics
        self._sealed = sealed
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._stopping = False
        self.parent = parent
        self.generation = generation
        self.running: Running | None = None
        self.last_error: Failure | None = None
        self.pauses_s: deque[float] = deque(maxlen=PAUSES_KEPT)

    @property
    def busy(self) -> bool:
        return self._turn.locked()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold off snapshots for the time of the block, once the one on its way is done."""
        async with self._turn:
            yield

    async def snapshot(self, name: str | None, trigger: str, *, flush: bool) -> SnapshotRecord:
        """Make a snapshot; return when it is durable.

        UserError if `name` cannot be one, FileExistsError if it is taken, SnapshotError if it could not be made.
        """
        if name is not None:
            check_name(name)
        async with self._turn:
            return await self.snapshot_in_turn(name, trigger, flush=flush)

    async def snapshot_in_turn(self, name: str | None, trigger: str, *, flush: bool) -> SnapshotRecord:
        """The same, for who holds the turn."""
        if name is not None and any(record.name == name for record in self._repository.snapshots()):
            raise FileExistsError(errno.EEXIST, f"there is a snapshot named {name} already: drop it or choose another")
        self.running = Running(name, trigger, time.monotonic())
        try:
            if flush:
                await self._flushed()
            try:
                return await self._cut_and_seal(self.running)
            except SnapshotError as error:
                if self.parent is None or not isinstance(error.__cause__, CorruptionError):
                    raise
                await self._give_up_parent(self.parent, error.__cause__)
                return await self._cut_and_seal(self.running)
        except SnapfsError as error:
            self._failed(self.running, error)
            raise
        except OSError as error:  # of the flush or of the cut
            failure = SnapshotError.because_of(error)
            self._failed(self.running, failure)
            raise failure from error
        finally:
            self.running = None

    async def _flushed(self) -> None:
        started = time.monotonic()
        await self._flush()
        self._metrics.flush.observe(time.monotonic() - started)

    async def _cut_and_seal(self, running: Running) -> SnapshotRecord:
        running.phase = Phase.CUT
        cut = self._timed_cut()
        running.phase = Phase.SEAL
        started = time.monotonic()
        work = partial(
            self._seal, cut, self._repository, self.parent,
            generation=self.generation, name=running.name, trigger=running.trigger, progress=self._progress,
        )  # fmt: skip
        record = await trio.to_thread.run_sync(work, limiter=self._limiter)
        self._metrics.seal.observe(time.monotonic() - started)
        self._succeeded(record)
        return record

    async def _give_up_parent(self, parent: SnapshotRecord, why: CorruptionError) -> None:
        """The snapshot that changes are relative to cannot be read: store everything anew."""
        log.error("snapshot %d cannot be built on, the next one has everything: %s", parent.number, why)
        await trio.to_thread.run_sync(self._repository.mark, parent.number, DAMAGED, str(why))
        self.start_over()

    def start_over(self) -> None:
        """Let the next snapshot be one without a parent, of everything there is."""
        self._tree.distrust_all()
        self.parent = None

    def _timed_cut(self) -> Cut:
        started = time.perf_counter()
        cut = self._tree.cut()
        pause_s = time.perf_counter() - started
        self.pauses_s.append(pause_s)
        self._metrics.cut_pause.observe(pause_s)
        return cut

    def _progress(self, done_bytes: int, planned_bytes: int) -> None:
        """Told by the sealer, from its thread."""
        if self._stopping:
            raise StoppedError
        if self.running is not None:
            self.running.done_bytes, self.running.planned_bytes = done_bytes, planned_bytes

    def _succeeded(self, record: SnapshotRecord) -> None:
        self.parent = record
        self._metrics.snapshots.labels(record.trigger).inc()
        self._metrics.stored_bytes.inc(record.stats.stored_bytes)
        self._metrics.sealed_bytes.inc(record.stats.dirty_bytes)
        log.log(
            logging.DEBUG if record.trigger == "interval" else logging.INFO,  # one a second would fill the journal
            "snapshot %d%s: %d bytes changed, %d stored, sealed in %.3f s, pause %.0f us",
            record.number, f" {record.name}" if record.name else "", record.stats.dirty_bytes,
            record.stats.stored_bytes, record.stats.seal_seconds, self.pauses_s[-1] * 1e6,
        )  # fmt: skip
        self._sealed(record)

    def _failed(self, running: Running, error: SnapfsError) -> None:
        number = (error.errno if isinstance(error, SnapshotError) else None) or errno.EIO
        what = f"snapshot {running.name}" if running.name else f"snapshot ({running.trigger})"
        self._metrics.failures.labels(running.trigger).inc()
        self.last_error = Failure(what, str(error), number, time.time_ns())
        log.error("%s failed in %s: %s", what, running.phase.value, error)

    def stop(self) -> None:
        """Make a running seal give up at its next step. Its changes stay for a later snapshot."""
        self._stopping = True

    # -- snapshots that nobody asked for

    async def run_policy(self, settings: SnapshotSettings) -> None:
        """Make a snapshot whenever the policy says so, for ever. A failure is retried, less and less often."""
        since_s, failures = time.monotonic(), 0
        while True:
            decision = policy.due(settings, self._situation(since_s, settings))
            if decision.action is Action.WAIT:
                await trio.sleep(min(decision.wait_s, _BUSY_POLL_SECONDS if self.busy else _POLL_SECONDS))
                continue
            now_s = time.monotonic()
            if decision.action is Action.SKIP and not await self._kernel_has_more(settings):
                self._metrics.skipped.inc()
            elif await self._try_own(settings):
                failures = 0
            else:
                failures += 1
                await trio.sleep(min(_BACKOFF_SECONDS * 2**failures, _BACKOFF_LIMIT_SECONDS))
            since_s = now_s

    def _situation(self, since_s: float, settings: SnapshotSettings) -> Situation:
        return Situation(
            now_s=time.monotonic(),
            since_s=since_s,
            changed=self._tree.has_changes(),
            busy=self.busy,
            pressure=self._tree.pressure(),
        )

    async def _kernel_has_more(self, settings: SnapshotSettings) -> bool:
        """Whether what looks unchanged only looks so because the kernel still holds the changes."""
        if not settings.flush:
            return False
        with contextlib.suppress(OSError):
            await self._flush()
        return self._tree.has_changes()

    async def _try_own(self, settings: SnapshotSettings) -> bool:
        trigger = "pressure" if self._tree.pressure() else "interval"
        try:
            await self.snapshot(None, trigger, flush=settings.flush)
        except (OSError, SnapfsError):
            return False  # told and counted by `_failed`
        return True
