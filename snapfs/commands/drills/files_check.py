"""The check `files`: every file of the mount, name by name and hash by hash, is what the snapshot's tables say."""

from __future__ import annotations

import os

from snapfs.commands.drills.check_process import CheckContext, CheckFailedError
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.restore.tree_compare import differences


def check_files(context: CheckContext) -> None:
    """Raises CheckFailedError for the first difference."""
    with context.history() as repository:
        tree = SnapshotTree(repository, repository.find_anywhere(context.snapshot).root)
        context.answered()
        hashed = repository.objects.content_hash_of
        for found in differences(repository, tree, str(context.mount), content_hash_of=hashed):
            context.left_s()
            if found.what != "xattrs" or os.geteuid() == 0:  # others do not see all of them
                path = found.path.decode(errors="replace")
                raise CheckFailedError(f"{path}: {found.what} differs from the snapshot")
        context.lines.append(f"files: {tree.root.inodes} inodes, {tree.root.total_bytes} bytes are as in the snapshot")
