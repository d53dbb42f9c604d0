"""The warm tree: a standby's live tree, which becomes each snapshot that arrives, so that to take over is a mount.

It is at every instant one whole snapshot, of which some bytes may still be only in the store: first those of the
inodes, names and block maps that differ become the new ones in one transaction (live/refit.py), then what they lack
comes in from the store, a step at a time. Whoever takes over does so at any of these instants, after any crash, and
reads what is not here yet from the store as in any lazily mounted tree.

Invariants:
1. The tree is the snapshot that `record` says, and the namespace names it in the transaction that made it so. A tree
   that names none, or one that the store does not have, is begun anew.
2. Only a tree all of whose names are here goes from one snapshot to another.
3. A file's row goes when its bytes are durable.
4. Memory: a page of each table, the bitmaps of large files that are partly here, the small files of one step.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from snapfs.blocks import Disk, Ino
from snapfs.errors import CorruptionError, VersionError
from snapfs.live.backing import Backing
from snapfs.live.bulk import Bulk
from snapfs.live.handover import leave_in_order
from snapfs.live.hydration import SMALL_BYTES, Hydrator
from snapfs.live.namespace import Namespace
from snapfs.live.presence import Presence
from snapfs.live.records import AbsentFile
from snapfs.live.refit import Refit, Refitter
from snapfs.store.compare import InodeChange, diff, diff_entries, diff_map, is_same
from snapfs.store.repository import Repository, SnapshotRecord
from snapfs.store.snapshot import InodeRecord, SnapshotTree
from snapfs.transfer.hydrator import StoreSource, absent_of, record_of
from snapfs.transfer.remount import fill_root
from snapfs.transfer.rows import row_of
from snapfs.volume import Volume, boot_id

log = logging.getLogger(__name__)

STEP_FILES: Final = 256
STEP_BYTES: Final = 32 << 20
STEP_CHUNKS: Final = 64
STEP_DIRECTORIES: Final = 32
MANY_CHUNKS: Final = 256
"""With more that are absent it pays to ask which of them are holes."""
FEW_SYNCS: Final = 16
"""Up to so many files are made durable one by one; for more, the whole host filesystem is."""
OPEN_FILES: Final = 64


class WarmTree:
    """Of one standby, or one that is taken over. One thread."""

    def __init__(self, volume: Volume, repository: Repository, disk: Disk) -> None:
        """Take up what is there, if it can be. OSError."""
        self._volume, self._repository, self._disk = volume, repository, disk
        self._boot_id = boot_id()
        self._parts = ExitStack()
        self._names: Namespace | None = None
        self.record: SnapshotRecord | None = None
        self.is_whole = False
        try:
            self._take_up()
        except (CorruptionError, VersionError) as error:
            log.warning("the live tree is made anew: %s", error)
            self._discard()
        except BaseException:
            self.close()
            raise

    # -- which snapshot

    def _take_up(self) -> None:
        if not os.path.exists(self._volume.namespace_path):
            return
        image = self._open_names().image()
        record = next((each for each in self._repository.snapshots() if each.root.number == image), None)
        if record is None:
            raise CorruptionError("the live tree", self._volume.live_dir, "it is of no snapshot that is here")
        self._open(record)

    def _open_names(self) -> Namespace:
        self._names = Namespace(self._volume.namespace_path, self._disk)
        self._parts.callback(self._names.close)
        return self._names

    def _open(self, record: SnapshotRecord) -> None:
        """The parts around the namespace, and what a crash left undone."""
        assert self._names is not None
        self._backing = Backing(self._volume.live_dir, self._disk, OPEN_FILES)
        self._parts.callback(self._backing.close)
        self._backing.make_folders()
        for name in os.listdir(self._backing.staging):
            self._disk.unlink("warm:leftover", os.path.join(self._backing.staging, name))
        self._hydrator = Hydrator(self._backing, None, self._boot_id)
        self._refitter = Refitter(self._names, self._hydrator, self._boot_id)
        self._refitter.redo()
        self._hydrator.open(self._names.absent)
        for ino, presence in self._hydrator.partial.items():
            self._set_times(ino, presence)
        self._now(record)

    def _now(self, record: SnapshotRecord) -> None:
        self.record, self.is_whole = record, False
        self._tree = SnapshotTree(self._repository, record.root)
        self._hydrator.source = StoreSource(self._repository, self._tree)

    def _discard(self) -> None:
        self.close()
        self.record, self.is_whole = None, False
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._volume.live_dir)

    def become(self, record: SnapshotRecord) -> None:
        """Be this snapshot from now on. OSError, CorruptionError: then it is the old one, or `record` is None."""
        if self.record is not None and self.record.root == record.root:
            return
        if self.record is None or self._is_lazy:
            self._begin(record)
        else:
            try:
                self._go_over(record)
            except CorruptionError as error:  # the store cannot say any more what differs
                log.warning("the live tree is made anew: %s", error)
                self._begin(record)

    @property
    def _is_lazy(self) -> bool:
        return self._names is None or self._names.is_lazy

    def _begin(self, record: SnapshotRecord) -> None:
        self._discard()
        tree = SnapshotTree(self._repository, record.root)
        self._disk.mkdir("warm:live", self._volume.live_dir)
        fill_root(self._volume, self._repository, tree, self._disk)
        names = self._open_names()
        with names.bulk(sealed=True) as bulk:
            bulk.set_image(record.root.number)
        names.sync()
        self._open(record)

    # -- from one snapshot to the next

    def _go_over(self, record: SnapshotRecord) -> None:
        assert self._names is not None
        step = _Step(self._names, self._backing, self._hydrator, self._refitter, self._tree,
                     SnapshotTree(self._repository, record.root))  # fmt: skip
        step.stage()
        with self._names.bulk(sealed=True) as bulk:
            step.turn(bulk)
            bulk.set_image(record.root.number)
        self._names.sync()
        self._refitter.redo()
        self._now(record)
        self._names.checkpoint()

    # -- what is still only in the store

    def advance(self, until_s: float) -> bool:
        """Bring in what is absent, until all is here (True) or it is `until_s` by the monotonic clock."""
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
                names.load(directory, self._hydrator.names(listing), last=True)
            return
        batch = _Arrivals(names, self._backing)
        for ino in names.absent_after(Ino(0), STEP_FILES):
            self._bring(ino, batch, until_s)
            if batch.bytes >= STEP_BYTES or time.monotonic() >= until_s:
                break
        else:
            self.is_whole = names.absent_count() == len(batch)
        batch.settle(self._hydrator)
        names.checkpoint()

    def _bring(self, ino: Ino, batch: _Arrivals, until_s: float) -> None:
        assert self._names is not None
        absent, presence = self._names.absent(ino), self._hydrator.partial.get(ino)
        assert absent is not None
        if presence is None and os.path.exists(self._backing.path(ino)):
            batch.complete.append(ino)
        elif presence is None and absent.size <= SMALL_BYTES:
            self._fill(ino, absent)
            batch.staged.append(ino)
        else:
            presence = presence or self._hydrator.fetch(ino, absent)
            assert presence is not None
            if not self._bring_chunks(ino, presence, batch, until_s):
                return
            batch.finished.append(ino)
        batch.bytes += absent.size

    def _fill(self, ino: Ino, absent: AbsentFile) -> None:
        fd = os.open(self._backing.staged(ino), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self._hydrator.fill(ino, absent, fd)
        finally:
            os.close(fd)

    def _bring_chunks(self, ino: Ino, presence: Presence, batch: _Arrivals, until_s: float) -> bool:
        """Whether all of the file is here now."""
        if presence.missing > MANY_CHUNKS:
            presence.leave_holes(self._data_of(ino, presence))
        while chunks := presence.absent_chunks(limit=STEP_CHUNKS):
            presence.note_times((presence.absent.ctime_ns, presence.absent.mtime_ns))
            self._hydrator.bring(ino, presence, chunks)
            self._set_times(ino, presence)
            presence.note_times(None)
            if presence.missing and time.monotonic() >= until_s:
                return False
        return True

    def _set_times(self, ino: Ino, presence: Presence) -> None:
        """As they are in the snapshot; what comes in changes them."""
        with self._backing.descriptors.borrow(ino) as fd:
            os.utime(fd, ns=(presence.absent.ctime_ns, presence.absent.mtime_ns))

    def _data_of(self, ino: Ino, presence: Presence) -> int:
        """A bit for each chunk of the file that is no hole."""
        bits = bytearray(-(-presence.chunks // 8))
        for chunk, _ in self._tree.chunks(record_of(ino, presence.origin)):
            bits[chunk >> 3] |= 1 << (chunk & 7)
        return int.from_bytes(bits, "little")

    # -- ends

    def hand_over(self) -> None:
        """Leave a tree that can be mounted: all that is here durable, and nothing dirty. Closes it."""
        names = self._names
        assert names is not None
        names.sync()
        self._backing.sync_all("warm:settled")
        leave_in_order(self._volume.live_dir, names, self._disk, self._boot_id)
        self.close()

    def has_absent(self) -> bool:
        """Whether anything is still only in the store."""
        return self._names is None or self._names.has_absent()

    def check_invariants(self) -> None:
        if self._names is not None and self.record is not None:
            self._names.check_invariants()
            self._hydrator.check_invariants()

    def close(self) -> None:
        """Let go of everything; what is here stays."""
        self._names = None
        self._parts.close()


class _Arrivals:
    """Files that are all here after one step: durable first, then in place, then said to be."""

    def __init__(self, names: Namespace, backing: Backing) -> None:
        self._names, self._backing, self._disk = names, backing, backing.disk
        self.staged: list[Ino] = []
        self.finished: list[Ino] = []
        self.complete: list[Ino] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.staged) + len(self.finished) + len(self.complete)

    def settle(self, hydrator: Hydrator) -> None:
        """All of that. A crash leaves rows of files that are here, which count for nothing."""
        here = [*map(self._backing.staged, self.staged), *map(self._backing.path, self.finished)]
        if len(here) > FEW_SYNCS:
            self._backing.sync_all("warm:bytes")
        else:
            self._sync_each(here)
        for ino in self.staged:
            self._backing.replace(ino, self._backing.staged(ino), "warm:rename")
        if len(self.staged) > FEW_SYNCS:
            self._backing.sync_all("warm:names")
        for ino in self.staged:
            self._backing.sync_name(ino)
        for ino in self.finished:
            hydrator.drop(ino)
        self._names.clear_absent_files([*self.staged, *self.finished, *self.complete])

    def _sync_each(self, paths: list[str]) -> None:
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._disk.fsync("warm:bytes", fd)
            finally:
                os.close(fd)


class _Step:
    """The way from one snapshot to another: what becomes of each inode that differs."""

    def __init__(
        self, names: Namespace, backing: Backing, hydrator: Hydrator, refitter: Refitter,
        before: SnapshotTree, after: SnapshotTree,
    ) -> None:  # fmt: skip
        self._names, self._backing, self._hydrator, self._refitter = names, backing, hydrator, refitter
        self._before, self._after = before, after

    def _changes(self) -> Iterator[InodeChange]:
        return diff(self._before, self._after, even_stored_anew=True)

    def stage(self) -> None:
        """The presences of files that keep some of their bytes."""
        staged = 0
        for change in self._changes():
            if change.after is not None and self._refit(change) is Refit.BITS:
                self._refitter.stage(change.ino, absent_of(change.after), self._changed_chunks(change))
                staged += 1
        if staged:
            self._refitter.settle_staged()

    def _changed_chunks(self, change: InodeChange) -> Iterator[int]:
        for chunk, _, _ in diff_map(self._before, change.before, self._after, change.after):
            yield chunk

    def _refit(self, change: InodeChange) -> Refit | None:
        """What must be done to the backing file. None: there is none, or it is as it must be."""
        ino, before, after = change
        if before is None or not stat.S_ISREG(before.mode):
            return None
        if after is None or not stat.S_ISREG(after.mode):
            return Refit.WIPE
        if ino not in self._hydrator.partial and self._names.absent(ino) is not None:
            return Refit.WIPE  # in case its row is left over
        if not os.path.exists(self._backing.path(ino)):
            return Refit.WIPE
        if _same_bytes(before, after):
            return Refit.BITS if ino in self._hydrator.partial else Refit.TIMES
        return Refit.BITS if min(before.size, after.size) > SMALL_BYTES else Refit.WIPE

    def turn(self, bulk: Bulk) -> None:
        """Everything of the namespace, in the transaction that `bulk` is."""
        for change in self._changes():
            self._put_inode(bulk, change)
        for ino, before, after in self._changes():
            directories = self._before, _directory(before), self._after, _directory(after)
            for name, _, entry in diff_entries(*directories):
                if entry is None:
                    bulk.delete_entry(ino, name)
                else:
                    bulk.put_entry(ino, name, entry.ino)
        bulk.raise_next_ino(self._after.root.next_ino)

    def _put_inode(self, bulk: Bulk, change: InodeChange) -> None:
        ino, before, after = change
        refit = self._refit(change)
        if after is None or (before is not None and stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode)):
            bulk.delete_inode(ino)
        if after is not None:
            bulk.put_inode(row_of(after), after.xattrs)
            if stat.S_ISREG(after.mode) and refit is not Refit.TIMES:
                bulk.set_absent(ino, absent_of(after))
        if refit is not None:
            bulk.add_refit(ino, refit)


def _same_bytes(before: InodeRecord, after: InodeRecord) -> bool:
    return (before.size, before.height) == (after.size, after.height) and is_same(before.content, after.content)


def _directory(record: InodeRecord | None) -> InodeRecord | None:
    return record if record and stat.S_ISDIR(record.mode) else None
