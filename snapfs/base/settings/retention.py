"""Which snapshots stay, and by which rule: a pure decision. Nothing here reads a clock or a disk.

The rules are those of restic's `forget`: a snapshot stays if any rule keeps it. Of each hour, day, week, month and year
(UTC) the newest snapshot is the one that is kept, as restic, zrepl and sanoid do; periods without a snapshot do not
count, and `within` goes back from the newest snapshot, so that nothing goes only because time passes.

Invariants:
1. The same situation gives the same answer, and what stays would stay again: to act on a plan twice changes nothing.
2. A damaged snapshot never takes a good one's place: the rules are applied to all, and to the good ones alone, and what
   either keeps stays.
3. The newest `minimum_good` good ones stay, and so do those with a name, and all that is protected.
4. Without a rule everything stays.
5. A snapshot of the future, made while the clock was ahead, does not make those of the present old, is not young until
   that future comes, and takes no place of an hour or day of the present: it counts as made when the next one was that
   is not of the future. By hours and days its own time counts as well: what either keeps stays, since a clock that is
   behind now makes all times those of the future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.base.settings.units import format_seconds

NO_RULE: Final = "no rule keeps it"
ALL: Final = "all are kept: there is no rule"
NAMED: Final = "named"
_NS: Final = 10**9
_LATEST_S: Final = 253_402_300_799
"""The last second of the year 9999."""


class Retained(Protocol):
    """The part of a snapshot record that retention looks at. `state`: "good" or not."""

    @property
    def number(self) -> SnapshotNumber: ...
    @property
    def name(self) -> str | None: ...
    @property
    def cut_time_ns(self) -> int: ...
    @property
    def state(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one snapshot. `kept_by`: the rules that keep it, none if it goes. `protected`: what else does, "" if nothing.

    `locked_until_ns`: when it goes, by the clock of a target whose lock keeps it until then; 0 if none does.
    """

    number: SnapshotNumber
    kept_by: tuple[str, ...]
    protected: str = ""
    locked_until_ns: int = 0

    @property
    def goes(self) -> bool:
        return not (self.kept_by or self.protected or self.locked_until_ns)


def judge(
    snapshots: Iterable[Retained],
    rules: RetentionSettings,
    now_ns: int,
    protected: Mapping[SnapshotNumber, str] | None = None,
    locked_until_ns: Callable[[SnapshotNumber], int] = lambda number: 0,
) -> list[Verdict]:
    """The verdict on each, ascending by number.

    `protected`: which stay in any case, with the reason of each. `locked_until_ns`: when a target's lock lets go of
    one, 0 if it does now.
    """
    ordered = sorted(snapshots, key=lambda each: each.number)
    kept = _kept(ordered, rules, now_ns)
    verdicts = []
    for each in ordered:
        by, why = tuple(kept.get(each.number, ())), (protected or {}).get(each.number, "")
        until_ns = 0 if by or why else locked_until_ns(each.number)
        verdicts.append(Verdict(each.number, by, why, until_ns))
    return verdicts


def going(verdicts: Iterable[Verdict]) -> list[SnapshotNumber]:
    """Those that no rule keeps and nothing protects, ascending."""
    return [each.number for each in verdicts if each.goes]


def rules_text(rules: RetentionSettings) -> str:
    """The rules in one line, as a drop record has them: ``last = 20, within = 2h``."""
    given = {name: getattr(rules, name) for name in rules.__struct_fields__}
    words = [
        f"{name} = {format_seconds(value) if name == 'within' else value}" for name, value in given.items() if value
    ]
    return ", ".join(words)


def drop_reason(rules: RetentionSettings) -> str:
    """What the record of a drop says: the rule, and that none keeps it."""
    return f"retention: {NO_RULE} ({rules_text(rules)})"


def facts(verdict: Verdict) -> dict[str, object]:
    """A verdict as --json has it."""
    return {
        "number": verdict.number,
        "action": "drop" if verdict.goes else "keep",
        "rules": list(verdict.kept_by),
        "protected": verdict.protected or None,
        "locked_until_ns": verdict.locked_until_ns or None,
    }


def reason(verdict: Verdict, utc: Callable[[int], str]) -> str:
    """Why it stays or goes, for people."""
    words = list(verdict.kept_by)
    if verdict.protected:
        words.append(verdict.protected)
    if verdict.locked_until_ns:
        words.append(f"locked there until {utc(verdict.locked_until_ns)}; {NO_RULE}")
    return ", ".join(words) or NO_RULE


def _kept(ordered: Sequence[Retained], rules: RetentionSettings, now_ns: int) -> dict[SnapshotNumber, list[str]]:
    if not rules.is_on:
        return {each.number: [ALL] for each in ordered}
    good = [each for each in ordered if each.state == "good"]
    kept: dict[SnapshotNumber, list[str]] = {}
    for chosen in (good, ordered):
        for number, rule in _by_rules(chosen, rules, now_ns):
            words = kept.setdefault(number, [])
            if rule not in words:
                words.append(rule)
    for each in ordered:
        if each.name is not None:
            kept.setdefault(each.number, []).append(NAMED)
    for each in good[-rules.minimum_good :]:
        if each.number not in kept:
            kept[each.number] = ["minimum_good"]
    return kept


def _by_rules(
    ordered: Sequence[Retained], rules: RetentionSettings, now_ns: int
) -> Iterable[tuple[SnapshotNumber, str]]:
    if not ordered:
        return
    if rules.last:
        yield from ((each.number, "last") for each in ordered[-rules.last :])
    stated, known = [each.cut_time_ns for each in ordered], _times(ordered, now_ns)
    if rules.within:
        since_ns = known[-1] - round(rules.within * _NS)
        rule = f"within {format_seconds(rules.within)}"
        yield from ((each.number, rule) for each, time_ns in zip(ordered, known, strict=True) if time_ns >= since_ns)
    for name, period_of in _PERIODS.items():
        for times_ns in (stated, known) if stated != known else (stated,):
            yield from _newest_of_each(ordered, times_ns, name, getattr(rules, name), period_of)


def _times(ordered: Sequence[Retained], now_ns: int) -> list[int]:
    """When each was made: of one of the future the time of the next that is not, or now."""
    found, next_ns = list[int](), now_ns
    for each in reversed(ordered):
        next_ns = each.cut_time_ns if each.cut_time_ns <= now_ns else next_ns
        found.append(next_ns)
    return found[::-1]


def _newest_of_each(
    ordered: Sequence[Retained], times_ns: Sequence[int], name: str, count: int, period_of: Callable[[datetime], str]
) -> Iterable[tuple[SnapshotNumber, str]]:
    seen: set[str] = set()
    for each, time_ns in zip(reversed(ordered), reversed(times_ns), strict=True):
        if len(seen) >= count:
            return
        period = period_of(_utc(time_ns))
        if period not in seen:
            seen.add(period)
            yield each.number, f"{name} {period}"


def _utc(time_ns: int) -> datetime:
    return datetime.fromtimestamp(min(max(time_ns // _NS, 0), _LATEST_S), UTC)


def _iso_week(moment: datetime) -> str:
    year, week, _ = moment.isocalendar()
    return f"{year:04d}-W{week:02d}"


_PERIODS: Final[dict[str, Callable[[datetime], str]]] = {
    "hourly": lambda moment: moment.strftime("%Y-%m-%dT%H"),
    "daily": lambda moment: moment.strftime("%Y-%m-%d"),
    "weekly": _iso_week,
    "monthly": lambda moment: moment.strftime("%Y-%m"),
    "yearly": lambda moment: moment.strftime("%Y"),
}
