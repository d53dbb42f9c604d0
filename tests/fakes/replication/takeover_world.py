"""Random hosts, mirrors and partitions: takeovers, failbacks, zombies, drops, locks; nothing acknowledged vanishes.

Hosts are real volumes with a model's history; mirrors are folders with a mirror's volume in them, or buckets in memory;
what joins them is the code that joins them in production: the feeder, a standby, its taking over, a folder as its
source. A partition is a target that does not answer. Time is the world's.

The acts: a host makes snapshots, pushes to whom it reaches (a link may be cut in the middle), drops snapshots by a rule
or a person, rolls back, takes over on purpose, dies; a standby takes over from whom it reaches, which may be a
minority; a host that was taken over goes on as if nothing had happened; an administrator requests a mirror to drop all.

Invariants, checked after each act:
1. What a target has acknowledged is there, in its history or in a branch, unless a record of a
   host's log, or a person at the target, dropped that very snapshot.
2. What a locked target received less than its lock ago is there, whatever was requested, and by which peer.
3. At the end each acknowledged snapshot that was not dropped by word is read to its last byte where it is.
4. What a writer lost to a takeover is its tail: every snapshot of it that the winner did not go on from is still on the
   host, unless the host dropped it or is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from obstore.store import MemoryStore

from replicator.agent.agent_status import TargetStatus
from replicator.agent.feeder import Feeder
from replicator.agent.target_session import TargetRole
from replicator.source.known_targets import Memory
from replicator.source.volume_source import VolumeSource
from replicator.targets.folder_target import DirectoryTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target import Target
from replicator.volumes.folder_lock import FolderLock
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import SnapfsError
from snapfs.base.settings.replication_settings import ReplicationSettings
from snapfs.base.volumes.volume import Volume
from snapfs.base.writer_id import writer_id_of
from snapfs.store.log import snapshot_records
from snapfs.store.log.drops import PERSON, POLICY
from snapfs.store.log.holds import Holds
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.failover.standby_volume import Standby
from snapfs.transfer.failover.takeover import take_over
from snapfs.transfer.sources.source_access import Access
from tests.fakes.histories.history import History
from tests.fakes.histories.state_model import State
from tests.fakes.replication.push_source import SourceVolume
from tests.fakes.targets.target_reader import reader_of

LOCK_S = 3600.0
MIRRORS, BUCKETS = 2, 1
_SETTINGS = ReplicationSettings()


@dataclass(frozen=True)
class Snapshot:
    """One of some host's; two branches may have one number."""

    number: int
    root: bytes


class Cut:
    """A link to a target that fails after so many calls."""

    def __init__(self, target: Target, calls: int) -> None:
        self._target, self._left = target, calls

    def __getattr__(self, name: str) -> object:
        if name in ("send", "commit", "drop", "branch_off", "claim"):
            self._left -= 1
            if self._left < 0:
                raise ConnectionResetError("the link is cut")
        return getattr(self._target, name)


class Folder(DirectoryTarget):
    """A mirror's volume, on the world's clock."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(str(path))
        self._world = world

    def _open(self, identity: StoreIdentity) -> MirrorVolume:
        volume = super()._open(identity)
        volume.repository.clock = volume.repository.log._clock = self._world.now_ns
        return volume


@dataclass
class Place:
    """A target of the world. `there`: what it acknowledged, and when; `may_drop`: what a drop was requested of."""

    name: str
    path: Path | None
    store: MemoryStore
    lock_s: float
    there: dict[Snapshot, float] = field(default_factory=dict)
    may_drop: set[Snapshot] = field(default_factory=set)

    def connect(self, world: World) -> DirectoryTarget | ObjectStoreTarget:
        if self.path is not None:
            return Folder(self.path, world)
        return ObjectStoreTarget(self.store, clock=world.now_s)


@dataclass
class Host:
    """A volume with a model's history. `tail`: of it, what the winner of a takeover did not go on from."""

    name: str
    path: Path
    volume: Volume
    history: History
    generation: int
    accounted: set[Snapshot] = field(default_factory=set)
    tail: set[Snapshot] = field(default_factory=set)

    def snapshots(self) -> list[Snapshot]:
        return [_named(record) for record in self.history.records]


class World:
    """One story. `run` it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._now_s = 2_000_000_000.0
        self.done: Counter[str] = Counter()
        self.states: dict[Snapshot, State] = {}
        first = SourceVolume(folder / "host-0", seed)
        self.identity = first.identity
        self.hosts = [Host("host-0", first.path, first.volume, first.history, 1)]
        self.gone: list[Host] = []
        self.places = [
            Place(f"mirror-{at}", folder / f"mirror-{at}", MemoryStore(), LOCK_S if at % 2 else 0.0)
            for at in range(MIRRORS)
        ] + [Place(f"bucket-{at}", None, MemoryStore(), LOCK_S) for at in range(BUCKETS)]
        self._apart: set[tuple[str, str]] = set()

    def now_s(self) -> float:
        return self._now_s

    def now_ns(self) -> int:
        return int(self._now_s * 1e9)

    async def run(self, acts: int) -> None:
        """AssertionError where an invariant does not hold."""
        try:
            await self._grow(self.hosts[0])
            for place in self.places:
                await self._push_to(self.hosts[0], place)
                await self._set_lock(place)
            names = ["grow"] * 5 + ["push"] * 7 + ["drop"] * 3 + ["part"] * 3 + ["tick"] * 2
            names += ["roll_back", "win", "win", "retake", "die", "die", "empty"]
            for _ in range(acts):
                name = self._rng.choice(names)
                self.done[name] += 1
                host = self.hosts[-1] if self._rng.random() < 0.6 else self._rng.choice(self.hosts)
                await getattr(self, f"_{name}")(host)
                self._now_s += self._rng.choice((1.0, 60.0))
                await self._check(name)
            self._apart.clear()
            await self._read_everything()
        finally:
            for host in [*self.hosts, *self.gone]:
                host.history.close()

    # -- acts

    async def _grow(self, host: Host) -> None:
        for _ in range(self._rng.randint(1, 2)):
            host.history.grow(1, steps=6, generation=host.generation)
            snapshot = host.snapshots()[-1]
            self.states[snapshot] = host.history.states[snapshot.number]

    async def _push(self, host: Host) -> None:
        for place in self._reached(host):
            await self._push_to(host, place)

    async def _push_to(self, host: Host, place: Place) -> None:
        """As its agent does, in a life of its own; the link may be cut in the middle."""
        target = place.connect(self)
        status = TargetStatus(place.name, f"test://{place.name}")
        cut = Cut(target, self._rng.choice((1, 3, 8, 999, 999, 999, 999)))
        memory = Memory(str(host.path), Disk(), status.name, status.url)
        source = VolumeSource(str(host.path), Disk())
        feeder = Feeder(
            source, cut, status, TargetRole(_SETTINGS, writer_id_of(str(host.path)), memory),  # type: ignore[arg-type]
            changed=lambda urgent: None,
        )  # fmt: skip
        try:
            await feeder.feed(once=True)
            self.done["pushed"] += 1
        except (SnapfsError, OSError) as error:
            self.done["refused" if isinstance(error, SnapfsError) else "cut"] += 1
            if status.fenced_by is None and "fenced" in str(error):
                self.done["fenced"] += 1
        finally:
            await feeder.close()
        for snapshot in await self._acknowledged(place):
            place.there.setdefault(snapshot, self._now_s)
        Holds(host.volume.store_dir, Disk()).release(feeder.delivery.hold_name)

    async def _drop(self, host: Host) -> None:
        found = host.snapshots()[:-1]
        by = self._rng.choice((PERSON, POLICY))
        for snapshot in self._rng.sample(found, min(len(found), self._rng.randint(0, 2))):
            host.history.repository.drop(SnapshotNumber(snapshot.number), by)
            host.accounted.add(snapshot)
            for place in self.places:
                place.may_drop.add(snapshot)  # it may hear of it from now on

    async def _part(self, host: Host) -> None:
        """A link breaks, or works again."""
        link = host.name, self._rng.choice(self.places).name
        self._apart.symmetric_difference_update({link})

    async def _tick(self, host: Host) -> None:
        self._now_s += self._rng.choice((LOCK_S / 3, LOCK_S * 1.5))

    async def _roll_back(self, host: Host) -> None:
        """A generation begins with the state of an older snapshot."""
        older = self._rng.choice(host.snapshots())
        host.generation = self._bumped(host, host.generation + 1)
        host.history._state = self.states[older].copy()
        await self._grow(host)

    async def _retake(self, host: Host) -> None:
        """A person declares that this host, which may have been taken over, is the writer (`mount --take-over`)."""
        highest = max(each.generation for each in [*self.hosts, *self.gone])
        host.generation = self._bumped(host, highest + 1)
        latest = host.snapshots()[-1]
        host.history.repository.record_event(
            "taken-over", generation=host.generation, holder=writer_id_of(str(host.path)), snapshot=latest.number
        )
        host.tail.clear()

    async def _win(self, host: Host) -> None:
        """Another host takes over from the folders that it reaches."""
        if len(self.hosts) > 3:
            return
        name = f"host-{len(self.hosts) + len(self.gone)}"
        reached = [place for place in self.places if place.path is not None and self._rng.random() < 0.7]
        if not any(place.there for place in reached):
            return
        path = self._folder / name
        standby = Standby(str(path), [str(place.path) for place in reached], Access(), Disk())
        try:
            list(standby.catch_up())
        finally:
            standby.close()
        report = take_over(str(path), Disk())
        assert report is not None
        volume = Volume.open(str(path), Disk())
        volume_identity = StoreIdentity(volume.volume_id, volume.seed)
        winner = Host(name, path, volume, _adopted(volume, volume_identity, self._rng), report.generation)
        for record in winner.history.records:
            winner.history.states[record.number] = self.states[_named(record)]
        base = winner.snapshots()[-1]
        assert base.number == report.snapshot
        winner.history._state = self.states[base].copy()
        for other in self.hosts:
            other.tail |= {each for each in other.snapshots() if each.number > base.number}
        self.hosts.append(winner)

    async def _die(self, host: Host) -> None:
        if len(self.hosts) > 1:
            self.hosts.remove(host)
            self.gone.append(host)

    async def _empty(self, host: Host) -> None:
        """A person with every right at a target has it drop all that it drops, and keep one."""
        place = self._rng.choice(self.places)
        target = place.connect(self)
        state = await target.open(self.identity)
        numbers = [record.number for record in state.snapshots]
        await target.claim(state.generation, state.writer_id)
        await target.drop(numbers)
        if isinstance(target, DirectoryTarget):
            assert target.opened is not None
            target.opened.expire(1)
            target.opened.collect()
        await target.close()
        place.may_drop |= {_named(record) for record in state.snapshots}

    # -- what is there

    def _reached(self, host: Host) -> Iterator[Place]:
        return (place for place in self.places if (host.name, place.name) not in self._apart)

    def _bumped(self, host: Host, generation: int) -> int:
        host.volume.lock()
        try:
            return host.volume.bump_generation(generation)
        finally:
            host.volume.unlock()

    async def _set_lock(self, place: Place) -> None:
        if place.path is not None:
            FolderLock(str(place.path), Disk()).set(place.lock_s, shorten=False, clock=self.now_ns)
            return
        target = place.connect(self)
        await target.open(self.identity)
        assert isinstance(target, ObjectStoreTarget)
        await target.lock(place.lock_s)
        await target.close()

    async def _acknowledged(self, place: Place) -> dict[Snapshot, SnapshotRecord]:
        """All that is there, branches too."""
        target = place.connect(self)
        state = await target.open(self.identity)
        found = {_named(record): record for record in [*state.snapshots, *_branches(target)]}
        await target.close()
        return found

    async def _check(self, act: str) -> None:
        for place in self.places:
            found = await self._acknowledged(place)
            lost = place.there.keys() - found.keys()
            unexplained = lost - place.may_drop
            assert not unexplained, f"{act}: {place.name} lost {sorted(unexplained, key=lambda each: each.number)}"
            young = [each for each in lost if place.there[each] + place.lock_s > self._now_s]
            assert not young, f"{act}: {place.name} broke its lock of {young}"
            for snapshot in lost:
                del place.there[snapshot]
                self.done["left"] += 1
        for host in self.hosts:
            missing = host.tail - set(host.snapshots()) - host.accounted
            assert not missing, f"{act}: {host.name} lost {missing} of its tail"

    async def _read_everything(self) -> None:
        for place in self.places:
            target = place.connect(self)
            state = await target.open(self.identity)
            async with reader_of(target) as reader:
                for record in [*state.snapshots, *_branches(target)]:
                    self.states[_named(record)].assert_equals(SnapshotTree(reader, record.root))
                    self.done["read"] += 1
            await target.close()


def _named(record: SnapshotRecord) -> Snapshot:
    return Snapshot(record.number, record.root.content_hash)


def _branches(target: DirectoryTarget | ObjectStoreTarget) -> Sequence[SnapshotRecord]:
    if isinstance(target, ObjectStoreTarget):
        return [snapshot_records.from_fields(each.record) for each in target._heads.head.branches]
    assert target.opened is not None
    return list(target.opened.branches.values())


def _adopted(volume: Volume, identity: StoreIdentity, rng: random.Random) -> History:
    """The history of a volume that was taken over."""
    made = object.__new__(History)
    made.repository = Repository.open(volume.store_dir, identity, Disk())
    made.states = {}
    made._rng = rng
    made._state = State()
    return made


async def story(folder: Path, seed: int, acts: int) -> Counter[str]:
    """One world, to its end; what happened in it."""
    world = World(folder, seed)
    await asyncio.wait_for(world.run(acts), 3600)
    return world.done
