"""The namespace that a lazily mounted volume begins with: the root directory and the names in it, nothing else."""

from __future__ import annotations

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.base.boot import boot_id
from snapfs.base.volumes.volume import Volume
from snapfs.live.handover import leave_in_order
from snapfs.live.namespace.namespace import Namespace
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.store.tables.table_pages import ObjectReader
from snapfs.transfer.common.inode_records import row_of
from snapfs.transfer.common.store_source import StoreSource, listing_of


def fill_root(
    volume: Volume, reader: ObjectReader, tree: SnapshotTree, disk: Disk, *, next_ino: Ino | None = None
) -> None:
    """Create the namespace of a volume, with the root directory of `tree` loaded. Raises OSError, CorruptionError.

    `next_ino`: the first number that its new inodes get, if that is not the snapshot's.
    """
    root = tree.inode(ROOT_INO)
    assert root is not None
    names = Namespace(volume.namespace_path, disk)
    try:
        with names.bulk(sealed=True) as bulk:
            bulk.put_inode(row_of(root), root.xattrs)
            bulk.set_unloaded(ROOT_INO, listing_of(root))
            bulk.raise_next_ino(next_ino or tree.root.next_ino)
        names.load(ROOT_INO, StoreSource(reader, tree).names(listing_of(root)), last=True)
        names.sync()
        leave_in_order(volume.live_dir, names, disk, boot_id())
    finally:
        names.close()
