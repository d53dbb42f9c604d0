"""What is measured, under names that dashboards can rely on.

This file owns the registry of one volume: every metric's name, unit, labels and buckets. The code that does the work
counts it here; a present state (sizes, ages) is computed at each scrape, through a function that the daemon injects.

Invariants:
1. Base units (seconds, bytes); a counter's name ends in `_total`. A name, once released, keeps its meaning.
2. Nothing is global: two volumes in one process do not mix.
3. A scrape costs no I/O and takes no lock that the application's requests wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from snapfs.base.counting.exposition import Counter, Family, Histogram, one_sample_each, render
from snapfs.base.settings.policy import POLICY_TRIGGERS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PAUSE_BUCKETS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 1.0)
_SEAL_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

TRIGGERS = ("control", *POLICY_TRIGGERS, "pressure", "rollback", "unmount", "fenced")

GAUGES = {
    "snapfs_generation": "The generation that writes.",
    "snapfs_epoch": "The current epoch; each cut begins the next.",
    "snapfs_dirty_files": "Files with changes that no snapshot has.",
    "snapfs_dirty_bytes": "Estimated bytes of changed blocks that no snapshot has.",
    "snapfs_preserved_bytes": "Bytes preserved for the cut that is being sealed.",
    "snapfs_absent_files": "Files whose bytes are still only in the store or on a mirror.",
    "snapfs_wal_bytes": "Size of the namespace's write-ahead log.",
    "snapfs_open_files": "Backing files held open.",
    "snapfs_snapshots": "Snapshots that exist.",
    "snapfs_damaged_snapshots": "Snapshots that lack something.",
    "snapfs_last_snapshot_timestamp_seconds": "When the newest snapshot was cut; 0 if there is none.",
    "snapfs_last_snapshot_age_seconds": "Age of the newest snapshot's cut; absent if there is none.",
    "snapfs_snapshot_overdue_seconds": "How long a snapshot is due that was not made; 0 while all is well.",
    "snapfs_snapshot_failing_seconds": "How long snapshots fail and none was made since; 0 while all is well.",
    "snapfs_drill_timestamp_seconds": "When the last drill ended; absent if there was none.",
    "snapfs_drill_recovery_seconds": "How long that drill took until its check had passed.",
    "snapfs_drill_passed": "1 if its check passed.",
    "snapfs_drill_overdue_seconds": "How late a drill is that `[drill] every` or `at` asks for; 0 while all is well.",
    "snapfs_verify_overdue_seconds": "How late a pass over all of the store is that `[verify] share` asks for: "
    "twice its time after the last; 0 while all is well.",
    "snapfs_verify_timestamp_seconds": "When all of the store was read back and checked last; absent if it never was.",
    "snapfs_seal_running": "1 while a snapshot is being sealed.",
    "snapfs_resident_memory_bytes": "Resident memory of the daemon.",
    "snapfs_replication_exposed_seconds": "Age of the oldest work that too few targets have, at most.",
    "snapfs_replication_held_fsyncs": "Requests held because replication is behind its bound.",
    "snapfs_replication_agent_up": "1 while an agent lives and reports how far the targets are.",
    "snapfs_rpo_seconds": "The objective objectives.rpo; absent if none is set.",
    "snapfs_rpo_age_seconds": "Age of the newest cut that enough targets have, while something changed since; else 0.",
    "snapfs_rpo_expected_age_seconds": "How old that cut will be at most before the next one is replicated.",
    "snapfs_rpo_met": "1 while the age is within objectives.rpo.",
    "snapfs_rpo_at_risk": "1 while objectives.rpo is expected to break, or is broken.",
    "snapfs_rto_seconds": "The objective objectives.rto; absent if none is set.",
    "snapfs_seal_share": "Share of the last minute in which a snapshot was being sealed.",
    "snapfs_fenced": "1 while another host is the writer of this volume.",
    "snapfs_store_bytes": "Size of the segments that hold the history.",
    "snapfs_host_available_bytes": "Room on the filesystem that holds the volume.",
    "snapfs_host_size_bytes": "Size of that filesystem.",
    "snapfs_live_limit_bytes": "What the sizes of all files may add up to (live.limit); 0: no limit.",
    "snapfs_live_limited_bytes": "What they add up to; 0 without a limit.",
    "snapfs_host_refuses": "1 while the filesystem that holds the volume cannot be written to.",
}
"""Present states, read at each scrape."""

COUNTS = {
    "snapfs_preserve_copied_bytes": "Bytes preserved before an overwrite, for cuts whose seals have ended.",
    "snapfs_copied_aside_bytes": "As snapfs_preserve_copied_bytes: its name until 0.1, which goes with 0.3.",
    "snapfs_hydrated_files": "Files whose bytes were brought in from the store.",
    "snapfs_hydrated_bytes": "Bytes brought in from the store.",
    "snapfs_host_read_errors": "Reads that the filesystem which holds the volume failed at.",
    "snapfs_host_write_errors": "Writes that it refused, for other reasons than a full disk.",
    "snapfs_host_sync_errors": "Syncs that it failed at: bytes that it had taken may be lost.",
}
"""Counts that another part keeps itself; exposed with `_total`."""

Latencies = tuple[list[tuple[float, int]], float]
"""Of one operation: requests up to each upper bound in seconds, ascending, and the sum of all in seconds."""


def _requests(counts: Mapping[str, int]) -> Family:
    made = Family("snapfs_requests", "counter", "Requests of the kernel that were answered, by operation.")
    for operation, count in sorted(counts.items()):
        made.add(count, operation=operation)
    return made


def _native(latencies: Mapping[str, Latencies]) -> Family:
    made = Family("snapfs_native_request_seconds", "histogram", "Time to answer requests about bytes in C.")
    for operation, (buckets, sum_s) in sorted(latencies.items()):
        made.add_buckets(buckets, sum_s, operation=operation)
    return made


def _targets(standings: Sequence[TargetStanding]) -> list[Family]:
    """How the volume's targets stand, each by its name; nothing where there are none."""
    lag = Family(
        "snapfs_replication_lag_seconds", "gauge", "For how long something that is sealed has been missing there."
    )
    missing = Family("snapfs_replication_missing_snapshots", "gauge", "Snapshots above the newest one there.")
    state = Family("snapfs_replication_state", "gauge", "1 for the state that the target is in.")
    for each in standings:
        lag.add(each.lag_s, target=each.name)
        missing.add(each.missing, target=each.name)
        for known in type(each.state):
            state.add(each.state is known, target=each.name, state=known.value)
    return [lag, missing, state] if standings else []


class TargetStanding(Protocol):
    """The state of a target (store/log/target_standing.py, which is above this)."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> Enum: ...
    @property
    def lag_s(self) -> float: ...
    @property
    def missing(self) -> int: ...


class Metrics:
    """What the parts of one mounted volume count and time."""

    def __init__(self) -> None:
        self.cut_pause = Histogram(
            "snapfs_cut_pause_seconds", "Time in which a cut let no request through.", _PAUSE_BUCKETS
        )
        self.flush = Histogram(
            "snapfs_flush_seconds", "Time to get the kernel's dirty pages before a cut.", _SEAL_BUCKETS
        )
        self.group_pause = Histogram(
            "snapfs_group_pause_seconds", "Time in which the gate was closed for the cut of a group.", _PAUSE_BUCKETS
        )
        self.hook_held = Histogram(
            "snapfs_hook_held_seconds", "Time an application was held for a cut and its hooks.", _SEAL_BUCKETS
        )
        self.seal = Histogram("snapfs_seal_seconds", "Time from a cut until its snapshot was durable.", _SEAL_BUCKETS)
        self.snapshots = Counter("snapfs_snapshots_made", "Snapshots sealed, by trigger.", ["trigger"])
        self.failures = Counter("snapfs_snapshot_failures", "Snapshots that failed, by trigger.", ["trigger"])
        self.skipped = Counter("snapfs_snapshots_skipped", "Times at which a snapshot was due and nothing had changed.")
        self.stored_bytes = Counter("snapfs_stored_bytes", "Bytes of the segments that snapshots wrote.")
        self.sealed_bytes = Counter("snapfs_sealed_bytes", "Bytes of changed blocks read by the sealer.")
        self.damaged_reads = Counter("snapfs_damaged_reads", "Reads of a snapshot that met a damaged object.")
        self.commands = Counter("snapfs_commands", "Commands to .snapfs/control.", ["command", "result"])
        for trigger in TRIGGERS:  # a series that is there from the start can be alerted on
            self.snapshots.inc(0, trigger)
            self.failures.inc(0, trigger)

    def families(self) -> list[Family]:
        """All of them, as they are now."""
        counted: list[Counter | Histogram] = [
            self.cut_pause, self.group_pause, self.flush, self.hook_held, self.seal, self.snapshots,
            self.failures, self.skipped, self.stored_bytes, self.sealed_bytes, self.damaged_reads, self.commands,
        ]  # fmt: skip
        return [each.family() for each in counted]


class MetricsPage:
    """The metrics of one mounted volume as text: what was counted, and the present state, read at each scrape."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        present: Callable[[], Mapping[str, float]] = dict,
        requests: Callable[[], Mapping[str, int]] = dict,
        latencies: Callable[[], Mapping[str, Latencies]] = dict,
        targets: Callable[[], Sequence[TargetStanding]] = tuple,
    ) -> None:
        """`present`: values by the names of `GAUGES` and `COUNTS`; `requests`, `latencies`: by operation."""
        self._metrics, self._present = metrics, present
        self._requests, self._latencies, self._standings = requests, latencies, targets

    def render(self) -> bytes:
        """The Prometheus text of all metrics."""
        values = self._present()
        return render(
            [
                *self._metrics.families(), *one_sample_each("gauge", values, GAUGES),
                *one_sample_each("counter", values, COUNTS), _requests(self._requests()), _native(self._latencies()),
                *_targets(self._standings()),
            ]
        )  # fmt: skip
