"""An inode's attributes on either side of the line: a row of the live namespace, a record of a snapshot."""

from __future__ import annotations

from snapfs.live.records import Inode
from snapfs.store.snapshot import InodeRecord


def row_of(record: InodeRecord) -> Inode:
    """The namespace's row of what a snapshot recorded. Size and content are the backing file's."""
    return Inode(
        record.ino,
        record.mode,
        record.uid,
        record.gid,
        record.rdev,
        record.nlink,
        record.atime_ns,
        record.mtime_ns,
        record.ctime_ns,
        record.target,
    )
