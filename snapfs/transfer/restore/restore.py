"""Restore: a snapshot as a plain directory, or a part of it, with everything this user may recreate.

The tree is built as `DEST.partial/tree` (rebuild.py). When all is written, synced and (with `verify`) read back, `tree`
is renamed to `DEST`.

`DEST` is either as it was (absent, or for a directory an empty one) or all that was to be restored: the rename is the
one commit point. With `replace` it is an exchange: what was at `DEST` is removed with `DEST.partial`. A failure removes
`DEST.partial`; a kill leaves it behind, and the next restore refuses to guess about it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from typing import Final

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.transfer.restore.file_writer import Progress
from snapfs.transfer.restore.rebuild import Elsewhere, Rebuilding
from snapfs.transfer.restore.restore_report import RestoreReport
from snapfs.transfer.restore.tree_compare import differences

__all__ = ["RestoreReport", "restore"]

_NAME_BYTES: Final = 255


def restore(
    repository: Repository,
    record: SnapshotRecord,
    dest: str,
    *,
    top: InodeRecord | None = None,
    elsewhere: Elsewhere | None = None,
    replace: bool = False,
    sync_files: bool = False,
    verify: bool = False,
    threads: int = 4,
    progress: Progress | None = None,
) -> RestoreReport:
    """Write the snapshot, or what `top` is in it, to `dest`, which must not exist; or be empty, for a directory.

    `replace`: whatever is at `dest` goes. `elsewhere`: see `Rebuilding`. `sync_files`: each file is made durable by
    itself, for a filesystem that syncfs(2) does not reach. `progress(done, total)` is called with bytes of file
    content. Raises UserError for an unusable `dest`, CorruptionError where the store or, with `verify`, the disk under
    `dest` is damaged, OSError for a full disk.
    """
    dest = os.path.abspath(dest)
    staging = _staging(dest)
    tree = SnapshotTree(repository, record.root)
    is_directory = top is None or stat.S_ISDIR(top.mode)
    _check_destination(dest, staging, is_directory, replace)
    started = time.monotonic()
    disk = repository.disk
    try:
        disk.mkdir("restore:build", staging)
    except OSError as failure:
        raise UserError(f"cannot restore to {dest}: {failure.strerror}") from failure
    try:
        report = Rebuilding(
            repository, tree, staging, threads, progress, top=top, elsewhere=elsewhere, sync=sync_files
        ).run()
        disk.remove_tree("restore:links", f"{staging}/links")
        _sync_filesystem(staging, disk)
        if verify:
            _verify(repository, tree, staging, report, threads, top)
        _publish(staging, dest, disk, is_directory, replace)
    except BaseException:
        _remove(staging, disk)
        raise
    report.seconds = time.monotonic() - started
    return report


def _staging(dest: str) -> str:
    """Where it is built; a name that is too long to be added to is not part of it."""
    folder, name = os.path.split(dest)
    staging = f"{name}.partial"
    if len(os.fsencode(staging)) > _NAME_BYTES:
        staging = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.partial"
    return os.path.join(folder, staging)


def _check_destination(dest: str, staging: str, is_directory: bool, replace: bool) -> None:
    if os.path.lexists(dest) and not replace:
        if not is_directory:
            raise UserError(f"{dest} exists; restore to a new place")
        if not os.path.isdir(dest) or os.path.islink(dest) or os.listdir(dest):
            raise UserError(f"{dest} exists and is not an empty directory; restore to a new place")
    if os.path.lexists(staging):
        raise UserError(f"{staging} is left over from an interrupted restore; remove it first")


def _remove(staging: str, disk: Disk) -> None:
    """Remove what there is, as far as can be; also folders that were closed to their owner already."""

    disk.remove_tree("restore:undo", staging, ignore_errors=True)
    for folder, names, _ in os.walk(staging):  # what is left is closed to its owner, from the top down
        for name in names:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(folder, name), 0o700)
    disk.remove_tree("restore:undo", staging, ignore_errors=True)


def _sync_filesystem(path: str, disk: Disk) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        disk.sync_filesystem("restore:sync", fd)
    finally:
        os.close(fd)


def _verify(
    repository: Repository, tree: SnapshotTree, staging: str, report: RestoreReport, threads: int,
    top: InodeRecord | None,
) -> None:  # fmt: skip
    compared = differences(
        repository, tree, f"{staging}/tree", fresh=True, unlock=True, threads=threads, left_out=report.left_out, top=top
    )
    for path, what in compared:
        if what not in report.not_restored:
            raise CorruptionError(os.fsdecode(path), f"{staging}/tree", f"{what} is not what was written")
    report.verified = True


def _publish(staging: str, dest: str, disk: Disk, is_directory: bool, replace: bool) -> None:
    made = f"{staging}/tree"
    if not os.path.lexists(made):  # a device that takes privilege, which is counted
        disk.rmdir("restore:staging", staging)
        return
    if replace and os.path.lexists(dest):
        disk.exchange("restore:publish", made, dest)
        disk.sync_dir("restore:publish", os.path.dirname(dest))
        _remove(staging, disk)
        return
    if is_directory:
        disk.rename("restore:publish", made, dest)
    else:
        disk.rename_new("restore:publish", made, dest)
    disk.rmdir("restore:staging", staging)
    disk.sync_dir("restore:publish", os.path.dirname(dest))
