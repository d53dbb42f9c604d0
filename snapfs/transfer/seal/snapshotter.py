"""The snapshotter: requests in, snapshots out, one at a time.

It owns the order of a snapshot's steps while a volume is mounted: wait for the snapshot before, flush the kernel's
pages if requested, cut, seal in a worker thread, and what follows. The steps themselves are in other modules.

Invariants:
1. Snapshots are made one after another, in the order of their requests, under one lock. What else must not overlap with
   a seal (a rollback, an unmount) takes the same lock.
2. The cut is one plain call in the trio thread, and nothing but it is timed as the pause.
3. `parent` is the snapshot that the live tree's dirty blocks are relative to. If it turns out to be damaged it is
   marked so, and the next snapshot is made without a parent, of all content: a history goes on after damage.
4. A failed snapshot leaves its changes to the next one; it is counted, kept as `last_error` and raised to the caller.
5. Before a cut, files of which the host may have lost written bytes are marked to be compared in full
   (live/backing/host_health.py).
6. A request is answered by a snapshot that was cut after it; or, where the caller wants no other then (`unchanged`),
   by one before it since whose cut nothing has changed.
7. Hooks come first and last: `before`, flush, cut, `after`, seal (consistency/hooks.py). A cut that is one of a group's
   is made when its `CutMoment` says, and sealed only when that allows it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import trio

from snapfs.base.blocks import Generation, Ino
from snapfs.base.counting.metrics import Metrics
from snapfs.base.errors import CorruptionError, SnapfsError, SnapshotError
from snapfs.base.settings.policy import POLICY_TRIGGERS
from snapfs.live.cut import Cut
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, AskedBy, CutFacts, check_name
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.consistency.hooks import FAILED, MADE, HeldApplication, Hooks
from snapfs.transfer.seal import whole_files
from snapfs.transfer.seal.cadence import Cadence, CutNote
from snapfs.transfer.seal.policy_loop import Pause, PolicyLoop, sleep
from snapfs.transfer.seal.running_snapshot import RunningSnapshot, SnapshotFailure, SnapshotPhase, StoppedError
from snapfs.transfer.seal.snapshot_failures import Failing
from snapfs.transfer.seal.snapshotter_parts import CutMoment, SealFunction, SnapshotterTree

log = logging.getLogger(__name__)

PAUSES_KEPT = 1000


class Snapshotter:
    """Makes the snapshots of a mounted volume. Lives in the trio thread."""

    def __init__(
        self,
        tree: SnapshotterTree,
        repository: Repository,
        seal: SealFunction,
        flush: Callable[[], Awaitable[None]],
        metrics: Metrics,
        *,
        parent: SnapshotRecord | None,
        generation: Generation,
        sealed: Callable[[SnapshotRecord], None] = lambda record: None,
        wants_cut: Callable[[], bool] | None = None,
        written: Callable[[], int] = lambda: 0,
        compared: Callable[[list[Ino]], None] = lambda inos: None,
        repaired: Callable[[SnapshotRecord], bool] = lambda parent: True,
        failing: Failing | None = None,
        hooks: Hooks | None = None,
        exclude: tuple[str, ...] = (),
    ) -> None:
        """`wants_cut`: whether one is to be made now, without a flush; `written`: bytes of all changes in this life.

        `repaired`: repairs what is known to be damaged of the parent; False if the next must not build on it.
        `compared` is called with the files that the kernel should read anew, because the host may have lost some.
        `exclude`: patterns of what is in no snapshot.
        """
        self._compared, self._repaired = compared, repaired
        self.exclude = exclude
        self.hooks = hooks
        self.failing = failing
        """The note of failing snapshots, if one is kept."""
        self._wants_cut, self._written = wants_cut, written
        self.last_cut = CutNote()
        self._flush_s = 0.0
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
        self.running: RunningSnapshot | None = None
        self.last_error: SnapshotFailure | None = None
        self.pauses_s: deque[float] = deque(maxlen=PAUSES_KEPT)

    @property
    def busy(self) -> bool:
        return self._turn.locked()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Exclude snapshots for the time of the block. Waits for the one on its way."""
        async with self._turn:
            yield

    async def snapshot(
        self, name: str | None, trigger: str, *, flush: bool, moment: CutMoment | None = None, by: AskedBy | None = None
    ) -> SnapshotRecord:
        """Make a snapshot; return when it is durable. `moment`: when its cut is made, if not as soon as can be; `by`:
        who asked for it.

        UserError if `name` cannot be one, FileExistsError if it is taken, SnapshotError if it could not be made.
        """
        if name is not None:
            check_name(name)
        async with self._turn:
            return await self.snapshot_in_turn(name, trigger, flush=flush, moment=moment, by=by)

    async def unchanged(self, *, flush: bool) -> SnapshotRecord | None:
        """The newest snapshot, if nothing has changed since its cut and it is good; else None. Errors as `snapshot`."""
        async with self._turn:
            try:
                if flush:
                    await self._flushed()
                await self.compare_suspects()
            except OSError as error:
                raise SnapshotError.because_of(error) from error
            newest = self._repository.latest()
            if newest is None or self.parent is None or newest.root != self.parent.root or newest.state != GOOD:
                return None
            return None if self._tree.has_changes() else newest

    async def snapshot_in_turn(
        self, name: str | None, trigger: str, *, flush: bool, moment: CutMoment | None = None, by: AskedBy | None = None
    ) -> SnapshotRecord:
        """As `snapshot`, for a caller that is within `turn`."""
        if name is not None and self._repository.catalog.is_taken(name):
            raise FileExistsError(errno.EEXIST, f"there is a snapshot named {name} already: drop it or choose another")
        self.running, self._flush_s = RunningSnapshot(name, trigger, time.monotonic(), by), 0.0
        held = HeldApplication()
        try:
            if self.hooks is not None and not (self._wants_cut is not None and self._wants_cut()):
                held = await self.hooks.begin(trigger)
            if flush:
                self.running.phase = SnapshotPhase.FLUSH
                await self._flushed()
            try:
                return await self._sealed_whole(self.running, held, moment)
            except SnapshotError as error:
                if self.parent is None or moment is not None or not isinstance(error.__cause__, CorruptionError):
                    raise
                await self._give_up_parent(self.parent, error.__cause__)
                return await self._sealed_whole(self.running, HeldApplication(), None)
        except SnapfsError as error:
            self._failed(self.running, error)
            raise
        except OSError as error:  # of the flush or of the cut
            failure = SnapshotError.because_of(error)
            self._failed(self.running, failure)
            raise failure from error
        finally:
            await held.end(FAILED)
            self.running = None

    async def finish_hooks(self) -> None:
        """Run the hook `after` that a daemon before this one left to be run, if there is one."""
        if self.hooks is not None:
            async with self._turn:
                await self.hooks.finish_left_over()

    async def compare_suspects(self) -> None:
        """Compare in full, for the next snapshot, files of which the host may have lost bytes. OSError: all stay
        suspect."""
        inos = self._tree.suspects()
        if inos:
            log.warning("%d files are compared in full for the next snapshot: the host failed to write", len(inos))
            self._compared(await trio.to_thread.run_sync(self._tree.compare_suspects, inos))

    async def _flushed(self) -> None:
        started = time.monotonic()
        failure: OSError | None = None
        try:
            await self._flush()
        except OSError as error:
            failure = error
        self._flush_s = time.monotonic() - started
        self._metrics.flush.observe(self._flush_s)
        lost, why = await trio.to_thread.run_sync(self._tree.take_lost)
        if failure is not None and not lost:
            raise failure
        if lost:
            raise SnapshotError(
                f"no snapshot was made: {lost} writes that applications had been answered are lost "
                f"({os.strerror(why)}); their files show what is there, and the next snapshot has that",
                why,
            ) from failure

    async def _sealed_whole(
        self, running: RunningSnapshot, held: HeldApplication, moment: CutMoment | None
    ) -> SnapshotRecord:
        """A snapshot that has all of what is not excluded any more, with the cuts that it takes (whole_files.py).

        A cut that others wait for is made once: then it fails, and the next has the files.
        """
        for attempt in range(1, whole_files.ATTEMPTS + 1):
            try:
                return await self._cut_and_seal(running, held, moment)
            except SnapshotError as error:
                inos = whole_files.not_kept(error)
                if inos:
                    mark = partial(whole_files.mark, self._tree, self._repository, self.parent, inos, attempt)
                    await trio.to_thread.run_sync(mark)
                if not inos or moment is not None or attempt == whole_files.ATTEMPTS:
                    raise
                held = HeldApplication()
        raise AssertionError("the last attempt returns or raises")

    async def _cut_and_seal(
        self, running: RunningSnapshot, held: HeldApplication, moment: CutMoment | None = None
    ) -> SnapshotRecord:
        await self.compare_suspects()
        await self._check_parent()
        if self.parent is not None and (self.exclude or self.parent.cut.exclude):
            with contextlib.suppress(SnapfsError, OSError):  # the seal meets it again
                look = partial(whole_files.mark_joined, self._tree, self._repository, self.parent, self.exclude)
                await trio.to_thread.run_sync(look)
        running.phase = SnapshotPhase.CUT
        cut = await moment.make(self._timed_cut) if moment is not None else self._timed_cut()
        try:
            await held.end(MADE)
            if moment is not None:
                await moment.may_seal()
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(cut.finish, False)
            raise
        running.phase = SnapshotPhase.SEAL
        started = time.monotonic()
        work = partial(
            self._seal, cut, self._repository, self.parent,
            generation=self.generation, name=running.name, trigger=running.trigger, progress=self._progress,
            facts=self._facts(held, moment), by=running.by, exclude=self.exclude,
        )  # fmt: skip
        record = await trio.to_thread.run_sync(work, limiter=self._limiter)
        self._metrics.seal.observe(time.monotonic() - started)
        self._succeeded(record)
        return record

    def _facts(self, held: HeldApplication, moment: CutMoment | None) -> CutFacts:
        is_usual = moment is None and not held.held_s
        return CutFacts(
            held.consistency, held.error, round(held.held_s, 6), 0.0 if is_usual else round(self.pauses_s[-1], 6),
            moment.group if moment is not None else None,
        )  # fmt: skip

    async def _check_parent(self) -> None:
        """Make sure that nothing damaged of the parent is shared. OSError, SnapfsError: no snapshot is made."""
        if self.parent is not None and not await trio.to_thread.run_sync(self._repaired, self.parent):
            log.error("snapshot %d has damaged objects: the next one has everything anew", self.parent.number)
            self.start_over()

    async def _give_up_parent(self, parent: SnapshotRecord, why: CorruptionError) -> None:
        """Mark a parent that cannot be read as damaged, and store everything anew."""
        log.error("snapshot %d cannot be built on, the next one has everything: %s", parent.number, why)
        await trio.to_thread.run_sync(self._repository.mark, parent.number, DAMAGED, str(why))
        self.start_over()

    def build_on(self, parent: SnapshotRecord) -> None:
        """The live tree was rolled back to this snapshot: the next one builds on it. For the holder of the turn."""
        self.parent = parent

    def begin_generation(self, generation: Generation) -> None:
        """Snapshots are of this generation from now on, which is durable. For the holder of the turn."""
        self.generation = generation

    def start_over(self) -> None:
        """Let the next snapshot be one without a parent, of all content."""
        self._tree.mark_all_suspect()
        self.parent = None

    def _timed_cut(self, since_s: float | None = None) -> Cut:
        """`since_s`: since when no request is answered, by `time.perf_counter`; None: from now on."""
        note = CutNote(time.monotonic(), self._flush_s, self._written())
        started = since_s or time.perf_counter()
        cut = self._tree.cut()
        pause_s = time.perf_counter() - started
        self.last_cut = note
        self.pauses_s.append(pause_s)
        self._metrics.cut_pause.observe(pause_s)
        return cut

    def _progress(self, done_bytes: int, planned_bytes: int) -> None:
        """Called by the sealer, from its thread. Raises StoppedError to end the seal."""
        if self._stopping:
            raise StoppedError
        if self.running is not None:
            self.running.done_bytes, self.running.planned_bytes = done_bytes, planned_bytes

    def _succeeded(self, record: SnapshotRecord) -> None:
        self.parent = record
        self._metrics.snapshots.inc(1, record.trigger)
        self._metrics.stored_bytes.inc(record.stats.stored_bytes)
        self._metrics.sealed_bytes.inc(record.stats.dirty_bytes)
        log.log(
            logging.DEBUG if record.trigger in POLICY_TRIGGERS else logging.INFO,  # one a second would fill the journal
            "snapshot %d%s: %d bytes changed, %d stored, sealed in %.3f s, pause %.0f us",
            record.number, f" {record.name}" if record.name else "", record.stats.dirty_bytes,
            record.stats.stored_bytes, record.stats.seal_seconds, self.pauses_s[-1] * 1e6,
        )  # fmt: skip
        if self.failing is not None:
            self.failing.made()
        self._sealed(record)

    def _failed(self, running: RunningSnapshot, error: SnapfsError) -> None:
        number = (error.errno if isinstance(error, SnapshotError) else None) or errno.EIO
        what = f"snapshot {running.name}" if running.name else f"snapshot ({running.trigger})"
        self._metrics.failures.inc(1, running.trigger)
        self.last_error = SnapshotFailure(what, str(error), number, time.time_ns())
        if self.failing is not None:
            self.failing.failed(what, str(error), self.last_error.time_ns)
        log.error("%s failed in %s: %s", what, running.phase.value, error)

    def stop(self) -> None:
        """Make a running seal give up at its next step. Its changes stay for a later snapshot."""
        self._stopping = True

    async def run_policy(self, cadence: Cadence, pause: Pause = sleep) -> None:
        """Make a snapshot whenever the policy has one due, for ever. A failure is retried, less and less often.

        `pause`: see PolicyLoop. `cadence` hears of each snapshot through `sealed`.
        """
        loop = PolicyLoop(
            self._tree, self.snapshot, lambda: self.busy, self._flush, self._metrics, self._wants_cut, pause
        )
        await loop.run(cadence)
