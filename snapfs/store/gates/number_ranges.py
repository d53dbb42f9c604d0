"""A set of snapshot numbers as runs: what a target has, in the log and in the agent's report."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

Run = tuple[int, int]
"""First and last number, inclusive."""


class NumberRanges:
    """Ascending runs that neither meet nor overlap. A change costs a binary search. Not thread-safe."""

    def __init__(self, runs: Iterable[Sequence[int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted((run[0], run[1]) for run in runs):
            if last < first:
                continue
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    @classmethod
    def of(cls, numbers: Iterable[int]) -> NumberRanges:
        return cls((number, number) for number in numbers)

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.runs():
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.runs())

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def runs(self) -> list[Run]:
        """Ascending."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def add(self, number: int) -> None:
        """It may be in already."""
        if number in self:
            return
        at = bisect_right(self._firsts, number)  # of the run above
        joins_below = at > 0 and self._lasts[at - 1] == number - 1
        joins_above = at < len(self._firsts) and self._firsts[at] == number + 1
        if joins_below and joins_above:
            self._lasts[at - 1] = self._lasts[at]
            del self._firsts[at], self._lasts[at]
        elif joins_below:
            self._lasts[at - 1] = number
        elif joins_above:
            self._firsts[at] = number
        else:
            self._firsts.insert(at, number)
            self._lasts.insert(at, number)

    def discard(self, number: int) -> None:
        """It may not be in."""
        at = bisect_right(self._firsts, number) - 1
        if at < 0 or number > self._lasts[at]:
            return
        first, last = self._firsts[at], self._lasts[at]
        kept = [run for run in ((first, number - 1), (number + 1, last)) if run[0] <= run[1]]
        self._firsts[at : at + 1] = [run[0] for run in kept]
        self._lasts[at : at + 1] = [run[1] for run in kept]

    def without(self, other: NumberRanges) -> NumberRanges:
        """Those that are not in the other. Costs what both have in runs, however long these are."""
        found, at, theirs = list[Run](), 0, other.runs()
        for first, last in self.runs():
            start = first
            while at < len(theirs) and theirs[at][1] < start:
                at += 1
            scan = at
            while scan < len(theirs) and theirs[scan][0] <= last:
                if start < theirs[scan][0]:
                    found.append((start, theirs[scan][0] - 1))
                start = max(start, theirs[scan][1] + 1)
                scan += 1
            if start <= last:
                found.append((start, last))
        return NumberRanges(found)
