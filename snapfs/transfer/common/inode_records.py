"""An inode's attributes in their two forms: a row of the live namespace, a record of a snapshot."""

from __future__ import annotations

from snapfs.base.limits import clamp_time
from snapfs.live.database.namespace_rows import Inode
from snapfs.store.tables.snapshot import InodeRecord


def row_of(record: InodeRecord) -> Inode:
    """The namespace's row of a snapshot's record, within the row's limits. Size and content are the backing file's."""
    return Inode(
        record.ino,
        record.mode,
        record.uid,
        record.gid,
        record.rdev,
        record.nlink,
        clamp_time(record.atime_ns),
        clamp_time(record.mtime_ns),
        clamp_time(record.ctime_ns),
        record.target,
    )
