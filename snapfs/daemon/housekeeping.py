"""What a daemon does from time to time: tidy the live tree and make it durable, and watch the host's filesystem."""

from __future__ import annotations

import logging
import os

import trio

from snapfs.base import systemd
from snapfs.base.settings.volume_settings import LiveSettings
from snapfs.control.command_state import LastError
from snapfs.fuse.kernel.idleness import Idleness, Pause
from snapfs.live.tree import LiveTree
from snapfs.transfer.lazy.snapshot_hold import SnapshotHold
from snapfs.transfer.seal.snapshotter import Snapshotter
from snapfs.transfer.seal.upkeep import Upkeep

log = logging.getLogger(__name__)

HOST_LOOK_SECONDS = 0.5
"""Between two looks at the host's filesystem: each opens a file of it, and writes nothing."""
QUIET_LOOK_SECONDS = 10.0
"""The same while the mount is quiet: no request meets the failure meanwhile."""


async def sync_periodically(
    tree: LiveTree, settings: LiveSettings, absent_hold: SnapshotHold, upkeep: Upkeep, pause: Pause
) -> None:
    """Make what was answered durable once in an interval; release snapshots that no absent file needs any more."""
    interval_s = float(settings.wal_sync_interval) or 1.0
    while True:
        await pause(interval_s)
        try:
            tree.tidy()
            if absent_hold.look():
                upkeep.wake()
            await trio.to_thread.run_sync(tree.lost_writes.keep_room)
            await trio.to_thread.run_sync(tree.sync_soon)
        except OSError as error:
            log.error("the namespace could not be written to the disk: %s", error)


class HostWatch:
    """Reports at once when the host's filesystem fails, and has what it may have lost compared. The trio thread."""

    def __init__(
        self, volume: str, tree: LiveTree, snapshotter: Snapshotter, last_error: LastError, idleness: Idleness
    ) -> None:
        self._idleness = idleness
        self._filesystem = f"the host's filesystem under {volume}"
        self._health, self._snapshotter, self._last_error = tree.health, snapshotter, last_error
        self._logged = 0

    async def run(self) -> None:
        """Watch, for ever."""
        while True:
            if await trio.to_thread.run_sync(self._health.look, abandon_on_cancel=True):
                self._report(self._health.refusal)
            self._log_failures()
            if self._health.is_suspect:
                try:
                    await self._snapshotter.compare_suspects()
                except OSError as error:
                    log.error("what the host may have lost could not be noted yet: %s", error)
            await self._idleness.pause(HOST_LOOK_SECONDS, QUIET_LOOK_SECONDS)

    def _log_failures(self) -> None:
        count, last = sum(self._health.failures.values()), self._health.last
        if count != self._logged and last is not None:
            self._logged = count
            log.error("the host's filesystem failed at a %s: %s", last.act, os.strerror(last.errno))

    def _report(self, refusal: int) -> None:
        """`refusal`: the errno with which the filesystem cannot be written to; 0: it can be again."""
        if not refusal:
            log.warning("%s can be written to again", self._filesystem)
            return
        text = (
            f"{self._filesystem} refuses to be written to ({os.strerror(refusal)}): it shut down or became read-only "
            "after an error; unmount this volume, then check and mount that filesystem again"
        )
        log.critical("%s", text)
        self._last_error.record("host", text, refusal)
        systemd.notify(f"STATUS={text}")
