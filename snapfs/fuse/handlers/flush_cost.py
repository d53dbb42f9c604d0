"""Where a flush of the disk is waited for: on the trio thread, or in a worker thread. Pure decision, measured costs.

On the trio thread no other request is served meanwhile; a worker thread costs its own hand-over, and the two then
contend for the interpreter. Measured on a disk that flushes in 0.18 ms, overwrites of 4 KiB with fdatasync: 2,160 a
second inline and 1,290 in threads with one client, 2,630 and 1,670 with four, 2,170 and 1,630 with eight. So short
flushes are waited for on the spot; one of a file with much to write, or of a slow disk, never.

Invariants:
1. A flush that has more than `SMALL_BYTES` to write goes to a thread.
2. A run of slow flushes moves to threads after a few, and returns when they become fast; one outlier does neither.
3. Memory is bounded: a file whose written bytes are not known counts as having few.
"""

from __future__ import annotations

from snapfs.base.blocks import Ino

CHEAP_SECONDS = 1e-3
SMALL_BYTES = 1 << 20
_WEIGHT = 0.2
_MOST_SECONDS = 3 * CHEAP_SECONDS
"""What one flush counts for at most: an outlier, held up by the host's journal, must not decide alone."""
_MAX_FILES = 4096


class FlushCost:
    """What flushes cost lately, on average, the newer counting more; and how much each file has to write."""

    def __init__(self) -> None:
        self._average_s = 0.0
        self._written: dict[Ino, int] = {}

    def wrote(self, ino: Ino, size: int) -> None:
        """`size` bytes of the file were written and not flushed."""
        if ino not in self._written and len(self._written) >= _MAX_FILES:
            self._written.clear()
        self._written[ino] = self._written.get(ino, 0) + size

    def is_small(self, ino: Ino) -> bool:
        """The file is flushed now: whether it has little to write."""
        return self._written.pop(ino, 0) <= SMALL_BYTES

    def is_cheap(self) -> bool:
        """Whether small flushes take little time."""
        return self._average_s < CHEAP_SECONDS

    def note(self, seconds: float) -> None:
        """A small flush took this long, from the request to its answer."""
        self._average_s += _WEIGHT * (min(seconds, _MOST_SECONDS) - self._average_s)
