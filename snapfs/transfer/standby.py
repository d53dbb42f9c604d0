"""Standby: a host that has all of a volume, as it comes, so that to take over is a local mount.

A standby is a volume's folder with a store, a live tree and `standby.json`: it follows a source, takes every newest
snapshot in through the store's door for objects from elsewhere (store/receiving.py), keeps the last few, and lets the
live tree become each of them in turn (warm.py). Taking over (`take_over`, by `snapfs mount`) leaves a volume like any
other. What the tree does not have at that moment, it reads from its own store: no network is needed.

Invariants:
1. A folder is a standby exactly if it has a standby.json. It goes with the last step of taking over, the commit point;
   a crash before leaves a standby, whose taking over begins anew.
2. A snapshot exists here when all of it is here, verified and durable; one that is cut off is gone on with.
3. The live tree is one whole snapshot at every instant. It may be behind the store's newest, never ahead; to take over
   it becomes the newest good one. What it is must not be dropped from the store.
4. Before a standby becomes the writer it has claimed the next generation at its sources, unless it is forced not to,
   and taken in what they had been brought until then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import msgspec

from snapfs.blocks import ROOT_INO, Disk, Generation, Number, SnapshotNumber
from snapfs.errors import BusyError, CorruptionError, SnapfsError, UserError
from snapfs.store import format as fmt
from snapfs.store import records, stream
from snapfs.store.check import live_numbers
from snapfs.store.format import Pointer
from snapfs.store.log import SnapshotLog
from snapfs.store.numbers import NumberSet
from snapfs.store.reach import Children, Role, Visit
from snapfs.store.receiving import Receiver
from snapfs.store.records import GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.repository import LOG, SEGMENTS, Repository
from snapfs.store.snapshot import SnapshotTree
from snapfs.store.staging import take_back
from snapfs.store.stream import Item
from snapfs.transfer.places import late_source
from snapfs.transfer.remote import Access
from snapfs.transfer.remount import (
    ORIGIN_FILE,
    OriginFile,
    age,
    brought_meanwhile,
    claimed,
    encryption_of,
    keys_of,
    write_keys,
    write_origin,
)
from snapfs.transfer.sources import LateSource, Origin, Source, holder_name, no_answer
from snapfs.transfer.warm import WarmTree
from snapfs.volume import Volume, lock_holder

log = logging.getLogger(__name__)

STANDBY_FILE: Final = "standby.json"
STANDING_BY: Final = "standing by"
BATCH_OBJECTS: Final = 512
KEPT: Final = 2
COLLECT_AFTER_DROPS: Final = 32
POLL_S: Final = 1.0
ONCE_S: Final = 1e9
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0
HANDOVER_S: Final = 20.0
_NOTHING: Final = (Generation(0), SnapshotNumber(0))

Tell = Callable[[str], None]


class StandbyFile(msgspec.Struct, frozen=True):
    """VOLUME/standby.json."""

    sources: list[str]
    access: Access = Access()
    format: int = 1


def read_standby(path: str) -> StandbyFile | None:
    """None if the folder is no standby. UserError if the file cannot be understood."""
    place = os.path.join(path, STANDBY_FILE)
    try:
        with open(place, "rb") as file:
            found = msgspec.json.decode(file.read(), type=StandbyFile)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise UserError(f"{place}: {error}") from None
    if found.format > 1:
        raise UserError(f"{place} is of a later format; use a newer snapfs")
    return found


@dataclass(frozen=True, slots=True)
class Received:
    """A snapshot that has arrived."""

    record: SnapshotRecord
    objects: int
    bytes: int
    seconds: float
    fetched_bytes: int
    """Those of the bytes that were not on this host."""


class Standby:
    """One standby that follows. `close` it."""

    def __init__(self, path: str, places: Sequence[str], access: Access, disk: Disk) -> None:
        """Opens the standby, or makes it. UserError, BusyError, and what the sources raise when it is made."""
        self.path, self._disk = os.path.abspath(path), disk
        known = read_standby(self.path)
        wished = StandbyFile([*places], access) if places else known
        if wished is None:
            raise UserError(f"{path} is no standby yet: say --from where it is to come from")
        self.sources = [late_source(place, wished.access) for place in wished.sources]
        self._dropped = 0
        self._warm: WarmTree | None = None
        self._shown: SnapshotRecord | None = None  # what the live tree is
        self._fetched_bytes = 0  # from other hosts, since the snapshot under way was begun
        with ExitStack() as undo:
            for source in self.sources:
                undo.callback(source.close)
            if known is None:
                self._make(wished)
            elif wished != known:
                place = os.path.join(self.path, STANDBY_FILE)
                self._disk.replace_file("standby:file", place, msgspec.json.encode(wished))
            self.volume = Volume.open(self.path, disk)
            self.volume.lock(f"{STANDING_BY} for {', '.join(wished.sources)}")
            undo.callback(self.volume.unlock)
            self._open()
            undo.pop_all()

    def _make(self, wished: StandbyFile) -> None:
        if Volume.exists(self.path):
            raise UserError(f"{self.path} is a volume of its own: name a folder that does not exist yet")
        origin = _first_origin(self.sources)
        building = f"{self.path}.partial"
        shutil.rmtree(building, ignore_errors=True)
        keys = keys_of(self.sources)
        volume = Volume.create(
            building, self._disk, seed=origin.identity.seed, volume_id=origin.identity.volume_id,
            settings=encryption_of(wished.access, keys),
        )  # fmt: skip
        write_keys(building, keys, self._disk)
        Repository.create(volume.store_dir, origin.identity, self._disk).close()
        self._disk.replace_file("standby:file", os.path.join(building, STANDBY_FILE), msgspec.json.encode(wished))
        self._disk.rename("standby:publish", building, self.path)
        self._disk.sync_dir("standby:publish", os.path.dirname(self.path))

    def _open(self) -> None:
        volume = self.volume
        _take_back(volume, self._disk)
        self.repository = Repository.open(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), self._disk)
        try:
            self.receiver = Receiver(self.repository, self._disk)
        except BaseException:
            self.repository.close()
            raise

    # -- following

    def follow(
        self,
        tell: Callable[[Received], None],
        *,
        once: bool = False,
        in_place: Callable[[SnapshotRecord], None] = lambda record: None,
    ) -> None:
        """Take in each newest snapshot as it appears, for ever or (`once`) until the newest is here.

        `in_place` is told of each that all of the live tree has become.
        """
        delay_s = FIRST_RETRY_S
        while True:
            try:
                for received in self.catch_up():
                    tell(received)
                next_s = time.monotonic() + (ONCE_S if once else POLL_S)
                self._keep_warm(next_s, in_place)
                if once:
                    return
                delay_s = FIRST_RETRY_S
                time.sleep(max(next_s - time.monotonic(), 0))
            except (OSError, SnapfsError) as error:
                if once:
                    raise
                log.warning("%s; trying again in %.0f s", error, delay_s)
                time.sleep(delay_s)
                delay_s = min(delay_s * 2, LAST_RETRY_S)

    def _keep_warm(self, until_s: float, in_place: Callable[[SnapshotRecord], None]) -> None:
        """Let the live tree become the newest snapshot, as far as there is time."""
        good = [record for record in self.repository.snapshots() if record.state == GOOD]
        if not good:
            return
        try:
            warm = self._warm_tree()
            warm.become(max(good, key=age))
            self._shown = warm.record
            if not warm.is_whole and warm.advance(until_s) and warm.record is not None:
                in_place(warm.record)
        except (OSError, SnapfsError):
            self._cool_down()
            raise

    def _warm_tree(self) -> WarmTree:
        if self._warm is None:
            self._warm = WarmTree(self.volume, self.repository, self._disk)
            self._shown = self._warm.record
        return self._warm

    def _cool_down(self) -> None:
        """Let go of the live tree; to be taken up again."""
        warm, self._warm = self._warm, None
        if warm is not None:
            with contextlib.suppress(OSError):
                warm.close()

    def catch_up(self) -> Iterator[Received]:
        """The newest snapshot of all sources: that of the latest generation, for others may end in a dead branch."""
        failures: list[Exception] = []
        newest: list[tuple[SnapshotRecord, LateSource]] = []
        here = max(map(age, self.repository.snapshots()), default=_NOTHING)
        for source in self.sources:
            try:
                found = _newest_good(source, here)
                newest += [(found, source)] if found is not None else []
            except (OSError, SnapfsError) as error:
                failures.append(error)
        far_failed = failures and all(source.is_near for _, source in newest)
        if far_failed and not all(source.is_near for source in self.sources):
            raise failures[0]  # what is near may be an old copy: it does not tell what is newest
        if newest:
            record, source = max(newest, key=lambda each: (age(each[0]), not each[1].is_near))
            if age(record) > here:
                yield self._receive(source, record)
                self._expire()

    def _receive(self, source: LateSource, record: SnapshotRecord) -> Received:
        started, count, size, self._fetched_bytes = time.monotonic(), 0, 0, 0
        children, seen = Children(self.receiver.objects), NumberSet()
        level = [Visit(record.root, Role.ROOT)]
        while level:
            lacking = [visit.pointer for visit in level if not self.receiver.has(*visit.pointer)]
            for start in range(0, len(lacking), BATCH_OBJECTS):
                came = self._stage(source, lacking[start : start + BATCH_OBJECTS])
                count, size = count + len(came), size + sum(len(item.framed) for item in came)
            pages = [visit for visit in level if not visit.is_leaf and visit.pointer.number not in self.receiver.whole]
            level = [below for visit in pages for below in children.of(visit) if seen.add(below.pointer.number)]
        if not self._has_record(record):
            self._stage(source, [Pointer(record.last_number, b"")])
        self._leave_dead_branch(record)
        self.receiver.commit([record], history=False, fence=lambda: None)
        return Received(record, count, size, time.monotonic() - started, self._fetched_bytes)

    def _leave_dead_branch(self, record: SnapshotRecord) -> None:
        """Whoever wrote `record` went on from before it: what an older generation made since is no part of its past."""
        for each in self.repository.snapshots():
            if each.number >= record.number and each.generation < record.generation:
                log.warning("snapshot %d of generation %d is of a past that was left", each.number, each.generation)
                self.repository.drop(each.number)
                self._dropped += 1

    def _has_record(self, record: SnapshotRecord) -> bool:
        return not list(self.receiver.lacks([(record.last_number, record.last_number)]))

    def _stage(self, source: LateSource, pointers: list[Pointer]) -> list[Item]:
        """Fetch these objects into parts: durable, verified. What is on this host is not fetched from another."""
        found: dict[Number, Item] = {}
        for near in () if source.is_near else (each for each in self.sources if each.is_near):
            with contextlib.suppress(OSError, SnapfsError):
                found |= self._asked(near, [each for each in pointers if each.proof and each.number not in found])
        found |= self._asked(source, [each for each in pointers if each.number not in found])
        missing = [pointer.number for pointer in pointers if pointer.number not in found]
        if missing:
            raise CorruptionError(f"object {missing[0]:#x}", source.name, "it is not there")
        by_generation: dict[Generation, list[Item]] = {}
        for number in sorted(found):
            by_generation.setdefault(fmt.generation_of(number), []).append(found[number])
        for generation, items in by_generation.items():
            self._stage_part(generation, items)
        return list(found.values())

    def _asked(self, source: LateSource, pointers: list[Pointer]) -> dict[Number, Item]:
        """Those of the objects that it has."""
        items = source.objects(pointers, urgent=False) if pointers else ()
        came: dict[Number, Item] = {item.frame.number: item for item in items if not item.is_absent}
        if not source.is_near:
            self._fetched_bytes += sum(len(item.framed) for item in came.values())
        return came

    def _stage_part(self, generation: Generation, items: list[Item]) -> None:
        part = self.receiver.part(generation, lambda: None)
        try:
            part.feed(stream.stream_header())
            for item in items:
                part.feed(item.proof + item.framed)
            part.feed(stream.stream_end(len(items)))
        except BaseException:
            part.abort()
            raise
        part.finish()

    def _expire(self) -> None:
        """Keep the newest few and what the live tree is, and give the space of the others back now and then."""
        self._warm_tree()
        for record in self.repository.snapshots()[:-KEPT]:
            if self._shown is None or record.number != self._shown.number:
                self.repository.drop(record.number)
                self._dropped += 1
        if self._dropped >= COLLECT_AFTER_DROPS:
            self._dropped = 0
            self.receiver.whole = NumberSet()
            with self.repository.collection() as collection:
                collection.run(live_numbers(self.repository, self.repository.snapshots()))
        self.receiver.forget_stale(86400.0)

    def close(self) -> None:
        """Let go of everything; what has arrived stays."""
        self._cool_down()
        self.receiver.close()
        self.repository.close()
        self.volume.unlock()
        for source in self.sources:
            source.close()


def _newest_good(source: LateSource, here: tuple[Generation, SnapshotNumber]) -> SnapshotRecord | None:
    """Of a source; the list of all its snapshots, which may be long, is only asked for if there is one above `here`."""
    if not source.is_near:
        last = source.origin().newest
        if last is not None and last.state == GOOD and age(last) <= here:
            return last
    return max((record for record in source.snapshots() if record.state == GOOD), key=age, default=None)


def _take_back(volume: Volume, disk: Disk) -> None:
    """Before the store is opened: what a crash left of a commit is not to be removed."""
    log_file = SnapshotLog(os.path.join(volume.store_dir, LOG), disk, readonly=True)
    try:
        told = [records.from_fields(event.fields) for event in log_file.follow() if event.kind == "snapshot"]
    finally:
        log_file.close()
    last = max((record.last_number for record in told), default=fmt.NULL.number)
    take_back(volume.store_dir, os.path.join(volume.store_dir, SEGMENTS), disk, last)


def _first_origin(sources: Iterable[LateSource]) -> Origin:
    """Whose past it is, by the first source that says. SnapfsError that tells why none does."""
    failures: list[tuple[Source, Exception]] = []
    for source in sources:
        try:
            return source.origin()
        except (OSError, SnapfsError) as error:
            failures.append((source, error))
    raise no_answer(failures)


# -- taking over


@dataclass(frozen=True, slots=True)
class TakeoverReport:
    snapshot: SnapshotNumber
    cut_time_ns: int
    generation: Generation
    is_whole: bool

    def lines(self) -> list[str]:
        """For people."""
        age_s = max(time.time() - self.cut_time_ns / 1e9, 0)
        taken = f"snapshot {self.snapshot}, {age_s:.0f} s old, is taken over from this host's standby"
        more = [] if self.is_whole else ["not all of it is in the live tree yet: the rest comes from this host's store"]
        return [f"{taken}; generation {self.generation} begins", *more]


def take_over(path: str, disk: Disk, *, force: bool = False) -> TakeoverReport | None:
    """Make a standby the volume that is written; None if the folder is no standby. Its process is ended first.

    BusyError if the last writer cannot be fenced off and it is not forced; UserError without a good snapshot.
    """
    known = read_standby(path)
    if known is None:
        return None
    _end_process(path)
    volume = Volume.open(path, disk)
    sources = [late_source(place, known.access) for place in known.sources]
    _take_back(volume, disk)
    repository = Repository.open(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), disk)
    try:
        record = _newest(repository)
        _raise_generation(volume, record)
        generation = claimed(volume, list(sources), holder_name(path), force)
        if brought_meanwhile(sources, repository.snapshots(), force):
            repository.close()
            _take_in_the_rest(path, disk, force)
            repository = Repository.open(volume.store_dir, StoreIdentity(volume.volume_id, volume.seed), disk)
            record = _newest(repository)
        is_whole = _be_volume(volume, repository, record, disk)
        repository.record_event("remounted", snapshot=record.number, generation=generation, sources=known.sources)
    finally:
        repository.close()
        for source in sources:
            source.close()
    disk.unlink("standby:done", os.path.join(path, STANDBY_FILE))
    disk.sync_dir("standby:done", path)
    return TakeoverReport(record.number, record.cut_time_ns, generation, is_whole)


def _take_in_the_rest(path: str, disk: Disk, force: bool) -> None:
    """What a source was brought before our claim, and is not here yet, was acknowledged to the last writer, too."""
    standby = Standby(path, (), Access(), disk)
    try:
        for received in standby.catch_up():
            log.info("snapshot %d came in before taking over", received.record.number)
    except (OSError, SnapfsError) as error:
        if not force:
            why = "a newer snapshot is there, which the last writer was told is safe"
            raise BusyError(f"{error}: {why}; try again, or give --force to go on without it") from None
        log.warning("%s: the newest snapshot there is left behind", error)
    finally:
        standby.close()


def _be_volume(volume: Volume, repository: Repository, record: SnapshotRecord, disk: Disk) -> bool:
    """Leave a live tree that is this snapshot; whether all of it is there, and nothing has to come from the store."""
    warm = WarmTree(volume, repository, disk)
    try:
        warm.become(record)
        absent = warm.has_absent()
        warm.hand_over()
    finally:
        warm.close()
    if absent:
        write_origin(volume.path, OriginFile([], records.to_fields(record), holder_name(volume.path)), disk)
    else:
        with contextlib.suppress(FileNotFoundError):  # of a takeover that a crash cut short
            disk.unlink("standby:origin", os.path.join(volume.path, ORIGIN_FILE))
    return not absent


def _newest(repository: Repository) -> SnapshotRecord:
    for record in sorted(repository.snapshots(), key=age, reverse=True):
        with contextlib.suppress(CorruptionError, OSError):
            tree = SnapshotTree(repository, record.root)
            root = tree.inode(ROOT_INO)
            if record.state == GOOD and root is not None:
                next(tree.entries(root), None)
                return record
    raise UserError(f"{repository.store_dir} has no snapshot that can be taken over")


def _raise_generation(volume: Volume, record: SnapshotRecord) -> None:
    """Above that of whoever wrote the snapshot."""
    if volume.generation <= record.generation:
        volume.lock("taking over")
        try:
            volume.bump_generation(record.generation + 1)
        finally:
            volume.unlock()


def _end_process(path: str) -> None:
    """Ask the standby's process to end, and wait until it has. BusyError if it is something else, or does not."""
    deadline = time.monotonic() + HANDOVER_S
    asked = False
    while (holder := lock_holder(path)) is not None:
        word, _, rest = holder.partition(" ")
        pid, _, purpose = rest.partition(", ")
        if word != "process" or not pid.isdecimal() or not purpose.startswith(STANDING_BY):
            raise BusyError(f"{path} is in use by {holder}")
        if not asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
            asked = True
        if time.monotonic() > deadline:
            raise BusyError(f"{path}: the standby (process {pid}) does not end: stop it first")
        time.sleep(0.02)
