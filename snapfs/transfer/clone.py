"""Clone: a snapshot as a volume of its own, that shares the history's segments and costs nothing until written.

The new volume is built in `NEW.partial` and renamed when it is whole: its store has hard links to the segments (copies
where the new place is on another filesystem) and a log that begins with the cloned snapshot; its namespace is filled
from the snapshot; its files are all absent, read from the store until they are written to (hydrator.py).

Invariants:
1. `NEW` does not exist, or is a whole volume: the rename is the commit point. A crash leaves `NEW.partial`, which the
   next attempt refuses to guess about; nothing of the origin is ever changed.
2. The clone has its own id and its origin's seed: objects are shared, so their proofs must be.
3. Nothing is shared but segments, which never change; either volume may be removed.
4. The clone's generation is not older than the one that wrote the snapshot, so its object numbers go on from there.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from snapfs.blocks import Disk, SnapshotNumber
from snapfs.errors import BusyError, UserError
from snapfs.live.namespace import Namespace
from snapfs.live.records import AbsentFile
from snapfs.store import duplicate
from snapfs.store.holds import Holds
from snapfs.store.repository import Repository, SnapshotRecord
from snapfs.store.snapshot import SnapshotTree
from snapfs.transfer import keeping
from snapfs.transfer.hydrator import origin_of
from snapfs.transfer.rows import row_of
from snapfs.volume import Volume

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

    `progress(done, total)` is told inodes. UserError for an unusable place, CorruptionError for a damaged snapshot,
    OSError for a failing or full disk, BusyError where a part of the origin is still at a mirror.
    """
    path = os.path.abspath(path)
    building = f"{path}.partial"
    for taken, why in ((path, "exists already"), (building, "is left over from an interrupted clone; remove it first")):
        if os.path.lexists(taken):
            raise UserError(f"{taken} {why}")
    if repository.lazy is not None:
        raise BusyError("part of this volume is still on its way from a mirror: it can be cloned when all is here")
    started = time.monotonic()
    try:
        copy = Volume.create(building, disk, seed=volume.seed, generation=volume.generation)
        shared = _share_store(copy, repository, record, disk)
        keeping.hold(Holds(copy.store_dir, disk), record.number)
        inodes = _fill_namespace(copy, repository, record, disk, progress or (lambda done, total: None))
        _sync_tree(building, disk)
        disk.rename("clone:publish", building, path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    disk.sync_dir("clone:publish", os.path.dirname(path))
    return CloneReport(record.number, path, inodes, *shared, seconds=time.monotonic() - started)


def _share_store(copy: Volume, repository: Repository, record: SnapshotRecord, disk: Disk) -> tuple[int, int, int]:
    """Segments linked, segments copied, bytes copied."""
    store = duplicate.clone(repository, record, copy.store_dir, copy.volume_id, disk)
    try:
        sizes = [os.stat(info.path) for info in store.index.segments()]
    finally:
        store.close()
    copied = [each.st_size for each in sizes if each.st_nlink == 1]
    return len(sizes) - len(copied), len(copied), sum(copied)


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
                    bulk.set_absent(each.ino, AbsentFile(each.size, each.mtime_ns, each.ctime_ns, origin_of(each)))
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
