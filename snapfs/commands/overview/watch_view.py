"""What `status --watch` shows of a mounted volume: rates from two samples, and a table of them. No I/O.

A sample is the daemon's status and its metrics, read one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from snapfs.commands.support import output

if TYPE_CHECKING:
    from rich.table import Table

_SAMPLE: Final = re.compile(r"^(snapfs_\w+)(?:\{[^\n]*\})? (\S+)$", re.MULTILINE)
_RATES: Final = {
    "requests_per_s": "snapfs_requests_total",
    "sealed_bytes_per_s": "snapfs_sealed_bytes_total",
    "stored_bytes_per_s": "snapfs_stored_bytes_total",
    "hydrated_bytes_per_s": "snapfs_hydrated_bytes_total",
    "hydrated_files_per_s": "snapfs_hydrated_files_total",
    "snapshots_per_s": "snapfs_snapshots_made_total",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """`counts`: of each counter the sum of its series. `time_s`: of a clock that only goes forward."""

    time_s: float
    status: Mapping[str, Any]
    counts: Mapping[str, float]


def counts_of(metrics: str) -> dict[str, float]:
    """The sums of the counters in a Prometheus text."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(metrics):
        if name.endswith("_total"):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def rates(before: Sample | None, now: Sample) -> dict[str, float | None]:
    """By the second between the two; None where it is not known: no sample before, or another daemon since."""
    span_s = now.time_s - before.time_s if before is not None else 0.0
    if before is None or span_s <= 0 or before.status["pid"] != now.status["pid"]:
        return dict.fromkeys(_RATES)
    known = {name: (before.counts.get(counter), now.counts.get(counter)) for name, counter in _RATES.items()}
    return {
        name: None if then is None or later is None else (later - then) / span_s
        for name, (then, later) in known.items()
    }


def time_left_s(absent_files: int, files_per_s: float | None) -> float | None:
    """Until all files are here at this rate; None if it cannot be known, 0 if they are."""
    if not absent_files:
        return 0.0
    return absent_files / files_per_s if files_per_s else None


def lines(before: Sample | None, now: Sample) -> Iterator[tuple[str, str]]:
    """What is shown, as (name, value)."""
    status, rate = now.status, rates(before, now)
    yield "volume", f"{output.printable(status['volume'])} at {output.printable(status['mountpoint'])}"
    if fenced := status.get("fenced"):
        yield "FENCED", f"{fenced['by_holder']} is the writer (generation {fenced['by_generation']})"
    if failing := status.get("snapshot_failing"):
        yield "NO SNAPSHOT", f"since {output.utc(failing['since_ns'])}: {output.printable(failing['message'])}"
    yield "requests", f"{_number(rate['requests_per_s'])}/s"
    dirty = status["dirty"]
    yield "dirty", f"{dirty['files']} files, about {output.size(dirty['bytes'])}"
    last = status.get("last_snapshot")
    yield "last", f"snapshot {last['number']}, {output.seconds(last['age_s'])} old" if last else "no snapshot"
    yield "sealing", _sealing(status.get("sealing"), rate)
    pause = status.get("cut_pause_s") or {}
    if pause.get("count"):
        yield "cut pause", " ".join(f"{name} {output.seconds(pause[name])}" for name in ("last", "p50", "p99", "max"))
    yield from _objective(status.get("objectives") or {})
    for target in (status.get("replication") or {}).get("targets", []):
        if "state" in target:
            yield "target", _target(target)
    yield from _hydration((status.get("hydration") or {}).get("absent_files") or 0, rate)


def _sealing(running: Mapping[str, Any] | None, rate: Mapping[str, float | None]) -> str:
    speed = f"{_size(rate['sealed_bytes_per_s'])}/s read, {_size(rate['stored_bytes_per_s'])}/s stored"
    if running is None:
        return speed
    done, total = output.size(running["done_bytes"]), output.size(running["total_bytes"])
    return f"{running['phase']}, {done} of {total}, for {output.seconds(running['seconds_s'])}; {speed}"


def _objective(objectives: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if rpo_s := objectives.get("rpo_s"):
        state = str(objectives.get("rpo_state", ""))
        shown = state if state == "met" else state.upper()
        yield "rpo", f"{output.seconds(rpo_s)}, {shown}, now {output.seconds(objectives.get('age_s') or 0.0)}"


def _target(target: Mapping[str, Any]) -> str:
    lacks = (
        f"lacks {target['missing']} snapshots for {output.seconds(target['lag_s'])}" if target["missing"] else "has all"
    )
    speed = f", {output.size(target['bytes_per_s'])}/s" if target.get("bytes_per_s") else ""
    sending = target.get("sending") or {}
    left = ""
    if sending and target.get("bytes_per_s"):
        seconds = max(sending["planned_bytes"] - sending["done_bytes"], 0) / target["bytes_per_s"]
        left = f", {output.seconds(seconds)} left"
    return f"{output.printable(target['name'])}: {target['state']}, {lacks}{speed}{left}"


def _hydration(absent: int, rate: Mapping[str, float | None]) -> Iterator[tuple[str, str]]:
    if absent:
        left = time_left_s(absent, rate["hydrated_files_per_s"])
        when = "time left unknown" if left is None else f"about {output.seconds(left)} left"
        yield "hydration", f"{absent} files absent, {_size(rate['hydrated_bytes_per_s'])}/s, {when}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _size(value: float | None) -> str:
    return "-" if value is None else output.size(value)


def table(before: Sample | None, now: Sample) -> Table:
    """The same for a terminal."""
    from rich.table import Table  # for terminals only
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    for name, value in lines(before, now):
        style = "bold red" if name.isupper() or " MISSED" in f" {value}" else ""
        made.add_row(Text(name, style="bold"), Text(value, style=style))
    return made
