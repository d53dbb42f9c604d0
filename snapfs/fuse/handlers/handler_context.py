"""What handlers share with the other parts of a daemon. Each is built before the handlers, and complete by then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from snapfs.fuse.handlers.no_suid_files import NoSuidFiles
from snapfs.fuse.handlers.reclaimer import Reclaimer
from snapfs.fuse.kernel.notices import Kernel
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.fuse.kernel.stale_pages import StalePages
from snapfs.fuse.kernel.writeback import Unsettled
from snapfs.live.tree import LiveTree
from snapfs.transfer.failover.replication_throttle import ReplicationThrottle


class ReadOnlySwitch:
    """Whether changes are refused: another host writes this volume, or its user wants none. Never turned off again."""

    def __init__(self, reader: RequestReader, lift: Callable[[], None] = lambda: None) -> None:
        """`lift`: releases requests that are held for replication, which then fail instead of waiting for ever."""
        self._reader, self._lift = reader, lift
        self._is_on = False

    @property
    def is_on(self) -> bool:
        return self._is_on

    def turn_on(self) -> None:
        """From now on every request that would change something is EROFS. The trio thread, or before it runs."""
        self._is_on = True
        self._reader.refuse_changes()
        self._lift()


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """`unique`: the number of the request that the present task handles, 0 where that cannot be known.

    `throttle`: what slows changes down where replication is bounded. `write_back`: has the kernel write its pages back,
    and returns when they are in the live tree. `unsettled`: changes that wait, on which a flush before a cut waits.
    """

    unique: Callable[[], int]
    throttle: ReplicationThrottle | None
    write_back: Callable[[], Awaitable[None]] | None
    read_only: ReadOnlySwitch
    kernel: Kernel
    stale_pages: StalePages
    unsettled: Unsettled
    reclaimer: Reclaimer
    no_suid_files: NoSuidFiles


def no_suid_files(tree: LiveTree, reader: RequestReader) -> NoSuidFiles:
    """The set that is kept by the router too, if that writes to the live tree by itself."""
    return NoSuidFiles(lambda: reader.router if tree.native is not None else None)


def standalone(tree: LiveTree, reader: RequestReader, unique: Callable[[], int] = lambda: 0) -> HandlerContext:
    """The context of a mounted live tree without snapshots and replication."""
    kernel = Kernel()
    stale_pages = StalePages(kernel, tree.lost_writes, tree.lost_writes.all_dropped)
    return HandlerContext(
        unique, None, None, ReadOnlySwitch(reader), kernel, stale_pages, Unsettled(), Reclaimer(tree),
        no_suid_files(tree, reader),
    )  # fmt: skip
