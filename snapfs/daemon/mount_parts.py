"""What stands between the kernel and the live tree of a volume, below its snapshots and the handlers of requests."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapfs.base.blocks import Ino, SnapshotNumber
from snapfs.daemon.mount_request import MountRequest
from snapfs.daemon.supervision import asleep
from snapfs.daemon.supervision.daemon_handle import DaemonHandle
from snapfs.fuse.handlers.handler_context import no_suid_files
from snapfs.fuse.handlers.reclaimer import Reclaimer
from snapfs.fuse.kernel.cut_gate import CutGate
from snapfs.fuse.kernel.notices import Kernel
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.kernel.stale_pages import StalePages
from snapfs.fuse.kernel.writeback import Flusher, Unsettled
from snapfs.fuse.session.adopted_pages import drop_all
from snapfs.fuse.session.mount_flush import MountFlush
from snapfs.fuse.session.notice_helper import NoticeHelper
from snapfs.fuse.virtual.control_nodes import FenceSwitch
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository

if TYPE_CHECKING:
    from snapfs.transfer.lazy.attachment import Attachment


@dataclass(frozen=True, slots=True)
class OpenVolume:
    """What is to be served: the request, the opened volume, and the way to the supervisor, if there is one."""

    request: MountRequest
    repository: Repository
    tree: LiveTree
    attachment: Attachment | None
    handle: DaemonHandle | None

    def newest(self) -> SnapshotNumber:
        """The number of the newest snapshot, 0 if there is none."""
        latest = self.repository.latest()
        return latest.number if latest is not None else SnapshotNumber(0)


class MountParts:
    """Each is complete when constructed; the session connects `kernel` and `reader` when it has the descriptor."""

    def __init__(self, opened: OpenVolume) -> None:
        tree, handle = opened.tree, opened.handle
        self.reader = RequestReader(runs_first=opened.request.volume.config.mount.priority == "realtime")
        self.kernel = Kernel(NoticeHelper(asleep.program) if handle is not None else None)
        self.fence_switch = FenceSwitch()
        self.unsettled = Unsettled()
        go_through_all = functools.partial(drop_all, tree, self.kernel, opened.request.mountpoint)
        self.stale_pages = StalePages(self.kernel, tree.lost_writes, go_through_all)
        self.reclaimer = Reclaimer(tree)
        self.no_suid_files = no_suid_files(tree, self.reader)
        self.flusher = Flusher(
            opened.request.mountpoint, self.fence_switch, self.unsettled,
            lambda: tree.adopted or bool(tree.open_for_writing()), self.reader.catch_up,
            outside=handle.helper.flush if handle is not None else None,
        )  # fmt: skip
        self.gate = CutGate(
            self.reader, self.unsettled, self.flusher, self.kernel, tree.open_for_writing, lambda: tree.adopted,
            runs_first=opened.request.volume.config.mount.priority == "realtime",
        )  # fmt: skip
        self.flush = MountFlush(self.flusher, self.stale_pages, self.reclaimer)

    def show_again(self, inos: list[Ino]) -> None:
        """Have the kernel read these files again."""
        for ino in inos:
            self.stale_pages.mark(ino)
