"""Restore: a snapshot as a plain directory, with everything this user may recreate.

The tree is built as `DEST.partial/tree` (rebuild.py). When all is written, synced and (if asked) read back, `tree` is
renamed to `DEST`.

`DEST` is either as it was (absent or an empty directory) or the whole snapshot: the rename is the one commit point. A
failure removes `DEST.partial`; a kill leaves it behind, and the next restore refuses to guess about it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import time

from snapfs.errors import CorruptionError, UserError
from snapfs.store.repository import Repository, SnapshotRecord
from snapfs.store.snapshot import SnapshotTree
from snapfs.transfer.compare import differences
from snapfs.transfer.rebuild import Progress, Rebuilding, RestoreReport

__all__ = ["RestoreReport", "restore"]

_libc = ctypes.CDLL(None, use_errno=True)


def restore(
    repository: Repository,
    record: SnapshotRecord,
    dest: str,
    *,
    verify: bool = False,
    threads: int = 4,
    progress: Progress | None = None,
) -> RestoreReport:
    """Write the snapshot to the directory `dest`, which must not exist or be empty.

    `progress(done, total)` is told bytes of file content. Raises UserError for an unusable `dest`,
    CorruptionError where the store or, with `verify`, the disk under `dest` is damaged, OSError for a full disk.
    """
    dest = os.path.abspath(dest)
    staging = f"{dest}.partial"
    _check_destination(dest, staging)
    started = time.monotonic()
    tree = SnapshotTree(repository, record.root)
    try:
        os.mkdir(staging, 0o700)
    except OSError as failure:
        raise UserError(f"cannot restore to {dest}: {failure.strerror}") from failure
    try:
        report = Rebuilding(repository, tree, staging, threads, progress).run()
        shutil.rmtree(f"{staging}/links")
        _sync_filesystem(staging)
        if verify:
            _verify(repository, tree, staging, report, threads)
        _publish(staging, dest)
    except BaseException:
        _remove(staging)
        raise
    report.seconds = time.monotonic() - started
    return report


def _check_destination(dest: str, staging: str) -> None:
    if os.path.lexists(dest) and (not os.path.isdir(dest) or os.path.islink(dest) or os.listdir(dest)):
        raise UserError(f"{dest} exists and is not an empty directory; restore to a new place")
    if os.path.lexists(staging):
        raise UserError(f"{staging} is left over from an interrupted restore; remove it first")


def _remove(staging: str) -> None:
    """Remove what there is, as far as can be; also folders that were closed to their owner already."""

    shutil.rmtree(staging, ignore_errors=True)
    for folder, names, _ in os.walk(staging):  # what is left is closed to its owner, from the top down
        for name in names:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(folder, name), 0o700)
    shutil.rmtree(staging, ignore_errors=True)


def _sync_filesystem(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


def _verify(repository: Repository, tree: SnapshotTree, staging: str, report: RestoreReport, threads: int) -> None:
    for path, what in differences(repository, tree, f"{staging}/tree", fresh=True, unlock=True, threads=threads):
        if what not in report.not_restored:
            raise CorruptionError(os.fsdecode(path), f"{staging}/tree", f"{what} is not what was written")
    report.verified = True


def _publish(staging: str, dest: str) -> None:
    os.rename(f"{staging}/tree", dest)
    os.rmdir(staging)
    fd = os.open(os.path.dirname(dest), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
