"""The present state of a mounted volume as values of metrics, under the names of base/counting/metrics.py.

Invariant: reading them costs no I/O, and takes no lock that requests wait for.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Mapping

from snapfs.base.schedule.objectives import ObjectiveState
from snapfs.control.service_parts import ServiceParts
from snapfs.control.status_report import StatusReport
from snapfs.store.gates.gates import drill_time_ns
from snapfs.store.repository.repository import Event

_PAGE_BYTES = resource.getpagesize()


def present(parts: ServiceParts, report: StatusReport) -> Mapping[str, float]:
    """Values by metric. The trio thread."""
    return {
        **_of_tree(parts),
        **_of_snapshots(parts, report),
        **_of_replication(parts),
        **_of_disk(parts),
        **_of_drill(parts.repository.catalog.last_drill),
        **_of_verification(parts.repository.catalog.whole_pass_ns),
        **_of_objectives(parts),
        "snapfs_resident_memory_bytes": resident_bytes(),
        "snapfs_fenced": report.fenced() is not None,
        "snapfs_drill_overdue_seconds": report.drill_overdue_s(),
        "snapfs_verify_overdue_seconds": report.verify_overdue_s(),
    }


def _of_tree(parts: ServiceParts) -> dict[str, float]:
    tree = parts.tree
    values: dict[str, float] = {
        "snapfs_epoch": tree.names.epoch,
        "snapfs_dirty_files": tree.dirty_files,
        "snapfs_dirty_bytes": tree.dirty_bytes,
        "snapfs_absent_files": tree.names.absent_count(),
        "snapfs_hydrated_bytes_total": tree.hydrated_bytes,
        "snapfs_wal_bytes": tree.names.wal_bytes(),
        "snapfs_preserved_bytes": tree.preserved_bytes,
        "snapfs_preserve_copied_bytes": tree.copied_bytes,
        "snapfs_copied_aside_bytes": tree.copied_bytes,
        "snapfs_open_files": tree.open_backing_files,
        "snapfs_hydrated_files": tree.hydrated_files,
        "snapfs_hydrated_bytes": tree.hydrated_bytes,
        "snapfs_host_refuses": tree.health.refusal != 0,
    }
    values.update((f"snapfs_host_{act}_errors", count) for act, count in tree.health.failures.items())
    return values


def _of_snapshots(parts: ServiceParts, report: StatusReport) -> dict[str, float]:
    snapshotter, latest, now_ns = parts.snapshotter, parts.repository.latest(), time.time_ns()
    failing = snapshotter.failing
    values: dict[str, float] = {
        "snapfs_generation": snapshotter.generation,
        "snapfs_snapshots": len(parts.repository.catalog),
        "snapfs_damaged_snapshots": parts.repository.catalog.damaged_count,
        "snapfs_last_snapshot_timestamp_seconds": latest.cut_time_ns / 1e9 if latest else 0,
        "snapfs_snapshot_overdue_seconds": report.overdue_s(),
        "snapfs_snapshot_failing_seconds": failing.seconds(now_ns) if failing is not None else 0.0,
        "snapfs_seal_running": snapshotter.running is not None,
    }
    if latest is not None:
        values["snapfs_last_snapshot_age_seconds"] = (now_ns - latest.cut_time_ns) / 1e9
    return values


def _of_replication(parts: ServiceParts) -> dict[str, float]:
    if not parts.lookout.targets():
        return {}
    return {
        "snapfs_replication_agent_up": parts.lookout.report(time.time_ns()).holds,
        "snapfs_replication_exposed_seconds": parts.throttle.exposed_s(),
        "snapfs_replication_held_fsyncs": parts.throttle.held,
    }


def _of_disk(parts: ServiceParts) -> dict[str, float]:
    values: dict[str, float] = {"snapfs_store_bytes": parts.repository.index.size_bytes()}
    with contextlib.suppress(OSError):
        room = parts.tree.statfs()
        values["snapfs_host_available_bytes"] = room.f_bavail * room.f_frsize
        values["snapfs_host_size_bytes"] = room.f_blocks * room.f_frsize
    values["snapfs_live_limit_bytes"], values["snapfs_live_limited_bytes"] = parts.tree.size_limit
    return values


def _of_drill(drill: Event | None) -> dict[str, float]:
    """Of what a later version recorded only what is a number counts."""
    if drill is None:
        return {}
    passed, recovery_s = drill.fields.get("passed") is True, drill.fields.get("recovery_s")
    time_s = drill_time_ns(drill.time_ns, drill.fields) / 1e9
    values: dict[str, float] = {"snapfs_drill_timestamp_seconds": time_s, "snapfs_drill_passed": passed}
    if isinstance(recovery_s, int | float):
        values["snapfs_drill_recovery_seconds"] = recovery_s
    return values


def _of_verification(whole_pass_ns: int) -> dict[str, float]:
    return {"snapfs_verify_timestamp_seconds": whole_pass_ns / 1e9} if whole_pass_ns else {}


def _of_objectives(parts: ServiceParts) -> dict[str, float]:
    facts = parts.cadence.facts()
    policy, objectives = facts["policy"], facts["objectives"]
    values: dict[str, float] = {"snapfs_seal_share": policy["seal_share"]}
    if objectives["rto_s"] is not None:
        values["snapfs_rto_seconds"] = objectives["rto_s"]
    if objectives["rpo_s"] is not None:
        state = objectives["rpo_state"]
        values |= {
            "snapfs_rpo_seconds": objectives["rpo_s"],
            "snapfs_rpo_age_seconds": objectives["age_s"],
            "snapfs_rpo_expected_age_seconds": objectives["expected_age_s"],
            "snapfs_rpo_met": state != ObjectiveState.MISSED.value,
            "snapfs_rpo_at_risk": state in (ObjectiveState.AT_RISK.value, ObjectiveState.MISSED.value),
        }
    return values


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
