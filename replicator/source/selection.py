"""What is to be sent and what travels: the objects that snapshots need beyond what a target has, and parts of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from snapfs.base.blocks import Number
from snapfs.store.objects.format import Row
from snapfs.store.objects.number_set import NumberSet

ITEM_OVERHEAD: Final = 48
"""What an object costs on the wire or in a segment's table besides its frame, about."""


@dataclass(frozen=True, slots=True)
class Part:
    """Objects that travel together: ascending by number, all of one generation of numbers. `bytes` of all frames."""

    rows: tuple[Row, ...]
    framed: tuple[bytes, ...]
    bytes: int

    @property
    def first(self) -> Number:
        return self.rows[0].number

    @property
    def last(self) -> Number:
        return self.rows[-1].number

    def numbers(self) -> Iterator[Number]:
        return (row.number for row in self.rows)


@dataclass(frozen=True, slots=True)
class Known:
    """What a target has for certain. `whole`: objects with all that is below them; `there`: all, so also the bases of
    differences, which as pages of their own would need more."""

    whole: NumberSet = field(default_factory=NumberSet)
    there: NumberSet = field(default_factory=NumberSet)

    def take(self, selection: Selection) -> None:
        """The target has acknowledged what was selected against this."""
        for number in selection.visited:
            self.whole.add(number)
        for number in selection.numbers:
            self.there.add(number)


@dataclass(frozen=True, slots=True)
class Selection:
    """What snapshots need beyond what is known. `visited` was come to by walking, `numbers` are to be sent."""

    visited: NumberSet
    numbers: NumberSet


class Unseen(NumberSet):
    """The `seen` of a walk that goes no further where a target has everything."""

    def __init__(self, whole: NumberSet) -> None:
        super().__init__()
        self._whole = whole

    def add(self, number: int) -> bool:
        return number not in self._whole and super().add(number)


class PartGathering:
    """The objects of a part that is not full yet."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.framed: list[bytes] = []
        self.bytes = 0

    def add(self, row: Row, framed: bytes, cost: int) -> None:
        self.rows.append(row)
        self.framed.append(framed)
        self.bytes += cost

    def part(self) -> Part:
        return Part(tuple(self.rows), tuple(self.framed), self.bytes)
