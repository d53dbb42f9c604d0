"""One volume on a mirror: who may write it, what has been received, what is kept. Synchronous; called from threads.

It is an ordinary volume's folder (volume.toml, store/), so that `snapfs list`, `verify` and `restore` work on it, and
it is held locked while it is served. What is only a mirror's lies in its log, as events: "claimed" (who writes) and
"aside" (snapshots that a new writer put aside as a branch).

Invariants:
1. The generation never falls, over restarts too. A claim is a line in the log, durable before it is answered, and
   only then is it followed; volume.toml is brought up to it afterwards, at the next opening if need be.
2. Whatever changes the volume asks `_fence` under the receiver's lock, which claims take too: after a claim was
   answered nothing of an older generation, or of another holder, changes a byte.
3. A snapshot is dropped only if it is neither the newest nor held. Branches that were put aside are kept.
4. Collection walks while commits go on, then takes its turn and walks what they brought: no commit comes to need an
   object that collection takes for dead.

A crash at any point leaves what `open` puts in order: see `store/staging.py` and `store/repository.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final

from replicator.fencing import Claimed, Verdict, judge_claim, judge_write
from replicator.mirror_opaque import Opaque
from snapfs.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.errors import CorruptionError, SnapfsError, UserError
from snapfs.store import records, wire
from snapfs.store.compaction import CollectReport
from snapfs.store.format import Pointer
from snapfs.store.holds import Holds
from snapfs.store.log import Event, SnapshotLog
from snapfs.store.numbers import NumberSet
from snapfs.store.reach import Walk
from snapfs.store.receiving import PartReceiver, Receiver
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.repository import LOG, SEGMENTS, Repository
from snapfs.store.staging import take_back
from snapfs.store.wire import Limits, Mode, Refusal, refuse
from snapfs.volume import Volume

HOT_FOLDER: Final = "hot"
_HOLD_PREFIX: Final = "remote."
COLLECT_AFTER_DROPS: Final = 16
SUSPECTS: Final = "suspects"
"""In a volume's store: objects that `verify` found damaged, a number (hex) a line. The next commit wants them anew."""


class MirrorVolume:
    """An open volume of a mirror. Thread-safe."""

    def __init__(self, volume: Volume, disk: Disk, *, cache_bytes: int, max_open: int, limits: Limits) -> None:
        """Opens the store of a volume that is locked. Raises SnapfsError, OSError."""
        self.volume, self._disk = volume, disk
        self.name = os.path.basename(volume.path)
        self.recovered: list[str] = []
        self._prepare(volume.store_dir)
        identity = StoreIdentity(volume.volume_id, volume.seed, volume.opaque)
        self.repository = Repository.open(
            volume.store_dir, identity, disk, cache_bytes=cache_bytes, max_open_segments=max_open
        )
        try:
            self.receiver = Receiver(self.repository, disk, cache_bytes=cache_bytes, limits=limits)
            self.opaque = Opaque(volume, self.receiver, disk) if volume.opaque else None
            self.holds = Holds(volume.store_dir, disk)
            self.claimed = Claimed()
            self.asides: dict[tuple[str, SnapshotNumber], SnapshotRecord] = {}
            self._dropped = 0
            for event in self.repository.events():
                self._apply(event)
            self._adopt_generation()
        except BaseException:
            self.repository.close()
            raise
        self.recovered += [*self.repository.recovered, *self.receiver.staging.removed]

    @staticmethod
    def create(path: str, wanted: wire.CreateVolume, disk: Disk, **options: Any) -> MirrorVolume:
        """Make the volume, or complete one whose making was cut off, and open it. Raises RefusedError, OSError."""
        opaque = wanted.mode is Mode.OPAQUE
        if opaque and int(wanted.seed, 16):
            raise refuse(Refusal.BAD_REQUEST, "the seed of an encrypted volume is nobody's business: send zeros")
        if not Volume.exists(path):
            Volume.create(path, disk, seed=int(wanted.seed, 16), volume_id=wanted.volume_id, opaque=opaque).unlock()
        volume = Volume.open(path, disk)
        if not os.path.exists(os.path.join(volume.store_dir, LOG)):
            identity = StoreIdentity(volume.volume_id, volume.seed, volume.opaque)
            Repository.create(volume.store_dir, identity, disk).close()
        made = MirrorVolume.open(path, disk, **options)
        try:
            made.check_identity(wanted)
        except BaseException:
            made.close()
            raise
        return made

    @staticmethod
    def exists(path: str) -> bool:
        """Whether there is a volume with a store; one whose making was cut off is none."""
        return Volume.exists(path) and os.path.exists(os.path.join(path, "store", LOG))

    @staticmethod
    def open(
        path: str, disk: Disk, *, cache_bytes: int = 32 << 20, max_open: int = 64, limits: Limits | None = None
    ) -> MirrorVolume:
        """Lock and open the volume. Raises BusyError, UserError, CorruptionError, VersionError, OSError."""
        volume = Volume.open(path, disk)
        volume.lock("served by snapfs-replicator")
        try:
            return MirrorVolume(volume, disk, cache_bytes=cache_bytes, max_open=max_open, limits=limits or Limits())
        except BaseException:
            volume.unlock()
            raise

    def check_identity(self, wanted: wire.CreateVolume) -> None:
        """Raises RefusedError if this is another volume."""
        if wanted.volume_id == self.volume.volume_id and (wanted.mode is Mode.OPAQUE) != self.volume.opaque:
            raise refuse(Refusal.EXISTS, wire.MODE_DIFFERS[wanted.mode])
        if (wanted.volume_id, int(wanted.seed, 16)) != (self.volume.volume_id, self.volume.seed):
            why = f"another volume (id {self.volume.volume_id}) is kept here as {self.name}: choose another name"
            raise refuse(Refusal.EXISTS, why)

    # Who writes.

    @property
    def generation(self) -> Generation:
        """The claimed one; 0 before the first claim."""
        return self.claimed.generation

    @property
    def holder(self) -> str:
        return self.claimed.holder

    def claim(self, generation: Generation, holder: str, note: str = "") -> None:
        """Make `holder` the only writer, as this generation; durable on return. Raises RefusedError, OSError."""
        with self.receiver.lock:
            wanted = Claimed(generation, holder)
            if judge_claim(self.claimed, wanted) is not Verdict.GRANTED:
                raise self._fenced(wanted)
            if wanted != self.claimed:
                self.repository.record_event("claimed", generation=generation, holder=holder, note=note)
                self.claimed = wanted
            self._bring_up_volume()

    def promote(self, holder: str) -> None:
        """Fence whoever writes, by the next generation. Raises OSError; UserError if there is no next one."""
        with self.receiver.lock:
            if self.generation >= 0xFFFF:
                raise UserError(f"{self.name} has used all its 65,535 generations: clone it into a new volume")
            self.claim(Generation(self.generation + 1), holder, "promoted")

    # What comes.

    def part(self, generation: Generation, holder: str) -> PartReceiver:
        """Begin to receive a part. Raises RefusedError."""
        fence = self._fence(generation, holder)
        fence()
        return self.receiver.part(generation, fence)

    def commit(
        self,
        candidates: list[SnapshotRecord],
        history: bool,
        generation: Generation,
        holder: str,
        told: wire.Commit | None = None,
    ) -> list[SnapshotRecord]:
        """Make snapshots visible; returns those that were not. Raises RefusedError, OSError.

        `told`: of an opaque volume, what else the writer says.
        """
        late = next((record for record in candidates if record.generation > generation), None)
        if late is not None:
            raise refuse(Refusal.BAD_REQUEST, f"snapshot {late.number} is of a later generation than its sender")
        fence = self._fence(generation, holder)
        needs = wire.unpack_needs(told.needs) if told is not None and told.needs else None
        ground = told.ground if told is not None else 0
        suspects = os.path.join(self.volume.store_dir, SUSPECTS)
        with self.receiver.turn:
            fence()
            self._suspect(suspects, told)
            made = self.receiver.commit(candidates, history=history, fence=fence, needs=needs, ground=ground)
            if made:
                with contextlib.suppress(FileNotFoundError):
                    self._disk.unlink("suspects:remove", suspects)
        if made and self.opaque is not None and told is not None and told.first:
            self.opaque.put_first(made[-1].number, told.first)
        return made

    def _suspect(self, path: str, told: wire.Commit | None) -> None:
        """Want anew what cannot be read. Which snapshots need it an opaque volume's writer alone can tell: it is made
        to tell all that they need, once."""
        known = set(self.receiver.union.distrusted)
        with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as file:
            bad = self.receiver.suspect(Number(int(line, 16)) for line in file)
            whole = told is not None and told.whole and known.issuperset(bad)
            if bad and self.opaque is not None and not whole:
                raise refuse(
                    Refusal.INCOMPLETE, f"{len(bad)} objects are damaged here, {bad[0]:#x} the first of them: tell all "
                    "that these snapshots need", missing=[int(number) for number in bad[: wire.MISSING_TOLD]],
                )  # fmt: skip

    def collect_told(self, told: wire.Collect, generation: Generation, holder: str) -> wire.Collected:
        """Free what the writer of an opaque volume does not name. Raises RefusedError, OSError."""
        opaque = self.must_be_opaque()
        with self.receiver.turn:
            with self.receiver.lock:
                self._fence(generation, holder)()
            report = opaque.collect(told, asides=bool(self.asides))
            return wire.Collected(report.freed_bytes if report is not None else 0)

    def put_keys(self, data: bytes, generation: Generation, holder: str) -> bytes:
        """Keep the wrapped keys; what is kept. Raises RefusedError, OSError."""
        opaque = self.must_be_opaque()
        with self.receiver.lock:
            self._fence(generation, holder)()
            opaque.put_keys(data)
            return opaque.keys()

    def must_be_opaque(self) -> Opaque:
        """Raises RefusedError."""
        if self.opaque is None:
            raise refuse(Refusal.NOT_FOUND, f"{self.name} is not encrypted here, and has no keys")
        return self.opaque

    def drop(self, numbers: list[int], generation: Generation, holder: str) -> list[int]:
        """Drop those of the snapshots that are there and neither held nor the newest. Raises RefusedError, OSError."""
        with self.receiver.turn, self.receiver.lock:
            self._fence(generation, holder)()
            return self._drop(numbers)

    def aside(self, after: int, branch: str, generation: Generation, holder: str) -> None:
        """Put aside what older generations made after a snapshot. Raises RefusedError, OSError."""
        with self.receiver.turn, self.receiver.lock:
            self._fence(generation, holder)()
            for record in self.repository.snapshots():
                if record.number > after and record.generation < generation:
                    fields = {"snapshot": record.number, "branch": branch, "record": records.to_fields(record)}
                    self.repository.log.append("aside", fields)
                    self.repository.catalog.remove(record.number)
                    self.asides[branch, record.number] = record

    def put_hot(self, number: SnapshotNumber, data: bytes, generation: Generation, holder: str) -> None:
        """Keep the hot list of a snapshot. Raises RefusedError, OSError."""
        if self.opaque is None:
            wire.unpack_hot(data)
        elif len(data) > wire.MAX_SEALED_HOT_BYTES:
            raise refuse(Refusal.TOO_LARGE, f"a hot list of {len(data)} bytes")
        with self.receiver.lock:
            self._fence(generation, holder)()
            folder = os.path.join(self.volume.store_dir, HOT_FOLDER)
            with contextlib.suppress(FileExistsError):
                self._disk.mkdir("hot:folder", folder)
            self._disk.replace_file("hot:write", os.path.join(folder, str(number)), data)

    def hot(self, number: SnapshotNumber) -> bytes:
        """The hot list of a snapshot, or of the nearest before it that has one; b"" if there is none."""
        folder = os.path.join(self.volume.store_dir, HOT_FOLDER)
        try:
            known = [int(name) for name in os.listdir(folder) if name.isdecimal() and int(name) <= number]
            with open(os.path.join(folder, str(max(known, default=0))), "rb") as file:
                return file.read(wire.MAX_SEALED_HOT_BYTES)
        except FileNotFoundError:
            return b""

    # What is kept.

    def hold(self, name: str, number: int, seconds: float) -> None:
        """Keep a snapshot for a while. Raises RefusedError if there is none, OSError."""
        with self.receiver.lock:
            self.find(str(number))
            self.holds.take(f"{_HOLD_PREFIX}{name}", [SnapshotNumber(number)], seconds, "asked for over the network")

    def release(self, name: str) -> None:
        self.holds.release(f"{_HOLD_PREFIX}{name}")

    def hold_list(self) -> wire.HoldList:
        found = []
        for hold in self.holds.all():
            left = max((hold.expires_ns - self.repository.clock()) / 1e9, 0.0)
            name = hold.holder.removeprefix(_HOLD_PREFIX)
            found += [wire.HoldState(name, number, left) for number in sorted(hold.snapshots)]
        return wire.HoldList(found)

    def expire(self, keep: int) -> list[int]:
        """Drop all but the newest `keep` snapshots; of those with a name none. Returns which. Raises OSError."""
        with self.receiver.turn, self.receiver.lock:
            unnamed = [record.number for record in self.repository.snapshots() if record.name is None]
            return self._drop(list(unnamed[:-keep] if keep else []))

    def upkeep(self, pause: Callable[[], None] = lambda: None, part_age_seconds: float = 7 * 86400.0) -> None:
        """Merge small segments, free what nobody needs, remove stale parts. Raises OSError, CorruptionError."""
        self.receiver.forget_stale(part_age_seconds)
        while self._merge_once(pause):
            pass
        if self._dropped >= COLLECT_AFTER_DROPS and self.opaque is None:
            self.collect(pause)

    def collect(self, pause: Callable[[], None] = lambda: None) -> CollectReport:
        """Free what no snapshot needs. Raises OSError, CorruptionError: then nothing was freed."""
        walk = Walk(self.repository, _raise)
        self._walk(walk, pause)
        with self.receiver.turn:
            self._walk(walk, pause)
            live, whole = NumberSet(), NumberSet()
            for number in walk.seen:
                live.add(number)
                whole.add(number)
            for record in self.asides.values():
                live.add(record.last_number)
            self.receiver.whole = NumberSet()
            with self.repository.collection() as collection:
                report = collection.run(live, pause)
            self.receiver.whole = whole
            self._dropped = 0
            return report

    # What is told.

    @property
    def revision(self) -> int:
        return self.repository.log.lines

    def find(self, ref: str) -> SnapshotRecord:
        """A snapshot by number or name, or `aside.BRANCH.NUMBER`. Raises RefusedError."""
        for (branch, number), record in list(self.asides.items()):
            if ref == wire.aside_name(branch, number):
                return record
        try:
            return self.repository.find(ref)
        except UserError:
            raise refuse(Refusal.NOT_FOUND, f"there is no snapshot {ref!r} of {self.name} here") from None

    def snapshot_list(self) -> wire.SnapshotList:
        revision = self.revision  # first: who gets older snapshots with it asks again
        asides = sorted(self.asides.items())
        return wire.SnapshotList(
            revision, self.generation, self.holder,
            [self._told(record) for record in self.repository.snapshots()],
            [self._told(record, branch) for (branch, _), record in asides],
        )  # fmt: skip

    def state(self) -> wire.VolumeState:
        """Raises OSError."""
        revision = self.revision
        newest, place = self.repository.latest(), os.statvfs(self.volume.path)
        parts = self.receiver.staging.parts()
        return wire.VolumeState(
            name=self.name,
            volume_id=self.volume.volume_id,
            seed=f"{self.volume.seed:016x}",
            mode=Mode.PLAIN if self.opaque is None else Mode.OPAQUE,
            generation=self.generation,
            holder=self.holder,
            revision=revision,
            newest=self._told(newest) if newest is not None else None,
            newest_number=self.repository.catalog.last_number,
            snapshots=len(self.repository.snapshots()),
            stored_bytes=sum(info.size for info in self.repository.index.segments()),
            staged_objects=sum(part.count for part in parts),
            staged_bytes=sum(part.size for part in parts),
            free_bytes=place.f_bavail * place.f_frsize,
            limits=self.receiver.limits,
        )

    def close(self) -> None:
        """Let go of everything; nobody uses it any more."""
        self.receiver.close()
        self.repository.close()
        self.volume.unlock()

    def check_invariants(self) -> None:
        with self.receiver.lock:
            self.receiver.check_invariants()
            assert self.volume.generation >= self.generation
            assert all(record.generation <= self.generation for record in self.repository.snapshots())

    def _drop(self, numbers: list[int]) -> list[int]:
        newest, held = self.repository.latest(), self.holds.held()
        there = {record.number for record in self.repository.snapshots()}
        gone = [SnapshotNumber(n) for n in numbers if n in there and n not in held and newest and n != newest.number]
        for number in gone:
            self.repository.drop(number)
            self.receiver.received_ns.pop(number, None)
            if self.opaque is not None:
                self.opaque.dropped(number)
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink("hot:remove", os.path.join(self.volume.store_dir, HOT_FOLDER, str(number)))
        self._dropped += len(gone)
        return list(gone)

    def _merge_once(self, pause: Callable[[], None]) -> int:
        with self.receiver.turn:
            return self.repository.merge_once(pause)

    def _walk(self, walk: Walk, pause: Callable[[], None]) -> None:
        for record in [*self.repository.snapshots(), *list(self.asides.values())]:
            for _ in walk.visits(record.root):
                pause()

    def _fence(self, generation: Generation, holder: str) -> Callable[[], None]:
        def check() -> None:
            verdict = judge_write(self.claimed, Claimed(generation, holder))
            if verdict is Verdict.UNCLAIMED:
                why = f"generation {generation} of {holder} has not been claimed on {self.name}: claim it first"
                raise refuse(Refusal.UNCLAIMED, why, generation=self.generation, holder=self.holder)
            if verdict is Verdict.FENCED:
                raise self._fenced(Claimed(generation, holder))

        return check

    def _fenced(self, writer: Claimed) -> wire.RefusedError:
        why = (
            f"generation {writer.generation} of {writer.holder} may not write {self.name} any more: "
            f"{self.holder or 'another writer'} has claimed generation {self.generation}"
        )
        return refuse(Refusal.FENCED, why, generation=self.generation, holder=self.holder)

    def _told(self, record: SnapshotRecord, branch: str = "") -> wire.Snapshot:
        received = self.receiver.received_ns.get(record.number, 0)
        return wire.Snapshot(records.to_fields(record), record.state, received, branch)

    def _prepare(self, store_dir: str) -> None:
        """Before the store is opened for writing: what was published and not recorded becomes parts again."""
        last = Number(0)
        log = SnapshotLog(os.path.join(store_dir, LOG), self._disk, readonly=True)
        try:
            for event in log.follow():
                if event.kind in ("snapshot", "cloned"):
                    last = max(last, records.from_fields(event.fields).last_number)
        finally:
            log.close()
        count = take_back(store_dir, os.path.join(store_dir, SEGMENTS), self._disk, last)
        if count:
            self.recovered.append(f"{count} segments of a snapshot that was not committed are parts again")

    def _apply(self, event: Event) -> None:
        if event.kind == "snapshot":
            self.receiver.received_ns[SnapshotNumber(event.fields["number"])] = event.time_ns
        elif event.kind == "claimed":
            self.claimed = Claimed(Generation(event.fields["generation"]), event.fields["holder"])
        elif event.kind == "aside":
            record = records.from_fields(event.fields["record"])
            self.asides[event.fields["branch"], record.number] = record
        elif event.kind == "dropped":
            self._dropped += 1
        elif event.kind == "collected":
            self._dropped = 0

    def _adopt_generation(self) -> None:
        """A volume that was mounted here, or came as a copy, has generations that nobody claimed by the log."""
        newest = max((record.generation for record in self.repository.snapshots()), default=Generation(0))
        told = self.volume.generation if self.volume.generation > 1 else Generation(0)
        if max(newest, told) > self.generation:
            self.claimed = Claimed(Generation(max(newest, told)))
        self._bring_up_volume()

    def _bring_up_volume(self) -> None:
        if self.volume.generation < self.generation:
            self.volume.bump_generation(self.generation)


def _raise(pointer: Pointer, error: Exception) -> None:
    if isinstance(error, SnapfsError | OSError):
        raise error
    raise CorruptionError(f"object {pointer.number:#x}", "the store", str(error))
