"""A set of object numbers, as a bitmap: what a reachability walk fills and compaction asks.

Numbers are dense within a generation, so the bitmap is kept in pages of 2^16 numbers (8 KiB), made when first needed: a
million objects take 128 KiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from snapfs.blocks import Number

_PAGE_BITS = 16
_PAGE_BYTES = 1 << _PAGE_BITS - 3
_IN_PAGE = (1 << _PAGE_BITS) - 1


class NumberSet:
    """Numbers can be added, never removed. For one thread at a time."""

    def __init__(self, numbers: Iterable[Number] = ()) -> None:
        self._pages: dict[int, bytearray] = {}
        self._count = 0
        for number in numbers:
            self.add(number)

    def add(self, number: Number) -> bool:
        """Put it in; False if it was in already (a walk need not go there again)."""
        page = self._pages.get(number >> _PAGE_BITS)
        if page is None:
            page = self._pages[number >> _PAGE_BITS] = bytearray(_PAGE_BYTES)
        byte, bit = (number & _IN_PAGE) >> 3, 1 << (number & 7)
        if page[byte] & bit:
            return False
        page[byte] |= bit
        self._count += 1
        return True

    def __contains__(self, number: Number) -> bool:
        page = self._pages.get(number >> _PAGE_BITS)
        return page is not None and bool(page[(number & _IN_PAGE) >> 3] & 1 << (number & 7))

    def any_within(self, first: Number, end: Number) -> bool:
        """True if a number of [first, end) is in it."""
        pages = (page for page in self._pages if first >> _PAGE_BITS <= page <= (end - 1) >> _PAGE_BITS)
        return any(first <= number < end for page in pages for number in self._numbers_of(page))

    def _numbers_of(self, page: int) -> Iterator[int]:
        for index, byte in enumerate(self._pages[page]):
            for bit in range(8) if byte else ():
                if byte & 1 << bit:
                    yield page << _PAGE_BITS | index << 3 | bit

    def __len__(self) -> int:
        return self._count
