"""Staged files that take the place of a file's bytes: the renames of a rollback, done once or redone after a crash.

The namespace lists the files (`pending_swap`), durably, before the first rename: a power cut could else leave new bytes
under old names. The list goes when all are in place.
"""

from __future__ import annotations

import contextlib
import os

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.namespace.namespace import Namespace


def redo(names: Namespace, backing: Backing, repairs: list[str]) -> list[Ino]:
    """Finish a swap that a crash interrupted; returns the files that were on the list. OSError."""
    pending = names.pending_swaps()
    if pending:
        names.sync()
        swap(names, backing, pending)
        repairs.append(f"finished a rollback that was interrupted ({len(pending)} files)")
    return pending


def swap(names: Namespace, backing: Backing, inos: list[Ino]) -> None:
    """Rename staged files into place and clear the list. Those that are in place already are skipped. OSError."""
    for ino in inos:
        with contextlib.suppress(FileNotFoundError):
            backing.replace(ino, os.path.join(backing.staging, f"{ino:x}"), "swap:rename")
        _set_times(names, backing, ino)
    for ino in inos:
        backing.sync_name(ino)
    names.clear_swaps()


def _set_times(names: Namespace, backing: Backing, ino: Ino) -> None:
    """Set the times of the row on a file that was swapped, or whose times alone change."""
    inode = names.inode(ino)
    with contextlib.suppress(FileNotFoundError), backing.changing(ino), backing.descriptors.borrow(ino) as fd:
        os.utime(fd, ns=(inode.ctime_ns, inode.mtime_ns))
        backing.disk.fsync("swap:times", fd)
