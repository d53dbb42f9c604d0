"""The replica tree: a standby's live tree, which becomes each snapshot received, so that a takeover is a mount.

It is at every instant one whole snapshot, of which some bytes may still be only in the store: first the inodes, names
and block maps that differ are changed in one transaction (snapshot_step.py), then the bytes that they lack are hydrated
from the store, a step at a time. A takeover may come at any of these instants, and after any crash; what is not here
yet is then read from the store, as in any lazily mounted tree.

Invariants:
1. The tree is the snapshot `record`, and the namespace names it in the transaction that made it so. A tree that names
   none, or one that the store does not have, is begun anew.
2. Only a tree all of whose names are loaded goes from one snapshot to another.
3. The row of an absent file is removed when its bytes are durable.
4. Memory: a page of each table, the bitmaps of large files that are partly present, the small files of one step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from contextlib import ExitStack
from typing import Final

from snapfs.base.blocks import Disk, Ino
from snapfs.base.boot import boot_id
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.base.volumes.volume import Volume
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.host_life import HostLife
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.handover import leave_in_order
from snapfs.live.lazy.apply_changes import ChangeApplier
from snapfs.live.lazy.materializer import SMALL_BYTES, Materializer
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.residency.residency import Residency
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import StoreSource, record_of
from snapfs.transfer.failover.completed_files import CompletedFiles
from snapfs.transfer.failover.snapshot_step import SnapshotStep
from snapfs.transfer.lazy.root_namespace import fill_root

log = logging.getLogger(__name__)

STEP_FILES: Final = 256
STEP_BYTES: Final = 32 << 20
STEP_CHUNKS: Final = 64
STEP_DIRECTORIES: Final = 32
MANY_CHUNKS: Final = 256
"""With more absent chunks than this, the snapshot's block map is read for those that are holes."""
OPEN_FILES: Final = 64


class ReplicaTree:
    """The live tree of one standby, or of one that is taken over. One thread. `close` it."""

    def __init__(self, volume: Volume, repository: Repository, disk: Disk) -> None:
        """Open the tree that is there. A damaged one is discarded. Raises OSError."""
        self._volume, self._repository, self._disk = volume, repository, disk
        self._boot_id = ""
        self._parts = ExitStack()
        self._names: Namespace | None = None
        self.record: SnapshotRecord | None = None
        self.is_whole = False
        try:
            self._open_existing()
        except (CorruptionError, VersionError) as error:
            log.warning("the live tree is made anew: %s", error)
            self._discard()
        except BaseException:
            self.close()
            raise

    # -- which snapshot

    def _open_existing(self) -> None:
        if not os.path.exists(self._volume.namespace_path):
            return
        image = self._open_names().image()
        record = next((each for each in self._repository.snapshots() if each.root.number == image), None)
        if record is None:
            raise CorruptionError("the live tree", self._volume.live_dir, "its snapshot is not in the store")
        self._open(record)

    def _open_names(self) -> Namespace:
        self._names = Namespace(self._volume.namespace_path, self._disk)
        self._parts.callback(self._names.close)
        return self._names

    def _open(self, record: SnapshotRecord) -> None:
        """Open the parts around the namespace, and finish what a crash interrupted."""
        assert self._names is not None
        self._backing = Backing(self._volume.live_dir, self._disk, OPEN_FILES)
        self._parts.callback(self._backing.close)
        self._backing.make_folders()
        life = HostLife(self._volume.live_dir, self._disk, boot_id())
        self._parts.callback(life.close)
        self._boot_id = life.token
        for name in os.listdir(self._backing.staging):
            self._disk.unlink("replica:leftover", os.path.join(self._backing.staging, name))
        self._materializer = Materializer(self._backing, None, self._boot_id)
        self._applier = ChangeApplier(self._names, self._materializer, self._boot_id)
        self._applier.redo()
        self._materializer.open(self._names.absent)
        for ino, residency in self._materializer.partial.items():
            self._set_times(ino, residency)
        self._set_record(record)

    def _set_record(self, record: SnapshotRecord) -> None:
        self.record, self.is_whole = record, False
        self._tree = SnapshotTree(self._repository, record.root)
        self._materializer.use(StoreSource(self._repository, self._tree))

    def _discard(self) -> None:
        self.close()
        self.record, self.is_whole = None, False
        with contextlib.suppress(FileNotFoundError):  # first: names without their files would be taken for a whole tree
            self._disk.unlink("replica:discard", self._volume.namespace_path)
            self._disk.sync_dir("replica:discard", self._volume.live_dir)
        with contextlib.suppress(FileNotFoundError):
            self._disk.remove_tree("replica:discard", self._volume.live_dir)

    def become(self, record: SnapshotRecord) -> None:
        """Make the tree this snapshot. Raises OSError, CorruptionError; then it is the old one, or `record` is None."""
        if self.record is not None and self.record.root == record.root:
            return
        if self.record is None or self._is_lazy:
            self._begin(record)
        else:
            try:
                self._step_to(record)
            except CorruptionError as error:  # the old snapshot cannot be compared with any more
                log.warning("the live tree is made anew: %s", error)
                self._begin(record)

    @property
    def _is_lazy(self) -> bool:
        return self._names is None or self._names.is_lazy

    def _begin(self, record: SnapshotRecord) -> None:
        self._discard()
        tree = SnapshotTree(self._repository, record.root)
        self._disk.mkdir("replica:live", self._volume.live_dir)
        fill_root(self._volume, self._repository, tree, self._disk)
        names = self._open_names()
        with names.bulk(sealed=True) as bulk:
            bulk.set_image(record.root.number)
        names.sync()
        self._open(record)

    # -- from one snapshot to the next

    def _step_to(self, record: SnapshotRecord) -> None:
        assert self._names is not None
        step = SnapshotStep(self._names, self._backing, self._materializer, self._applier, self._tree,
                     SnapshotTree(self._repository, record.root))  # fmt: skip
        step.stage()
        with self._names.bulk(sealed=True) as bulk:
            step.apply(bulk)
            bulk.set_image(record.root.number)
        self._names.sync()
        self._applier.redo()
        self._set_record(record)
        self._names.checkpoint()

    # -- hydrating what is still only in the store

    def advance(self, until_s: float) -> bool:
        """Hydrate what is absent, until all is here (True) or it is `until_s` by the monotonic clock."""
        while not self.is_whole and self.record is not None:
            self._advance_once(until_s)
            if time.monotonic() >= until_s:
                break
        return self.is_whole

    def _advance_once(self, until_s: float) -> None:
        names = self._names
        assert names is not None
        if unloaded := names.unloaded(STEP_DIRECTORIES) if names.is_lazy else []:
            for directory, listing in unloaded:
                names.load(directory, self._materializer.names(listing), last=True)
            return
        batch = CompletedFiles(names, self._backing)
        for ino in names.absent_after(Ino(0), STEP_FILES):
            self._hydrate(ino, batch, until_s)
            if batch.bytes >= STEP_BYTES or time.monotonic() >= until_s:
                break
        else:
            self.is_whole = names.absent_count() == len(batch)
        batch.settle(self._materializer)
        names.checkpoint()

    def _hydrate(self, ino: Ino, batch: CompletedFiles, until_s: float) -> None:
        assert self._names is not None
        absent, residency = self._names.absent(ino), self._materializer.partial.get(ino)
        assert absent is not None
        if residency is None and os.path.exists(self._backing.path(ino)):
            batch.complete.append(ino)
        elif residency is None and absent.size <= SMALL_BYTES:
            self._fill(ino, absent)
            batch.staged.append(ino)
        else:
            residency = residency or self._materializer.fetch(ino, absent)
            assert residency is not None
            if not self._hydrate_chunks(ino, residency, batch, until_s):
                return
            batch.finished.append(ino)
        batch.bytes += absent.size

    def _fill(self, ino: Ino, absent: AbsentFile) -> None:
        fd = os.open(self._backing.staged(ino), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._materializer.fill(ino, absent, fd)
        finally:
            os.close(fd)

    def _hydrate_chunks(self, ino: Ino, residency: Residency, batch: CompletedFiles, until_s: float) -> bool:
        """Hydrate a partly present file; whether all of it is here now."""
        if residency.missing > MANY_CHUNKS:
            residency.leave_holes(self._data_of(ino, residency))
        while chunks := residency.absent_chunks(limit=STEP_CHUNKS):
            residency.note_times((residency.absent.ctime_ns, residency.absent.mtime_ns))
            self._materializer.fetch_chunks(ino, residency, chunks)
            self._set_times(ino, residency)
            residency.note_times(None)
            if residency.missing and time.monotonic() >= until_s:
                return False
        return True

    def _set_times(self, ino: Ino, residency: Residency) -> None:
        """Set the times of the snapshot, which writing the chunks changed."""
        with self._backing.descriptors.borrow(ino) as fd:
            os.utime(fd, ns=(residency.absent.ctime_ns, residency.absent.mtime_ns))

    def _data_of(self, ino: Ino, residency: Residency) -> int:
        """A bitmap of the file's chunks, without those that are holes."""
        bits = bytearray(-(-residency.chunks // 8))
        for chunk, _ in self._tree.chunks(record_of(ino, residency.origin)):
            bits[chunk >> 3] |= 1 << (chunk & 7)
        return int.from_bytes(bits, "little")

    # -- ends

    def hand_over(self) -> None:
        """Leave a tree that can be mounted: all that is here is durable, and nothing dirty. Closes it."""
        names = self._names
        assert names is not None
        names.sync()
        self._backing.sync_all("replica:settled")
        leave_in_order(self._volume.live_dir, names, self._disk, self._boot_id)
        self.close()

    def has_absent(self) -> bool:
        """Whether anything is still only in the store."""
        return self._names is None or self._names.has_absent()

    def check_invariants(self) -> None:
        if self._names is not None and self.record is not None:
            self._names.check_invariants()
            self._materializer.check_invariants()

    def close(self) -> None:
        """Close all parts. What is here stays."""
        self._names = None
        self._parts.close()
