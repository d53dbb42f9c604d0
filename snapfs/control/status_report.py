"""The status of a mounted volume, put together from its parts. The fields are described in mount_status.py.

Invariants:
1. Everything is read from memory, so a status costs no I/O and waits for nothing. Two exceptions: how this host became
   the writer, for which the whole snapshot log is read, once, and the folders of stray files.
2. A disk that fails makes no status fail: what is read from it is then what was known before.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

from snapfs import __version__
from snapfs.base.schedule.drill_times import drill_overdue_s
from snapfs.base.schedule.rules import overdue_s
from snapfs.base.schedule.verify_times import verify_overdue_s
from snapfs.base.settings import calendar_times
from snapfs.base.settings.config import encode as encode_config
from snapfs.base.volumes.fork_file import read_fork
from snapfs.control import mount_status
from snapfs.control.command_state import BusyWork
from snapfs.control.service_parts import ServiceParts
from snapfs.live.recovery import stray_files
from snapfs.store.gates.gates import drill_facts, drill_time_ns
from snapfs.transfer.seal.running_snapshot import SnapshotFailure


class StatusReport:
    """Reports on the parts of one daemon. Lives in the trio thread."""

    def __init__(self, parts: ServiceParts, busy: BusyWork) -> None:
        self._parts, self._busy = parts, busy
        self._start_time_ns = time.time_ns()
        self._created_ns = parts.repository.created_ns
        self._zone = calendar_times.local_zone()
        self._stray = list[dict[str, Any]]()
        self._fork = mount_status.fork_facts(read_fork(parts.volume.path))
        self._takeover: dict[str, Any] | None = None
        self._takeover_is_known = parts.volume.generation == 1  # there was none

    def facts(self) -> dict[str, Any]:
        """The fields of `.snapfs/status`, in the order of mount_status.py."""
        groups = (self._of_daemon(), self._of_changes(), self._of_snapshots(), self._of_host(), self._of_replication())
        return {name: value for group in groups for name, value in group.items()}

    def _of_daemon(self) -> dict[str, Any]:
        parts = self._parts
        return {
            "version": __version__,
            "pid": os.getpid(),
            "supervisor": parts.supervisor(),
            "daemons_before": parts.predecessors,
            "start_time_ns": self._start_time_ns,
            "volume": parts.volume.path,
            "volume_id": parts.volume.volume_id,
            "mountpoint": parts.mountpoint,
            "fork": self._fork,
            "data_path": parts.data_path(),
        }

    def _of_changes(self) -> dict[str, Any]:
        tree = self._parts.tree
        return {
            "generation": self._parts.snapshotter.generation,
            "epoch": tree.names.epoch,
            "dirty": {"files": tree.dirty_files, "bytes": tree.dirty_bytes},
        }

    def _of_snapshots(self) -> dict[str, Any]:
        repository, snapshotter = self._parts.repository, self._parts.snapshotter
        drill = repository.catalog.last_drill
        return {
            "snapshots": len(repository.catalog),
            "damaged_snapshots": repository.catalog.damaged_count,
            "last_snapshot": mount_status.last_snapshot(repository.latest(), time.time_ns()),
            "overdue_s": round(self.overdue_s(), 3),
            **self._parts.cadence.facts(),
            "snapshot_failing": snapshotter.failing.facts() if snapshotter.failing is not None else None,
            "sealing": mount_status.sealing(snapshotter.running, time.monotonic()),
            "busy": mount_status.busy(self._busy.what, self._busy.bytes),
            "hooks": snapshotter.hooks.facts() if snapshotter.hooks is not None else None,
            "drill": drill_facts(drill.time_ns, drill.fields) if drill is not None else None,
            "verify": self._parts.verification.facts(),
            "cut_pause_s": mount_status.pauses(snapshotter.pauses_s),
            "last_error": mount_status.failure(self._newest_error()),
        }

    def _of_host(self) -> dict[str, Any]:
        tree = self._parts.tree
        with contextlib.suppress(OSError):
            self._stray = [each.facts() for each in stray_files.kept(tree.live_dir)]
        return {
            "host": mount_status.host(tree.health),
            "recovered": self._parts.recovered,
            "stray_files": self._stray,
            "aside": self._stray,  # the name until 0.1; goes with 0.3
            "hydration": self._hydration(),
        }

    def _of_replication(self) -> dict[str, Any]:
        parts = self._parts
        return {
            "replication": {**parts.throttle.facts(), **parts.lookout.facts()},
            "fenced": self.fenced(),
            "taken_over": self._taken_over(),
            "settings": encode_config(parts.volume.config),
        }

    def fenced(self) -> Mapping[str, Any] | None:
        """Which host writes this volume in our place; None while this one does."""
        return self._parts.fence.facts()

    def overdue_s(self) -> float:
        """How long a snapshot is due that was not made: seals fail, or the daemon dies before they end."""
        parts, latest = self._parts, self._parts.repository.latest()
        since_ns = latest.cut_time_ns if latest is not None else self._created_ns
        changed = parts.tree.has_changes() or parts.snapshotter.running is not None
        rpo_s = float(parts.cadence.objectives.rpo)
        return overdue_s(parts.cadence.settings, (time.time_ns() - since_ns) / 1e9, changed, rpo_s)

    def drill_overdue_s(self) -> float:
        """How late a drill is that the settings ask for."""
        repository = self._parts.repository
        drill, settings = repository.catalog.last_drill, self._parts.volume.config.drill
        last_s = drill_time_ns(drill.time_ns, drill.fields) / 1e9 if drill is not None else 0.0
        return drill_overdue_s(settings, last_s, self._created_ns / 1e9, time.time(), self._zone)

    def verify_overdue_s(self) -> float:
        """How late a pass over all of the store is that the settings ask for."""
        repository, settings = self._parts.repository, self._parts.volume.config.verify
        last_s = repository.catalog.whole_pass_ns / 1e9
        return verify_overdue_s(settings, last_s, self._created_ns / 1e9, time.time())

    def _taken_over(self) -> dict[str, Any] | None:
        if not self._takeover_is_known:  # no takeover is recorded while we serve
            with contextlib.suppress(OSError):
                self._takeover, self._takeover_is_known = mount_status.taken_over(self._parts.repository.events()), True
        return self._takeover

    def _hydration(self) -> dict[str, Any]:
        hydration = self._parts.hydration
        more = hydration.facts() if hydration is not None else {}
        return {"absent_files": self._parts.tree.names.absent_count()} | more

    def _newest_error(self) -> SnapshotFailure | None:
        both = (self._parts.last_error.failure, self._parts.snapshotter.last_error)
        known = [error for error in both if error is not None]
        return max(known, key=lambda error: error.time_ns, default=None)
