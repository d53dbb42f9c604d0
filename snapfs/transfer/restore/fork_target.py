"""A snapshot of a fork as what its origin is rolled back to.

Invariants:
1. Only a fork of this very volume is opened: fork.json has its id, and the seed of the content hashes is one, so that
   equal content is found equal.
2. The snapshot is held in the fork for as long as it is read.
3. An inode never becomes one of another kind: neither the kernel nor the host's files could follow. It would where two
   forks gave the same numbers to their new inodes (fork.py), and one of them was brought back before.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator

from snapfs.base.blocks import Disk
from snapfs.base.errors import BusyError, UserError
from snapfs.base.volumes.fork_file import read_fork
from snapfs.base.volumes.volume import Volume
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.store.tables.table_compare import diff
from snapfs.transfer.lazy.snapshot_hold import held_while


def check_fork(volume: Volume, path: str) -> None:
    """UserError unless the volume in the folder `path` is a fork of `volume`. CorruptionError, VersionError."""
    note = read_fork(path)
    if note is None or note.origin_id != volume.volume_id or Volume.open(path, Disk()).seed != volume.seed:
        raise UserError(f"{path} is no fork of {volume.path}: only a fork is brought back, and to its own origin")


@contextlib.contextmanager
def fork_target(volume: Volume, path: str, reference: str, disk: Disk) -> Iterator[tuple[Repository, SnapshotRecord]]:
    """The store of the fork of `volume` in the folder `path`, for reading, and its snapshot of this number or name.

    The fork may be mounted. UserError if it is no fork of `volume` or has no such snapshot, BusyError if a part of it
    is elsewhere, CorruptionError, VersionError, OSError.
    """
    check_fork(volume, path)
    fork = Volume.open(path, disk)
    identity = StoreIdentity(fork.volume_id, fork.seed)
    repository = Repository.open(fork.store_dir, identity, disk, readonly=True)
    try:
        if repository.lazy is not None:
            raise BusyError(
                f"part of {path} is still on its way from elsewhere: it can be brought back when all is here"
            )
        record = repository.find(reference)
        with held_while(repository, record, "rollback"):
            yield repository, record
    finally:
        repository.close()


def check_kinds(present: SnapshotTree, target: SnapshotTree) -> None:
    """UserError if an inode would become one of another kind (invariant 3). CorruptionError."""
    for _, before, after in diff(present, target):
        if before and after and stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode):
            raise UserError(
                "another fork, which was brought back before, had the numbers of this one's new files: `snapfs export` "
                "it, and copy what you want of it"
            )
