"""Pace, bucket and rate: simulated links, in simulated time."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from replicator.agent.rate_control import LARGEST_BYTES, SMALLEST_BYTES, Bucket, Pace, TransferRate
from replicator.agent.retry_rules import retry_wait_s
from snapfs.base.errors import UserError
from snapfs.store.protocol.refusals import Refusal, refuse


class Link:
    """So many bytes per second in all, a latency, and a queue that holds `queue_bytes`; beyond it requests fail."""

    def __init__(self, bytes_per_s: float, latency_s: float, most: int = 1000) -> None:
        self.bytes_per_s, self.latency_s, self.most = bytes_per_s, latency_s, most

    def run(self, pace: Pace, seconds: float, start_s: float = 0.0) -> float:
        """Keep the link as busy as the pace allows; returns bytes per second."""
        now_s, done = start_s, 0
        while now_s < start_s + seconds:
            count, size = pace.limit, pace.request_bytes
            took_s = self.latency_s + count * size / self.bytes_per_s
            now_s += took_s
            for each in range(count):
                if each >= self.most:
                    pace.failed(now_s, took_s)
                else:
                    pace.succeeded(now_s, size, took_s)
                    done += size
            pace.check_invariants()
        return done / (now_s - start_s)


def test_a_long_link_is_filled_by_more_and_larger_requests() -> None:
    pace = Pace()
    link = Link(100e6, 0.2)
    assert link.run(pace, 60) > 0.4 * 100e6
    assert pace.limit > 2
    assert pace.request_bytes > 1 << 20


def test_a_fast_link_is_filled_within_a_few_requests_and_then_watched() -> None:
    pace = Pace()
    for answer in range(6):
        pace.succeeded(answer * 0.01, pace.request_bytes, 0.004)
    assert pace.limit == 7
    assert pace.request_bytes == LARGEST_BYTES
    pace.failed(1.0, 0.004)
    before, size = pace.requests, pace.request_bytes
    pace.succeeded(2.0, size, 0.004)
    assert pace.requests - before < 0.5
    assert pace.request_bytes == size * 1.25


def test_a_slow_link_gets_small_requests() -> None:
    pace = Pace()
    Link(200e3, 0.02).run(pace, 120)
    assert pace.request_bytes < 200e3


def test_a_link_that_drops_what_is_too_much_is_not_flooded() -> None:
    pace = Pace()
    Link(50e6, 0.05, most=3).run(pace, 60)
    assert pace.limit <= 4


def test_one_bad_moment_counts_once() -> None:
    pace = Pace(requests=8.0)
    for _ in range(5):
        pace.failed(10.0, 0.5)
    assert pace.requests == 4.0
    pace.failed(10.6, 0.5)
    assert pace.requests == 2.0


def test_a_link_that_recovers_is_used_again() -> None:
    pace = Pace()
    Link(100e6, 0.01).run(pace, 20)
    before = pace.limit * pace.request_bytes
    Link(1e6, 0.01).run(pace, 60, 100.0)
    slow = pace.limit * pace.request_bytes
    Link(100e6, 0.01).run(pace, 60, 300.0)
    assert slow < before / 2
    assert pace.limit * pace.request_bytes > 2 * slow


@given(st.lists(st.tuples(st.booleans(), st.integers(0, LARGEST_BYTES), st.floats(0, 100)), max_size=60))
def test_at_least_one_request_of_the_smallest_size_may_always_be_made(events: list[tuple[bool, int, float]]) -> None:
    pace, now_s = Pace(), 0.0
    for good, size, took_s in events:
        now_s += took_s
        pace.succeeded(now_s, size, took_s) if good else pace.failed(now_s, took_s)
        pace.check_invariants()
        assert pace.limit >= 1
        assert pace.request_bytes >= SMALLEST_BYTES


@given(st.integers(0, 2**32), st.floats(1e3, 1e9))
def test_no_more_passes_than_the_limit_allows(seed: int, bytes_per_s: float) -> None:
    rng, bucket, now_s = random.Random(seed), Bucket(bytes_per_s), 0.0
    sent: list[tuple[float, int]] = []
    for _ in range(50):
        amount = rng.randrange(1, int(bucket.burst) + 1)
        now_s += rng.random() * 0.1
        now_s += bucket.wait_s(now_s, amount)
        sent.append((now_s, amount))
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            total = sum(amount for _, amount in sent[first : last + 1])
            assert total <= bucket.burst + bytes_per_s * (sent[last][0] - sent[first][0]) + sent[first][1] + 1


def test_a_request_larger_than_the_burst_goes_and_is_paid_for_afterwards() -> None:
    bucket = Bucket(1000.0)
    assert bucket.wait_s(0.0, 5000) == 0.0
    assert bucket.wait_s(0.0, 100) == (5000 + 100 - 250) / 1000
    assert Bucket(0.0).wait_s(0.0, 10**12) == 0.0


def test_a_rate_follows_and_falls_silent() -> None:
    rate = TransferRate()
    for second in range(1, 30):
        rate.add(float(second), 1000)
    assert 900 < rate.at(29.5) < 1100
    assert rate.at(60.0) < 10


def test_a_target_that_comes_back_is_noticed_within_five_seconds() -> None:
    """However often it has failed before; 30 s only after a refusal, which a person has to resolve first."""
    away = [ConnectionRefusedError(), TimeoutError(), UserError("the target's folder is not there")]
    waits = [retry_wait_s(error, failures) for error in away for failures in range(1, 200)]
    assert max(waits) < 5
    assert max(waits[:3]) <= 1  # and soon at first
    assert retry_wait_s(refuse(Refusal.FORBIDDEN, "this token may not"), 1) == 30
