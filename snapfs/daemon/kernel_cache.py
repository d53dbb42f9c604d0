"""What the kernel keeps of the mount and has to drop because it is not so any more, beyond what requests change."""

from __future__ import annotations

import contextlib

import trio

from snapfs.fuse.kernel.idleness import Idleness
from snapfs.fuse.kernel.notices import Kernel, about_entry
from snapfs.fuse.kernel.stale_pages import StalePages
from snapfs.fuse.nodes.node_ids import ControlNode, control_node
from snapfs.fuse.virtual.browse import Browser
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import SnapshotRecord

LOOK_SECONDS = 0.5


class KernelCache:
    """Invalidates the kernel's cache of one mount. Lives in the trio thread; the notices are written in others."""

    def __init__(
        self, kernel: Kernel, stale_pages: StalePages, tree: LiveTree, browser: Browser, idleness: Idleness
    ) -> None:
        self._idleness = idleness
        self._kernel, self._stale_pages = kernel, stale_pages
        self._tree, self._browser = tree, browser

    async def run(self) -> None:
        """Drop pages whose writing was refused, and files whose sizes or times the kernel read wrong. For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drop_marked)
            nursery.start_soon(self._look)

    async def _drop_marked(self) -> None:
        while True:
            await self._stale_pages.wait()
            await self._stale_pages.drop()

    async def _look(self) -> None:
        """For losses whose mark did not come, as those of a daemon that died, and for files that were read wrong."""
        while True:
            await self._idleness.pause(LOOK_SECONDS)
            await self._stale_pages.drop()
            if misread := self._tree.take_misread():
                from snapfs.fuse.session.mounted_rollback import forget_files  # hardly ever needed

                with contextlib.suppress(OSError):  # the mount is gone
                    await trio.to_thread.run_sync(forget_files, self._kernel, misread, self._tree.names)

    async def forget_snapshot(self, record: SnapshotRecord) -> None:
        """A snapshot was dropped: neither the browser nor the kernel shows it any more."""
        self._browser.forget_all()
        shown = (
            name.encode(errors="surrogateescape") for name in (str(record.number), record.name) if name is not None
        )
        folder = control_node(ControlNode.SNAPSHOTS)
        await trio.to_thread.run_sync(self._kernel.forget, [about_entry(folder, name) for name in shown])
