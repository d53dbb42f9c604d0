"""The parts of a daemon that its control service shows and works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapfs.base.counting.metrics import Metrics
from snapfs.base.volumes.volume import Volume
from snapfs.control.command_state import LastError
from snapfs.control.groups.group_member import GroupMember
from snapfs.fuse.kernel.request_reader import RequestReader
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.failover.fence import Fence
from snapfs.transfer.failover.replication_throttle import ReplicationThrottle
from snapfs.transfer.failover.target_watch import Lookout
from snapfs.transfer.repair.scheduled_verify import ScheduledVerify
from snapfs.transfer.retention.protection import Reasons
from snapfs.transfer.seal.cadence import Cadence
from snapfs.transfer.seal.snapshotter import Snapshotter

if TYPE_CHECKING:
    from snapfs.transfer.lazy.background_hydration import Hydration

Progress = Callable[[int, int], None]
"""Called with bytes done and the total known so far."""


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """`recovered`: what the start had to repair, one line each. `hydration`: None if no file of the volume is absent.

    `supervisor`: its process, None while the mount ends with this daemon; `predecessors`: how many daemons served the
    mount before. `data_path`: see mount_status.py. `unique`: the number of the request that is being handled.
    `reasons`: what keeps snapshots from being dropped, besides holds; `rule_reasons`: from going by a rule.
    `dropped(record)` is awaited after a snapshot was dropped.
    `roll_back(target, force, progress, source)` holds no lock: the caller has the snapshotter's. `source`: the store
    of the fork that the target is a snapshot of.
    """

    volume: Volume
    mountpoint: str
    tree: LiveTree
    repository: Repository
    snapshotter: Snapshotter
    metrics: Metrics
    reader: RequestReader
    recovered: list[str]
    throttle: ReplicationThrottle
    lookout: Lookout
    cadence: Cadence
    fence: Fence
    hydration: Hydration | None
    verification: ScheduledVerify
    last_error: LastError
    supervisor: Callable[[], int | None]
    predecessors: int
    data_path: Callable[[], Mapping[str, Any]]
    unique: Callable[[], int]
    reasons: tuple[Reasons, ...]
    rule_reasons: tuple[Reasons, ...]
    dropped: Callable[[SnapshotRecord], Awaitable[None]]
    groups: GroupMember
    roll_back: Callable[[SnapshotRecord, bool, Progress, Repository | None], Awaitable[Mapping[str, Any]]]

    def newest(self) -> int:
        """The number of the newest snapshot, 0 if there is none."""
        latest = self.repository.latest()
        return latest.number if latest is not None else 0
