"""Where a flush of the disk is waited for: on the trio thread, or in a worker thread. Pure decision, measured costs.

On the trio thread nobody else is served meanwhile; a worker thread costs its own hand-over, about as much as one flush
of a fast disk. So cheap flushes are waited for on the spot, and dear ones never.

Invariant: a run of dear flushes moves to threads after at most a few, and one that became cheap returns.
"""

from __future__ import annotations

CHEAP_SECONDS = 300e-6
_WEIGHT = 0.2
_LONGEST_SECONDS = 0.01
"""One outlier, such as a flush that the host's journal held up, counts for at most this much."""


class FlushCost:
    """An average of what flushes cost lately, the newer counting more."""

    def __init__(self) -> None:
        self._average_s = 0.0

    def is_cheap(self) -> bool:
        return self._average_s < CHEAP_SECONDS

    def note(self, seconds: float) -> None:
        """One flush took this long."""
        self._average_s += _WEIGHT * (min(seconds, _LONGEST_SECONDS) - self._average_s)
