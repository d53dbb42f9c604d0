"""A set of object numbers, as compact as numbers given out in order allow: a bit each, in granules of 1 KiB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from snapfs.base.blocks import Number

_SHIFT: Final = 13
_LOW: Final = (1 << _SHIFT) - 1


class NumberSet:
    """Ten million neighbouring numbers take 1.3 MB. One thread at a time adds."""

    def __init__(self) -> None:
        self._granules: dict[int, bytearray] = {}
        self._count = 0

    def add(self, number: int) -> bool:
        """Put `number` in; True if it was not there."""
        granule = self._granules.get(number >> _SHIFT)
        if granule is None:
            granule = self._granules[number >> _SHIFT] = bytearray(1 << _SHIFT - 3)
        byte, bit = (number & _LOW) >> 3, 1 << (number & 7)
        if granule[byte] & bit:
            return False
        granule[byte] |= bit
        self._count += 1
        return True

    def __contains__(self, number: int) -> bool:
        granule = self._granules.get(number >> _SHIFT)
        return granule is not None and bool(granule[(number & _LOW) >> 3] & 1 << (number & 7))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Number]:
        """The numbers, ascending."""
        for high in sorted(self._granules):
            for byte, bits in enumerate(self._granules[high]):
                for bit in range(8) if bits else ():
                    if bits >> bit & 1:
                        yield Number(high << _SHIFT | byte << 3 | bit)
