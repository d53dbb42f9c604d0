"""What is measured, under names that dashboards can rely on.

This file owns the registry of one volume: every metric's name, unit, labels and buckets. Whoever does the work counts
it here; what is only a present state (sizes, ages) is asked for at each scrape, through a function the daemon injects.

Invariants:
1. Base units (seconds, bytes); a counter's name ends in `_total`. A name, once released, keeps its meaning.
2. A registry of its own, never prometheus_client's global one: two volumes in one process do not mix.
3. A scrape costs no I/O and takes no lock that the application's requests wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PAUSE_BUCKETS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 1.0)
_SEAL_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

TRIGGERS = ("control", "interval", "pressure", "rollback", "unmount", "fenced")

GAUGES = {
    "snapfs_generation": "The generation that writes.",
    "snapfs_epoch": "The current epoch; each cut begins the next.",
    "snapfs_dirty_files": "Files with changes that no snapshot has.",
    "snapfs_dirty_bytes": "Estimated bytes of changed blocks that no snapshot has.",
    "snapfs_preserved_bytes": "Bytes kept aside for the cut that is being sealed.",
    "snapfs_absent_files": "Files whose bytes are still only in the store or on a mirror.",
    "snapfs_wal_bytes": "Size of the namespace's write-ahead log.",
    "snapfs_open_files": "Backing files held open.",
    "snapfs_snapshots": "Snapshots that exist.",
    "snapfs_last_snapshot_timestamp_seconds": "When the newest snapshot was cut; 0 if there is none.",
    "snapfs_last_snapshot_age_seconds": "Age of the newest snapshot's cut; absent if there is none.",
    "snapfs_seal_running": "1 while a snapshot is being sealed.",
    "snapfs_resident_memory_bytes": "Resident memory of the daemon.",
    "snapfs_replication_exposed_seconds": "Age of the oldest work that too few targets have, at most.",
    "snapfs_replication_held_fsyncs": "Requests held because replication is behind its bound.",
    "snapfs_fenced": "1 while another host is the writer of this volume.",
}
"""Present states; `Metrics` asks for those that it is given a function for."""

COUNTS = {
    "snapfs_copied_aside_bytes": "Bytes copied aside before an overwrite, for cuts whose seals have ended.",
    "snapfs_hydrated_files": "Files whose bytes were brought in from the store.",
    "snapfs_hydrated_bytes": "Bytes brought in from the store.",
}
"""Counts that another part keeps itself; exposed with `_total`."""

disable_created_metrics()  # type: ignore[no-untyped-call]


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == math.inf else repr(seconds)


class _Present(Collector):
    """Turns the injected functions into metrics at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        values = self._metrics.present()
        for name, help_text in GAUGES.items():
            if name in values:
                yield GaugeMetricFamily(name, help_text, value=values[name])
        for name, help_text in COUNTS.items():
            if name in values:
                yield CounterMetricFamily(name, help_text, value=values[name])
        requests = CounterMetricFamily(
            "snapfs_requests", "Requests of the kernel that were answered, by operation.", labels=["operation"]
        )
        for operation, count in sorted(self._metrics.requests().items()):
            requests.add_metric([operation], count)
        yield requests
        native = HistogramMetricFamily(
            "snapfs_native_request_seconds", "Time to answer requests about bytes in C.", labels=["operation"]
        )
        for operation, (buckets, sum_s) in sorted(self._metrics.latencies().items()):
            native.add_metric([operation], [(_bound(bound), count) for bound, count in buckets], sum_s)
        yield native


class Metrics:
    """The metrics of one mounted volume."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.present: Callable[[], Mapping[str, float]] = dict
        self.requests: Callable[[], Mapping[str, int]] = dict
        self.latencies: Callable[[], Mapping[str, tuple[list[tuple[float, int]], float]]] = dict
        self.cut_pause = Histogram(
            "snapfs_cut_pause_seconds", "Time in which a cut let no request through.",
            buckets=_PAUSE_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.flush = Histogram(
            "snapfs_flush_seconds", "Time to get the kernel's dirty pages before a cut.",
            buckets=_SEAL_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.seal = Histogram(
            "snapfs_seal_seconds", "Time from a cut until its snapshot was durable.",
            buckets=_SEAL_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.snapshots = self._counter("snapfs_snapshots_made", "Snapshots sealed, by trigger.", "trigger")
        self.failures = self._counter("snapfs_snapshot_failures", "Snapshots that failed, by trigger.", "trigger")
        self.skipped = self._counter("snapfs_snapshots_skipped", "Intervals in which nothing had changed.")
        self.stored_bytes = self._counter("snapfs_stored_bytes", "Bytes of the segments that snapshots wrote.")
        self.sealed_bytes = self._counter("snapfs_sealed_bytes", "Bytes of changed blocks read by the sealer.")
        self.damaged_reads = self._counter("snapfs_damaged_reads", "Reads of a snapshot that met a damaged object.")
        self.commands = self._counter("snapfs_commands", "Commands to .snapfs/control.", "command", "result")
        for trigger in TRIGGERS:  # a series that is there from the start can be alerted on
            self.snapshots.labels(trigger)
            self.failures.labels(trigger)
        self.registry.register(_Present(self))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def render(self) -> bytes:
        """The Prometheus text of all metrics."""
        return generate_latest(self.registry)
