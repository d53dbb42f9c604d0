"""What a path is in a snapshot, and which snapshot had it last."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from snapfs.base.blocks import ROOT_INO
from snapfs.base.errors import CorruptionError, UserError
from snapfs.store.history.path_patterns import split_path
from snapfs.store.log.branches import reference
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.store.tables.table_pages import CACHE_BYTES, ObjectReader, Pages


class Located(NamedTuple):
    """What a path is in a snapshot."""

    snapshot: SnapshotRecord
    tree: SnapshotTree
    path: bytes
    record: InodeRecord


def record_of_entry(tree: SnapshotTree, entry: DirEntry) -> InodeRecord:
    """The inode that an entry leads to. Raises CorruptionError if it is not there."""
    record = tree.inode(entry.ino)
    if record is None:
        raise CorruptionError(f"inode {entry.ino}", "the snapshot", "an entry leads to it and it is not there")
    return record


def look_up(tree: SnapshotTree, path: bytes) -> InodeRecord | None:
    """What the path is, symbolic links not followed; None if it is nothing. Raises CorruptionError, UserError."""
    record = tree.inode(ROOT_INO)
    for name in split_path(path):
        entry = tree.entry(record, name) if record is not None and stat.S_ISDIR(record.mode) else None
        if entry is None:
            return None
        record = record_of_entry(tree, entry)
    return record


def locate_path(reader: ObjectReader, snapshot: SnapshotRecord, path: bytes) -> Located:
    """As `look_up`. Raises UserError if the snapshot has no such path."""
    tree = SnapshotTree(reader, snapshot.root)
    record = look_up(tree, path)
    if record is None:
        raise UserError(f"snapshot {reference(snapshot)} has no {shown(path)}: `snapfs find` shows which have it")
    return Located(snapshot, tree, b"/".join(split_path(path)), record)


def newest_with(reader: ObjectReader, newest_first: Iterable[SnapshotRecord], path: bytes) -> Located | None:
    """What the path was in the first of the snapshots that has it. Raises CorruptionError, UserError."""
    pages = Pages(reader, CACHE_BYTES)
    for snapshot in newest_first:
        tree = SnapshotTree(reader, snapshot.root, pages=pages)
        record = look_up(tree, path)
        if record is not None:
            return Located(snapshot, tree, b"/".join(split_path(path)), record)
    return None


def shown(path: bytes) -> str:
    """A path in a message: what is not UTF-8 or not printable is escaped."""
    return repr(os.fsdecode(path))
