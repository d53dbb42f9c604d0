"""The daemon: opens one volume, mounts it, serves it, and takes it apart in order.

Invariants:
1. The volume is locked before anything in it is opened, and unlocked after everything is closed.
2. The parts are opened and built in one order (`_open`, daemon_parts.py) and closed in the reverse, whatever fails.
3. `ready` is called once, when the mount answers a stat(2), or never: what went wrong before is raised by `run`.
4. One nursery holds every task. The end of the mount ends the nursery; what follows is in ending.py.
5. With a supervisor (supervisor.py) the death of a daemon, between the first reply and the end of the mount, is not
   the end of the mount: the next daemon adopts it, and goes on with what the kernel holds.

A kill at any point leaves what recovery resolves at the next start: the live tree's by `LiveTree`, the store's by
`Repository.open`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack

import trio

from snapfs.base import systemd
from snapfs.base.errors import SnapfsError
from snapfs.daemon.daemon_parts import DaemonParts
from snapfs.daemon.ending import Ending, final_snapshot
from snapfs.daemon.fuse_abort import abort_connection
from snapfs.daemon.housekeeping import HostWatch, sync_periodically
from snapfs.daemon.mount_parts import OpenVolume
from snapfs.daemon.mount_request import MountRequest
from snapfs.daemon.succession import obey
from snapfs.daemon.supervision import daemon_progress
from snapfs.daemon.supervision.daemon_handle import ENDED, READY, DaemonHandle
from snapfs.daemon.supervision.signals import EarlySignals
from snapfs.daemon.volume_opening import open_attachment, open_repository, open_tree
from snapfs.transfer.lazy.hot_list import HotKeeper

log = logging.getLogger(__name__)

Ready = Callable[[list[str]], None]
"""Called with what was recovered, one line each, when the mount answers."""

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread that computes may keep the interpreter from the one that answers requests. Measured while 400 MB
were sealed by one thread, stat(2) on the mount: p99 0.9 ms with this, 1.7 ms with 2 ms; 0.05 ms made the seals' many
hand-overs cost the requests more than they gained."""
_M_ARENA_MAX = -8  # of malloc.h


def run(request: MountRequest, ready: Ready, handle: DaemonHandle | None = None) -> None:
    """Mount the volume and serve it until it is unmounted. Blocks; one run a process.

    `handle`: the way to the supervisor, which then holds the lock. Raises SnapfsError for what stops the mount;
    nothing is mounted then, unless another daemon may adopt it.
    """
    early = EarlySignals()
    early.listen()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    _use_one_arena()
    with ExitStack() as stack:
        _take_volume(request, handle)
        stack.callback(request.volume.unlock)
        if (handle is None or handle.held is None) and "ro" not in request.restrictions:
            _claim(request)
        daemon = Daemon(_open(request, stack, handle), stack)
        gc.collect()
        gc.freeze()
        trio.run(daemon.main, ready, early)


def _claim(request: MountRequest) -> None:
    """Be the writer at the targets that the volume has."""
    if not request.volume.config.replication.target:
        return
    from snapfs.transfer.failover import writer_claims  # brings HTTP along

    for line in writer_claims.claim(request.volume, request.disk):
        log.warning("%s", line)


def _take_volume(request: MountRequest, handle: DaemonHandle | None) -> None:
    """Lock the volume; or, after another daemon, read its settings again and make sure that one is gone."""
    if handle is None:
        request.volume.lock(f"mounted at {request.mountpoint}")
    elif handle.held is not None:
        request.volume.reload_identity()
        if handle.predecessor:
            abort_connection(handle.held.device, handle.predecessor)


def _use_one_arena() -> None:
    """One malloc arena for all threads. With glibc's arena for each thread, what the sealer's threads freed was never
    given out again: after 480 snapshots 409 MB were resident, with one arena 161 MB, from the first on.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _open(request: MountRequest, stack: ExitStack, handle: DaemonHandle | None) -> OpenVolume:
    """Open the volume; `stack` closes in reverse what was opened."""
    volume, disk = request.volume, request.disk
    repository = open_repository(volume, disk)
    stack.callback(repository.close)
    attachment = open_attachment(volume, repository, disk)
    if attachment is not None:
        stack.callback(attachment.close)
    tree = open_tree(volume, disk, repository, attachment, adopting=handle is not None and handle.held is not None)
    stack.callback(tree.close)
    if not tree.adopted:
        tree.names.reply_cache.forget()
    elif tree.names.reply_cache.is_kernel_stale:
        raise SnapfsError("the daemon died while it rolled the volume back: unmount it and mount it again")
    return OpenVolume(request, repository, tree, attachment, handle)


class Daemon:
    """Serves an opened volume."""

    def __init__(self, opened: OpenVolume, stack: ExitStack) -> None:
        """Builds everything and mounts; `stack` closes it. Raises as `run`."""
        self._opened = opened
        self._parts = DaemonParts(opened, stack)

    async def main(self, ready: Ready, early: EarlySignals) -> None:
        """Serve until the mount is gone."""
        opened, parts = self._opened, self._parts
        for line in parts.snapshots.recovered:
            log.warning("recovered: %s", line)
        async with trio.open_nursery() as nursery:
            self._start_ending(nursery, early)
            nursery.start_soon(self._announce, ready)
            self._start_housekeeping(nursery)
            self._start_snapshots(nursery)
            self._start_succession(nursery)
            await parts.session.serve()
            if opened.handle is not None:
                opened.handle.report(ENDED)
            log.info("%s is unmounted", opened.request.mountpoint)
            parts.stop()
            nursery.cancel_scope.cancel()
        systemd.notify("STOPPING=1")
        await final_snapshot(opened.tree, parts.snapshots.snapshotter, opened.request.volume.config.snapshots)

    def _start_ending(self, nursery: trio.Nursery, early: EarlySignals) -> None:
        mount, snapshots = self._parts.mount, self._parts.snapshots
        ending = Ending(self._parts.session, mount.flusher, mount.flush, snapshots.throttle, snapshots.snapshotter)
        nursery.start_soon(ending.end_on_signals, early)

    async def _announce(self, ready: Ready) -> None:
        volume, mountpoint = self._opened.request.volume, self._opened.request.mountpoint
        self._parts.mount.flusher.learn_device(self._opened.request.first_at)
        done = "served again" if self._opened.tree.adopted else "mounted"
        log.info("%s is %s at %s", volume.path, done, mountpoint)
        systemd.notify("READY=1")
        ready(self._parts.snapshots.recovered)
        if self._opened.handle is not None:
            self._opened.handle.report(READY)

    def _start_housekeeping(self, nursery: trio.Nursery) -> None:
        opened, parts, volume = self._opened, self._parts, self._opened.request.volume
        idleness = parts.mount.reader.idleness
        watch = HostWatch(volume.path, opened.tree, parts.snapshots.snapshotter, parts.last_error, idleness)
        nursery.start_soon(idleness.run, parts.session.router, lambda: parts.is_busy)
        nursery.start_soon(
            sync_periodically, opened.tree, volume.config.live, parts.absent_hold, parts.upkeep, idleness.pause
        )
        nursery.start_soon(watch.run)
        nursery.start_soon(parts.mount.reclaimer.run)
        nursery.start_soon(parts.kernel_cache.run)
        nursery.start_soon(parts.upkeep.run)
        nursery.start_soon(parts.audit.run)
        nursery.start_soon(parts.verification.run, idleness.pause)
        nursery.start_soon(HotKeeper(opened.tree, volume.path, opened.request.disk, idleness.pause).run)
        if parts.hydration is not None:
            nursery.start_soon(parts.hydration.run)

    def _start_snapshots(self, nursery: trio.Nursery) -> None:
        parts, snapshots = self._parts, self._parts.snapshots
        nursery.start_soon(snapshots.snapshotter.finish_hooks)
        nursery.start_soon(parts.groups.run)
        nursery.start_soon(snapshots.snapshotter.run_policy, snapshots.cadence, parts.mount.reader.idleness.pause)
        nursery.start_soon(parts.snapshots.throttle.run)
        nursery.start_soon(parts.fence.run)

    def _start_succession(self, nursery: trio.Nursery) -> None:
        handle, parts, tree = self._opened.handle, self._parts, self._opened.tree
        if handle is not None:
            nursery.start_soon(obey, handle, parts.mount.reader, parts.snapshots.snapshotter, tree)
            nursery.start_soon(
                daemon_progress.watch, self._counters(), handle.report, parts.mount.reader.idleness.pause
            )

    def _counters(self) -> list[daemon_progress.Counter]:
        """What grows while this daemon makes progress."""
        opened, parts = self._opened, self._parts
        reader, operations = parts.mount.reader, parts.operations
        return [
            lambda: daemon_progress.answered(reader.counts(), reader.in_flight, operations.virtual_requests),
            opened.newest,
            lambda: parts.snapshots.seal.further,
            lambda: parts.service.commands_ended,
            lambda: opened.tree.hydrated_bytes,
        ]
