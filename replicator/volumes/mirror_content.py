"""An open volume of a mirror, as its readers see it: snapshots, branches, state, and the parts that hold them.

The parts: mirror_claims.py (who may write), mirror_retention.py (what is kept), mirror_encrypted.py (of a volume of
ciphertext), hot_lists.py. What is rebuilt from the log, an event at a time, is complete when the object is constructed.
The requests that change a volume are in mirror_volume.py.

A crash at any point leaves what the opening repairs: see `store/objects/staging.py` and
`store/repository/repository.py`.
"""

from __future__ import annotations

import logging
import os

from replicator.volumes.folder_lock import FolderLock
from replicator.volumes.hot_lists import HotLists
from replicator.volumes.mirror_claims import WriterClaims
from replicator.volumes.mirror_encrypted import EncryptedVolume
from replicator.volumes.mirror_retention import Retention
from replicator.volumes.mirror_space import SpaceKeeper
from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.base.volumes.volume import Volume
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.log import snapshot_records
from snapfs.store.log.holds import Holds
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.log.target_id import target_id_of
from snapfs.store.protocol import messages, wire
from snapfs.store.protocol.messages import Limits
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import Mode
from snapfs.store.repository.repository import Repository

log = logging.getLogger(__name__)


class MirrorContent:
    """The open store of a volume that is locked. Thread-safe."""

    def __init__(
        self, volume: Volume, disk: Disk, *, cache_bytes: int, max_open: int, limits: Limits, lock_s: float = 0.0
    ) -> None:
        """Opens the store of a volume that is locked. Raises SnapfsError, OSError."""
        self.volume, self._disk = volume, disk
        self.name = os.path.basename(volume.path)
        self.target_id = target_id_of(volume.path, disk)
        self.branches: dict[tuple[str, SnapshotNumber], SnapshotRecord] = {}
        identity = StoreIdentity(volume.volume_id, volume.seed, volume.holds_ciphertext)
        self.repository = Repository.open(
            volume.store_dir, identity, disk, cache_bytes=cache_bytes, max_open_segments=max_open, recovers_parts=True
        )
        try:
            self.receiver = Receiver(self.repository, disk, cache_bytes=cache_bytes, limits=limits)
            self.encrypted = EncryptedVolume(volume, self.receiver, disk) if volume.holds_ciphertext else None
            self.hot_lists = HotLists(volume.store_dir, disk)
            self.claims = WriterClaims(volume, self.name, self.repository, self.encrypted)
            holds, lock = Holds(volume.store_dir, disk), FolderLock(volume.path, disk, lock_s)
            self.retention = Retention(self.receiver, holds, lock, self.hot_lists, self.encrypted)
            self.space = SpaceKeeper(self.receiver, self.retention, self.encrypted, self.branches)
            for event in self.repository.events():
                self._apply(event)
            self.receiver.recover(self.generation)
            self.claims.adopt_generation()
        except BaseException:
            self.repository.close()
            raise
        self.recovered = [*self.repository.recovered, *self.receiver.staging.removed]
        """A line for each thing that the opening repaired."""

    @property
    def generation(self) -> Generation:
        """The claimed one; 0 before the first claim."""
        return self.claims.claimed.generation

    @property
    def writer_id(self) -> str:
        return self.claims.claimed.writer_id

    @property
    def revision(self) -> int:
        return self.repository.log.lines

    def find(self, ref: str) -> SnapshotRecord:
        """A snapshot by number or name, or of a branch (wire.branch_ref). Raises RefusedError."""
        for (branch, number), record in list(self.branches.items()):
            if ref == wire.branch_ref(branch, number):
                return record
        try:
            return self.repository.find(ref)
        except UserError:
            raise refuse(Refusal.NOT_FOUND, f"there is no snapshot {ref!r} of {self.name} here") from None

    def snapshot_list(self) -> messages.SnapshotList:
        """All snapshots, those of branches too."""
        revision = self.revision  # first: a reader that gets older snapshots with it requests them again
        self._look_for_loss()
        branches = sorted(self.branches.items())
        return messages.SnapshotList(
            revision, self.generation, self.writer_id,
            [self._snapshot_message(record) for record in self.repository.snapshots()],
            [self._snapshot_message(record, branch) for (branch, _), record in branches],
        )  # fmt: skip

    def _look_for_loss(self) -> None:
        """Segments may be lost while the mirror serves; a host that is about to take over has to know of it first."""
        known = len(self.repository.recovered)
        self.receiver.look_for_loss()
        for line in self.repository.recovered[known:]:
            log.error("%s: %s", self.name, line)

    def state(self) -> messages.VolumeState:
        """Raises OSError."""
        revision = self.revision
        newest, place = self.repository.latest(), os.statvfs(self.volume.path)
        parts = self.receiver.staging.parts()
        return messages.VolumeState(
            name=self.name,
            volume_id=self.volume.volume_id,
            seed=f"{self.volume.seed:016x}",
            mode=Mode.PLAIN if self.encrypted is None else Mode.ENCRYPTED,
            generation=self.generation,
            writer_id=self.writer_id,
            revision=revision,
            newest=self._snapshot_message(newest) if newest is not None else None,
            newest_number=self.repository.catalog.last_number,
            snapshots=len(self.repository.snapshots()),
            stored_bytes=sum(info.size for info in self.repository.index.segments()),
            staged_objects=sum(part.count for part in parts),
            staged_bytes=sum(part.size for part in parts),
            free_bytes=place.f_bavail * place.f_frsize,
            limits=self.receiver.limits,
            lock_s=self.retention.lock_s,
            successions=self.claims.successions,
            target_id=self.target_id,
            peers=self.claims.peers,
        )

    def close(self) -> None:
        """Close everything; no call may be under way."""
        self.receiver.close()
        self.repository.close()
        self.volume.unlock()

    def check_invariants(self) -> None:
        with self.receiver.lock:
            self.receiver.check_invariants()
            assert self.volume.generation >= self.generation
            assert all(record.generation <= self.generation for record in self.repository.snapshots())

    def _snapshot_message(self, record: SnapshotRecord, branch: str = "") -> messages.Snapshot:
        received = self.receiver.received_ns.get(record.number, 0)
        return messages.Snapshot(snapshot_records.to_fields(record), record.state, received, branch)

    def _apply(self, event: Event) -> None:
        self.claims.apply(event)
        self.retention.apply(event)
        if event.kind == "aside":
            record = snapshot_records.from_fields(event.fields["record"])
            self.branches[event.fields["branch"], record.number] = record
