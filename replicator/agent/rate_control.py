"""How much is under way to a target, and how fast: pure arithmetic on reported events.

`Pace` finds how many requests at a time, and how large ones, the link likes: one more for each window that went well, a
share less when answers come late, half when something fails. Until one of these happens it grows in larger steps.
`Bucket` is the hard limit in bytes per second, `TransferRate` what was measured. What the target allows (its
back-pressure) it reports in each of its answers: `Limits.window_parts`.

Invariants:
1. At least one request may always be made, of at least the smallest size: a target is never given up by arithmetic.
2. Within one round trip of a decrease there is no further one: one bad moment counts once.
3. With a limit of r bytes per second and a burst b, no more than b + r * t bytes pass in any time t, but for one
   request that is larger than b, which is paid for afterwards.
4. Nothing here reads a clock or sleeps: the caller passes the time, in seconds of one steady clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SMALLEST_BYTES: Final = 64 << 10
LARGEST_BYTES: Final = 8 << 20
MOST_REQUESTS: Final = 8
"""At a time to one target. More gained nothing over loopback, and each holds its bytes in memory."""
TARGET_SECONDS: Final = 0.5
"""A request is to take so long: short enough to notice a change of the link, long enough to make its overhead small."""
LATE: Final = 2.0
"""So many times the best round trip (of the same size) is a queue building up somewhere."""
_LATE_FLOOR_SECONDS: Final = 0.05
_GENTLE: Final = 0.8
_HARD: Final = 0.5
_FORGET: Final = 1.002
"""The best time is forgotten a little with each answer, so that a link that became slower is learnt anew."""
_SMOOTHING: Final = 0.3


@dataclass(slots=True)
class Pace:
    """Additive increase, multiplicative decrease, of the requests to one target."""

    most_requests: int = MOST_REQUESTS
    requests: float = 1.0
    """Requests at a time; the whole part counts."""
    request_bytes: int = 512 << 10
    best_s_per_byte: float = 0.0
    """The best time for a byte seen lately, 0 if none was."""
    _quiet_until_s: float = 0.0
    _starting: bool = True

    @property
    def limit(self) -> int:
        return max(1, min(int(self.requests), self.most_requests))

    def succeeded(self, now_s: float, sent_bytes: int, took_s: float) -> None:
        """A request of so many bytes was answered after so long."""
        took_s = max(took_s, 1e-6)
        per_byte = took_s / max(sent_bytes, 1)
        if sent_bytes >= SMALLEST_BYTES:
            best = self.best_s_per_byte
            self.best_s_per_byte = min(best * _FORGET, per_byte) if best else per_byte
            self._fit_size(per_byte)
        expected_s = max(self.best_s_per_byte * sent_bytes, _LATE_FLOOR_SECONDS)
        if took_s > LATE * max(self.requests, 1.0) * expected_s:
            self._decrease(now_s, took_s, _GENTLE)
        else:
            step = 1.0 if self._starting else 1 / max(self.requests, 1.0)
            self.requests = min(self.requests + step, float(self.most_requests))

    def failed(self, now_s: float, took_s: float) -> None:
        """A request was lost, refused for load or came back damaged."""
        self._decrease(now_s, took_s, _HARD)
        self.request_bytes = max(SMALLEST_BYTES, self.request_bytes // 2)

    def check_invariants(self) -> None:
        assert 1.0 <= self.requests <= self.most_requests
        assert SMALLEST_BYTES <= self.request_bytes <= LARGEST_BYTES

    def _fit_size(self, per_byte: float) -> None:
        wanted = TARGET_SECONDS / per_byte
        step = max(min(wanted, self.request_bytes * (2.0 if self._starting else 1.25)), self.request_bytes * 0.75)
        self.request_bytes = int(min(max(step, SMALLEST_BYTES), LARGEST_BYTES))

    def _decrease(self, now_s: float, took_s: float, factor: float) -> None:
        self._starting = False
        if now_s >= self._quiet_until_s:
            self.requests = max(1.0, self.requests * factor)
            self._quiet_until_s = now_s + took_s


@dataclass(slots=True)
class Bucket:
    """A limit of `bytes_per_s`, 0 for none, that lets bursts of a quarter of a second through."""

    bytes_per_s: float
    _level: float = 0.0  # bytes that have to drain away before the next may go
    _at_s: float = 0.0

    def wait_s(self, now_s: float, amount: int) -> float:
        """Take `amount` bytes; returns how long to wait before they are sent."""
        if not self.bytes_per_s:
            return 0.0
        self._level = max(0.0, self._level - (now_s - self._at_s) * self.bytes_per_s)
        self._at_s = now_s
        over = self._level + amount - self.burst
        wait_s = max(0.0, min(over, self._level)) / self.bytes_per_s
        self._level += amount
        return wait_s

    @property
    def burst(self) -> float:
        return self.bytes_per_s / 4


@dataclass(slots=True)
class TransferRate:
    """Bytes per second, smoothed over some seconds."""

    bytes_per_s: float = 0.0
    _since_s: float = 0.0
    _amount: int = 0

    def add(self, now_s: float, amount: int) -> None:
        self._amount += amount
        self._roll(now_s)

    def at(self, now_s: float) -> float:
        """The rate as of now: it falls while nothing is sent."""
        self._roll(now_s)
        return self.bytes_per_s

    def _roll(self, now_s: float) -> None:
        if not self._since_s:
            self._since_s = now_s
        span_s = now_s - self._since_s
        if span_s >= 1.0:
            new = self._amount / span_s
            keep = (1 - _SMOOTHING) ** span_s
            self.bytes_per_s = new if not self.bytes_per_s else self.bytes_per_s * keep + new * (1 - keep)
            self._since_s, self._amount = now_s, 0
