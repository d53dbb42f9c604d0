"""The end of a mount: by signals, by an unmount, with a last snapshot.

Invariants:
1. SIGTERM and SIGINT unmount. Processes that still use the mount get a moment; then it is detached and the session
   ended. A second signal ends everything at the next safe point.
2. The last snapshot comes after the session and before the live tree is closed, when nothing can change any more.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from functools import partial

import trio

from snapfs.base.errors import BusyError, SnapfsError, UserError
from snapfs.base.settings.volume_settings import SnapshotSettings
from snapfs.daemon.supervision.signals import ENDING, EarlySignals
from snapfs.fuse.kernel.writeback import Flusher
from snapfs.fuse.session.mount_flush import MountFlush
from snapfs.fuse.session.session import Session
from snapfs.live.tree import LiveTree
from snapfs.transfer.failover.replication_throttle import ReplicationThrottle
from snapfs.transfer.seal.snapshotter import Snapshotter

log = logging.getLogger(__name__)

UNMOUNT_GRACE_SECONDS = 5.0
_RETRY_SECONDS = 0.2


class Ending:
    """Ends one session. Lives in the trio thread."""

    def __init__(
        self,
        session: Session,
        flusher: Flusher,
        flush: MountFlush,
        throttle: ReplicationThrottle,
        snapshotter: Snapshotter,
    ) -> None:
        self._session, self._flusher, self._flush = session, flusher, flush
        self._throttle, self._snapshotter = throttle, snapshotter

    async def end_on_signals(self, early: EarlySignals) -> None:
        """Unmount at the first signal, and detach at the next. `early`: those that came before this runs."""
        with trio.open_signal_receiver(*ENDING) as signals:
            early.raise_again()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    log.info("stopping: %s", signal.Signals(number).name)
                    self._throttle.lift()
                    nursery.start_soon(self._unmount)
                    break
                async for number in signals:
                    log.warning("stopping at once: %s", signal.Signals(number).name)
                    self._snapshotter.stop()
                    nursery.start_soon(self._detach)

    async def _unmount(self) -> None:
        """Unmount; processes that still use the mount get a moment, and errors after it."""
        with trio.move_on_after(UNMOUNT_GRACE_SECONDS):
            while await self._in_use():
                await trio.sleep(_RETRY_SECONDS)
            await trio.sleep_forever()  # the session ends now, and this with it, unless the volume is mounted elsewhere
        log.warning("%s is still in use, or mounted elsewhere: its users will see errors", self._session.mountpoint)
        try:
            await self._flush()
        except OSError as error:
            log.error("the last writes could not be flushed: %s", error)
        await self._detach()

    async def _detach(self) -> None:
        """End the session although the mount is in use. A flush of our own that waits for replies finishes first."""
        await trio.to_thread.run_sync(partial(self._try_unmount, lazy=True))
        await self._flusher.close()
        self._session.stop()

    async def _in_use(self) -> bool:
        return not await trio.to_thread.run_sync(self._try_unmount)

    def _try_unmount(self, lazy: bool = False) -> bool:
        try:
            self._session.unmount(lazy=lazy)
        except BusyError:
            return False
        except UserError as error:
            log.warning("%s", error)
        return True


async def final_snapshot(tree: LiveTree, snapshotter: Snapshotter, settings: SnapshotSettings) -> None:
    """Make the snapshot at the unmount, if there is to be one. A failure is logged; the live tree has the changes."""
    if settings.on_unmount and (tree.has_changes() or not settings.skip_unchanged):
        with contextlib.suppress(OSError, SnapfsError):
            await snapshotter.snapshot(None, "unmount", flush=False)
