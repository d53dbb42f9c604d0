"""What the pages show of volumes and snapshots, as words in rows. Pure: facts and a time in, text out.

Invariant: a row says what a record says; where there is none its text is empty, and the page shows that as "not known".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from replicator.console.views import display_text as text
from replicator.console.views.gathered_facts import HeldFor, SnapshotFacts, VolumeFacts
from replicator.console.views.space_forecast import Forecast
from replicator.console.views.volume_history import Drill
from snapfs.store.gates.gates import Gates
from snapfs.store.log.snapshot_records import APPLICATION, DAMAGED, SnapshotRecord

GOOD: Final = "good"
BAD: Final = "bad"
NONE: Final = ""
_SOON_S: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time, absolute and as an age. `iso` is for the attribute `datetime`."""

    iso: str
    utc: str
    ago: str


@dataclass(frozen=True, slots=True)
class GateWords:
    """One gate of a snapshot. `state`: GOOD, BAD or NONE; `title`: the absolute time."""

    state: str
    text: str
    title: str = ""


NOT_KNOWN: Final = GateWords(NONE, "")


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A volume in the list. `trouble`: what needs a person."""

    name: str
    newest: Moment | None
    newest_number: int
    lag: str
    snapshots: int
    stored: str
    staged: str
    writer: str
    generation: int
    encrypted: bool
    drill: GateWords
    drill_ago: str
    spark: str
    trouble: Sequence[str]


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot in the timeline, or alone on its page."""

    number: int
    name: str
    branch: str
    cut: Moment
    sealed: GateWords
    received: GateWords
    verified: GateWords
    replicated: GateWords
    drilled: GateWords
    trigger: str
    consistency: str
    changed: str
    stored: str
    is_damaged: bool
    is_newest: bool
    generation: int
    holds: Sequence[str]
    held_by_person: bool
    locked_until: str


@dataclass(frozen=True, slots=True)
class DrillRow:
    snapshot: int
    time: Moment
    gate: GateWords
    recovery: str
    objective: str
    share: float
    """Of the objective that the recovery took, per cent; 0: there is none to compare with."""
    why: str


@dataclass(frozen=True, slots=True)
class SpaceModel:
    """The disk of the mirror: shares in per cent, and what can be said of its end."""

    total: str
    free: str
    volumes: str
    volumes_share: float
    other_share: float
    statements: Sequence[str]
    is_urgent: bool


def moment(time_ns: int, now_ns: int) -> Moment:
    return Moment(text.utc_iso(time_ns), text.utc(time_ns), text.ago(time_ns, now_ns))


def volume_row(facts: VolumeFacts, spark: str, now_ns: int) -> VolumeRow:
    newest = facts.newest
    trouble = [f"{facts.damaged} damaged"] if facts.damaged else []
    if newest is None:
        trouble.append("no snapshot yet")
    if facts.last_drill is not None and drill_gate(facts.last_drill).state == BAD:
        trouble.append("drill failed" if not facts.last_drill.passed else "drill missed its objective")
    return VolumeRow(
        name=facts.name,
        newest=moment(newest.cut_time_ns, now_ns) if newest is not None else None,
        newest_number=newest.number if newest is not None else 0,
        lag=_delay(newest.cut_time_ns, facts.newest_received_ns) if newest is not None else "",
        snapshots=facts.snapshots,
        stored=text.size(facts.stored_bytes),
        staged=text.size(facts.staged_bytes) if facts.staged_bytes else "",
        writer=text.clean(facts.writer_id, 40),
        generation=facts.generation,
        encrypted=facts.encrypted,
        drill=drill_gate(facts.last_drill) if facts.last_drill is not None else NOT_KNOWN,
        drill_ago=text.ago(facts.last_drill.time_ns, now_ns) if facts.last_drill is not None else "",
        spark=spark,
        trouble=trouble,
    )


def snapshot_row(facts: SnapshotFacts, now_ns: int, *, encrypted: bool = False) -> SnapshotRow:
    record = facts.record
    is_damaged, trigger = record.state == DAMAGED, text.clean(record.trigger, 40)
    return SnapshotRow(
        number=record.number,
        name=text.clean(record.name) if record.name is not None else "",
        branch=text.clean(record.branch, 40),
        cut=moment(record.cut_time_ns, now_ns),
        sealed=_after(record, record.seal_time_ns),
        received=_after(record, facts.received_ns),
        verified=_verified(facts.gates, bool(facts.received_ns), is_damaged),
        replicated=_replicated(facts.copies),
        drilled=_drilled(facts.gates),
        trigger=trigger,
        consistency="application" if record.cut.consistency == APPLICATION else "crash",
        changed="" if encrypted else text.size(record.stats.dirty_bytes),
        stored="" if encrypted else text.size(record.stats.stored_bytes),
        is_damaged=is_damaged,
        is_newest=facts.is_newest,
        generation=record.generation,
        holds=[_held(each) for each in facts.holds],
        held_by_person=any(each.is_person for each in facts.holds),
        locked_until=text.utc(facts.locked_until_ns) if facts.locked_until_ns else "",
    )


def drill_row(drill: Drill, now_ns: int) -> DrillRow:
    recovery_s, objective_s = drill.recovery_s, drill.objective_s
    share = 100 * recovery_s / objective_s if recovery_s is not None and objective_s else 0.0
    return DrillRow(
        drill.snapshot, moment(drill.time_ns, now_ns), drill_gate(drill, with_time=False),
        text.span(recovery_s) if recovery_s is not None else "", text.span(objective_s) if objective_s else "",
        round(min(share, 100.0), 1), text.clean(drill.why, 200),
    )  # fmt: skip


def drill_gate(drill: Drill, *, with_time: bool = True) -> GateWords:
    """Failed, passed, or passed but later than the objective."""
    title = f"{text.utc(drill.time_ns)} UTC"
    took = f" in {text.span(drill.recovery_s)}" if drill.recovery_s is not None and with_time else ""
    if not drill.passed:
        return GateWords(BAD, "failed", title)
    is_late = bool(drill.objective_s) and drill.recovery_s is not None and drill.recovery_s > (drill.objective_s or 0)
    return GateWords(BAD if is_late else GOOD, f"passed{took}{', too late' if is_late else ''}", title)


def space_model(total: int, free: int, volumes: int, seen: Forecast, now_ns: int) -> SpaceModel:
    """`volumes`: bytes that the volumes have stored."""
    other = max(total - free - volumes, 0)
    is_soon = seen.full_s is not None and seen.full_s < _SOON_S
    return SpaceModel(
        text.size(total), text.size(free), text.size(volumes),
        _share(volumes, total), _share(other, total), list(_statements(seen, now_ns)),
        is_soon or free < total // 20,
    )  # fmt: skip


def _statements(seen: Forecast, now_ns: int) -> Sequence[str]:
    day = 86400
    found = []
    if seen.trend_bytes_s is None:
        since = text.utc(int(seen.since_s * 1e9))
        found.append(f"Free space is measured since {since} UTC; a trend is known after an hour.")
    elif seen.full_s is not None:
        date = text.utc_date(now_ns + int(seen.full_s * 1e9))
        found.append(f"Full on {date} if it goes on as measured: {text.size(seen.trend_bytes_s * day)} less a day.")
    else:
        found.append("Not filling up, as measured.")
    if seen.incoming_bytes_s > 0:
        rate = f"{text.size(seen.incoming_bytes_s * day)} a day arrive"
        if seen.earliest_s is None:
            found.append(f"{rate}: not full for years, even if nothing is freed.")
        else:
            date = text.utc_date(now_ns + int(seen.earliest_s * 1e9))
            found.append(f"{rate}: not full before {date}, even if nothing is freed.")
    return found


def _share(part: int, total: int) -> float:
    return round(100 * min(part / total, 1.0), 2) if total else 0.0


def _delay(from_ns: int, to_ns: int) -> str:
    return f"+{text.span((to_ns - from_ns) / 1e9)}" if to_ns else ""


def _after(record: SnapshotRecord, time_ns: int) -> GateWords:
    if not time_ns:
        return NOT_KNOWN
    return GateWords(GOOD, _delay(record.cut_time_ns, time_ns), f"{text.utc(time_ns)} UTC")


def _verified(gates: Gates, received: bool, is_damaged: bool) -> GateWords:
    """Every object is checked as it arrives; a later reading back is a gate of its own."""
    if is_damaged:
        return GateWords(BAD, "damaged")
    if gates.verified_ns:
        return GateWords(GOOD, "read back", f"{text.utc(gates.verified_ns)} UTC")
    return GateWords(GOOD, "on arrival") if received else NOT_KNOWN


def _replicated(copies: Iterable[str]) -> GateWords:
    names = ", ".join(sorted(text.clean(name, 40) for name in copies))
    return GateWords(GOOD, names) if names else NOT_KNOWN


def _drilled(gates: Gates) -> GateWords:
    if not gates.drilled_ns:
        return NOT_KNOWN
    title = f"{text.utc(gates.drilled_ns)} UTC{f', {text.clean(gates.check)}' if gates.check else ''}"
    return GateWords(GOOD if gates.passed else BAD, "passed" if gates.passed else "failed", title)


def _held(hold: HeldFor) -> str:
    until = f" until {text.utc(hold.until_ns)} UTC" if hold.until_ns is not None else ""
    why = f": {text.clean(hold.why, 400)}" if hold.why else ""
    return f"by {text.clean(hold.who, 100)}{until}{why}"
