"""A directory moved into a volume and its snapshot moved out again, without a mount and without commands."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from snapfs.base.blocks import Disk, Generation
from snapfs.base.volumes.volume import Volume
from snapfs.daemon.volume_opening import open_repository, open_tree
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.move_in.directory_import import TICK_NS, DirectoryImport, PassReport
from snapfs.transfer.seal.sealer import seal


def move_in(source: Path, volume: Path, disk: Disk | None = None, *, passes: int = 5) -> PassReport:
    """All steps of an import, with the copies read back. Nothing is published of what does not settle."""
    with contextlib.closing(DirectoryImport(str(source), str(volume), disk or Disk(), threads=2)) as making:
        report = making.copy(passes, lambda size: None)
        if not report.changes:
            making.check(lambda done, total: None)
            making.publish()
    return report


def let_settle() -> None:
    """Return when an import takes what was changed so far for settled; until then it copies it again, to be sure."""
    time.sleep(2 * TICK_NS / 1e9)


@contextlib.contextmanager
def sealed(folder: Path) -> Iterator[tuple[Repository, SnapshotRecord]]:
    """A snapshot of the volume's live tree, which is opened as a mount opens it."""
    volume, disk = Volume.open(str(folder), Disk()), Disk()
    repository = open_repository(volume, disk)
    try:
        tree = open_tree(volume, disk, repository)
        assert tree.recovered == []
        tree.names.check_invariants()
        try:
            record = seal(tree.cut(), repository, repository.latest(), generation=Generation(1), threads=2)
        finally:
            tree.close()
        yield repository, record
    finally:
        repository.close()


def is_absent(place: Path) -> bool:
    return not os.path.lexists(place)
