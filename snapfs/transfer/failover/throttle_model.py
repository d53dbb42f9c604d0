"""How much work may be acknowledged that is on this host alone, in mode bounded: what can be shipped in that time.

Pure: events with their times go in, decisions come out; replication_throttle.py acts on them. The unit is bytes of
segments, as they are shipped; what is not sealed yet counts as the bytes that were written, which is at least as much.

An fsync that is answered at t is on the targets when the cut after it (a quarter of the bound later at most, or at
once when MORE_SHARE of it was written since), and all that is before it, has been shipped. So it is answered only if
all that is not there could be shipped in ACK_SHARE of the bound, at the rate that was measured. The rest is for the
seal, the way to the target, and a link that becomes slower by half meanwhile.

Invariants:
1. Before the first measurement the rate is 0: an fsync is answered when its own work has been replicated. The same
   holds when the link is dead: a shipment that takes longer than expected lowers the rate, down to 0.
2. What was replicated is answered in any case, however much other applications write meanwhile.
3. The rate is an underestimate: a sample has LATENCY_S added to its time, and rises are halved in their first second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

ACK_SHARE: Final = 0.25
MORE_SHARE: Final = 0.0625
LATENCY_S: Final = 0.5
"""What a shipment takes at least besides its bytes; a sample of the rate leaves it out."""
NATIVE_BYTES: Final = 256 << 20
"""What can be written between two looks. Where less than this is left, every write and fsync is looked at by itself."""


@dataclass(frozen=True, slots=True)
class ThrottleMark:
    """A sealed snapshot. `written`: all that was ever written up to its cut; `stored`: all segments up to it."""

    number: int
    written: int
    stored: int


class Limiter:
    """The limiter of one volume. Times are seconds of one steady clock, amounts are bytes."""

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._marks: deque[ThrottleMark] = deque([ThrottleMark(0, 0, 0)])  # from the newest that is replicated on
        self._since_s = 0.0  # since when what is pending has been pending without an acknowledgment
        self.rate = 0.0
        self._written = 0
        self._acknowledged = 0
        """All that was written when the newest fsync was answered."""

    # -- events

    def sealed(self, number: int, written: int, stored: int, now_s: float) -> None:
        """A snapshot exists. `written`: all that was written up to its cut; `stored`: its segment's size."""
        last = self._marks[-1]
        if number > last.number:
            if len(self._marks) == 1:
                self._since_s = now_s
            self._marks.append(ThrottleMark(number, max(written, last.written), last.stored + stored))

    def replicated(self, number: int, now_s: float) -> None:
        """Enough targets have this snapshot now."""
        before = self._marks[0]
        while len(self._marks) > 1 and self._marks[1].number <= number:
            self._marks.popleft()
        if self._marks[0] is not before:
            self._measured(self._marks[0].stored - before.stored, now_s - self._since_s)
            self._since_s = now_s

    def _measured(self, shipped: int, took_s: float) -> None:
        sample = shipped / (max(took_s, 0.0) + LATENCY_S)
        if sample >= self.rate:
            self.rate = sample if took_s >= 1.0 or not self.rate else (self.rate + sample) / 2
        elif shipped >= self.rate * LATENCY_S:  # there was enough to ship for the link to show what it can
            self.rate = sample

    def wrote(self, written: int) -> None:
        """`written`: all that was ever written by now."""
        self._written = max(self._written, written)

    # -- decisions

    @property
    def pending(self) -> int:
        """Bytes that are sealed, and not on enough targets."""
        return self._marks[-1].stored - self._marks[0].stored

    @property
    def dirty(self) -> int:
        """Bytes that are written and not sealed."""
        return self._written - self._marks[-1].written

    def rate_at(self, now_s: float) -> float:
        """Bytes a second that the link can be relied on for (invariants 1 and 3)."""
        waited_s = now_s - self._since_s
        if not self.pending or waited_s <= LATENCY_S:
            return self.rate
        return min(self.rate, self.pending / (waited_s - LATENCY_S)) if waited_s < self._bound_s else 0.0

    def budget(self, now_s: float) -> float:
        """Bytes that may be on this host alone for another fsync to be answered."""
        return self.rate_at(now_s) * self._bound_s * ACK_SHARE

    def left(self, now_s: float) -> float:
        """Bytes left of the budget; negative if it is exceeded."""
        return self.budget(now_s) - self.pending - self.dirty

    def may_acknowledge(self, written: int, now_s: float) -> bool:
        """Whether an fsync may be answered that was requested when so much had been written."""
        if written > self._marks[0].written and self.left(now_s) < 0:
            return False
        self._acknowledged = max(self._acknowledged, written)
        return True

    def wants_cut(self, held: int, now_s: float) -> bool:
        """Whether a snapshot is to be made now: for fsyncs that are held, or before more is written after answered
        ones."""
        if self.dirty <= 0:
            return False
        answered = self._acknowledged > self._marks[-1].written
        return held > 0 or (answered and self.dirty >= self.rate_at(now_s) * self._bound_s * MORE_SHARE)

    def is_far_from(self, now_s: float) -> bool:
        """Whether so much may still be written that requests need not be looked at one by one."""
        return self.left(now_s) > NATIVE_BYTES
