"""What arrived at a mirror over time, in rings of buckets: a fixed amount of memory, however long the history is.

Invariants:
1. A bucket is of one interval since 1970; one of an interval that a ring has left is never counted in another.
2. What is put comes in nearly the order of time (the log's). What is older than a ring reaches is not in it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Range:
    """How far back a ring reaches, and how finely."""

    name: str
    label: str
    bucket_s: int
    buckets: int

    @property
    def span_s(self) -> int:
        return self.bucket_s * self.buckets


RANGES: Final = (
    Range("2h", "2 hours", 60, 120),
    Range("2d", "2 days", 1800, 96),
    Range("60d", "60 days", 43200, 120),
)


@dataclass(frozen=True, slots=True)
class ArrivalBucket:
    """Of one interval. `lag_s`: the longest time from a cut to its arrival, None where nothing new arrived."""

    start_s: int
    snapshots: int
    stored_bytes: float
    changed_bytes: float
    lag_s: float | None


class BucketRing:
    """One range of one volume. The caller serialises."""

    def __init__(self, kept: Range) -> None:
        self.range = kept
        self._latest = -1  # number of the newest interval that has a bucket
        self._counts, self._lags = array("L", [0] * kept.buckets), array("d", [-1.0] * kept.buckets)
        self._stored, self._changed = array("d", [0.0] * kept.buckets), array("d", [0.0] * kept.buckets)

    def put(self, time_s: float, stored_bytes: int, changed_bytes: int, lag_s: float | None) -> None:
        """A snapshot arrived. `lag_s` None: it is older than others that were there."""
        interval = int(time_s) // self.range.bucket_s
        self._advance(interval)
        if interval <= self._latest - self.range.buckets or interval < 0:
            return
        at = interval % self.range.buckets
        self._counts[at] += 1
        self._stored[at] += stored_bytes
        self._changed[at] += changed_bytes
        if lag_s is not None:
            self._lags[at] = max(self._lags[at], lag_s, 0.0)

    def until(self, now_s: float) -> list[ArrivalBucket]:
        """All buckets of the range that ends now, empty ones too, the oldest first."""
        last = int(now_s) // self.range.bucket_s
        return [self._bucket(interval) for interval in range(last - self.range.buckets + 1, last + 1)]

    def _bucket(self, interval: int) -> ArrivalBucket:
        start_s, at = interval * self.range.bucket_s, interval % self.range.buckets
        if not self._latest - self.range.buckets < interval <= self._latest:
            return ArrivalBucket(start_s, 0, 0.0, 0.0, None)
        lag = self._lags[at]
        return ArrivalBucket(start_s, self._counts[at], self._stored[at], self._changed[at], lag if lag >= 0 else None)

    def _advance(self, interval: int) -> None:
        first = max(self._latest + 1, interval - self.range.buckets + 1)
        for each in range(first, interval + 1):
            at = each % self.range.buckets
            self._counts[at], self._lags[at], self._stored[at], self._changed[at] = 0, -1.0, 0.0, 0.0
        self._latest = max(self._latest, interval)


def best_range(age_s: float) -> Range:
    """The one to show of a history that began so long ago: the shortest that has all of it, at most two days."""
    return next((each for each in RANGES[:1] if age_s <= each.span_s), RANGES[1])


def range_named(name: str, age_s: float) -> Range:
    """By name, or the one that fits."""
    return next((each for each in RANGES if each.name == name), best_range(age_s))
