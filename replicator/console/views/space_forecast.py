"""When the disk of a mirror will be full, as far as that can be said. Pure, but for the ring of samples.

Two statements, neither more than is known: the trend of the free space, measured by this process since it began, which
has in it what is dropped and freed; and the rate at which snapshots arrive, from the logs, which bounds it from
one side: earlier than with nothing freed it cannot be full by what arrives.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final

SAMPLE_S: Final = 300
SAMPLES: Final = 2016
"""A week of samples."""
LEAST_S: Final = 3600.0
"""A trend of less time is noise."""
_POINTS: Final = 40
_FAR_S: Final = 5 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """`trend_bytes_s`: by which free space falls; None: not measured for long enough yet, since `since_s`. `full_s`,
    `earliest_s`: seconds from now; None: not within five years."""

    trend_bytes_s: float | None
    full_s: float | None
    since_s: float
    incoming_bytes_s: float
    earliest_s: float | None


class FreeSpaceSamples:
    """Free bytes over time, one each SAMPLE_S."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)

    def put(self, now_s: float, free_bytes: int) -> None:
        if not self._samples or now_s - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now_s, free_bytes))

    def all(self) -> list[tuple[float, int]]:
        return list(self._samples)


def forecast(samples: list[tuple[float, int]], now_s: float, free_bytes: int, incoming_bytes_s: float) -> Forecast:
    """`incoming_bytes_s`: what came in, on average of the last days."""
    since_s = samples[0][0] if samples else now_s
    trend = _trend([*samples, (now_s, free_bytes)]) if now_s - since_s >= LEAST_S else None
    return Forecast(
        trend, _until(free_bytes, trend or 0.0), since_s, incoming_bytes_s, _until(free_bytes, incoming_bytes_s)
    )


def _until(free_bytes: int, bytes_s: float) -> float | None:
    if bytes_s <= 0 or free_bytes / bytes_s > _FAR_S:
        return None
    return free_bytes / bytes_s


def _trend(samples: list[tuple[float, int]]) -> float:
    """By how much it falls a second: the median slope between pairs, which single jumps do not bend (Theil and Sen)."""
    points = samples[:: max(len(samples) // _POINTS, 1)]
    slopes = [
        (before - after) / (later - earlier)
        for at, (earlier, before) in enumerate(points) for later, after in points[at + 1 :] if later > earlier
    ]  # fmt: skip
    return median(slopes) if slopes else 0.0
