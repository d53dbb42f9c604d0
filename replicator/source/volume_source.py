"""A volume as the pusher sees it: read from outside, while its daemon writes it.

It owns the answers to "which snapshots are there", "which objects does a target need for this one" and "give me
their bytes". All of it blocks and belongs into a thread; one thread at a time uses a Source.

Invariants:
1. Nothing is reported that is not durable: the log is synced before it is read, so that a power cut here can never give
   out a number again that a target knows already. (Segments are durable before their record is written.)
2. `select` gives every object that the snapshots need and that is not known to be there, bases of differences and the
   records' own objects included.
3. Each frame's checksum is verified when it is read. What fails is a CorruptionError, and nothing of it is sent.
4. Of a volume that is still being brought here from elsewhere, what is not here yet is not sent either: it is older
   than all that is new here. Who lacks it waits until it is here.
5. Compaction and collection by the daemon do no harm: what moved is found again, what is gone is a CorruptionError.
6. Memory is a bit for each object and one part at a time.
7. A log that was put in the place of the old one (`snapfs doctor` rebuilds it) is noticed, and the store opened anew.

Every object leaves through `stage`, the one place where that of an encrypted volume becomes what targets may see
(volume_keys.py). Of any other it is what lies in the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from replicator.source.selection import ITEM_OVERHEAD, Known, Part, PartGathering, Selection, Unseen
from replicator.volumes.mirror_reading import in_order
from snapfs.base.blocks import Disk, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, UserError
from snapfs.base.volumes.volume import Volume
from snapfs.store.lazy.fetched_objects import FetchedObjects
from snapfs.store.log.claims import Takeover, takeovers_in
from snapfs.store.log.drops import Dropped, Drops
from snapfs.store.log.holds import PERSON_PREFIX, HoldRecord, Holds
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Pointer, Row
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import LOG
from snapfs.store.tables.reachability import Walk, bases_of_all

CACHE_BYTES: Final = 16 << 20
FIRST_OBJECTS: Final = 64
"""Of a snapshot's tables, listed for targets that cannot look into them: some milliseconds' work with each snapshot."""


Stage = Callable[[Row, bytes], tuple[Row, bytes]]
"""Makes of an object (its row, and its frame with payload) what targets get to see."""


def as_it_is(row: Row, framed: bytes) -> tuple[Row, bytes]:
    """The stage of a volume that hides nothing from its targets."""
    return row, framed


class VolumeSource:
    """The store of the volume at `path`, opened for reading."""

    def __init__(self, path: str, disk: Disk, stage: Stage = as_it_is) -> None:
        """Raises UserError, VersionError, CorruptionError, OSError."""
        self.stage = stage
        self.volume = Volume.open(path, disk)
        self.path, self._disk = self.volume.path, disk
        self._toml_stamp = (0, 0)
        self._log_path = os.path.join(self.volume.store_dir, LOG)
        self._log_fd = -1
        self._sync_log()
        try:
            self.repository = self._opened()
            self._drops = Drops(self._log_path, disk)
        except BaseException:
            self._close_log()
            raise
        self.holds = Holds(self.volume.store_dir, disk)

    def close(self) -> None:
        self.repository.close()
        self._drops.close()
        self._close_log()

    def stamp(self) -> tuple[int, int]:
        """Changes when there may be something new: cheap enough for twenty calls a second."""
        try:
            stat = os.stat(self._log_path)
        except FileNotFoundError:
            return 0, 0
        return stat.st_ino, stat.st_size

    def refresh(self) -> None:
        """Take in what the daemon has written since, its generation too. Raises CorruptionError, UserError, OSError.

        UserError too if another volume lies in that folder now: nothing of it is mixed with what this one knows.
        """
        self._reload()
        if self._is_another_log() or self._is_whole_now():
            self._close_log()
            self._sync_log()
            old, self.repository = self.repository, self._opened()
            old.close()
            past, self._drops = self._drops, Drops(self._log_path, self._disk)
            past.close()
        self._sync_log()
        self.repository.refresh()

    def records(self) -> list[SnapshotRecord]:
        """The snapshots that can be sent, ascending."""
        return [record for record in self.repository.catalog.pages() if record.state == GOOD]

    def record(self, number: SnapshotNumber) -> SnapshotRecord | None:
        """The snapshot of this number if it can be sent."""
        found = self.repository.catalog.get(number)
        return found if found is not None and found.state == GOOD else None

    def takeovers(self) -> tuple[Takeover, ...]:
        """When this host became the writer on purpose, as of the last `refresh`; see store/log/claims.py."""
        return takeovers_in(self.repository.catalog.takeovers)

    def dropped(
        self, numbers: Iterable[SnapshotNumber], there: Collection[SnapshotNumber], by_rules: bool = True
    ) -> Dropped:
        """The drop records of these numbers, which are not here; `there`: all that the target has (drops.py)."""
        return self._drops.among(numbers, there, by_rules=by_rules)

    def held_by_people(self) -> dict[SnapshotNumber, str]:
        """What `snapfs hold` keeps, each with its reason. CorruptionError, VersionError, OSError: then nothing goes."""
        named = [hold for hold in self.holds.all() if hold.holder.startswith(PERSON_PREFIX)]
        return {number: f"held: {hold.why}" for hold in named for number in hold.snapshots}

    def hold_records(self) -> list[HoldRecord]:
        """What people decided to hold, and to hold no more, as of the last `refresh`: it travels to each target."""
        return self.repository.catalog.hold_records.all()

    def exists(self, number: SnapshotNumber) -> bool:
        return number in self.repository.catalog

    def select(self, records: Iterable[SnapshotRecord], known: Known) -> Selection:
        """What these snapshots need and is not `known`. Raises CorruptionError, VersionError, OSError."""
        visited, numbers = Unseen(known.whole), NumberSet()
        walk = Walk(self.repository, self._unreadable, visited)
        places = self.repository.lazy.places if self.repository.lazy is not None else None

        def need(number: Number) -> None:
            if number not in known.there and (places is None or places.has(number)):
                numbers.add(number)

        for record in records:
            for visit in walk.visits(record.root):
                need(visit.pointer.number)
            need(record.last_number)
        for base in bases_of_all(self.repository.index, self.repository.objects, visited):
            need(base)
        return Selection(visited, numbers)

    def known_by(self, records: Iterable[SnapshotRecord]) -> Known:
        """What a target that holds these snapshots has for certain."""
        known = Known()
        known.take(self.select(records, known))
        return known

    def first(self, record: SnapshotRecord) -> list[Number]:
        """What a mount of the snapshot reads first, in that order."""
        return list(islice(in_order(self.repository, record), FIRST_OBJECTS))

    def stored_bytes(self, numbers: NumberSet) -> int:
        """Bytes of the frames of these objects, about: from the mean of their segments."""
        infos = self.repository.index.segments()
        mean = sum(info.size for info in infos) / max(sum(info.count for info in infos), 1)
        return round(len(numbers) * mean)

    def parts(self, numbers: Iterable[Number], part_bytes: Callable[[], int], part_objects: int) -> Iterator[Part]:
        """The objects, ascending, in parts of about `part_bytes()`, called for each. CorruptionError, OSError."""
        gathering = PartGathering()
        for number in numbers:
            row, framed = self.read(number)
            cost = len(framed) + ITEM_OVERHEAD
            full = gathering.rows and (
                gathering.bytes + cost > part_bytes()
                or len(gathering.rows) >= part_objects
                or fmt.generation_of(gathering.rows[0].number) != fmt.generation_of(number)
            )
            if full:
                yield gathering.part()
                gathering = PartGathering()
            gathering.add(row, framed, cost)
        if gathering.rows:
            yield gathering.part()

    def content_hash_of(self, number: Number) -> bytes:
        """An object's content hash. Raises CorruptionError if it is not here."""
        return self.repository.objects.index.locate(number)[1].content_hash

    def read(self, number: Number) -> tuple[Row, bytes]:
        """An object's row and frame, checked. Raises CorruptionError, OSError."""
        source, row = self.repository.objects.index.locate(number)
        framed = source.frame(row)
        if len(framed) < FRAME_BYTES or not fmt.frame_is_good(framed) or fmt.unpack_frame(framed).number != number:
            raise CorruptionError(f"object {number:#x}", source.path, f"wrong checksum at byte {row.offset}")
        return self.stage(row, framed)

    def _unreadable(self, pointer: Pointer, error: Exception) -> None:
        lazy = self.repository.lazy
        if lazy is None or lazy.places.has(pointer.number):
            _raise(pointer, error)

    def _is_whole_now(self) -> bool:
        return self.repository.lazy is not None and not FetchedObjects.exists(self.volume.store_dir)

    def _opened(self) -> Repository:
        identity = StoreIdentity(self.volume.volume_id, self.volume.seed)
        return Repository.open(
            self.volume.store_dir, identity, self._disk, readonly=True, cache_bytes=CACHE_BYTES, max_open_segments=32
        )

    def _is_another_log(self) -> bool:
        return self._log_fd >= 0 and os.stat(self._log_path).st_ino != os.fstat(self._log_fd).st_ino

    def _reload(self) -> None:
        """Read volume.toml again if it is another one: a generation may have begun."""
        stat = os.stat(self.volume.toml_path)
        if (stamp := (stat.st_ino, stat.st_mtime_ns)) != self._toml_stamp:
            found = Volume.open(self.path, self._disk)
            if found.volume_id != self.volume.volume_id:
                raise UserError(f"{self.path} is another volume now ({found.volume_id})")
            self.volume, self._toml_stamp = found, stamp

    def _sync_log(self) -> None:
        if self._log_fd < 0:
            try:
                self._log_fd = os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return  # opening the repository raises the reason
        self._disk.fdatasync("push:log", self._log_fd)

    def _close_log(self) -> None:
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1


def _raise(pointer: Pointer, error: Exception) -> None:
    if isinstance(error, SnapfsError | OSError):
        raise error
    raise AssertionError(f"object {pointer.number:#x}") from error
