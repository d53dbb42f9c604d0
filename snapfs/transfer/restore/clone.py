"""Clone: a snapshot as a volume of its own, that shares the history's segments and costs nothing until written.

The new volume is built in `NEW.partial` and renamed when it is whole: its store has hard links to the segments (copies
where the new place is on another filesystem) and a log that begins with the cloned snapshot; its namespace is filled
from the snapshot; its files are all absent, read from the store until they are written to (store_source.py).

Invariants:
1. `NEW` does not exist, or is a whole volume: the rename is the commit point. A crash leaves `NEW.partial`, which the
   next attempt refuses to guess about; nothing of the origin is ever changed.
2. The clone has its own id and its origin's seed: objects are shared, so their content hashes must be.
3. Nothing is shared but segments, which never change; either volume may be removed.
4. The clone's generation is not older than the one that wrote the snapshot, so its object numbers go on from there.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import BusyError, UserError, readable
from snapfs.base.volumes.volume import Volume
from snapfs.live.namespace.namespace import Namespace
from snapfs.store.log.holds import Holds
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.repair import duplicate_store
from snapfs.store.repair.duplicate_store import SharedSegments
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.inode_records import row_of
from snapfs.transfer.common.store_source import absent_of
from snapfs.transfer.lazy import snapshot_hold

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CloneReport:
    """What a clone took. `copied`: segments that had to be copied, because `path` is on another filesystem."""

    snapshot: SnapshotNumber
    path: str
    inodes: int
    linked: int
    copied: int
    copied_bytes: int
    seconds: float


def clone(
    volume: Volume,
    repository: Repository,
    record: SnapshotRecord,
    path: str,
    disk: Disk,
    *,
    progress: Progress | None = None,
) -> CloneReport:
    """Make the volume `path`, which must not exist, of the snapshot `record` of `volume`. The origin may be mounted.

    `progress(done, total)` is called with inodes. Raises UserError for an unusable place, CorruptionError for a damaged
    snapshot, OSError for a failing or full disk, BusyError where a part of the origin is still at a mirror.
    """
    path = os.path.abspath(path)
    building = f"{path}.partial"
    if os.path.lexists(path):
        raise UserError(f"{path} exists already: name a path that does not")
    if repository.lazy is not None:
        raise BusyError("part of this volume is still on its way from a mirror: it can be cloned when all is here")
    started = time.monotonic()
    try:
        disk.mkdir("clone:build", building)
    except FileExistsError:
        why = "is left over from an interrupted clone (then remove it first), or another one is at work there"
        raise UserError(f"{building} {why}") from None
    except OSError as error:
        raise readable(path, "create a volume there", error) from None
    try:
        copy = Volume.create(building, disk, seed=volume.seed, generation=volume.generation)
        shared = _share_store(copy, repository, record, disk)
        snapshot_hold.hold(Holds(copy.store_dir, disk), record.number)
        inodes = _fill_namespace(copy, repository, record, disk, progress or (lambda done, total: None))
        _sync_tree(building, disk)
        disk.rename("clone:publish", building, path)
    except BaseException:
        disk.remove_tree("clone:undo", building, ignore_errors=True)
        raise
    disk.sync_dir("clone:publish", os.path.dirname(path))
    return CloneReport(record.number, path, inodes, *shared, seconds=time.monotonic() - started)


def _share_store(copy: Volume, repository: Repository, record: SnapshotRecord, disk: Disk) -> SharedSegments:
    """Share it, and open it once: a segment whose tables are damaged is found now."""
    shared = duplicate_store.share(repository, record, copy.store_dir, copy.volume_id, disk)
    Repository.open(copy.store_dir, StoreIdentity(copy.volume_id, copy.seed), disk).close()
    return shared


def _fill_namespace(
    copy: Volume, repository: Repository, record: SnapshotRecord, disk: Disk, progress: Progress
) -> int:
    tree = SnapshotTree(repository, record.root)
    names = Namespace(copy.namespace_path, disk)
    done = 0
    try:
        with names.bulk(sealed=True) as bulk:
            for each in tree.inodes():
                bulk.put_inode(row_of(each), each.xattrs)
                if stat.S_ISREG(each.mode):
                    bulk.set_absent(each.ino, absent_of(each))
                done += 1
                progress(done, tree.root.inodes)
            for each in tree.inodes():
                for entry in tree.entries(each) if stat.S_ISDIR(each.mode) else ():
                    bulk.put_entry(each.ino, entry.name, entry.ino)
            bulk.raise_next_ino(tree.root.next_ino)
        names.sync()
    finally:
        names.close()
    return done


def _sync_tree(path: str, disk: Disk) -> None:
    """Make every name below `path` durable, deepest first."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                disk.fsync("clone:file", file.fileno())
        disk.sync_dir("clone:folder", folder)
