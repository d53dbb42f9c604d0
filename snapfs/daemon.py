"""The daemon: wires the parts of one mounted volume together, serves it, and takes it apart in order.

Invariants:
1. The volume is locked before anything in it is opened, and unlocked after everything is closed.
2. The parts are made in the order of `_assemble` and closed in the reverse, whatever fails.
3. `ready` is called once the mount answers a stat(2), or never: what went wrong before is raised by `run`.
4. One nursery holds every task. The mount's end, by whomever, ends the nursery; a final snapshot, if wanted, comes
   after it and before the live tree is closed, when nothing can change any more.
5. SIGTERM and SIGINT unmount. Who still uses the mount gets a moment; then it is detached and the session ended. A
   second signal ends everything at the next safe point.

6. With a supervisor (supervisor.py) a death between the first answer and the end of the mount is not the end of it:
   the next daemon adopts the mount, and goes on with what the kernel holds.

A kill at any point leaves what recovery sorts out at the next start: the live tree's by `LiveTree`, the store's by
`Repository.open`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import sdnotify
import trio

from snapfs.blocks import Disk, SnapshotNumber
from snapfs.burial import bury
from snapfs.errors import BusyError, CorruptionError, SnapfsError, UserError
from snapfs.fuse import notices
from snapfs.fuse.browse import Browser
from snapfs.fuse.mounting import MountOptions
from snapfs.fuse.nodes import ControlNode, control_node
from snapfs.fuse.operations import Operations
from snapfs.fuse.protocol import Flag
from snapfs.fuse.reader import RequestReader, unique
from snapfs.fuse.rollback import MountedRollback
from snapfs.fuse.service import Parts, Service
from snapfs.fuse.session import Session
from snapfs.fuse.virtual import VirtualNodes
from snapfs.fuse.writeback import Flusher
from snapfs.live import recovery
from snapfs.live.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.metrics import Metrics
from snapfs.signals import ENDING, EarlySignals
from snapfs.store.replicas import ReplicaReader
from snapfs.store.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.snapshot import SnapshotTree
from snapfs.supervisor import Life
from snapfs.transfer import claiming, parentage
from snapfs.transfer.attachment import Attachment
from snapfs.transfer.fencing import Fence, Surroundings
from snapfs.transfer.hot import HotKeeper
from snapfs.transfer.hydration import Hydration
from snapfs.transfer.hydrator import StoreSource
from snapfs.transfer.keeping import AbsentHold
from snapfs.transfer.replication import Tether, snapshot_settings
from snapfs.transfer.sealer import seal
from snapfs.transfer.snapshotter import Snapshotter
from snapfs.transfer.sources import holder_name
from snapfs.transfer.upkeep import Upkeep
from snapfs.volume import Volume, boot_id

log = logging.getLogger(__name__)

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread that computes may keep the interpreter from the one that answers requests. Measured while 400 MB
were sealed by one thread, stat(2) on the mount: p99 0.9 ms with this, 1.7 ms with 2 ms; 0.05 ms made the seals' many
hand-overs cost the requests more than they gained."""
UNMOUNT_GRACE_SECONDS = 5.0
FINISH_SECONDS = 30.0
FORGET_SECONDS = 0.5
LEAVE_SECONDS = 0.5
"""What a snapshot on its way, and then the requests that are being answered, get before an upgrade."""
_LEAVE_POLL_SECONDS = 0.002
_RETRY_SECONDS = 0.2
_M_ARENA_MAX = -8  # of malloc.h
_CLOCK_REALTIME_COARSE = 5  # of linux/time.h; the time module does not name it


@dataclass(slots=True)
class MountRequest:
    """What to mount where. `allow_other` None: as the volume's settings say.

    `restrictions`: any of nodev, nosuid, noexec, beyond those that hold for the user anyway.
    """

    volume: Volume
    mountpoint: str
    allow_other: bool | None = None
    nonempty: bool = False
    restrictions: frozenset[str] = frozenset()
    disk: Disk = field(default_factory=Disk)


def run(request: MountRequest, ready: Callable[[list[str]], None], life: Life | None = None) -> None:
    """Mount the volume and serve it until it is unmounted. `ready(recovered)` is called when the mount answers.

    `life`: what a supervisor says of us, which holds the lock. Blocks. Raises SnapfsError for what stops the mount;
    nothing is mounted then, unless another may adopt it. One run a process.
    """
    early = EarlySignals()
    early.listen()
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    _keep_memory_together()
    with ExitStack() as stack:
        if life is None:
            request.volume.lock(f"mounted at {request.mountpoint}")
        elif life.held is not None:
            request.volume.look_again()
            if life.undead:
                bury(life.held.device, life.undead)
        stack.callback(request.volume.unlock)
        if life is None or life.held is None:
            for line in claiming.claim(request.volume, request.disk):
                log.warning("%s", line)
        daemon = _assemble(request, stack, life)
        gc.collect()
        gc.freeze()
        trio.run(daemon.main, ready, early)


def _keep_memory_together() -> None:
    """One malloc arena for all threads. With glibc's arena for each thread that comes by, what the sealer's threads
    freed was never given out again: after 480 snapshots 409 MB were resident, with one arena 161 MB, from the first on.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _assemble(request: MountRequest, stack: ExitStack, life: Life | None) -> Daemon:
    """Open every part; `stack` closes them in reverse."""
    volume, disk = request.volume, request.disk
    repository = _open_repository(volume, disk)
    stack.callback(repository.close)
    attachment = Attachment.of(volume, repository, disk)
    if attachment is not None:
        stack.callback(attachment.close)
    tree = open_tree(volume, disk, repository, attachment, adopting=life is not None and life.held is not None)
    stack.callback(tree.close)
    if not tree.adopted:
        tree.names.answers.forget()
    elif tree.names.answers.in_turn:
        raise SnapfsError("the daemon died while it rolled the volume back: unmount it and mount it again")
    return Daemon(request, repository, tree, stack, attachment, life)


def _open_repository(volume: Volume, disk: Disk) -> Repository:
    volume.check_folders()
    identity = StoreIdentity(volume.volume_id, volume.seed)
    if not os.listdir(volume.store_dir):
        Repository.create(volume.store_dir, identity, disk).close()
    return Repository.open(volume.store_dir, identity, disk, cache_bytes=int(volume.config.seal.cache))


def open_tree(
    volume: Volume, disk: Disk, repository: Repository, attachment: Attachment | None = None, *, adopting: bool = False
) -> LiveTree:
    """The live tree, with its namespace, which it closes. `attachment`: where the volume's past still is.

    `adopting`: see LiveTree. CorruptionError if what it was is gone: a new one is made only for a new volume. A full
    disk is no obstacle as long as some of the room is left that is kept for that.
    """
    Namespace.give_room(volume.namespace_path, if_needed=True)
    while True:
        try:
            return _open_tree(volume, disk, repository, attachment, adopting)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not Namespace.give_room(volume.namespace_path):
                raise


def _open_tree(
    volume: Volume, disk: Disk, repository: Repository, attachment: Attachment | None, adopting: bool
) -> LiveTree:
    settings = volume.config.live
    if recovery.has_lost_names(volume.live_dir, has_past=bool(repository.snapshots())):
        if not os.listdir(volume.live_dir):
            raise UserError(
                f"{volume.path} is a history without a live tree: `snapfs mount --from {volume.path} NEW_VOLUME "
                "MOUNTPOINT` makes a volume of it"
            )
        raise CorruptionError("the namespace", volume.namespace_path, "it is missing")
    namespace = Namespace(volume.namespace_path, disk, kernel_time_ns)
    try:
        return LiveTree(
            volume.live_dir, namespace, disk,
            boot_id=boot_id(), max_open_files=settings.max_open_files,
            max_dirty_files=settings.max_dirty_files, source=attachment.source() if attachment else _source(repository),
            clock=kernel_time_ns, adopting=adopting,
            data_path="" if settings.data_path == "auto" else settings.data_path,
        )  # fmt: skip
    except BaseException:
        namespace.close()
        raise


def _source(repository: Repository) -> StoreSource | None:
    """Where the bytes of absent files come from; any snapshot's page cache does for reading them."""
    record = repository.latest_good()
    return StoreSource(repository, SnapshotTree(repository, record.root)) if record else None


def kernel_time_ns() -> int:
    """The clock that the kernel stamps files with, so that its times and ours are never a tick apart."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class Daemon:
    """A mounted volume."""

    def __init__(
        self,
        request: MountRequest,
        repository: Repository,
        tree: LiveTree,
        stack: ExitStack,
        attachment: Attachment | None = None,
        life: Life | None = None,
    ) -> None:
        self._life = life
        self._volume = request.volume
        self._mountpoint = request.mountpoint
        self._disk = request.disk
        self._tree = tree
        self._repository = repository
        self._metrics = Metrics()
        self._browser = Browser(repository, lambda error: self._metrics.damaged_reads.inc())
        parent, started_over = _parent_of(tree, repository)
        self._snapshotter = Snapshotter(
            tree, repository, self._seal, self._flush, self._metrics,
            parent=parent, generation=self._volume.generation, sealed=self._after_snapshot,
        )  # fmt: skip
        recovered = [*repository.recovered, *tree.recovered, *started_over]
        replication = self._volume.config.replication
        self._tether = Tether(
            replication, ReplicaReader(self._volume.path, self._volume.volume_id), self._newest, tree.has_changes
        )
        parts = Parts(
            self._volume, self._mountpoint, tree, repository, self._snapshotter, self._metrics, recovered,
            self._dropped, self._roll_back, tether=self._tether, unique=unique,
        )  # fmt: skip
        self._absent_hold = AbsentHold(tree.names, repository)
        self._upkeep = Upkeep(repository, self._snapshotter, self._volume.config.snapshots.keep, self._forget_snapshot)
        self._recovered = recovered
        self._service = Service(parts)
        if life is not None:
            self._service.supervisor, self._service.daemons_before = life.supervisor, life.number
        self._virtual = VirtualNodes(self._service, self._browser, time.time_ns(), life.number if life else 0)
        reader = self._reader = RequestReader()
        self._metrics.requests = reader.counts
        self._metrics.latencies = reader.latencies
        self._hydration: Hydration | None = None
        if attachment is not None:
            settings = self._volume.config.hydration
            self._hydration = Hydration(attachment, tree, settings, lambda: sum(reader.requests.values()))
            self._service.hydration = self._hydration
        self._operations = Operations(tree, self._virtual, reader)
        self._operations.tether = self._tether if replication.mode == "bounded" else None
        self._flusher = Flusher(
            self._mountpoint, self._virtual.fence, self._operations.unsettled,
            lambda: tree.adopted or bool(tree.open_for_writing()), reader.catch_up,
        )  # fmt: skip
        self._operations.unique = unique
        if life is not None:
            self._flusher.outside = life.helper.flush
        self._session = self._open_session(request)
        stack.callback(self._session.close)
        self._session.answer_from(self._operations)
        self._service.data_path = self._session.data_path()
        if self._session.router is not None:
            self._tether.on_pace = self._session.router.slow
        self._fence = self._service.fence = self._make_fence()
        if self._fence.refuses:
            self._refuse_changes()

    def _open_session(self, request: MountRequest) -> Session:
        """Mount, or adopt what a supervisor holds. It is left to hold what we mount where that can be adopted."""
        life = self._life
        if life is not None and life.held is not None:
            held = life.held
            return Session.adopt(
                self._operations, self._mountpoint, held.device, held.init, reader=self._reader, flags=Flag(held.flags)
            )
        session = Session.mount(
            self._operations, self._mountpoint, _options(request), reader=self._reader, nonempty=request.nonempty
        )
        if life is not None and session.router is not None and session.flags & Flag.HAS_RESEND:
            life.hold(session.device, session.saved_init, int(session.flags))
        return session

    def _make_fence(self) -> Fence:
        volume = self._volume
        around = Surroundings(
            volume.path, self._repository, self._snapshotter, ReplicaReader(volume.path, volume.volume_id), self._disk,
            holder_name(volume.path), self._flush, self._tree.has_changes, self._refuse_changes, self._service.failed,
        )  # fmt: skip
        return Fence(volume.config.replication, around)

    def _refuse_changes(self) -> None:
        """From now on nothing may change. What is held for replication fails instead of waiting for it for ever."""
        self._operations.read_only = True
        if self._session.router is not None:
            self._session.router.refuse(True)
        self._tether.lift()

    async def _show_what_is_kept(self) -> None:
        """Let the kernel forget pages whose writing was refused: they are nowhere but there."""
        while True:
            await trio.sleep(FORGET_SECONDS)
            refused, self._operations.refused = self._operations.refused, set()
            for ino in refused:
                await trio.to_thread.run_sync(_forget_pages, self._session.device, ino)

    # -- how the parts reach each other

    def _newest(self) -> SnapshotNumber:
        latest = self._repository.latest()
        return latest.number if latest is not None else SnapshotNumber(0)

    async def _flush(self) -> None:
        await self._flusher.flush()

    def _seal(self, *arguments: object, **keywords: object) -> SnapshotRecord:
        window_bytes = int(self._volume.config.seal.window)
        return seal(*arguments, **keywords, threads=self._threads, window_bytes=window_bytes)  # type: ignore[arg-type]

    @property
    def _threads(self) -> int:
        return self._volume.config.seal.threads or max(1, min(4, (os.cpu_count() or 1) // 4))

    async def _roll_back(
        self, target: SnapshotRecord, force: bool, progress: Callable[[int, int], None]
    ) -> Mapping[str, Any]:
        rollback = MountedRollback(
            self._tree, self._repository, self._snapshotter, self._operations, self._disk,
            mountpoint=self._mountpoint, device=self._session.device,
            bump_generation=self._volume.bump_generation, threads=self._threads,
        )  # fmt: skip
        return await rollback.run(target, force=force, flush=self._flush, progress=progress)

    def _after_snapshot(self, record: SnapshotRecord) -> None:
        self._tree.tidy()
        self._upkeep.wake()
        _notify(f"STATUS=snapshot {record.number} sealed")

    async def _dropped(self, record: SnapshotRecord) -> None:
        await self._forget_snapshot(record)
        self._upkeep.wake(dropped=1)

    async def _forget_snapshot(self, record: SnapshotRecord) -> None:
        """A snapshot was dropped: neither we nor the kernel show it any more."""
        self._browser.forget_all()
        for name in (str(record.number), record.name):
            if name is not None:
                encoded = name.encode(errors="surrogateescape")
                await trio.to_thread.run_sync(_forget_entry, self._session.device, encoded)

    # -- its life

    async def main(self, ready: Callable[[list[str]], None], early: EarlySignals) -> None:
        """Serve until the mount is gone."""
        for line in self._recovered:
            log.warning("recovered: %s", line)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_on_signals, early)
            nursery.start_soon(self._announce, ready)
            nursery.start_soon(self._sync_periodically)
            config = self._volume.config
            nursery.start_soon(
                self._snapshotter.run_policy, snapshot_settings(config.snapshots, config.replication)
            )
            nursery.start_soon(self._tether.run)
            nursery.start_soon(self._fence.run)
            nursery.start_soon(self._show_what_is_kept)
            nursery.start_soon(self._upkeep.run)
            nursery.start_soon(HotKeeper(self._tree, self._volume.path).run)
            if self._hydration is not None:
                nursery.start_soon(self._hydration.run)
            if self._life is not None:
                nursery.start_soon(self._hear, self._life)
            await self._session.serve()
            if self._life is not None:
                self._life.say("ended")
            log.info("%s is unmounted", self._mountpoint)
            self._upkeep.stop()
            if self._hydration is not None:
                self._hydration.stop()
            nursery.cancel_scope.cancel()
        _notify("STOPPING=1")
        await self._final_snapshot()

    async def _announce(self, ready: Callable[[list[str]], None]) -> None:
        self._flusher.learn_device()
        done = "served again" if self._tree.adopted else "mounted"
        log.info("%s is %s at %s", self._volume.path, done, self._mountpoint)
        _notify("READY=1")
        ready(self._recovered)
        if self._life is not None:
            self._life.say("ready")

    async def _sync_periodically(self) -> None:
        interval_s = float(self._volume.config.live.wal_sync_interval) or 1.0
        while True:
            await trio.sleep(interval_s)
            try:
                self._tree.tidy()
                if self._absent_hold.look():
                    self._upkeep.wake()
                await trio.to_thread.run_sync(self._tree.sync_soon)
            except OSError as error:
                log.error("the namespace could not be written to the disk: %s", error)

    async def _final_snapshot(self) -> None:
        settings = self._volume.config.snapshots
        if settings.on_unmount and (self._tree.has_changes() or not settings.skip_unchanged):
            with contextlib.suppress(OSError, SnapfsError):  # told and counted; the changes are in the live tree
                await self._snapshotter.snapshot(None, "unmount", flush=False)

    # -- its supervisor

    async def _hear(self, life: Life) -> None:
        """Do what the supervisor asks for."""
        await trio.lowlevel.wait_readable(life.channel)
        if life.heard() == "leave":
            log.info("handing the mount over to another daemon")
            await self._finish_work()
            self._reader.hold()
            with trio.move_on_after(LEAVE_SECONDS):
                while self._reader.in_flight:
                    await trio.sleep(_LEAVE_POLL_SECONDS)
            with contextlib.suppress(OSError):
                self._tree.hand_over()
            life.say("left")
            os._exit(0)  # what is still unanswered comes again, to the next daemon
        log.warning("the supervisor is gone: from here on the mount ends with this daemon")
        self._service.supervisor = None

    async def _finish_work(self) -> None:
        """Let a snapshot on its way be finished. One that takes longer is made anew by the next daemon."""
        with trio.move_on_after(FINISH_SECONDS):
            async with self._snapshotter.turn():
                pass

    # -- its end

    async def _end_on_signals(self, early: EarlySignals) -> None:
        with trio.open_signal_receiver(*ENDING) as signals:
            early.raise_again()
            async with trio.open_nursery() as nursery:
                async for number in signals:
                    log.info("stopping: %s", signal.Signals(number).name)
                    self._tether.lift()
                    nursery.start_soon(self._unmount)
                    break
                async for number in signals:
                    log.warning("stopping at once: %s", signal.Signals(number).name)
                    self._snapshotter.stop()
                    nursery.start_soon(self._detach)

    async def _unmount(self) -> None:
        """Unmount; who still uses the mount gets a moment, and is then left behind."""
        with trio.move_on_after(UNMOUNT_GRACE_SECONDS):
            while await self._in_use():
                await trio.sleep(_RETRY_SECONDS)
            return
        log.warning("%s is still in use: detaching it; its users will see errors", self._mountpoint)
        try:
            await self._flush()
        except OSError as error:
            log.error("the last writes could not be flushed: %s", error)
        await self._detach()

    async def _detach(self) -> None:
        """End the session whoever uses the mount. What of our own waits for its answers is let finish first."""
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


def _parent_of(tree: LiveTree, repository: Repository) -> tuple[SnapshotRecord | None, list[str]]:
    """The snapshot to build on, and what is to be told of it."""
    try:
        parent, said = parentage.parent_of(tree, repository)
    except BusyError as error:
        return repository.latest(), [f"{parentage.mistrust(tree, repository)}, and {error}"]
    return parent, [said] if said else []


def _forget_entry(device: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):  # the kernel does not know it
        notices.invalidate_entry(device, control_node(ControlNode.SNAPSHOTS), name)


def _forget_pages(device: int, ino: int) -> None:
    with contextlib.suppress(OSError):  # the kernel does not know it, or the mount is gone
        notices.invalidate_inode(device, ino)


def _options(request: MountRequest) -> MountOptions:
    wanted = request.volume.config.mount.allow_other if request.allow_other is None else request.allow_other
    usual = MountOptions.usual(request.volume.path, allow_other=None if wanted == "auto" else bool(wanted))
    refused = request.restrictions
    return replace(
        usual,
        dev=usual.dev and "nodev" not in refused,
        suid=usual.suid and "nosuid" not in refused,
        noexec="noexec" in refused,
    )


def _notify(state: str) -> None:
    """Tell systemd, where it listens."""
    if "NOTIFY_SOCKET" in os.environ:
        sdnotify.SystemdNotifier().notify(state)
