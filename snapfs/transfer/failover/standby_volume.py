"""Standby: a host that receives every newest snapshot of a volume, so that a takeover is a local mount.

A standby is a volume's folder with a store, a live tree and `standby.json`: it follows its sources (standby_feed.py),
takes in every newest snapshot through the receiver for objects from elsewhere (store/ingest/receiver.py), keeps the
last few, and lets the live tree become each of them in turn (standby_apply.py). Taking over (takeover.py, by `snapfs
mount`) leaves a volume like any other.

Invariants:
1. A snapshot exists here when all of it is here, verified and durable; one that is cut off is gone on with.
2. The live tree is one whole snapshot at every instant. It may be behind the store's newest, never ahead; to take over
   it becomes the newest good one. The snapshot that it is must not be dropped from the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError, UserError
from snapfs.base.staged_folder import building_folder
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import STANDBY_FILE
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.log.drops import WINDOW
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord, StoreIdentity
from snapfs.store.repair.liveness import live_numbers
from snapfs.store.repository.repository import Repository
from snapfs.transfer.common.receive_snapshot import receive_objects
from snapfs.transfer.failover.standby_apply import ReplicaTree
from snapfs.transfer.failover.standby_feed import NOTHING, StandbyFeed
from snapfs.transfer.failover.standby_file import STANDBY, STANDING_BY, StandbyFile, read_standby
from snapfs.transfer.lazy.snapshot_choice import lineage_order
from snapfs.transfer.lazy.takeover_keys import encryption_settings, wrapped_keys_of, write_keys
from snapfs.transfer.sources.late_source import LateSource
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import late_source

log = logging.getLogger(__name__)

KEPT_SNAPSHOTS: Final = 2
COLLECT_AFTER_DROPS: Final = 32
POLL_S: Final = 1.0
ONCE_S: Final = 1e9
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0
STALE_PART_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class ReceivedSnapshot:
    """A snapshot that is here now, with what it took: objects and bytes."""

    record: SnapshotRecord
    objects: int
    bytes: int
    seconds: float
    fetched_bytes: int
    """Those of the bytes that came from another host."""


class Standby:
    """One standby that follows its sources. One thread. `close` it."""

    def __init__(self, path: str, places: Sequence[str], access: Access, disk: Disk) -> None:
        """Open the standby, or create it if there is none and `places` are given.

        Raises UserError, BusyError, and what the sources raise when it is created.
        """
        self.path, self._disk = os.path.abspath(path), disk
        known = read_standby(self.path)
        wished = StandbyFile([*places], access) if places else known
        if wished is None:
            raise UserError(f"{path} is no standby yet: name its source with --from")
        self.feed = StandbyFeed([late_source(place, wished.access) for place in wished.sources])
        self._dropped = 0
        self._replica: ReplicaTree | None = None
        self._shown: SnapshotRecord | None = None  # the snapshot that the live tree is
        with ExitStack() as undo:
            undo.callback(self.feed.close)
            if known is None:
                self._create(wished)
            elif wished != known:
                STANDBY.write("standby:file", os.path.join(self.path, STANDBY_FILE), wished, self._disk)
            self.volume = Volume.open(self.path, disk)
            self.volume.lock(f"{STANDING_BY} for {', '.join(wished.sources)}")
            undo.callback(self.volume.unlock)
            self._open()
            undo.pop_all()

    def _create(self, wished: StandbyFile) -> None:
        if Volume.exists(self.path):
            raise UserError(f"{self.path} is a volume of its own: name a folder that does not exist yet")
        origin = self.feed.origin()
        with building_folder(self.path, self._disk) as building:
            keys = wrapped_keys_of(self.feed.sources)
            volume = Volume.create(
                building, self._disk, seed=origin.identity.seed, volume_id=origin.identity.volume_id,
                settings=encryption_settings(wished.access, keys),
            )  # fmt: skip
            write_keys(building, keys, self._disk)
            Repository.create(volume.store_dir, origin.identity, self._disk).close()
            STANDBY.write("standby:file", os.path.join(building, STANDBY_FILE), wished, self._disk)
            self._disk.rename("standby:publish", building, self.path)
        self._disk.sync_dir("standby:publish", os.path.dirname(self.path))

    def _open(self) -> None:
        volume = self.volume
        identity = StoreIdentity(volume.volume_id, volume.seed)
        self.repository = Repository.open(volume.store_dir, identity, self._disk, recovers_parts=True)
        try:
            self.receiver = Receiver(self.repository, self._disk)
            self.receiver.recover()
        except BaseException:
            self.repository.close()
            raise

    # -- following

    def follow(
        self,
        report: Callable[[ReceivedSnapshot], None],
        *,
        once: bool = False,
        in_place: Callable[[SnapshotRecord], None] = lambda record: None,
    ) -> None:
        """Receive each newest snapshot as it appears, for ever or (`once`) until the newest is here.

        Calls `report` with each that was received, and `in_place` with each that the whole live tree has become.
        A failure is logged and tried again; with `once` it is raised.
        """
        delay_s = FIRST_RETRY_S
        while True:
            try:
                for received in self.catch_up():
                    report(received)
                next_s = time.monotonic() + (ONCE_S if once else POLL_S)
                self._advance_replica(next_s, in_place)
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

    def _advance_replica(self, until_s: float, in_place: Callable[[SnapshotRecord], None]) -> None:
        """Let the live tree become the newest snapshot, as far as there is time."""
        good = [record for record in self.repository.snapshots() if record.state == GOOD]
        if not good:
            return
        try:
            replica = self._replica_tree()
            replica.become(max(good, key=lineage_order))
            self._shown = replica.record
            if not replica.is_whole and replica.advance(until_s) and replica.record is not None:
                in_place(replica.record)
        except (OSError, SnapfsError):
            self._close_replica()
            raise

    def _replica_tree(self) -> ReplicaTree:
        if self._replica is None:
            self._replica = ReplicaTree(self.volume, self.repository, self._disk)
            self._shown = self._replica.record
        return self._replica

    def _close_replica(self) -> None:
        """Close the live tree; the next step opens it again."""
        replica, self._replica = self._replica, None
        if replica is not None:
            with contextlib.suppress(OSError):
                replica.close()

    def catch_up(self) -> Iterator[ReceivedSnapshot]:
        """Receive the newest snapshot of all sources, if it is newer than what is here. Raises OSError, SnapfsError."""
        newest = self.feed.newest(max(map(lineage_order, self.repository.snapshots()), default=NOTHING))
        if newest is not None:
            yield self._receive(*newest)
            self._expire()

    def _receive(self, record: SnapshotRecord, source: LateSource) -> ReceivedSnapshot:
        started, before_bytes = time.monotonic(), self.feed.fetched_bytes
        count, size = receive_objects(self.receiver, record, partial(self.feed.objects, source), source.name)
        self._drop_dead_branch(record)
        self.receiver.commit([record], history=False, fence=lambda: None)
        fetched_bytes = self.feed.fetched_bytes - before_bytes
        return ReceivedSnapshot(record, count, size, time.monotonic() - started, fetched_bytes)

    def _drop_dead_branch(self, record: SnapshotRecord) -> None:
        """Drop what an older generation made after the snapshot from which `record`'s writer went on."""
        for each in self.repository.snapshots():
            if each.number >= record.number and each.generation < record.generation:
                log.warning("snapshot %d of generation %d is of a past that was left", each.number, each.generation)
                self.repository.drop(each.number, WINDOW, f"generation {record.generation} went on from before it")
                self._dropped += 1

    def _expire(self) -> None:
        """Keep the newest few and the one that the live tree is; collect the space of the others now and then."""
        self._replica_tree()
        for record in self.repository.snapshots()[:-KEPT_SNAPSHOTS]:
            if self._shown is None or record.number != self._shown.number:
                self.repository.drop(record.number, WINDOW, f"a standby keeps the last {KEPT_SNAPSHOTS}")
                self._dropped += 1
        if self._dropped >= COLLECT_AFTER_DROPS:
            self._dropped = 0
            self.receiver.forget_whole()
            with self.repository.collection() as collection:
                collection.run(live_numbers(self.repository, self.repository.snapshots()))
        self.receiver.forget_stale(STALE_PART_S)

    def close(self) -> None:
        """Close all parts. What has been received stays."""
        self._close_replica()
        self.receiver.close()
        self.repository.close()
        self.volume.unlock()
        self.feed.close()
