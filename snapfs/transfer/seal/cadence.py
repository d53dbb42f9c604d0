"""When the next snapshot of a mounted volume is due, and what decided: the rules with what they need to know.

It gathers the situation (what was written, how quiet it is, what seals and targets take) and asks the pure functions
of base/schedule/; policy_loop.py acts on the answer. What was decided last is kept for the status.

Invariants:
1. Nothing here waits or does I/O, but for the stat(2) of replication.json behind `replicated` and `exposed_s`.
2. A snapshot that someone else asked for begins a new interval, as one of the policy does; one that failed does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Protocol

from snapfs.base.schedule.measurements import Measurements, SealSample
from snapfs.base.schedule.objectives import Judgement, Reach, judge_rpo
from snapfs.base.schedule.pace import ObjectivePace, pace
from snapfs.base.schedule.rules import Action, Decision, Situation, due, needs_looks
from snapfs.base.settings import calendar_times
from snapfs.base.settings.volume_settings import ObjectiveSettings, SealSettings, SnapshotSettings

MEASURED_S = 60.0
"""For so long the targets are watched closely for a snapshot that is on its way."""


@dataclass(frozen=True, slots=True)
class CutNote:
    """A cut: when, how long the flush before it took, and how much had been written before it, ever."""

    cut_s: float = 0.0
    flush_s: float = 0.0
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Replicas:
    """What is known of the targets. `newest`: the newest snapshot that enough of them have, 0: none.

    `exposed_s`: the age of the oldest work that too few have, at most; `reach`: how many answer.
    """

    newest: Callable[[], int] = lambda: 0
    exposed_s: Callable[[], float] = lambda: 0.0
    reach: Callable[[], Reach] = lambda: Reach(0, 0, 1)


class CadenceTree(Protocol):
    """The part of the live tree that says what changed."""

    def has_changes(self) -> bool: ...
    def pressure(self) -> bool: ...


class Cadence:
    """The cadence of one mounted volume. Lives in the trio thread."""

    def __init__(
        self,
        settings: SnapshotSettings,
        tree: CadenceTree,
        objectives: ObjectiveSettings | None = None,
        seal: SealSettings | None = None,
        *,
        written: Callable[[], int] = lambda: 0,
        replicas: Replicas | None = None,
        newest_cut_ns: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`written`: bytes of all changes, ever growing; `newest_cut_ns`: of the newest snapshot there is."""
        self.settings, self._tree = settings, tree
        self.objectives, self.budget = objectives or ObjectiveSettings(), (seal or SealSettings()).budget
        self._written, self._replicas = written, replicas or Replicas()
        self._clock, self._wall_clock = clock, wall_clock
        self._measurements = Measurements()
        self._since_s, self._last_cut_s = clock(), -math.inf
        if self.objectives.rpo and newest_cut_ns is not None:  # what changed may have been so since then
            self._since_s -= max(wall_clock() - newest_cut_ns / 1e9, 0.0)
        self._written_at_cut = 0  # before the last cut
        self._writes = written(), clock()  # how much was written, and when that was seen to have grown
        self._calendar = _Calendar(settings.calendar, newest_cut_ns, wall_clock()) if settings.calendar else None
        self.decision = Decision(Action.WAIT, math.inf)
        """The last one."""
        self.last_cut: Decision | None = None
        """The one that made a rule's last snapshot."""

    @property
    def looks_often(self) -> bool:
        """Whether a decision depends on what is written from moment to moment."""
        return needs_looks(self.settings) or bool(self.objectives.rpo)

    # -- events

    def sealed(self, number: int, cut: CutNote, stored_bytes: int) -> None:
        """The snapshot of the last cut exists, and its segment is so long."""
        now_s = self._clock()
        written, self._written_at_cut = max(cut.written_bytes - self._written_at_cut, 0), cut.written_bytes
        self._measurements.sealed(SealSample(number, cut.cut_s, now_s, cut.flush_s, written, stored_bytes))
        self._last_cut_s = cut.cut_s
        self._begin_interval(now_s - cut.cut_s)

    def made(self, decision: Decision) -> None:
        """This decision was carried out: its snapshot exists."""
        self.last_cut = decision

    def skipped(self) -> None:
        """Nothing had changed: a change from now on is a new one."""
        self._begin_interval(0.0)

    def _begin_interval(self, ago_s: float) -> None:
        self._since_s = self._clock() - ago_s
        if self._calendar is not None:
            self._calendar.begin(self._wall_clock() - ago_s)

    # -- decisions

    def decide(self, busy: bool, wanted: bool) -> Decision:
        """Whether a snapshot is due. `wanted`: one is to be made at once, for the bound of replication."""
        self.decision = due(self.settings, self._situation(busy, wanted))
        return self.decision

    @property
    def expects_replica(self) -> bool:
        """Whether it matters for what is measured when the snapshot on its way is replicated."""
        return bool(self.objectives.rpo) and 0 < self._measurements.waited_s(self._clock()) < MEASURED_S

    def pace(self) -> ObjectivePace | None:
        """What the rpo asks for now, None if none is set."""
        if not self.objectives.rpo:
            return None
        now_s = self._clock()
        self._measurements.replicated(self._replicas.newest(), now_s)
        measured = self._measurements.measured(now_s, now_s - self._since_s, self._written_since_cut())
        held_s = self._last_cut_s + self.settings.at_least - now_s if self.settings.at_least else 0.0
        return pace(float(self.objectives.rpo), self.budget, measured, held_s)

    def _situation(self, busy: bool, wanted: bool) -> Situation:
        now_s, changed = self._clock(), self._tree.has_changes()
        if self.objectives.rpo:
            self._replicas.exposed_s()  # looks now whether nothing is exposed, from which the age of later work counts
        return Situation(
            now_s=now_s, since_s=self._since_s, changed=changed, busy=busy, wanted=wanted,
            pressure=self._tree.pressure(), written_bytes=self._written_since_cut(), quiet_s=self._quiet_s(now_s),
            last_cut_s=self._last_cut_s,
            calendar_left_s=self._calendar.left_s(self._wall_clock()) if self._calendar is not None else math.inf,
            pace=self.pace(),
        )  # fmt: skip

    def _written_since_cut(self) -> int:
        return max(self._written() - self._written_at_cut, 0)

    def _quiet_s(self, now_s: float) -> float:
        written, since_s = self._writes
        if self._written() != written:
            self._writes, since_s = (self._written(), now_s), now_s
        return now_s - since_s

    # -- for status and metrics

    def judge(self) -> Judgement:
        """Whether the rpo holds."""
        return judge_rpo(float(self.objectives.rpo), self._replicas.exposed_s(), self.pace(), self._replicas.reach())

    def facts(self) -> dict[str, Any]:
        """The fields `policy` and `objectives` of the status (control/mount_status.py)."""
        return {"policy": self._policy_facts(), "objectives": self._objective_facts()}

    def _policy_facts(self) -> dict[str, Any]:
        last = self.last_cut
        return {
            "rule": self.decision.rule.value,
            "why": self.decision.why,
            "next_s": None if math.isinf(self.decision.wait_s) else round(max(self.decision.wait_s, 0.0), 3),
            "last": {"rule": last.rule.value, "why": last.why} if last is not None else None,
            "written_bytes": self._written_since_cut(),
            "seal_share": round(self._measurements.seal_share(self._clock()), 4),
            "seal_budget": self.budget,
        }

    def _objective_facts(self) -> dict[str, Any]:
        judgement, chosen = self.judge(), self.pace()
        return {
            "rpo_s": float(self.objectives.rpo) or None,
            "rpo_state": judgement.state.value,
            "rpo_why": judgement.why,
            "age_s": round(self._replicas.exposed_s(), 3),
            "expected_age_s": round(chosen.expected_age_s, 3) if chosen is not None else None,
            "rto_s": float(self.objectives.rto) or None,
        }


class _Calendar:
    """The times of cron since the last cut. Times are seconds since 1970."""

    def __init__(self, expressions: tuple[str, ...], newest_cut_ns: int | None, now_s: float) -> None:
        self._expressions = expressions
        self._zone: tzinfo = calendar_times.local_zone()
        self._from_s = self._next_s = 0.0
        self.begin(newest_cut_ns / 1e9 if newest_cut_ns is not None else now_s)

    def begin(self, from_s: float) -> None:
        """Times up to `from_s` are done with."""
        after = datetime.fromtimestamp(from_s, self._zone)
        found = calendar_times.next_after(self._expressions, after)
        self._from_s, self._next_s = from_s, found.timestamp() if found is not None else math.inf

    def left_s(self, now_s: float) -> float:
        """Until the next time; negative if one has passed."""
        if now_s < self._from_s - 1.0:  # the clock was put back: what it shows now comes again
            self.begin(now_s)
        return self._next_s - now_s
