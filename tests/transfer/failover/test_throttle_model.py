"""Mode bounded bounds: many loads and links, simulated with a clock of their own.

The oldest work that was acknowledged (an fsync that was answered) and is not replicated is never older than the bound,
as long as the link gives at least half of what it was measured to give. Where it gives nothing, nothing more is
acknowledged.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.transfer.failover.throttle_model import Limiter

TICK_S = 0.05
EXAMPLES = int(os.environ.get("SNAPFS_THROTTLE_EXAMPLES", "60"))
LOOK_S = 0.1
Link = Callable[[float], float]


@dataclass
class Simulation:
    """A writer, a sealer and a link. Bytes are written, then fsynced; snapshots are shipped one after the other."""

    bound_s: float
    link: Link
    wants: Callable[[float], int]  # bytes that the application would write in a tick at this time
    sync_every: int = 1  # ticks
    compresses: float = 1.0
    latency_s: float = 0.05
    now_s: float = 0.0
    written: int = 0
    number: int = 0
    cut_written: int = 0
    next_cut_s: float = 0.0
    shipping: list[tuple[int, int, float]] = field(default_factory=list)  # number, bytes left, not before
    replicated_written: int = 0
    cuts: dict[int, int] = field(default_factory=dict)
    waiting: int | None = None
    acknowledged: list[tuple[float, int]] = field(default_factory=list)
    oldest_s: float = 0.0
    last_ack_s: float = 0.0
    acks: int = 0

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.bound_s)

    def run(self, seconds: float) -> None:
        for tick in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            self._ship()
            self._write(tick)
            self._cut()
            self._age()

    def _ship(self) -> None:
        room = self.link(self.now_s) * TICK_S
        while self.shipping and room > 0 and self.now_s >= self.shipping[0][2]:
            number, left, begin = self.shipping[0]
            sent = min(left, int(room) + 1)
            room -= sent
            self.shipping[0] = number, left - sent, begin
            if left - sent > 0:
                return
            self.shipping.pop(0)
            self.replicated_written = self.cuts[number]
            self.limiter.replicated(number, self.now_s)
            if self.shipping:
                self.shipping[0] = (*self.shipping[0][:2], self.now_s + self.latency_s)

    def _write(self, tick: int) -> None:
        if self.waiting is None:
            self.written += self.wants(self.now_s)
            self.limiter.wrote(self.written)
            if tick % self.sync_every:
                return
            self.waiting = self.written
        if self.limiter.may_acknowledge(self.waiting, self.now_s):
            if self.waiting > self.replicated_written:
                self.acknowledged.append((self.now_s, self.waiting))
            self.last_ack_s, self.waiting, self.acks = self.now_s, None, self.acks + 1

    def _cut(self) -> None:
        held = self.waiting is not None
        due = self.now_s >= self.next_cut_s or self.limiter.wants_cut(held, self.now_s)
        if due and self.written > self.cut_written:
            stored = int((self.written - self.cut_written) * self.compresses) + 600
            self.number += 1
            self.cut_written = self.cuts[self.number] = self.written
            self.shipping.append((self.number, stored, self.now_s + self.latency_s))
            self.limiter.sealed(self.number, self.written, stored, self.now_s)
        if self.now_s >= self.next_cut_s:
            self.next_cut_s = self.now_s + self.bound_s / 4

    def _age(self) -> None:
        self.acknowledged = [each for each in self.acknowledged if each[1] > self.replicated_written]
        if self.acknowledged:
            self.oldest_s = max(self.oldest_s, self.now_s - self.acknowledged[0][0])


def steady(rate: float) -> Link:
    return lambda now_s: rate


rates = st.sampled_from([20e3, 150e3, 1e6, 20e6, 1e9])
loads = st.sampled_from([100, 4096, 65536, 1 << 20, 16 << 20])


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(
    rate=rates, load=loads, bound=st.sampled_from([2.0, 4.0, 30.0]), sync_every=st.sampled_from([1, 5, 40]),
    compresses=st.sampled_from([0.1, 0.5, 1.0]), latency=st.sampled_from([0.0, 0.05, 0.2]),
    bursts=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_acknowledged_work_is_never_older_than_the_bound(
    rate: float, load: int, bound: float, sync_every: int, compresses: float, latency: float, bursts: bool, seed: int
) -> None:
    """The oldest acknowledged and not replicated work is never older than the bound."""
    chance = random.Random(seed)

    def wants(now_s: float) -> int:
        return (load if chance.random() < 0.1 else 0) if bursts else load

    simulation = Simulation(bound, steady(rate), wants, sync_every, compresses, latency)
    simulation.run(90 if bound < 10 else 240)
    assert simulation.oldest_s <= bound
    assert simulation.acks > 0 or load * compresses > rate * 20


@settings(max_examples=EXAMPLES // 2, deadline=None, derandomize=True, database=None)
@given(load=loads, bound=st.sampled_from([4.0, 30.0]), seed=st.integers(0, 1000))
def test_a_link_that_changes_by_half_keeps_the_bound(load: int, bound: float, seed: int) -> None:
    chance = random.Random(seed)
    factors = [chance.choice([0.7, 1.0, 1.3]) for _ in range(1000)]

    def link(now_s: float) -> float:
        return 300e3 * factors[int(now_s / 7) % 1000]

    simulation = Simulation(bound, link, lambda now_s: load)
    simulation.run(120)
    assert simulation.oldest_s <= bound


def test_a_slow_link_acknowledges_what_it_can_ship() -> None:
    """Bound 4 s, 150 KiB/s: a writer acknowledged 14 MB in 4 s, and was on this host alone for 86 s."""
    simulation = Simulation(4.0, steady(150 * 1024), lambda now_s: 175_000)
    simulation.run(4)
    assert sum(1 for _ in simulation.acknowledged) * 175_000 < 150 * 1024 * 4
    simulation.run(120)
    assert simulation.oldest_s <= 4.0
    assert simulation.written > 0.5 * 150 * 1024 * 120, "and the link is made use of"


def test_nothing_is_acknowledged_over_a_dead_link() -> None:
    """Not before the first measurement, and not when it dies later; what it delivers afterwards is answered again."""
    never = Simulation(4.0, steady(0), lambda now_s: 4096)
    never.run(60)
    assert not never.acks

    dies = Simulation(4.0, lambda now_s: 1e6 if now_s < 30 or now_s > 90 else 0.0, lambda now_s: 4096)
    dies.run(30)
    before = dies.acks
    dies.run(58)
    assert before > 50
    assert dies.last_ack_s < 34, "within the bound after the link's death the last fsync was answered"
    dies.run(30)
    assert dies.last_ack_s > 90


@pytest.mark.parametrize("written", [0, 1, 1000])
def test_work_that_is_replicated_is_answered_however_much_others_write(written: int) -> None:
    limiter = Limiter(4.0)
    limiter.wrote(10**9)
    limiter.sealed(1, 1000, 500, 1.0)
    assert not limiter.may_acknowledge(1000, 1.1)
    limiter.replicated(1, 2.0)
    assert limiter.may_acknowledge(written, 2.0)
    assert not limiter.may_acknowledge(10**9, 2.0)
