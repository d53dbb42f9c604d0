"""The text of the metrics, against prometheus_client's of the same numbers (snapfs/base/counting/exposition.py)."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

import prometheus_client as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from snapfs.base.counting.exposition import Counter, Family, Histogram, number, one_sample_each, render

BOUNDS = (5e-5, 0.001, 0.25, 1.0, 1800.0)
TEXT = "What a \\ is\nfor."
disable_created_metrics()  # type: ignore[no-untyped-call]


@given(st.floats() | st.integers(min_value=0, max_value=1 << 62).map(float))
def test_numbers_are_written_as_go_writes_them(value: float) -> None:
    assert number(value) == floatToGoString(value)


@given(st.lists(st.floats(min_value=0, max_value=1e9) | st.sampled_from(BOUNDS)))
def test_a_histogram(observed: list[float]) -> None:
    registry = reference.CollectorRegistry()
    theirs = reference.Histogram("snapfs_seconds", TEXT, buckets=BOUNDS, registry=registry)
    ours = Histogram("snapfs_seconds", TEXT, BOUNDS)
    for value in observed:
        theirs.observe(value)
        ours.observe(value)
    assert render([ours.family()]) == reference.generate_latest(registry)


@given(st.lists(st.tuples(st.text(), st.sampled_from(["made", 'fai"led']), st.integers(0, 1 << 40))))
def test_a_counter_with_labels(counted: list[tuple[str, str, int]]) -> None:
    registry = reference.CollectorRegistry()
    theirs = reference.Counter("snapfs_commands", TEXT, ["verb", "result"], registry=registry)
    ours = Counter("snapfs_commands", TEXT, ["verb", "result"])
    for verb, result, amount in counted:
        theirs.labels(verb, result).inc(amount)
        ours.inc(amount, verb, result)
    assert render([ours.family()]) == reference.generate_latest(registry)
    assert ours.value == sum(amount for _, _, amount in counted)


def test_a_counter_without_labels_is_there_from_the_start() -> None:
    registry = reference.CollectorRegistry()
    reference.Counter("snapfs_skipped", TEXT, registry=registry)
    assert render([Counter("snapfs_skipped", TEXT).family()]) == reference.generate_latest(registry)


def test_present_states_and_given_buckets() -> None:
    class Present(Collector):
        def collect(self) -> Iterable[Metric]:
            yield GaugeMetricFamily("snapfs_epoch", "The epoch.", value=7)
            native = HistogramMetricFamily("snapfs_native", "Native.", labels=["operation"])
            native.add_metric(["read"], [("0.5", 2), ("+Inf", 3)], 1.5)
            yield native

    registry = reference.CollectorRegistry()
    registry.register(Present())
    native = Family("snapfs_native", "histogram", "Native.")
    native.add_buckets([(0.5, 2), (math.inf, 3)], 1.5, operation="read")
    gauges = one_sample_each("gauge", {"snapfs_epoch": 7}, {"snapfs_epoch": "The epoch.", "snapfs_absent": "None."})
    assert render([*gauges, native]) == reference.generate_latest(registry)


@pytest.mark.parametrize("threads", [4])
def test_no_count_is_lost_among_threads(threads: int) -> None:
    counter = Counter("snapfs_reads", TEXT, ["kind"])

    def count() -> None:
        for _ in range(5000):
            counter.inc(1, "one")

    running = [threading.Thread(target=count) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert counter.value == threads * 5000
