"""What makes snapshots of a mounted live tree, and follows how they are replicated."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from snapfs.base.blocks import Disk
from snapfs.base.boot import boot_id
from snapfs.base.counting.metrics import Metrics
from snapfs.base.errors import BusyError
from snapfs.base.schedule.objectives import Reach
from snapfs.base.volumes.volume import Volume
from snapfs.daemon.mount_parts import MountParts, OpenVolume
from snapfs.live.cut import Cut
from snapfs.live.tree import LiveTree
from snapfs.store.log.replica_state import ReplicaReader
from snapfs.store.repair.suspects import has_suspects
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.consistency.hook_note import HookNote
from snapfs.transfer.consistency.hooks import Hooks
from snapfs.transfer.failover.replication_throttle import ReplicationThrottle, snapshot_settings
from snapfs.transfer.failover.target_watch import Lookout
from snapfs.transfer.seal import base_snapshot
from snapfs.transfer.seal.cadence import Cadence, Replicas
from snapfs.transfer.seal.seal_attempts import Attempts, fitting_window, memory_limit_bytes
from snapfs.transfer.seal.sealer import seal
from snapfs.transfer.seal.snapshot_failures import Failing
from snapfs.transfer.seal.snapshotter import Snapshotter


class SealedEvents:
    """Calls its subscribers with each snapshot that is sealed, in the order in which they subscribed.

    It is built before the snapshotter, which announces, so that subscribers may be built from the snapshotter.
    """

    def __init__(self) -> None:
        self._subscribers: list[Callable[[SnapshotRecord], None]] = []

    def subscribe(self, subscriber: Callable[[SnapshotRecord], None]) -> None:
        """`subscriber` is called in the trio thread, and does not wait."""
        self._subscribers.append(subscriber)

    def announce(self, record: SnapshotRecord) -> None:
        for subscriber in self._subscribers:
            subscriber(record)


class MeasuredSeal:
    """Seals with the threads and the memory that are there, and counts attempts over deaths of the daemon."""

    def __init__(self, volume: Volume, repository: Repository, tree: LiveTree, disk: Disk) -> None:
        self._settings, self._repository = volume.config.seal, repository
        self._attempts = Attempts(tree.live_dir, boot_id(), disk)
        self.failing = Failing(tree.live_dir, disk)
        """Since when snapshots fail; a seal over which the daemon died is a failure too."""
        self.failing.died(self._attempts.begun_ns())

    def __call__(self, cut: Cut, *arguments: object, **keywords: object) -> SnapshotRecord:
        """As `sealer.seal`: the cut is finished when this returns or raises. Blocks: for a worker thread."""
        try:
            window_bytes = fitting_window(int(self._settings.window), memory_limit_bytes())
            with self._attempts.attempt(self._repository.sealing.unfinished_bytes()):
                return seal(cut, *arguments, **keywords, threads=self.threads, window_bytes=window_bytes)  # type: ignore[arg-type]
        except BaseException:
            cut.finish(False)  # an attempt that is refused does not reach the sealer, which does it otherwise
            raise

    @property
    def threads(self) -> int:
        return self._settings.threads or max(1, min(4, (os.cpu_count() or 1) // 4))

    @property
    def further(self) -> int:
        """Grows when a seal got further than the one over which a predecessor died."""
        return self._attempts.further


class SnapshotParts:
    """Each is complete when constructed; `sealed` takes subscribers until the daemon serves."""

    def __init__(self, opened: OpenVolume, mount: MountParts) -> None:
        volume, tree, repository = opened.request.volume, opened.tree, opened.repository
        replication, before_bytes = volume.config.replication, opened.tree.dirty_bytes
        is_bounded, self._copies = replication.mode == "bounded", replication.copies
        self.metrics = Metrics()
        self.replicas = ReplicaReader(volume.path, volume.volume_id)
        self.lookout = Lookout(volume, repository, self.replicas)
        self.throttle = ReplicationThrottle(
            replication, self.replicas, opened.newest, tree.has_changes, targets=self.lookout.targets,
            written=lambda: before_bytes + tree.written_bytes, on_pace=mount.reader.slow,
        )  # fmt: skip
        self.request_throttle = self.throttle if is_bounded else None
        """What requests wait for, if for anything."""
        self.seal = MeasuredSeal(volume, repository, tree, opened.request.disk)
        self.sealed = SealedEvents()
        environment = {"SNAPFS_VOLUME": volume.path, "SNAPFS_MOUNTPOINT": opened.request.mountpoint}
        note = HookNote(tree.live_dir, opened.request.disk)
        self.hooks = Hooks(volume.config.hooks, note, environment, self.metrics.hook_held.observe)
        parent, remarks = parent_of(tree, repository)
        self.recovered = [*repository.recovered, *tree.recovered, *remarks]
        self.snapshotter = Snapshotter(
            tree, repository, self.seal, mount.flush, self.metrics,
            parent=parent, generation=volume.generation, sealed=self.sealed.announce,
            wants_cut=self.throttle.wants_cut if is_bounded else None,
            written=lambda: before_bytes + tree.written_bytes, compared=mount.show_again,
            repaired=partial(repair_parent, repository, tree), failing=self.seal.failing, hooks=self.hooks,
            exclude=volume.config.snapshots.exclude,
        )  # fmt: skip
        self.cadence = self._make_cadence(opened)
        self.sealed.subscribe(self._sealed)

    def _make_cadence(self, opened: OpenVolume) -> Cadence:
        config, latest = opened.request.volume.config, opened.repository.latest()
        before_bytes, tree = opened.tree.dirty_bytes, opened.tree
        return Cadence(
            snapshot_settings(config.snapshots, config.replication), tree, config.objectives, config.seal,
            written=lambda: before_bytes + tree.written_bytes,
            replicas=Replicas(self._newest_replicated, self.throttle.exposed_s, self._reach),
            newest_cut_ns=latest.cut_time_ns if latest is not None else None,
        )  # fmt: skip

    def _newest_replicated(self) -> int:
        found = self.replicas.look()
        return found.newest_on(self._copies) if found is not None else 0

    def _reach(self) -> Reach:
        standings = self.lookout.standings()
        silent = [
            f"{each.name} is {each.words}{f' ({each.why})' if each.why else ''}"
            for each in standings
            if not each.answers
        ]
        return Reach(len(standings), len(standings) - len(silent), self._copies, "; ".join(silent))

    def _sealed(self, record: SnapshotRecord) -> None:
        cut = self.snapshotter.last_cut
        self.throttle.sealed(record.number, cut.written_bytes, record.stats.stored_bytes)
        self.cadence.sealed(record.number, cut, record.stats.stored_bytes)


def parent_of(tree: LiveTree, repository: Repository) -> tuple[SnapshotRecord | None, list[str]]:
    """The snapshot to build on, and remarks about it, one line each."""
    try:
        parent, remark = base_snapshot.parent_of(tree, repository)
    except BusyError as error:
        return repository.latest(), [f"{base_snapshot.mistrust(tree, repository)}, and {error}"]
    return parent, [remark] if remark else []


def repair_parent(repository: Repository, tree: LiveTree, parent: SnapshotRecord) -> bool:
    """Repair what is known to be damaged of a parent; False if the next snapshot must not build on it. Blocks."""
    if repository.lazy is not None or not has_suspects(repository.store_dir):
        return True
    from snapfs.transfer.repair.repair import repair_suspects  # hardly ever needed, and long to import

    return repair_suspects(repository, parent, tree)
