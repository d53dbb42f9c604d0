"""A model of every target: random acts on a folder, a bucket or a mirror, with one request or durable act that fails.

The acts: send some parts and stop, send and commit (the newest, or a stretch of history), begin another life of the
writer, be taken over and come back, drop, free space, let hours pass, kill the server. Before most of them one fault is
armed: a request that does not arrive, is cut in the middle, is answered by an error or not at all, though it took
effect; or, in a folder, a durable act that fails.

Invariant, checked after each act by a reader of its own: every snapshot that was acknowledged, and not dropped by an
act of ours, is there and readable to its last byte. What an act that failed did or did not do is not known before that;
then it is what the reader sees, and stays so. In the end nothing lies in a bucket but what its head names.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import obstore

from replicator.source.selection import Known, Part
from replicator.targets.bucket_garbage import GRACE_SECONDS
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target import Target
from snapfs.base.blocks import Generation
from snapfs.base.errors import SnapfsError
from snapfs.base.mirror_access import MirrorAccess
from snapfs.store.bucket import bucket_layout, segment_names
from snapfs.store.bucket.bucket_client import open_bucket
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.tables.table_pages import ObjectReader
from tests.fakes.disks.crashes import CrashDisk
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import WRITER_ID, SourceVolume, parts_of
from tests.fakes.targets.bad_link import BadLink
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.s3_server import BUCKET, OPTIONS
from tests.fakes.targets.target_reader import ServedTarget, reader_of

_FAULTS = ("refuse", "cut", "lose_answer", "error", "error_after")
_MISUSE = (Refusal.BAD_REQUEST, Refusal.EXISTS, Refusal.DIVERGED, Refusal.VERSION, Refusal.FORBIDDEN)
"""What no fault of a link or a disk may end in."""


class Place:
    """A target of one kind."""

    now_s = 1e9

    def connect(self) -> Target:
        """For a new life of a writer."""
        raise NotImplementedError

    def arm(self, rng: random.Random) -> None:
        """Let something of the next act fail."""
        raise NotImplementedError

    def disarm(self) -> None:
        raise NotImplementedError

    async def crash(self) -> None:
        """Kill the server and start it again, where that is ours to do."""

    @asynccontextmanager
    async def reading(self, writer: Target, source: SourceVolume) -> AsyncIterator[tuple[list[int], ObjectReader]]:
        """The numbers of the snapshots there, and a reader of their objects."""
        reader = self.reader(writer)
        state = await reader.open(source.identity)
        async with reader_of(reader) as objects:
            yield [record.number for record in state.snapshots], objects
        if reader is not writer:
            await reader.close()

    def reader(self, writer: Target) -> Target:
        raise NotImplementedError

    async def check_end(self, source: SourceVolume, writer: Target, generation: Generation) -> None:
        """After all of it."""


class _FailingDisk(CrashDisk):
    """One durable act fails, after so many; the process lives on."""

    def _act(self, label: str, half: Callable[[], object] = lambda: None) -> None:
        if self.at is None:
            return
        self.at -= 1
        if self.at < 0:
            self.at = None
            if self.half:
                half()
            raise OSError(5, f"injected at {label}")


class FolderPlace(Place):
    def __init__(self, folder: Path) -> None:
        self._folder, self._disk = folder / "target", _FailingDisk()

    def connect(self) -> Target:
        return DirectoryTarget(str(self._folder), self._disk)

    def arm(self, rng: random.Random) -> None:
        self._disk.at, self._disk.half = rng.randrange(12), rng.random() < 0.5

    def disarm(self) -> None:
        self._disk.at = None

    def reader(self, writer: Target) -> Target:
        return writer  # one process has the folder open


class _LinkedPlace(Place):
    def __init__(self, link: BadLink) -> None:
        self.link = link

    def arm(self, rng: random.Random) -> None:
        passing, times = rng.randrange(6), rng.choice([1, 1, 5])
        self.link.once[:] = ["pass"] * passing + [rng.choice(_FAULTS)] * times

    def disarm(self) -> None:
        self.link.once.clear()


class BucketPlace(_LinkedPlace):
    """`endpoint` of a real S3 server, which `link` leads to."""

    def __init__(self, link: BadLink, endpoint: str, prefix: str) -> None:
        super().__init__(link)
        self._endpoint, self._url = endpoint, f"s3://{BUCKET}/{prefix}"

    def connect(self) -> Target:
        return self._target(f"http://127.0.0.1:{self.link.port}")

    def reader(self, writer: Target) -> Target:
        return self._target(self._endpoint)

    def _target(self, endpoint: str) -> ObjectStoreTarget:
        store = open_bucket(self._url, {**OPTIONS, "endpoint": endpoint})
        return ObjectStoreTarget(store, lambda: self.now_s, tail=6)

    async def check_end(self, source: SourceVolume, writer: Target, generation: Generation) -> None:
        for _ in range(12):
            self.now_s += GRACE_SECONDS / 3
            await writer.claim(generation, WRITER_ID)
        reader = self._target(self._endpoint)
        await reader.open(source.identity)
        head = reader._heads
        named = {bucket_layout.HEAD, *head.head.pages, *map(segment_names.segment_path, head.catalog.segments)}
        there = {meta["path"] async for batch in obstore.list(reader._store) for meta in batch}
        assert there == named, (there - named, named - there)


class MirrorPlace(_LinkedPlace):
    def __init__(self, link: BadLink, mirror: MirrorProcess, name: str, token: Path) -> None:
        super().__init__(link)
        self._mirror, self._name, self._access = mirror, name, MirrorAccess(str(token))

    def connect(self) -> Target:
        return HttpTarget(f"http://127.0.0.1:{self.link.port}/{self._name}", self._access)

    def reader(self, writer: Target) -> Target:
        url = f"http://127.0.0.1:{self._mirror.port}/{self._name}"
        return ServedTarget(url, self._access, self._mirror.root / self._name)

    async def crash(self) -> None:
        await asyncio.to_thread(self._mirror.kill)
        await asyncio.to_thread(self._mirror.start)


class Story:
    """Random acts on a place, from one seed."""

    def __init__(self, place: Place, source: SourceVolume, seed: int) -> None:
        self._place, self._source, self._rng = place, source, random.Random(seed)
        self._generation = Generation(1)
        self._target: Target | None = None
        self._acknowledged: set[int] = set()
        self._undecided: set[int] = set()  # to be dropped, or committed, by an act that failed
        self.done: Counter[str] = Counter()
        self.trace: list[str] = []

    async def run(self, acts: int) -> None:
        try:
            for _ in range(acts):
                await self._act()
                await self._check()
            await self._end()
        except BaseException as error:
            error.add_note("\n".join(self.trace[-40:]))
            raise

    async def _act(self) -> None:
        acts: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._deliver), (2, self._send_some), (3, self._live_again), (2, self._drop), (2, self._hours_pass),
            (1, self._free), (1, self._taken_over), (1, self._place.crash),
        ]  # fmt: skip
        act = self._rng.choices([act for _, act in acts], [weight for weight, _ in acts])[0]
        name = act.__name__.strip("_")
        is_hit = self._rng.random() < 0.6
        try:
            if is_hit:
                self._place.arm(self._rng)
            await asyncio.wait_for(act(), PATIENCE_S)
            self.done[name] += 1
            self.trace.append(f"{name}{' (armed)' if is_hit else ''}")
        except (OSError, TimeoutError, SnapfsError) as error:
            assert is_hit, f"{name} failed though nothing else did"
            if isinstance(error, RefusedError) and error.refusal in _MISUSE:
                raise
            self.done[f"{name} failed"] += 1
            self.trace.append(f"{name} failed: {error!r}")
            if self._rng.random() < 0.5:
                self._place.disarm()
                await self._let_go()
        finally:
            self._place.disarm()

    # -- acts

    async def _writer(self) -> Target:
        if self._target is None:
            self._target = self._place.connect()
        await self._target.open(self._source.identity)
        await self._target.claim(self._generation, WRITER_ID)
        return self._target

    async def _deliver(self) -> None:
        target = await self._writer()
        if self._rng.random() < 0.6 or not self._source.records:
            self._source.grow(1, steps=self._rng.choice([1, 3, 8]))
        wanted, history = self._choose()
        if not wanted:
            return
        for part in await self._parts(target, wanted):
            await target.send(part)
        numbers = {record.number for record in wanted}
        self._undecided |= numbers
        await target.commit(wanted, history=history)
        self._undecided -= numbers
        self._acknowledged |= numbers

    async def _send_some(self) -> None:
        """Of a commit that does not come."""
        target = await self._writer()
        wanted = self._rng.sample(self._source.records, min(3, len(self._source.records)))
        parts = await self._parts(target, sorted(wanted, key=lambda record: record.number))
        for part in parts[: self._rng.randrange(len(parts) + 1)]:
            await target.send(part)

    async def _live_again(self) -> None:
        await self._let_go()
        await self._writer()

    async def _drop(self) -> None:
        target = await self._writer()
        known = sorted(self._acknowledged)[:-1]
        wanted = self._rng.sample(known, min(len(known), self._rng.randrange(1, 4)))
        self._undecided |= set(wanted)
        await target.drop(wanted)  # type: ignore[arg-type]
        self._undecided -= set(wanted)
        self._acknowledged -= set(wanted)

    async def _free(self) -> None:
        target = await self._writer()
        if isinstance(target, ObjectStoreTarget):
            there = {record.number for record in (await target.open(self._source.identity)).snapshots}
            with closing(self._source.open()) as reading:
                live = reading.known_by([record for record in self._source.records if record.number in there]).there
            await target.collect(live)

    async def _hours_pass(self) -> None:
        for _ in range(self._rng.randrange(1, 6)):
            self._place.now_s += self._rng.choice([60, 700, GRACE_SECONDS, 3 * GRACE_SECONDS])
            await self._writer()

    async def _taken_over(self) -> None:
        """By another host, which writes; the old one is refused, and comes back as the next generation."""
        older, self._target = await self._writer(), None
        self._generation = Generation(self._generation + 2)
        other = self._place.connect()
        try:
            if isinstance(older, DirectoryTarget):
                await older.close()
            await other.open(self._source.identity)
            await other.claim(Generation(self._generation - 1), "another")
            for part in await self._parts(other, self._source.records[-1:]):
                await other.send(part)
            if isinstance(older, DirectoryTarget):
                await other.close()
            await self._try_in_vain(older)
        finally:
            await older.close()
            await other.close()

    async def _try_in_vain(self, fenced: Target) -> None:
        try:
            await fenced.drop([record.number for record in self._source.records])
        except RefusedError as error:
            if error.refusal not in (Refusal.FENCED, Refusal.UNCLAIMED):
                raise
        except ConnectionError:
            pass
        else:
            there = self._acknowledged | self._undecided
            assert len(there) < 2, "a writer that was fenced off dropped snapshots"

    def _choose(self) -> tuple[list[SnapshotRecord], bool]:
        newest = max(self._acknowledged | self._undecided, default=0)
        ahead = [record for record in self._source.records if record.number > newest]
        if ahead and self._rng.random() < 0.7:
            return [ahead[-1]] if self._rng.random() < 0.5 else ahead, False
        below = [record for record in self._source.records if record.number < newest]
        first = self._rng.randrange(max(1, len(below)))
        return [record for record in below[first : first + 3] if record.number not in self._acknowledged], True

    async def _parts(self, target: Target, wanted: list[SnapshotRecord]) -> list[Part]:
        with closing(self._source.open()) as reading:
            lacking = await target.lacks(reading.select(wanted, Known()).numbers)
            return parts_of(reading, lacking, self._rng.choice([400, 3000, 1 << 20]))

    async def _let_go(self) -> None:
        target, self._target = self._target, None
        if target is not None:
            await target.close()

    # -- what is promised

    async def _check(self) -> None:
        if not self._acknowledged | self._undecided:
            return
        async with self._place.reading(await self._writer(), self._source) as (there, objects):
            lost = self._acknowledged - self._undecided - set(there)
            assert not lost, f"acknowledged, and gone: {sorted(lost)}"
            unknown = set(there) - self._acknowledged - self._undecided
            assert not unknown, f"dropped, and there again: {sorted(unknown)}"
            self._acknowledged, self._undecided = set(there), set()
            for number in there:
                self._source.assert_equal(objects, number)

    async def _end(self) -> None:
        await self._place.check_end(self._source, await self._writer(), self._generation)
        await self._check()
        await self._let_go()
