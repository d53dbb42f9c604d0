"""The kernel's cache of a mount whose earlier daemon died, and may have lost writes: made equal to the live tree.

What an earlier daemon knew of pages that it could not store is gone with it. So the kernel drops the pages of every
file that it knows, dirty ones being written first; and a file that it takes for longer than the live tree gets that
length (lost_writes.py). A file that grows meanwhile gets it a little before its bytes. Only where the room for cached
pages was given up, so not after every death of a daemon.
"""

from __future__ import annotations

import contextlib
import logging

from snapfs.base.blocks import Ino
from snapfs.fuse.kernel.kernel_sizes import KernelSizes
from snapfs.fuse.kernel.notices import Kernel
from snapfs.live.tree import LiveTree

log = logging.getLogger(__name__)


def drop_all(tree: LiveTree, kernel: Kernel, mountpoint: str) -> None:
    """Go through all files. A worker thread, while requests are served: waits for the writing of dirty pages."""
    with tree.names.view() as names:
        known = kernel.forget_pages(names.regular_inodes())
    log.info("the kernel dropped the pages of %d files: an earlier daemon may have found no room for some", len(known))
    with contextlib.suppress(OSError), KernelSizes(mountpoint) as sizes:  # it may be detached from its mountpoint
        for ino in known:
            _match_length(tree, sizes, ino)
    tree.lost_writes.all_dropped()


def _match_length(tree: LiveTree, sizes: KernelSizes, ino: Ino) -> None:
    size = sizes.of(ino)
    if size is not None:
        tree.lost_writes.lengthen(ino, size)
