"""One target of one volume: everything between "there is a new snapshot" and "it has arrived".

A Feeder lives as one task. It opens the target, claims the volume's generation there, and then takes one step of
`push.plan` after the other: select what is missing, send it in parts, commit. When something fails it waits, longer
each time and with jitter, and begins at the opening again; what was sent stays there and is not sent twice.

Invariants:
1. What is being sent, and the newest snapshot that the target has, are held in the source's store: the first may not
   vanish under way, the second is what the next difference is made against.
2. `_known` holds only what the target acknowledged in a commit: when in doubt it is empty, the target is asked, and at
   worst an object is offered that is there already.
3. History gives way: when a newer snapshot turns up, a stretch of history is left where it is until that is there.
4. A failure of one target is nobody else's: each has a source, a pace and a limit of its own.
5. Being fenced or refused never ends the task: it asks again now and then, since people change such things.
6. What is said of an idle link is not older than LOOK_SECONDS: the target is asked, also when there is nothing to send.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from replicator.flow import SMALLEST_BYTES, Bucket, Pace
from replicator.push import Kind, Step, TargetView, plan
from replicator.source import Known, Part, Selection, Source
from replicator.status import Link, TargetStatus
from replicator.targets.base import Target, TargetState
from snapfs.blocks import Generation, SnapshotNumber
from snapfs.config import ReplicationSettings
from snapfs.errors import CorruptionError, SnapfsError, UserError
from snapfs.store.claims import Writer, is_fenced
from snapfs.store.numbers import NumberSet
from snapfs.store.records import SnapshotRecord
from snapfs.store.replicas import FencedFacts
from snapfs.store.wire import FINAL_REFUSALS, MAX_HOT_BYTES, Refusal, RefusedError, refuse

log = logging.getLogger(__name__)
T = TypeVar("T")

PART_ATTEMPTS: Final = 5
FIRST_WAIT_SECONDS: Final = 0.25
LONGEST_WAIT_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 60.0
ASK_BYTES: Final = 4 << 20
"""From so many bytes on the target is asked first what it has of them: one round trip against sending in vain."""
COLLECT_AFTER_DROPS: Final = 256
"""Space is freed at object stores after so many: it takes a walk over all tables here, and requests there."""
KNOWN_OBJECTS: Final = 4_000_000
"""From so many (and three times what a snapshot has) on, what is known of a target is learnt anew from its newest
snapshot: it is a bit an object, and objects come for ever."""
LINKS: Final = (OSError, TimeoutError)


class _OvertakenError(Exception):
    """There is something newer than the history that is being sent."""


@dataclass(slots=True)
class Counters:
    """What a feeder tells metrics about; replaced by functions that count."""

    arrived: Callable[[SnapshotRecord, float], None] = field(default=lambda record, delay_s: None)
    sent: Callable[[int], None] = field(default=lambda amount: None)
    retried: Callable[[], None] = field(default=lambda: None)


class Feeder:
    """Feeds `target` from `source`, both its own."""

    def __init__(
        self,
        source: Source,
        target: Target,
        status: TargetStatus,
        settings: ReplicationSettings,
        holder: str,
        *,
        changed: Callable[[bool], None],
        limit_bytes_per_s: float = 0.0,
        counters: Counters | None = None,
    ) -> None:
        """`changed(urgent)` is called whenever `status` has changed."""
        self.status, self.target = status, target
        self._source, self._settings, self._holder = source, settings, holder
        self._changed, self._counters = changed, counters or Counters()
        self._bucket = Bucket(limit_bytes_per_s)
        self._pace = Pace()
        self._wake = asyncio.Event()
        self._there = TargetState(source.volume.generation, holder, ())
        self._complaint = ""  # what has been logged since something last arrived
        self._dropped = 0  # snapshots at the target since space was freed there
        self._known = Known()
        self._most_known = KNOWN_OBJECTS
        self._unreadable: set[SnapshotNumber] = set()
        self._hot = b""  # as the target was told it last
        self._failures = 0
        self._reader = ThreadPoolExecutor(1, f"push {status.name}")
        self._held: tuple[set[SnapshotNumber], float] = set(), 0.0
        self._hold = f"push-{hashlib.sha256(f'{holder} {status.url}'.encode()).hexdigest()[:12]}"
        self._wait = wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)

    def wake(self) -> None:
        """The volume has something new."""
        self._wake.set()

    async def run(self) -> None:
        """Feed, for ever."""
        while True:
            try:
                await self._session(once=False)
            except (SnapfsError, *LINKS) as error:
                await self._lick_wounds(error)

    async def run_once(self) -> None:
        """Return when the target has everything. Raises what a target or the source raises, after some attempts."""
        attempts = AsyncRetrying(
            stop=stop_after_attempt(PART_ATTEMPTS), wait=self._wait, reraise=True,
            retry=retry_if_exception(lambda error: isinstance(error, (SnapfsError, *LINKS)) and not is_final(error)),
        )  # fmt: skip
        async for attempt in attempts:
            with attempt:
                try:
                    await self._session(once=True)
                except (SnapfsError, *LINKS) as error:
                    self._note(error)
                    raise

    async def close(self) -> None:
        await self.target.close()
        await self._read(self._source.close)
        self._reader.shutdown()

    # -- a life of the link

    async def _session(self, *, once: bool) -> None:
        self._set_link(Link.CONNECTING)
        await self._read(self._source.refresh)
        self._known = Known()
        claimed = None
        while True:
            self._wake.clear()
            await self._read(self._source.refresh)
            if claimed != self._source.volume.generation:
                await self._open()
                claimed = await self._claim()
            step = self._plan()
            if step.kind is Kind.DONE:
                self._note_complete()
                await self._hold_base(())
                self._set_link(Link.IDLE)
                if once:
                    return
                if not await self._until_woken():
                    claimed = None  # is it still there, and we its writer?
                continue
            await self._take(step)
            self._failures = 0

    async def _open(self) -> None:
        """Ask the target what it has. One that has less than it once had wants what is gone again."""
        self._there = await self.target.open(self._source.repository.identity)
        newest = self._there.newest
        there = newest.number if newest is not None else SnapshotNumber(0)
        self.status.complete_through = min(self.status.complete_through, there)

    def _note_complete(self) -> None:
        """There is nothing more to send. If an empty target comes in this one's place, it gets everything again."""
        newest = self._there.newest
        wanted = self._settings.history
        self.status.complete_through = newest.number if newest is not None and wanted else SnapshotNumber(0)

    async def _until_woken(self) -> bool:
        """Wait for something new; False after a while without, to look around and to renew what is held."""
        seconds = min(LOOK_SECONDS, float(self._settings.hold or 60.0) / 8)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 may lose a cancellation that meets the wake
                await self._wake.wait()
                return True
        return False

    async def _claim(self) -> Generation:
        """Claim, unless another took over meanwhile: a higher number alone is no right to write (store/claims.py)."""
        generation, there = self._source.volume.generation, self._there
        ours = Writer(generation, self._holder, await self._read(self._source.taken_over))
        if is_fenced(ours, there.generation, there.holder):
            why = f"generation {there.generation} is {there.holder}'s, who took over from us (generation {generation})"
            raise refuse(Refusal.FENCED, why, generation=there.generation, holder=there.holder)
        await self.target.claim(generation, self._holder)
        self._there = replace(there, generation=generation, holder=self._holder)
        self.status.fenced_by = None
        return generation

    async def _take(self, step: Step) -> None:
        if step.kind is Kind.DIVERGED:
            await self._put_aside(step)
        elif step.kind is Kind.DROP:
            await self.target.drop(step.snapshots)
            gone = set(step.snapshots)
            left = tuple(record for record in self._there.snapshots if record.number not in gone)
            self._there = replace(self._there, snapshots=left)
            self._dropped += len(gone)
            await self._collect()
            self._look()
        else:
            with contextlib.suppress(_OvertakenError):
                await self._deliver(step)

    async def _collect(self) -> None:
        """Free space at a target that cannot tell by itself what its snapshots need, which an object store cannot."""
        collect = getattr(self.target, "collect", None)
        if collect is None or self._dropped < COLLECT_AFTER_DROPS:
            return
        there = self._there.roots()
        known = [record for record in self._source.records() if there.get(record.number) == record.root.proof]
        if len(known) < len(there):
            return  # it has some that are not here: what they need is not known
        live = await self._read(self._source.known_by, known)
        self._known = Known()
        freed_bytes = await collect(live.there)
        self._dropped = 0
        log.info("%s: %d bytes freed", self.status.name, freed_bytes)

    def _plan(self) -> Step:
        view = TargetView(
            snapshots=self._there.roots(), generation=self._there.generation,
            rate_bytes_per_s=self.status.rate.at(time.monotonic()), history=self._settings.history,
            follow_drops=self._settings.drops == "follow", held=self._there.held,
            most_snapshots=self.target.limits.commit_snapshots, failed=frozenset(self._unreadable),
            complete_through=self.status.complete_through,
        )  # fmt: skip
        self._look()
        return plan(self._source.repository.snapshots(), view)

    async def _put_aside(self, step: Step) -> None:
        """The target has what we never saw. Of an older generation: the writer before us left it there."""
        generation = self._source.volume.generation
        foreign = [record for record in self._there.snapshots if record.number in step.snapshots]
        if any(record.generation >= generation for record in foreign):
            raise UserError(
                f"{self.status.url} has snapshot {foreign[0].number}, which is not in the history of "
                f"{self._source.path}: this volume was restored from a copy, or another one pushes there"
            )
        name = f"before-generation-{generation}"
        await self.target.aside(step.base or SnapshotNumber(0), name)
        log.warning("%s: %d snapshots this volume never saw were put aside as %s", self.status.name, len(foreign), name)
        await self._open()

    # -- one step

    async def _deliver(self, step: Step) -> None:
        wanted = set(step.snapshots)
        records = [record for record in self._source.records() if record.number in wanted]
        await self._hold_base(step.snapshots)
        await self._read(self._source.refresh)
        if len(records) < len(wanted) or not all(self._source.exists(number) for number in wanted):
            return  # dropped since: another plan
        self._set_link(Link.READING)
        started_ns = time.time_ns()
        try:
            selection = await self._select(step, records)
            await self._send_and_commit(step, records, selection)
        except CorruptionError:
            if not await self._is_still_there(records):
                return
            self._unreadable |= wanted
            raise
        self._arrived(step, records, started_ns)
        if step.kind is not Kind.HISTORY:
            await self._send_hot(records[-1])

    async def _select(self, step: Step, records: list[SnapshotRecord]) -> Selection:
        if len(self._known.there) > self._most_known:
            self._known = Known()
        if not len(self._known.whole) and step.base is not None:
            base = [record for record in self._source.records() if record.number == step.base]
            with contextlib.suppress(CorruptionError):  # then everything is compared with what the target has
                self._known = await self._read(self._source.known_by, base)
            self._most_known = max(KNOWN_OBJECTS, 3 * len(self._known.there))
        return await self._read(self._source.select, records, self._known)

    async def _send_and_commit(self, step: Step, records: list[SnapshotRecord], selection: Selection) -> None:
        numbers = selection.numbers
        ask = self._source.stored_bytes(numbers) > ASK_BYTES or self._failures > 0 or step.kind is Kind.HISTORY
        await self._send(step, await self.target.lacks(numbers) if ask else numbers)
        history = step.kind is Kind.HISTORY
        await self._tell(step, records, selection)
        try:
            await self.target.commit(records, history=history)
        except RefusedError as error:
            if error.refusal is not Refusal.INCOMPLETE:
                raise
            log.info("%s lacks more than was thought: looking at everything", self.status.name)
            self._known = Known()
            selection = await self._read(self._source.select, records, self._known)
            await self._send(step, await self.target.lacks(selection.numbers))
            await self._tell(step, records, selection)
            await self.target.commit(records, history=history)
        self._known.take(selection)

    async def _tell(self, step: Step, records: list[SnapshotRecord], selection: Selection) -> None:
        """Say to a target that cannot look into what it gets what is needed, and what mounts read first."""
        tell = getattr(self.target, "tell", None)
        if tell is not None:
            newest = () if step.kind is Kind.HISTORY else await self._read(self._source.first, records[-1])
            tell(selection.numbers, newest, whole=not len(self._known.there))

    async def _send_hot(self, record: SnapshotRecord) -> None:
        """Let the list of what the volume uses most travel along, where it is another one and the target keeps it.

        It is a hint: what goes wrong with it is nobody's trouble.
        """
        send = getattr(self.target, "put_hot", None)
        if send is None:
            return
        with contextlib.suppress(SnapfsError, OSError):
            data = await self._read(_hot_list, self._source.path)
            if data and data != self._hot:
                await send(record.number, data)
                self._hot = data

    def _arrived(self, step: Step, records: list[SnapshotRecord], started_ns: int) -> None:
        now_ns = time.time_ns()
        there = (*self._there.snapshots, *records)
        status, newest = self.status, records[-1]
        stored = self._there.stored_bytes
        self._there = replace(
            self._there, snapshots=tuple(sorted(there, key=lambda record: record.number)),
            stored_bytes=None if stored is None else stored + status.sent_bytes,
        )  # fmt: skip
        delay_s = (now_ns - newest.cut_time_ns) / 1e9
        if step.kind is not Kind.HISTORY:
            status.last_delay_s = round(delay_s, 3)
        self._complaint = ""
        status.total_snapshots += len(records)
        status.sending, status.sent_bytes, status.planned_bytes = None, 0, 0
        self._counters.arrived(newest, delay_s)
        self._look()
        log.log(
            logging.DEBUG if step.kind is Kind.NEXT else logging.INFO,
            "%s has snapshot %d (%s, %d snapshots in %.3f s, %.3f s after its cut)", status.name, newest.number,
            step.kind.value, len(records), (now_ns - started_ns) / 1e9, delay_s,
        )  # fmt: skip
        self._changed(True)

    # -- sending

    async def _send(self, step: Step, numbers: NumberSet) -> None:
        limits, status = self.target.limits, self.status
        status.sending = step.snapshots[-1]
        status.sent_bytes, status.planned_bytes = 0, self._source.stored_bytes(numbers)
        self._set_link(Link.SENDING)
        parts = self._source.parts(numbers, self._part_bytes, limits.part_objects)
        pending: set[asyncio.Task[None]] = set()
        try:
            while (part := await self._read(next, parts, None)) is not None:
                if step.kind is Kind.HISTORY:
                    await self._give_way()
                await self._wait_for_room(pending)
                await asyncio.sleep(self._bucket.wait_s(time.monotonic(), part.bytes))
                pending.add(asyncio.create_task(self._send_part(part)))
            while pending:
                await self._one_done(pending)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _part_bytes(self) -> int:
        """How large the next part may be: a limit is kept by small parts, not by long silences between large ones."""
        most = min(self._pace.request_bytes, self.target.limits.part_bytes)
        return max(SMALLEST_BYTES, min(most, int(self._bucket.burst))) if self._bucket.bytes_per_s else most

    async def _wait_for_room(self, pending: set[asyncio.Task[None]]) -> None:
        while len(pending) >= min(self._pace.limit, self.target.limits.window_parts):
            await self._one_done(pending)

    async def _one_done(self, pending: set[asyncio.Task[None]]) -> None:
        done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            pending.discard(task)
            task.result()

    async def _give_way(self) -> None:
        """Leave history alone while there is something newer to send."""
        if self._wake.is_set():
            self._wake.clear()
            await self._read(self._source.refresh)
            if self._plan().kind in (Kind.NEXT, Kind.NEWEST):
                raise _OvertakenError

    async def _send_part(self, part: Part) -> None:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(PART_ATTEMPTS), wait=self._part_wait, reraise=True,
            retry=retry_if_exception(_is_passing), before_sleep=self._part_failed,
        )  # fmt: skip
        async for attempt in retrying:
            with attempt:
                started_s = time.monotonic()
                try:
                    travelled = await self.target.send(part)
                except (SnapfsError, *LINKS):
                    now_s = time.monotonic()
                    self._pace.failed(now_s, now_s - started_s)
                    raise
                now_s = time.monotonic()
                self._pace.succeeded(now_s, travelled, now_s - started_s)
        self._sent(now_s, part, travelled)

    def _sent(self, now_s: float, part: Part, travelled: int) -> None:
        self.status.sent_bytes += part.bytes
        self.status.total_bytes += travelled
        self.status.rate.add(now_s, travelled)
        self._counters.sent(travelled)
        self._changed(False)

    def _part_wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked_s = error.problem.retry_after if isinstance(error, RefusedError) else 0.0
        return max(asked_s, self._wait(state))

    def _part_failed(self, state: RetryCallState) -> None:
        self.status.retries += 1
        self._counters.retried()
        error = state.outcome.exception() if state.outcome is not None else None
        log.debug("%s: a part is sent again: %s", self.status.name, error)

    # -- what is held, known and told

    async def _hold_base(self, sending: tuple[SnapshotNumber, ...]) -> None:
        """Hold what is sent, and what the target has newest of ours."""
        source = self._source
        existing = {record.number for record in source.repository.snapshots()}
        base = max((record.number for record in self._there.snapshots if record.number in existing), default=None)
        wanted = {*sending, *(() if base is None else (base,))}
        seconds, now_s = float(self._settings.hold) or 60.0, time.monotonic()
        if (wanted, True) == (self._held[0], now_s < self._held[1]):
            return
        why = f"the replication to {self.status.name} needs it"
        with contextlib.suppress(OSError):  # a full disk: then it is not held, which the next plan will find out
            await self._read(partial(source.holds.take, self._hold, wanted, seconds, why, durable=False))
            self._held = wanted, now_s + seconds / 4

    def _look(self) -> None:
        """Bring the status up to date with what is here and there."""
        status, there = self.status, self._there
        roots = {record.number: record.root for record in self._source.repository.snapshots()}
        ours = (record for record in there.snapshots if roots.get(record.number) == record.root)
        newest = max(ours, key=lambda record: record.number, default=None)
        status.newest, status.snapshots, status.stored_bytes = newest, len(there.snapshots), there.stored_bytes
        above = [record for record in self._source.records() if newest is None or record.number > newest.number]
        status.behind = above[0] if above else None
        status.behind_bytes = sum(record.stats.stored_bytes for record in above)

    async def _is_still_there(self, records: list[SnapshotRecord]) -> bool:
        """After objects could not be read: were their snapshots dropped meanwhile, or are they damaged?"""
        with contextlib.suppress(SnapfsError, OSError):
            await self._read(self._source.refresh)
        return all(self._source.exists(record.number) for record in records)

    async def _lick_wounds(self, error: Exception) -> None:
        self._note(error)
        self._failures += 1
        state = RetryCallState(None, None, (), {})  # type: ignore[arg-type] # only its number is looked at
        state.attempt_number = self._failures
        wait_s = LONGEST_WAIT_SECONDS if is_final(error) else self._wait(state)
        with contextlib.suppress(SnapfsError, OSError):
            await self._read(self._source.refresh)
        self._look()
        self._changed(True)
        await self._until_another_generation(wait_s)

    async def _until_another_generation(self, wait_s: float) -> None:
        """Wait so long, but no longer than until this host begins a generation: it may be let in again now."""
        generation, end_s = self._source.volume.generation, time.monotonic() + wait_s
        while (left_s := end_s - time.monotonic()) > 0 and self._source.volume.generation == generation:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            with contextlib.suppress(SnapfsError, OSError):
                await self._read(self._source.refresh)

    def _note(self, error: Exception) -> None:
        status = self.status
        link = Link.REFUSED if is_final(error) else Link.WAITING
        if isinstance(error, RefusedError) and error.refusal is Refusal.FENCED:
            link = Link.FENCED
            status.fenced_by = FencedFacts(error.problem.generation, error.problem.holder)
        status.failed(error)
        repeated, self._complaint = status.last_error == self._complaint, status.last_error or ""
        status.retries += 1
        self._counters.retried()
        level = logging.DEBUG if repeated else logging.WARNING
        log.log(level, "%s: %s: %s", status.name, link.value, status.last_error)
        self._set_link(link)

    def _set_link(self, link: Link) -> None:
        if self.status.link is not link:
            self.status.link = link
            if link in (Link.IDLE, Link.SENDING):
                self.status.sending = self.status.sending if link is Link.SENDING else None
            self._changed(link is Link.IDLE)

    async def _read(self, work: Callable[..., T], *arguments: object) -> T:
        """In the one thread that uses the source, after what was begun there before, also if nobody waits for that."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)


def _hot_list(volume_path: str) -> bytes:
    """The daemon's newest list of what the volume uses most; b"" without one."""
    try:
        with open(os.path.join(volume_path, "hot"), "rb") as file:
            return file.read(MAX_HOT_BYTES)
    except FileNotFoundError:
        return b""


def is_final(error: BaseException) -> bool:
    """Whether trying again is of no use until somebody changes something."""
    return isinstance(error, UserError) or (isinstance(error, RefusedError) and error.refusal in FINAL_REFUSALS)


def _is_passing(error: BaseException) -> bool:
    """Whether to send a part again right away. What else is wrong is sorted out by opening the target again."""
    if isinstance(error, RefusedError):
        return error.refusal in (Refusal.BUSY, Refusal.CORRUPT)
    return isinstance(error, LINKS)


