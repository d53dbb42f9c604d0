"""What holds in every snapshot, checked by reading all of its tables. For tests and debug runs: memory grows with
the number of inodes."""

from __future__ import annotations

import stat
from collections import Counter

from snapfs.base.blocks import ROOT_INO, Ino, chunk_count
from snapfs.store.objects.format import Pointer
from snapfs.store.tables import directory_update, radix
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree


def check_tree(tree: SnapshotTree) -> None:
    """Assert that names fit inodes, that all tables are in canonical form, and that the totals are right."""
    records = {record.ino: record for record in tree.inodes()}
    assert tree.root.inodes == len(records)
    assert tree.root.total_bytes == sum(record.size for record in records.values())
    assert tree.root.next_ino > max(records, default=-1)
    _check_height(tree, tree.root.table, tree.root.height)
    _check_names(tree, records)
    for record in records.values():
        assert list(record.xattrs) == sorted(record.xattrs)
        if stat.S_ISDIR(record.mode):
            directory_update.check_shape(tree.pages, record.content)
        else:
            _check_height(tree, record.content, record.height)
            last = max((index for index, _ in tree.chunks(record)), default=-1)
            assert last < chunk_count(record.size), (record, last)


def _check_names(tree: SnapshotTree, records: dict[Ino, InodeRecord]) -> None:
    named = Counter[Ino]()
    for record in records.values():
        for entry in tree.entries(record) if stat.S_ISDIR(record.mode) else ():
            assert records[entry.ino].mode >> 12 == entry.kind, entry
            named[entry.ino] += 1
    for ino, record in records.items():
        if stat.S_ISDIR(record.mode):
            assert named[ino] == (ino != ROOT_INO), record
        else:
            assert named[ino] == record.nlink > 0, (record, named[ino])


def _check_height(tree: SnapshotTree, root: Pointer, height: int) -> None:
    assert height == 0 or any(index >> radix.BITS * (height - 1) for index, _ in radix.items(tree.pages, root, height))
