"""What the agent measures, under names that dashboards can rely on, and its small web server for them.

Invariants:
1. Base units (seconds, bytes); a counter's name ends in `_total`. A name, once released, keeps its meaning.
2. Every series has the labels `volume` (the folder's path) and `target` (its name), so that alerts need no joins.
3. A registry of its own. A scrape costs no I/O but the reading of the mounts, in another process (host_metrics.py).
4. The web server shows only measures and health: no secrets, no content. By default it listens on this host only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from replicator.agent.agent import Agent
from replicator.agent.agent_status import Link, TargetStatus
from replicator.agent.host_metrics import HostMetrics
from replicator.agent.link_report import Counters
from snapfs import __version__
from snapfs.base.counting.metrics import CONTENT_TYPE
from snapfs.base.errors import UserError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.log.target_standing import AgentReport, StandingState, state_of
from snapfs.store.protocol.messages import Health

DEFAULT_LISTEN: Final = "127.0.0.1:8701"
_LABELS: Final = ("volume", "target")
_DELAYS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

GAUGES: Final = {
    "snapfs_replicator_lag_seconds": "For how long something that is sealed has been missing at the target.",
    "snapfs_replicator_lag_bytes": "Stored bytes of the snapshots that the target has not.",
    "snapfs_replicator_newest_snapshot": "Number of the newest snapshot at the target; 0 if there is none.",
    "snapfs_replicator_newest_snapshot_age_seconds": "Age of its cut: what would be lost by a failover now.",
    "snapfs_replicator_throughput_bytes_per_second": "Sent lately.",
    "snapfs_replicator_reached_timestamp_seconds": "When the target answered last; 0 if it never has.",
    "snapfs_replicator_last_error_timestamp_seconds": "When something failed last; 0 if nothing has.",
}


class AgentMetrics:
    """The metrics of one agent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._agent: Agent | None = None
        self._sent = self._counter("snapfs_replicator_sent_bytes", "Bytes of objects sent to the target.")
        self._snapshots = self._counter("snapfs_replicator_snapshots", "Commits at the target.")
        self._retries = self._counter("snapfs_replicator_retries", "Requests and links that were tried again.")
        self._delay = Histogram(
            "snapfs_replicator_delay_seconds", "From a snapshot's cut until the target had it.", _LABELS,
            buckets=_DELAYS, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Present(self))

    @property
    def agent(self) -> Agent | None:
        """The agent whose volumes are shown."""
        return self._agent

    def show(self, agent: Agent) -> None:
        """Show this agent's volumes, too; it counts with `counters`, and so is made after this."""
        self._agent = agent

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self.registry)

    def counters(self, volume: str, target: str) -> Counters:
        """What the feeder of this target counts with."""
        sent, retries = self._sent.labels(volume, target), self._retries.labels(volume, target)
        snapshots, delay = self._snapshots.labels(volume, target), self._delay.labels(volume, target)

        def arrived(record: SnapshotRecord, delay_s: float) -> None:
            snapshots.inc()
            delay.observe(max(0.0, delay_s))

        return Counters(arrived, sent.inc, retries.inc)

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self.registry)


class _Present(Collector):
    def __init__(self, metrics: AgentMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        families = {name: GaugeMetricFamily(name, text, labels=_LABELS) for name, text in GAUGES.items()}
        links = GaugeMetricFamily(
            "snapfs_replicator_link", "1 for the state that the link is in.", labels=[*_LABELS, "state"]
        )
        states = GaugeMetricFamily(
            "snapfs_replicator_state",
            "1 for the state of the target, as `status` shows it.",
            labels=[*_LABELS, "state"],
        )
        generation = GaugeMetricFamily("snapfs_replicator_generation", "The generation that writes.", labels=["volume"])
        agent = self._metrics.agent
        for volume in agent.volumes if agent is not None else ():
            generation.add_metric([volume.path], volume.generation)
            for target in volume.targets:
                for name, value in _values(target):
                    families[name].add_metric([volume.path, target.name], value)
                for link in Link:
                    links.add_metric([volume.path, target.name, link.value], target.link is link)
                now = _state(target)
                for state in StandingState:
                    states.add_metric([volume.path, target.name, state.value], state is now)
        return [*families.values(), links, states, generation]


def _state(target: TargetStatus) -> StandingState:
    report = AgentReport(None, lives=True, age_s=0.0)  # our own, of this moment
    return state_of(target.facts(time.time_ns(), time.monotonic()), report, target.behind is not None)[0]


def _values(target: TargetStatus) -> Iterator[tuple[str, float]]:
    now_ns = time.time_ns()
    yield "snapfs_replicator_lag_seconds", target.lag_s(now_ns)
    yield "snapfs_replicator_lag_bytes", target.behind_bytes
    yield "snapfs_replicator_newest_snapshot", target.newest.number if target.newest else 0
    if target.newest is not None:
        yield "snapfs_replicator_newest_snapshot_age_seconds", (now_ns - target.newest.cut_time_ns) / 1e9
    yield "snapfs_replicator_throughput_bytes_per_second", target.rate.at(time.monotonic())
    yield "snapfs_replicator_reached_timestamp_seconds", target.seen_ns / 1e9
    yield "snapfs_replicator_last_error_timestamp_seconds", target.last_error_ns / 1e9


@contextlib.asynccontextmanager
async def served(agent: Agent, metrics: AgentMetrics, address: str) -> AsyncIterator[int]:
    """Serve /metrics, /healthz and /readyz at HOST:PORT for the time of the block; gives the port. Raises UserError.

    /metrics also has those of all mounts of this host, each with its `volume`.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{address}: write HOST:PORT, for example {DEFAULT_LISTEN}")

    of_mounts = HostMetrics()

    async def show_metrics(request: web.Request) -> web.Response:
        return web.Response(body=await of_mounts.with_mounts(metrics.render()), headers={"Content-Type": CONTENT_TYPE})

    async def show_health(request: web.Request) -> web.Response:
        return _health(200, "ok", "")

    async def show_readiness(request: web.Request) -> web.Response:
        why = agent.why_not_ready()
        return _health(503, "not ready", why) if why else _health(200, "ok", "")

    app = web.Application(client_max_size=1 << 10)
    app.add_routes(
        [web.get("/metrics", show_metrics), web.get("/healthz", show_health), web.get("/readyz", show_readiness)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host.strip("[]"), int(port))
        try:
            await site.start()
        except OSError as error:
            raise UserError(
                f"{address}: cannot listen there: {error.strerror or error}; choose another with --listen"
            ) from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
        await of_mounts.close()


def _health(status: int, word: str, reason: str) -> web.Response:
    body = msgspec.json.encode(Health(word, __version__, reason=reason))
    return web.Response(status=status, body=body, content_type="application/json")
