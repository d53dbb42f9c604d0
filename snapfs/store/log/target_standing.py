"""How each target of a volume stands: one judgement for `status`, JSON, metrics and the mount's own status.

The agent's report (VOLUME/replication.json) is compared with what the volume itself has. A file that was written before
the newest snapshot, by a process that is gone, or of a target that never answered, is no good news.

Invariants:
1. Pure: no I/O; the time, the records and whether the agent lives are given.
2. A target is CURRENT only if an agent that lives wrote so lately, the target has answered, and the volume's newest
   snapshot that can be sent is there.
3. What is behind is counted from the volume's own records: numbers of the agent that are older than they are not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.log.replica_state import STALE_SECONDS, Replication, TargetFacts
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord


class StandingState(Enum):
    """From fine to hopeless."""

    CURRENT = "current"  # it has the newest snapshot
    BEHIND = "behind"  # it answers, and lacks snapshots
    UNREACHABLE = "unreachable"  # it has answered, and does not now
    STALE = "stale"  # it is not queried: the agent is gone, or is silent
    NEVER = "never"  # it has never answered
    REFUSED = "refused"  # it does not take what is sent
    FENCED = "fenced"  # another host is the writer there


_WORDS: Final = {StandingState.NEVER: "never reached", StandingState.CURRENT: "up to date"}


@dataclass(frozen=True, slots=True)
class AgentReport:
    """The agent's last report on a volume. `lives`: whether its process runs, None if we may not know.

    `age_s`: the report's age, None: there is no report; `most_age_s`: an older report counts as out of date.
    """

    found: Replication | None
    lives: bool | None
    age_s: float | None
    most_age_s: float = STALE_SECONDS

    @property
    def holds(self) -> bool:
        """Whether it is recent. With a longer `most_age_s` than usual the agent need not run: it has ended in order."""
        fresh = self.age_s is not None and abs(self.age_s) <= self.most_age_s
        return fresh and (self.lives is not False or self.most_age_s > STALE_SECONDS)

    def why_not(self) -> str:
        """In words; "" if it holds."""
        if self.holds:
            return ""
        if self.age_s is None:
            return "no agent has replicated this volume yet: start `snapfs-replicator agent`"
        ended = "no agent is running" if self.lives is False else "the agent is silent"
        return f"{ended}; its last report is {max(self.age_s, 0.0):.0f} s old"


@dataclass(frozen=True, slots=True)
class Standing:
    """A target. `newest`: its newest snapshot as far as was ever reported, None: it has none, or it is not known.

    `missing`: snapshots above that; `lag_s`: for how long the oldest of these has existed.
    """

    name: str
    url: str
    state: StandingState
    why: str
    facts: TargetFacts
    newest: int | None
    missing: int
    lag_s: float
    behind_bytes: int
    newest_age_s: float | None

    @property
    def words(self) -> str:
        """The state as text."""
        return _WORDS.get(self.state, self.state.value)

    @property
    def answers(self) -> bool:
        """Whether what is known of it is of the present."""
        return self.state in (StandingState.CURRENT, StandingState.BEHIND)

    def is_fine(self, most_lag_s: float) -> bool:
        """Whether a monitor may be silent: all is there, or what is missing is on its way and younger than this."""
        return self.state is StandingState.CURRENT or (self.state is StandingState.BEHIND and self.lag_s <= most_lag_s)

    def as_json(self) -> dict[str, Any]:
        """The agent's facts, with what is known better here in their place."""
        shown: dict[str, Any] = msgspec.to_builtins(self.facts)
        if not self.answers:
            shown |= {"bytes_per_s": 0, "sending": None}
        if self.state in (StandingState.STALE, StandingState.NEVER):
            shown["link"] = "unknown"
        return shown | {
            "name": self.name,
            "url": self.url,
            "state": self.state.value,
            "why": self.why,
            "missing": self.missing,
            "lag_s": round(self.lag_s, 3),
            "behind_bytes": self.behind_bytes,
            "newest_age_s": None if self.newest_age_s is None else round(self.newest_age_s, 3),
        }


def judge(
    targets: Sequence[tuple[str, str]], report: AgentReport, records: Sequence[SnapshotRecord], now_ns: int
) -> list[Standing]:
    """How the targets of the settings, each (name, URL without secrets), stand. `records`: the volume's, ascending."""
    known = {(each.name, each.url): each for each in report.found.targets} if report.found is not None else {}
    sendable = [record for record in records if record.state == GOOD]
    return [
        _judge_one(known.get(target) or TargetFacts(*target, "unknown"), report, sendable, now_ns) for target in targets
    ]


def _judge_one(facts: TargetFacts, report: AgentReport, records: list[SnapshotRecord], now_ns: int) -> Standing:
    newest = facts.newest or facts.had or None
    above = [record for record in records if newest is None or record.number > newest]
    state, why = state_of(facts, report, len(above))
    cuts_ns = {record.number: record.cut_time_ns for record in records}
    cut_ns = facts.newest_cut_ns if facts.newest is not None else cuts_ns.get(SnapshotNumber(facts.had))
    return Standing(
        facts.name, facts.url, state, why, facts, newest, len(above),
        lag_s=max(0.0, (now_ns - above[0].cut_time_ns) / 1e9) if above else 0.0,
        behind_bytes=sum(record.stats.stored_bytes for record in above),
        newest_age_s=None if cut_ns is None else (now_ns - cut_ns) / 1e9,
    )  # fmt: skip


def state_of(facts: TargetFacts, report: AgentReport, missing: int) -> tuple[StandingState, str]:  # noqa: PLR0911 - one for each
    """The state, and why in words. `missing`: how many snapshots the target lacks."""
    failed = facts.last_error.message if facts.last_error is not None else ""
    if facts.link == "fenced":
        return StandingState.FENCED, failed or "another host is the writer there"
    if facts.link == "refused":
        return StandingState.REFUSED, failed or "it does not take what is sent"
    if facts.newest is None and not facts.had and not facts.seen_ns:
        return StandingState.NEVER, report.why_not() or failed or "it has not answered yet"
    if not report.holds:
        return StandingState.STALE, report.why_not()
    if facts.link in ("waiting", "unknown") or (facts.link == "connecting" and failed):
        return StandingState.UNREACHABLE, failed or "it does not answer"
    if missing:
        return StandingState.BEHIND, f"{missing} snapshots are on their way"
    if facts.link == "connecting":
        return StandingState.UNREACHABLE, "it is being queried"
    return StandingState.CURRENT, ""


def worst(standings: Sequence[Standing]) -> str:
    """The worst state, "none" where there is no target."""
    order = list(StandingState)
    return max((each.state for each in standings), key=order.index).value if standings else "none"
