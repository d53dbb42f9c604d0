"""What sealing and replication take, measured: events with their times go in, predictions come out. No clock, no I/O.

Both the seal and the way to the targets are taken as a fixed time and a time for each byte: the fixed one is the least
of the last samples, and what they took beyond it is shared among their bytes. The last sample counts by itself if it
was slower than the mean, so that a link that becomes slow is believed at once; the worst one does not count among the
others, so that an outage is forgotten with the next sample.

Invariants:
1. Before the first sample the rates are guesses that are worse than most disks and links: the first cut comes early.
2. A shipment that is later than predicted is predicted to take as long again as it is late: nothing is ever "about
   to arrive" for ever.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from snapfs.base.schedule.pace import Measured

SAMPLES: Final = 16
SMALL_BYTES: Final = 256 << 10
"""What less than this took says little about the time for a byte."""
GUESSED_SEAL: Final = (0.1, 1 / (50 << 20))
GUESSED_SENDING: Final = (1.0, 1 / (5 << 20))
"""Seconds, and seconds for each byte."""
SHARE_S: Final = 60.0
"""Over so long the share of sealing is taken."""
MOST_MARKS: Final = 4096


class Cost:
    """Seconds for an amount of bytes: fixed, and for each byte."""

    def __init__(self, guess: tuple[float, float]) -> None:
        self._guess = guess
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)

    def sample(self, took_s: float, size_bytes: int) -> None:
        self._samples.append((took_s, size_bytes))

    def predict(self, size_bytes: float) -> float:
        """Seconds that so many bytes will take."""
        if not self._samples:
            fixed_s, a_byte_s = self._guess
            return fixed_s + size_bytes * a_byte_s
        fixed_s = min(took_s for took_s, _ in self._samples)
        last_s, last_bytes = self._samples[-1]
        if len(self._samples) == 1:
            return last_s * max(1.0, size_bytes / max(last_bytes, 1))
        return fixed_s + size_bytes * max(self._mean_s(fixed_s), (last_s - fixed_s) / max(last_bytes, SMALL_BYTES))

    def _mean_s(self, fixed_s: float) -> float:
        """For each byte, without the worst sample."""
        beyond = [(took_s - fixed_s, max(size, 1)) for took_s, size in self._samples]
        beyond.remove(max(beyond, key=lambda each: each[0] / each[1]))
        return sum(took_s for took_s, _ in beyond) / max(sum(size for _, size in beyond), SMALL_BYTES)


@dataclass(frozen=True, slots=True)
class SealSample:
    """A snapshot that was made. `written_bytes`: between the cut before and its own; times in seconds."""

    number: int
    cut_s: float
    sealed_s: float
    flush_s: float
    written_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class _Mark:
    number: int
    stored: int  # bytes of all segments up to it


class Measurements:
    """Of one volume. Times are seconds of one steady clock, amounts are bytes."""

    def __init__(self) -> None:
        self._sealing, self._sending = Cost(GUESSED_SEAL), Cost(GUESSED_SENDING)
        self._flushes: deque[float] = deque(maxlen=4)
        self._amounts: deque[tuple[int, int]] = deque(maxlen=SAMPLES)  # written, stored
        self._spans: deque[tuple[float, float]] = deque()
        self._marks: deque[_Mark] = deque([_Mark(0, 0)])  # from the newest that is replicated on
        self._since_s = 0.0  # since when what is pending has been pending without an acknowledgment

    # -- events

    def sealed(self, made: SealSample) -> None:
        """A snapshot exists."""
        self._sealing.sample(made.sealed_s - made.cut_s, made.written_bytes)
        self._flushes.append(made.flush_s)
        self._amounts.append((made.written_bytes, made.stored_bytes))
        self._spans.append((made.cut_s, made.sealed_s))
        if not self.pending_bytes:
            self._since_s = made.sealed_s
        last = self._marks[-1]
        if made.number > last.number:
            self._marks.append(_Mark(made.number, last.stored + max(made.stored_bytes, 1)))
        if len(self._marks) > MOST_MARKS:  # a target that was away for days: the oldest two are one
            del self._marks[1]

    def replicated(self, number: int, now_s: float) -> None:
        """Enough targets have this snapshot now."""
        before = self._marks[0]
        while len(self._marks) > 1 and self._marks[1].number <= number:
            self._marks.popleft()
        if self._marks[0] is not before:
            self._sending.sample(max(now_s - self._since_s, 0.0), self._marks[0].stored - before.stored)
            self._since_s = now_s

    # -- what follows

    @property
    def pending_bytes(self) -> int:
        """Bytes that are sealed, and not on enough targets."""
        return self._marks[-1].stored - self._marks[0].stored

    def stored_share(self) -> float:
        """Bytes of a segment for each byte that was written, 1 before it is known."""
        written = sum(amount for amount, _ in self._amounts)
        return sum(stored for _, stored in self._amounts) / written if written else 1.0

    def seal_share(self, now_s: float) -> float:
        """The share of the last minute (or of the time since the first seal, if that is less) in which a seal ran."""
        while self._spans and self._spans[0][1] < now_s - SHARE_S:
            self._spans.popleft()
        if not self._spans:
            return 0.0
        busy_s = sum(end - max(start, now_s - SHARE_S) for start, end in self._spans)
        return min(busy_s / SHARE_S, 1.0)

    def waited_s(self, now_s: float) -> float:
        """For how long the targets have been expected to get what is sealed; 0 if they have all."""
        return now_s - self._since_s if self.pending_bytes else 0.0

    def queue_s(self, now_s: float) -> float:
        """Until enough targets have all that is sealed."""
        if not self.pending_bytes:
            return 0.0
        return abs(self._sending.predict(self.pending_bytes) - self.waited_s(now_s))

    def measured(self, now_s: float, age_s: float, written_bytes: int) -> Measured:
        """For a cut that is made now, `age_s` and `written_bytes` after the one before."""
        return Measured(
            age_s=age_s,
            flush_s=max(self._flushes, default=0.0),
            seal_s=self._sealing.predict(written_bytes),
            queue_s=self.queue_s(now_s),
            send_s=self._sending.predict(written_bytes * self.stored_share()),
            seal_share=self.seal_share(now_s),
        )
