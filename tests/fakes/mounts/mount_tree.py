"""The least that mounts a live tree: `mount_tree.py FOLDER MOUNTPOINT`. Without snapshots; served until unmounted.

For tests of the operations alone. It prints "mounted" when the kernel has its answer to INIT.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import trio

from snapfs.base.blocks import Disk
from snapfs.fuse.kernel.fuse_mount import MountOptions
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.session.operations import Operations
from snapfs.fuse.session.session import Session
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

HOUSEKEEPING_SECONDS = 1.0
_CLOCK_REALTIME_COARSE = 5  # of <linux/time.h>


def kernel_time_ns() -> int:
    """The clock that the kernel stamps with; a finer one would be ahead of the times it sends us afterwards."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


async def keep_house(tree: LiveTree) -> None:
    while True:
        await trio.sleep(HOUSEKEEPING_SECONDS)
        tree.tidy()
        await trio.to_thread.run_sync(tree.sync_soon)


async def serve(session: Session, tree: LiveTree) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_house, tree)
        print("mounted", flush=True)
        await session.serve()
        nursery.cancel_scope.cancel()


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    folder, mountpoint = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    names = Namespace(f"{folder}/namespace.db", Disk(), kernel_time_ns)
    tree = LiveTree(folder, names, Disk(), boot_id=boot_id, clock=kernel_time_ns)
    reader = RequestReader()
    operations = Operations(tree, None, reader)
    session = Session.mount(operations, mountpoint, MountOptions.usual(folder), reader=reader)
    trio.run(serve, session, tree)
    session.close()
    tree.check_invariants()
    tree.close()


if __name__ == "__main__":
    main()
