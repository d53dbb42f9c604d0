"""A volume under a recorded load, its sealer and its link, in simulated time: what the cadence is driven with.

The load says how much is written in each slot of time (tools/bench/record_load), and what seals took: their time and
size follow from the bytes written since the cut before. The link takes the newest that is sealed, and all before it in
one go, when it becomes free, at so many bytes a second (a function of time; 0: it is down).

What is measured here is the truth, and not what the cadence believes: the age of the oldest byte that the target lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from snapfs.base.schedule.objectives import ObjectiveState, Reach
from snapfs.base.schedule.rules import Action
from snapfs.base.settings.units import Seconds
from snapfs.base.settings.volume_settings import ObjectiveSettings, SealSettings, SnapshotSettings
from snapfs.transfer.seal.cadence import Cadence, CutNote, Replicas

LOADS = Path(__file__).resolve().parents[1] / "loads"
TICK_S = 0.2
SOME_BYTES = 1 << 20


@dataclass(frozen=True)
class Load:
    """`rates`: bytes a second in each slot; a seal takes `seal_s` and `seal_s_a_byte`, and stores `stored_share`.

    Of the recorded seals the faster ones count: the others waited for a processor that was busy with other work.
    """

    slot_s: float
    rates: tuple[float, ...]
    seal_s: float
    seal_s_a_byte: float
    stored_share: float

    @classmethod
    def recorded(cls, name: str) -> Load:
        facts = json.loads((LOADS / f"{name}.json").read_text())
        seals, slot_s = facts["seals"], facts["slot_s"]
        written, fixed_s = sum(each[0] for each in seals), min(each[2] for each in seals)
        speeds = sorted((each[2] - fixed_s) / each[0] for each in seals if each[0] >= SOME_BYTES)
        return cls(
            slot_s, tuple(each / slot_s for each in facts["written_bytes"]), fixed_s,
            speeds[len(speeds) // 4] if speeds else 0.0, sum(each[1] for each in seals) / written,
        )  # fmt: skip

    @property
    def mean_rate(self) -> float:
        return sum(self.rates) / len(self.rates)

    def rate_at(self, now_s: float) -> float:
        """It begins again at its end."""
        return self.rates[int(now_s / self.slot_s) % len(self.rates)]


@dataclass
class Sealed:
    number: int
    cut_s: float
    size: float


@dataclass
class World:
    """One run. `link(now)`: bytes a second."""

    load: Load
    rpo_s: float
    link: Callable[[float], float]
    latency_s: float = 0.2
    budget: float = 0.1
    settings: SnapshotSettings = field(default_factory=SnapshotSettings)
    now_s: float = 0.0
    written: float = 0.0
    written_at_cut: float = 0.0
    cuts: list[float] = field(default_factory=list)
    ages_s: list[float] = field(default_factory=list)
    """At each tick, the age of the oldest byte that the target lacks."""
    states: list[ObjectiveState] = field(default_factory=list)
    whys: set[str] = field(default_factory=set)
    seals_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._first_write_s: float | None = None  # of what no cut has
        self._uncut: list[tuple[int, float]] = []  # (snapshot, its oldest byte) of what is not on the target
        self._sealing: Sealed | None = None
        self._seal_ends_s = 0.0
        self._queue: list[Sealed] = []
        self._sending: Sealed | None = None
        self._left_bytes = self._left_s = 0.0
        self._replicated = Sealed(0, 0.0, 0)
        self._unchanged_s = 0.0
        self.cadence = Cadence(
            self.settings, self, ObjectiveSettings(rpo=Seconds(self.rpo_s)), SealSettings(budget=self.budget),
            written=lambda: int(self.written), clock=lambda: self.now_s,
            replicas=Replicas(lambda: self._replicated.number, self.exposed_s, lambda: Reach(1, 1, 1)),
        )  # fmt: skip

    # -- the live tree

    def has_changes(self) -> bool:
        return self._first_write_s is not None

    def pressure(self) -> bool:
        return False

    def exposed_s(self) -> float:
        """As ReplicationThrottle.exposed_s: an upper bound, from what a daemon can know."""
        if not self.has_changes() and not self._uncut:
            self._unchanged_s = self.now_s
            return 0.0
        return self.now_s - max(self._replicated.cut_s, self._unchanged_s)

    def true_age_s(self) -> float:
        oldest = [first for _, first in self._uncut]
        if self._first_write_s is not None:
            oldest.append(self._first_write_s)
        return self.now_s - min(oldest) if oldest else 0.0

    # -- time

    def run(self, seconds: float) -> World:
        for _ in range(int(seconds / TICK_S)):
            self.tick()
        return self

    def tick(self) -> None:
        size = self.load.rate_at(self.now_s) * TICK_S
        self.written += size
        if size and self._first_write_s is None:
            self._first_write_s = self.now_s
        self._finish_seal()
        self._send()
        self._decide()
        self.ages_s.append(self.true_age_s())
        judgement = self.cadence.judge()
        self.states.append(judgement.state)
        self.whys.add(judgement.why)
        self.now_s += TICK_S

    def _decide(self) -> None:
        decision = self.cadence.decide(self._sealing is not None, False)
        if decision.action is Action.SKIP:
            self.cadence.skipped()
        elif decision.action is Action.CUT:
            self._cut()

    def _cut(self) -> None:
        changed, self.written_at_cut = self.written - self.written_at_cut, self.written
        self.cuts.append(self.now_s)
        assert self._first_write_s is not None
        self._uncut.append((len(self.cuts), self._first_write_s))
        self._first_write_s = None
        seal_s = self.load.seal_s + changed * self.load.seal_s_a_byte
        self.seals_s.append(seal_s)
        self._sealing = Sealed(len(self.cuts), self.now_s, changed * self.load.stored_share + 4096)
        self._seal_ends_s = self.now_s + seal_s
        self._note = CutNote(self.now_s, 0.0, int(self.written))

    def _finish_seal(self) -> None:
        made = self._sealing
        if made is not None and self.now_s >= self._seal_ends_s:
            self._sealing = None
            self._queue.append(made)
            self.cadence.sealed(made.number, self._note, int(made.size))

    def _send(self) -> None:
        if self._sending is not None:
            self._left_s -= TICK_S
            self._left_bytes -= self.link(self.now_s) * TICK_S
            if self._left_bytes <= 0 >= self._left_s and self.link(self.now_s):
                self._replicated, self._sending = self._sending, None
                self._uncut = [each for each in self._uncut if each[0] > self._replicated.number]
        if self._sending is None and self._queue:
            self._sending = self._queue[-1]
            self._left_bytes, self._left_s = sum(each.size for each in self._queue), self.latency_s
            self._queue.clear()
