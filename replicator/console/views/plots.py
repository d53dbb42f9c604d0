"""Plots as geometry: where the bars, lines and labels of an inline SVG go. Pure; templates/plots.html draws them.

Of the area that is drawn, x goes from 0 to WIDTH and y from 0 (top) to HEIGHT, stretched to whatever room there is;
labels are placed in per cent, so that the stretching does not touch their letters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from replicator.console.views import display_text as text
from replicator.console.views.arrival_buckets import ArrivalBucket, Range

WIDTH: Final = 1000
HEIGHT: Final = 100
NOTHING: Final = "nothing arrived in this time"
_LEAST_LAG_S: Final = 0.1
_LAGS: Final = (0.1, 1, 10, 60, 600, 3600, 21600, 86400, 864000)
_STEPS_S: Final = {"2h": 1800, "2d": 43200, "60d": 864000}


@dataclass(frozen=True, slots=True)
class Label:
    """`place`: per cent, of x from the left or of y from the top."""

    place: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Plot:
    """`back`: bars behind `bars`. `summary`: what the plot says, for who does not see it."""

    title: str
    summary: str
    x_labels: Sequence[Label]
    y_labels: Sequence[Label]
    bars: Sequence[Bar] = ()
    back: Sequence[Bar] = ()
    is_empty: bool = False


def lag_plot(buckets: Sequence[ArrivalBucket], kept: Range) -> Plot:
    """The longest way from a cut to this mirror, on a scale of logarithms."""
    known = [(at, bucket, bucket.lag_s) for at, bucket in enumerate(buckets) if bucket.lag_s is not None]
    lags = [lag_s for _, _, lag_s in known]
    top = next((mark for mark in _LAGS[1:] if mark >= max(lags, default=1.0)), _LAGS[-1])
    bars = [
        _bar(at, max(_lag_height(lag_s, top), 1.5), len(buckets), f"{_when(bucket, kept)}: {text.span(lag_s)}")
        for at, bucket, lag_s in known
    ]
    marks = [mark for mark in _LAGS[1:] if mark <= top]
    y_labels = [Label(round(HEIGHT - _lag_height(mark, top), 2), _short(text.span(mark))) for mark in marks[-3:]]
    summary = NOTHING
    if lags:
        middle = sorted(lags)[len(lags) // 2]
        summary = f"longest {text.span(max(lags))}, median {text.span(middle)}, last {text.span(lags[-1])}"
    return Plot("Lag", summary, x_labels(buckets, kept), y_labels, bars, is_empty=not lags)


def _lag_height(lag_s: float, top: float) -> float:
    low = math.log10(_LEAST_LAG_S)
    return HEIGHT * (math.log10(min(max(lag_s, _LEAST_LAG_S), top)) - low) / (math.log10(top) - low)


def churn_plot(buckets: Sequence[ArrivalBucket], kept: Range) -> Plot:
    """What the application changed, behind what was stored for it."""
    top = _ceiling(max((max(bucket.changed_bytes, bucket.stored_bytes) for bucket in buckets), default=0.0))
    stored, changed = sum(bucket.stored_bytes for bucket in buckets), sum(bucket.changed_bytes for bucket in buckets)

    def bars(value: Callable[[ArrivalBucket], float], word: str) -> list[Bar]:
        return [
            _bar(
                at, max(HEIGHT * value(bucket) / top, 1.0), len(buckets),
                f"{_when(bucket, kept)}: {text.size(value(bucket))} {word}",
            )
            for at, bucket in enumerate(buckets) if value(bucket)
        ]  # fmt: skip

    summary = f"{text.size(changed)} changed, {text.size(stored)} stored" if changed or stored else NOTHING
    labels = [Label(0.0, _short(text.size(top))), Label(50.0, _short(text.size(top / 2)))]
    front = bars(lambda bucket: bucket.stored_bytes, "stored")
    back = bars(lambda bucket: bucket.changed_bytes, "changed")
    return Plot("Churn", summary, x_labels(buckets, kept), labels, front, back, is_empty=not (front or back))


def pace_plot(buckets: Sequence[ArrivalBucket], kept: Range) -> Plot:
    """How many snapshots arrived."""
    most = max((bucket.snapshots for bucket in buckets), default=0)
    bars = [
        _bar(
            at, max(HEIGHT * bucket.snapshots / most, 2.0), len(buckets),
            f"{_when(bucket, kept)}: {bucket.snapshots} snapshots",
        )
        for at, bucket in enumerate(buckets) if bucket.snapshots
    ]  # fmt: skip
    total = sum(bucket.snapshots for bucket in buckets)
    labels = [Label(0.0, f"{most}")] if most else []
    return Plot("Snapshots", f"{total} arrived", x_labels(buckets, kept), labels, bars, is_empty=not total)


def spark(buckets: Sequence[ArrivalBucket]) -> str:
    """The path of a line's small plot: a stroke for each bucket in which something arrived, as high as its churn."""
    most = max((bucket.stored_bytes for bucket in buckets), default=0.0)
    strokes = [
        f"M{at + 0.5:g} 16v-{max(round(15 * bucket.stored_bytes / most), 1) if most else 1}"
        for at, bucket in enumerate(buckets) if bucket.snapshots
    ]  # fmt: skip
    return "".join(strokes)


def x_labels(buckets: Sequence[ArrivalBucket], kept: Range) -> list[Label]:
    """Round times."""
    step_s, start_s = _STEPS_S[kept.name], buckets[0].start_s
    first = -(-start_s // step_s) * step_s
    form = "%-d %b" if kept.name == "60d" else "%H:%M"
    found = []
    for time_s in range(first, start_s + kept.span_s, step_s):
        place = 100 * (time_s - start_s) / kept.span_s
        moment = datetime.fromtimestamp(time_s, UTC)
        is_midnight = kept.name == "2d" and moment.hour == 0
        if 3 <= place <= 97:
            found.append(Label(round(place, 2), moment.strftime("%-d %b" if is_midnight else form)))
    return found


def _short(label: str) -> str:
    return label.replace(".0 ", " ")


def _bar(at: int, height: float, count: int, title: str) -> Bar:
    wide = WIDTH / count
    left, top = round(at * wide + wide * 0.1, 2), round(HEIGHT - height, 2)
    return Bar(left, top, round(wide * 0.8, 2), round(height, 2), title)


def _when(bucket: ArrivalBucket, kept: Range) -> str:
    form = "%Y-%m-%d" if kept.name == "60d" else "%Y-%m-%d %H:%M"
    return datetime.fromtimestamp(bucket.start_s, UTC).strftime(form)


def _ceiling(value: float) -> float:
    """The next round size above: 1, 2, 5, 10, ... of a power of 1024."""
    if value <= 0:
        return 1024.0
    unit = 1024.0 ** int(math.log(value, 1024)) if value >= 1 else 1.0
    return next(step * unit for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1024) if step * unit >= value)
