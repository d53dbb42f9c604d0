"""One step of a replica tree from one snapshot to another: what becomes of each inode that differs.

The presence bitmaps of files that keep some of their bytes are staged first; then one transaction changes the names and
the absent rows and writes the redo list of the backing files (live/lazy/apply_changes.py).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from snapfs.live.backing.backing import Backing
from snapfs.live.lazy.apply_changes import ChangeApplier, Redo
from snapfs.live.lazy.materializer import SMALL_BYTES, Materializer
from snapfs.live.namespace.bulk_changes import Bulk
from snapfs.live.namespace.namespace import Namespace
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.store.tables.table_compare import InodeChange, diff, diff_entries, diff_map, is_same
from snapfs.transfer.common.inode_records import row_of
from snapfs.transfer.common.store_source import absent_of


class SnapshotStep:
    """The changes of one tree from the snapshot `before` to the snapshot `after`."""

    def __init__(
        self, names: Namespace, backing: Backing, materializer: Materializer, applier: ChangeApplier,
        before: SnapshotTree, after: SnapshotTree,
    ) -> None:  # fmt: skip
        self._names, self._backing, self._materializer, self._applier = names, backing, materializer, applier
        self._before, self._after = before, after

    def _changes(self) -> Iterator[InodeChange]:
        return diff(self._before, self._after, even_stored_anew=True)

    def stage(self) -> None:
        """Stage the presence bitmaps of files that keep some of their bytes. Raises OSError, CorruptionError."""
        staged = 0
        for change in self._changes():
            if change.after is not None and self._redo(change) is Redo.BITS:
                self._applier.stage(change.ino, absent_of(change.after), self._changed_chunks(change))
                staged += 1
        if staged:
            self._applier.settle_staged()

    def _changed_chunks(self, change: InodeChange) -> Iterator[int]:
        for chunk, _, _ in diff_map(self._before, change.before, self._after, change.after):
            yield chunk

    def _redo(self, change: InodeChange) -> Redo | None:
        """The redo entry of an inode's backing file. None: it has no backing file, or that one stays as it is."""
        ino, before, after = change
        if before is None or not stat.S_ISREG(before.mode):
            return None
        if after is None or not stat.S_ISREG(after.mode):
            return Redo.WIPE
        if ino not in self._materializer.partial and self._names.absent(ino) is not None:
            return Redo.WIPE  # a crash may have left its row behind
        if not os.path.exists(self._backing.path(ino)):
            return Redo.WIPE
        if _same_bytes(before, after):
            return Redo.BITS if ino in self._materializer.partial else Redo.TIMES
        return Redo.BITS if min(before.size, after.size) > SMALL_BYTES else Redo.WIPE

    def apply(self, bulk: Bulk) -> None:
        """Change the namespace and write the redo list, in the transaction that `bulk` is."""
        for change in self._changes():
            self._put_inode(bulk, change)
        self._put_entries(bulk)
        bulk.raise_next_ino(self._after.root.next_ino)

    def _put_entries(self, bulk: Bulk) -> None:
        for ino, before, after in self._changes():
            directories = self._before, _directory(before), self._after, _directory(after)
            for name, _, entry in diff_entries(*directories):
                if entry is None:
                    bulk.delete_entry(ino, name)
                else:
                    bulk.put_entry(ino, name, entry.ino)

    def _put_inode(self, bulk: Bulk, change: InodeChange) -> None:
        ino, before, after = change
        redo = self._redo(change)
        if after is None or (before is not None and stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode)):
            bulk.delete_inode(ino)
        if after is not None:
            bulk.put_inode(row_of(after), after.xattrs)
            if stat.S_ISREG(after.mode) and redo is not Redo.TIMES:
                bulk.set_absent(ino, absent_of(after))
        if redo is not None:
            bulk.add_redo(ino, redo)


def _same_bytes(before: InodeRecord, after: InodeRecord) -> bool:
    return (before.size, before.height) == (after.size, after.height) and is_same(before.content, after.content)


def _directory(record: InodeRecord | None) -> InodeRecord | None:
    return record if record and stat.S_ISDIR(record.mode) else None
