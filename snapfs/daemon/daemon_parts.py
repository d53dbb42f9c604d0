"""The parts of a mounted volume, built from the bottom up: each is complete when it is constructed.

The order, where an arrow means "is given to":

    mount_parts.py     reader, kernel, unsettled, fence switch  ->  flusher, stale pages, reclaimer  ->  flush
    snapshot_parts.py  throttle, flush, seal                    ->  snapshotter
    here               snapshotter                              ->  upkeep, fence, hydration, rollback
                       all of these  ->  control service  ->  virtual nodes  ->  operations  ->  session

Two things come late, each by one object that is built first: the descriptor and the router, which the session gets from
the kernel (`Kernel.connect`, `RequestReader.connect`), because pyfuse3 must have its operations before it mounts; and
the subscribers of a sealed snapshot (`SealedEvents`), because the upkeep works with the snapshotter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from snapfs.base import systemd
from snapfs.base.writer_id import writer_id_of
from snapfs.control.audit_keeper import AuditKeeper
from snapfs.control.command_state import LastError
from snapfs.control.groups.group_member import GroupMember
from snapfs.control.service import ControlService
from snapfs.control.service_parts import Progress, ServiceParts
from snapfs.daemon.kernel_cache import KernelCache
from snapfs.daemon.mount_parts import MountParts, OpenVolume
from snapfs.daemon.snapshot_parts import SnapshotParts
from snapfs.fuse.handlers.handler_context import HandlerContext, ReadOnlySwitch
from snapfs.fuse.kernel.fuse_protocol import Flag
from snapfs.fuse.kernel.request_reader import RequestReader, unique
from snapfs.fuse.session.operations import Operations
from snapfs.fuse.session.session import Session, data_path
from snapfs.fuse.virtual.browse import Browser
from snapfs.fuse.virtual.virtual_nodes import VirtualNodes
from snapfs.store.log.replica_state import ReplicaReader
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.failover.fence import Fence, FenceContext
from snapfs.transfer.lazy.snapshot_hold import SnapshotHold
from snapfs.transfer.repair.scheduled_verify import ScheduledVerify
from snapfs.transfer.retention.expiry import Keeping
from snapfs.transfer.retention.group_reasons import group_reasons
from snapfs.transfer.retention.protection import replicated_reasons
from snapfs.transfer.seal.upkeep import Upkeep

if TYPE_CHECKING:
    from snapfs.transfer.lazy.background_hydration import Hydration

QUIET_FENCE_SECONDS = 5.0
"""On a quiet mount, whether another host writes is looked at so often, and when a request comes."""


class DaemonParts:
    """Builds and mounts; `stack` closes what it opened. Not to be called where trio runs: mounting takes a run of trio.

    Raises SnapfsError for what stops the mount: nothing is mounted then.
    """

    def __init__(self, opened: OpenVolume, stack: ExitStack) -> None:
        self._opened = opened
        request, repository, tree = opened.request, opened.repository, opened.tree
        mount = self.mount = MountParts(opened)
        snapshots = self.snapshots = SnapshotParts(opened, mount)
        browser = Browser(repository, lambda error: snapshots.metrics.damaged_reads.inc())
        self.kernel_cache = KernelCache(mount.kernel, mount.stale_pages, tree, browser, mount.reader.idleness)
        self.reasons = (replicated_reasons(request.volume),)
        self.rule_reasons = (*self.reasons, group_reasons(repository, request.volume.volume_id))
        keeping = Keeping.of(request.volume.config)
        self.upkeep = Upkeep(
            repository, snapshots.snapshotter, keeping, self.rule_reasons, self.kernel_cache.forget_snapshot
        )
        self.verification = ScheduledVerify(request.volume, repository, tree, snapshots.snapshotter, request.disk)
        self.absent_hold = SnapshotHold(tree.names, repository)
        self.last_error = LastError()
        self._read_only = ReadOnlySwitch(mount.reader, snapshots.throttle.lift)
        self.fence = self._make_fence()
        self.hydration = self._make_hydration()
        self.groups = GroupMember(snapshots.snapshotter, mount.gate, snapshots.metrics.group_pause.observe)
        self.service = ControlService(self._service_parts())
        predecessors = opened.handle.number if opened.handle is not None else 0
        virtual = VirtualNodes(self.service, browser, mount.fence_switch, time.time_ns(), predecessors)
        self.operations = Operations(tree, virtual, mount.reader, self._handler_context())
        self.session = open_session(opened, self.operations, mount.reader)
        stack.callback(self.session.close)
        self.audit = AuditKeeper(request.volume.config.audit, request.volume.path, repository, snapshots.replicas)
        snapshots.sealed.subscribe(self._sealed)
        snapshots.sealed.subscribe(self.audit.wake)
        if self.fence.refuses or request.refuse_changes:
            self._read_only.turn_on()

    @property
    def is_busy(self) -> bool:
        """Whether something is under way without requests, after which there is housekeeping to do."""
        return self.snapshots.snapshotter.busy or (self.hydration is not None and self.hydration.is_under_way)

    def stop(self) -> None:
        """The session is over: give up work in the background at its next step."""
        self.upkeep.stop()
        self.verification.stop()
        if self.hydration is not None:
            self.hydration.stop()

    def _make_fence(self) -> Fence:
        opened, volume = self._opened, self._opened.request.volume
        context = FenceContext(
            volume.path, opened.repository, self.snapshots.snapshotter, ReplicaReader(volume.path, volume.volume_id),
            opened.request.disk, writer_id_of(volume.path), self.mount.flush, opened.tree.has_changes,
            self._read_only.turn_on, self.last_error.record, self._pause_fence,
        )  # fmt: skip
        return Fence(volume.config.replication, context)

    async def _pause_fence(self, seconds: float) -> None:
        await self.mount.reader.idleness.pause(seconds, QUIET_FENCE_SECONDS)

    def _make_hydration(self) -> Hydration | None:
        attachment, requests = self._opened.attachment, self.mount.reader.requests
        if attachment is None:
            return None
        from snapfs.transfer.lazy.background_hydration import Hydration  # most volumes are complete

        settings = self._opened.request.volume.config.hydration
        return Hydration(attachment, self._opened.tree, settings, lambda: sum(requests.values()))

    def _service_parts(self) -> ServiceParts:
        opened, snapshots, reader = self._opened, self.snapshots, self.mount.reader
        handle = opened.handle
        return ServiceParts(
            volume=opened.request.volume, mountpoint=opened.request.mountpoint, tree=opened.tree,
            repository=opened.repository, snapshotter=snapshots.snapshotter, metrics=snapshots.metrics, reader=reader,
            recovered=snapshots.recovered, throttle=snapshots.throttle, lookout=snapshots.lookout,
            cadence=snapshots.cadence, fence=self.fence, hydration=self.hydration, last_error=self.last_error,
            supervisor=lambda: handle.supervisor if handle is not None else None,
            predecessors=handle.number if handle is not None else 0,
            data_path=lambda: data_path(reader, opened.tree), unique=unique, verification=self.verification,
            reasons=self.reasons, rule_reasons=self.rule_reasons, dropped=self._dropped, roll_back=self._roll_back,
            groups=self.groups,
        )  # fmt: skip

    def _handler_context(self) -> HandlerContext:
        mount = self.mount
        return HandlerContext(
            unique, self.snapshots.request_throttle, mount.flush, self._read_only, mount.kernel, mount.stale_pages,
            mount.unsettled, mount.reclaimer, mount.no_suid_files,
        )  # fmt: skip

    def _sealed(self, record: SnapshotRecord) -> None:
        self._opened.tree.tidy()
        self.mount.reader.idleness.end()
        self.upkeep.wake()
        systemd.notify(f"STATUS=snapshot {record.number} sealed")

    async def _dropped(self, record: SnapshotRecord) -> None:
        await self.kernel_cache.forget_snapshot(record)
        self.upkeep.wake(dropped=1)

    async def _roll_back(
        self, target: SnapshotRecord, force: bool, progress: Progress, source: Repository | None = None
    ) -> Mapping[str, Any]:
        from snapfs.fuse.session.mounted_rollback import MountedRollback  # hardly ever needed

        opened, mount = self._opened, self.mount
        rollback = MountedRollback(
            opened.tree, opened.repository, self.snapshots.snapshotter, mount.reader, mount.unsettled,
            mount.no_suid_files, opened.request.disk,
            mountpoint=opened.request.mountpoint, kernel=mount.kernel, unique=unique, flush=mount.flush,
            bump_generation=opened.request.volume.bump_generation, threads=self.snapshots.seal.threads,
            source=source,
        )  # fmt: skip
        return await rollback.run(target, force=force, progress=progress)


def open_session(opened: OpenVolume, operations: Operations, reader: RequestReader) -> Session:
    """Mount, or adopt what a supervisor holds. It is left to hold what is mounted where that can be adopted."""
    request, handle = opened.request, opened.handle
    if handle is not None and handle.held is not None:
        held = handle.held
        return Session.adopt(
            operations, request.mountpoint, held.device, held.init, reader=reader, flags=Flag(held.flags)
        )
    session = Session.mount(
        operations, request.mountpoint, request.options(), reader=reader, nonempty=request.nonempty,
        first_at=request.first_at,
    )  # fmt: skip
    if handle is not None and session.router is not None and session.flags & Flag.HAS_RESEND:
        handle.hold(session.device, session.saved_init, int(session.flags))
    return session
