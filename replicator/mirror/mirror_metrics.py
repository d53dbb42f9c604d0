"""What a mirror counts and measures, under names that dashboards can rely on: base units, counters end in `_total`.

Invariants: a registry of its own; a scrape costs a statvfs and no lock that a commit holds; labels are bounded
(volumes, operations, refusals).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.registry import Collector

from snapfs.store.protocol.messages import VolumeState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)

disable_created_metrics()  # type: ignore[no-untyped-call]

GAUGES: dict[str, tuple[str, Callable[[VolumeState], float]]] = {
    "generation": ("The claimed generation; 0 before the first claim.", lambda state: state.generation),
    "snapshots": ("Snapshots that exist.", lambda state: state.snapshots),
    "stored_bytes": ("Bytes of the segments.", lambda state: state.stored_bytes),
    "staged_bytes": ("Bytes received that no snapshot here needs yet.", lambda state: state.staged_bytes),
    "free_bytes": ("Room left on the volume's filesystem.", lambda state: state.free_bytes),
    "last_snapshot_timestamp_seconds": (
        "When the newest snapshot here was cut; 0 if there is none.",
        lambda state: state.newest.record["cut_time_ns"] / 1e9 if state.newest else 0.0,
    ),
    "last_received_timestamp_seconds": (
        "When the newest snapshot here was committed; 0 if there is none.",
        lambda state: state.newest.received_ns / 1e9 if state.newest else 0.0,
    ),
}


class _Present(Collector):
    def __init__(self, states: Callable[[], Iterable[VolumeState]]) -> None:
        self._states = states

    def collect(self) -> Iterable[Metric]:
        states = list(self._states())
        for name, (text, value) in GAUGES.items():
            family = GaugeMetricFamily(f"snapfs_mirror_{name}", text, labels=["volume"])
            for state in states:
                family.add_metric([state.name], value(state))
            yield family


class MirrorMetrics:
    """The metrics of one mirror process."""

    def __init__(self, states: Callable[[], Iterable[VolumeState]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered, by operation and result.", "operation", "result")
        self.received_bytes = self._counter("received_bytes", "Bytes of parts that came in.", "volume")
        self.received_objects = self._counter("received_objects", "Objects that became durable.", "volume")
        self.known_objects = self._counter("known_objects", "Objects that came and were there already.", "volume")
        self.committed = self._counter("committed_snapshots", "Snapshots that were committed.", "volume")
        self.sent_bytes = self._counter("sent_bytes", "Bytes of objects given to readers.", "volume")
        self.upkeep_failures = self._counter("upkeep_failures", "Times that upkeep failed.", "volume")
        self.seconds = Histogram(
            "snapfs_mirror_request_seconds", "Time until a request was answered, by operation.", ["operation"],
            buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.refused = Counter(
            "snapfs_mirror_refused_connections", "Connections closed at once: beyond a bound.", registry=self.registry
        )
        self.connections = Gauge("snapfs_mirror_connections", "Open connections.", registry=self.registry)
        self.memory = Gauge(
            "snapfs_mirror_resident_memory_bytes", "Resident memory of the mirror.", registry=self.registry
        )
        self.memory.set_function(_resident_bytes)
        self.registry.register(_Present(states))

    def render(self) -> bytes:
        """The Prometheus text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"snapfs_mirror_{name}", text, labels, registry=self.registry)


def _resident_bytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096.0
