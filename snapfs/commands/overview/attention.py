"""What of a volume needs somebody's attention: the rules, as a pure function of its facts (volume_facts.py).

Each finding is one line for people. Invariants:
1. No finding is about something that mends itself as usual: a target that lacks what was just sealed, a volume that
   nobody mounted, an error of the past after which all went on.
2. What is not known is a finding, not silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from snapfs.base.settings.units import parse_seconds
from snapfs.commands.support import output

LEAST_FREE: Final = 0.05
"""Of the filesystem that holds the volume."""
USUAL_LAG_S: Final = 60.0
MOUNTED_AT = ", mounted at "
"""In what a daemon writes of itself into the lock of its volume."""
"""A target may be behind for so long where neither an objective nor a bound says another time."""

Facts = Mapping[str, Any]


def problems(facts: Facts) -> list[str]:
    """What is wrong with one volume, the worst first; empty if nothing is. Pure."""
    if facts["error"]:
        return [facts["error"]]
    found = (_of_mount(facts), _of_snapshots(facts), _of_targets(facts), _of_objectives(facts), _of_disk(facts))
    return [line for lines in (*found, _of_drill(facts)) for line in lines]


def _of_mount(facts: Facts) -> Iterator[str]:
    if facts["state"] == "dead":
        yield facts["daemon_died"]
    if facts["state"] == "in use" and MOUNTED_AT in (facts.get("held_by") or ""):
        yield f"its mount is not to be seen from here (another mount namespace?): it is held by {facts['held_by']}"
    if facts["state"] == "unmounted" and facts["wanted_at"]:
        yield f"it is not mounted, and {facts['named_by']} has it at {facts['wanted_at']}"
    if fenced := facts["fenced"]:
        yield f"FENCED: {fenced['by_holder']} is the writer (generation {fenced['by_generation']})"
    host = facts["host"]
    if host.get("refuses"):
        yield f"the filesystem that holds it cannot be written to ({host['refuses']}), since {_utc(host['since_ns'])}"
    elif (host.get("errors") or {}).get("sync"):
        yield f"the filesystem that holds it failed at {host['errors']['sync']} syncs"


def _of_snapshots(facts: Facts) -> Iterator[str]:
    if failing := facts["snapshot_failing"]:
        yield f"no snapshot since {_utc(failing['since_ns'])}: {failing['message']}"
    elif facts["overdue_s"]:
        yield f"a snapshot is due for {output.seconds(facts['overdue_s'])}"
    if facts["damaged_snapshots"]:
        yield f"{facts['damaged_snapshots']} snapshots are damaged: `snapfs verify --repair`"
    if facts["stray_damage"]:
        yield "transactions that were answered are lost: see stray_files in status"


def _of_targets(facts: Facts) -> Iterator[str]:
    most_s = allowed_lag_s(facts)
    for target in facts["targets"]:
        state = target["state"]
        if state == "behind" and target["lag_s"] > most_s:
            lacks = f"lacks {target['missing']} snapshots for {output.seconds(target['lag_s'])}"
            yield f"target {target['name']} is behind: {lacks}"
        elif state not in ("current", "behind"):
            yield f"target {target['name']}: {state}{f' ({why})' if (why := target['why']) else ''}"


def allowed_lag_s(facts: Facts) -> float:
    """For how long a target may lack something before that is a finding: the objective, the bound, or a usual time."""
    rpo_s = (facts["objectives"] or {}).get("rpo_s")
    if rpo_s:
        return float(rpo_s)
    return float(parse_seconds(facts["bound"])) if facts["mode"] == "bounded" else USUAL_LAG_S


def _of_objectives(facts: Facts) -> Iterator[str]:
    objectives = facts["objectives"] or {}
    rpo_s, age_s = objectives.get("rpo_s"), objectives.get("age_s")
    if rpo_s and objectives.get("met") is False:
        at = "nothing is replicated yet" if age_s is None else f"it is {output.seconds(age_s)} now"
        yield f"the objective of at most {output.seconds(rpo_s)} of loss (rpo) is not met: {at}"


def _of_drill(facts: Facts) -> Iterator[str]:
    drill, rto_s = facts["drill"], (facts["objectives"] or {}).get("rto_s")
    if not drill:
        return
    if not drill["passed"]:
        why = f": {drill['why']}" if drill["why"] else ""
        yield f"snapshot {drill['snapshot']} did not recover in the drill of {_utc(drill['time_ns'])}{why}"
    elif rto_s and drill["recovery_s"] is not None and drill["recovery_s"] > rto_s:
        took = f"the last drill took {output.seconds(drill['recovery_s'])}"
        yield f"the objective of {output.seconds(rto_s)} until recovery (rto) is not met: {took}"


def _of_disk(facts: Facts) -> Iterator[str]:
    space = facts["space"]
    if space["size_bytes"] and space["available_bytes"] < LEAST_FREE * space["size_bytes"]:
        part = space["available_bytes"] / space["size_bytes"]
        yield f"its disk is full but for {output.size(space['available_bytes'])} ({part:.1%})"


def _utc(time_ns: int | None) -> str:
    return output.utc(time_ns) if time_ns else "an unknown time"
