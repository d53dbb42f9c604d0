"""The bits of one partly present file in memory: which chunks are here, and which of them outlive a power cut.

Invariants:
1. `missing` is the number of chunks without a PRESENT bit.
2. Each DURABLE bit has its PRESENT bit; no bit stands beyond the last chunk.

The owner (residency.py) holds its lock while bits change.
"""

from __future__ import annotations

import re

_NOT_FULL = re.compile(rb"[^\xff]")


class ChunkBits:
    """PRESENT and DURABLE, a bit a chunk, low bit first."""

    def __init__(self, chunks: int, width: int) -> None:
        """Nothing is present. `width`: bytes of a bitmap."""
        self.chunks, self._width = chunks, width
        self.present = bytearray(width)
        self.durable = 0
        self.missing = chunks

    def put(self, present: int, durable: int) -> None:
        """These are all bits; what is durable is present."""
        counted = present | durable
        self.present = bytearray(counted.to_bytes(self._width, "little"))
        self.durable, self.missing = durable, self.chunks - counted.bit_count()

    def add(self, chunks: list[int]) -> None:
        """These are present now."""
        for chunk in chunks:
            self.missing -= self.is_absent(chunk)
            self.present[chunk >> 3] |= 1 << (chunk & 7)

    def mark_durable(self, durable: int) -> None:
        """These are all DURABLE bits; each is present."""
        self.durable = durable

    @property
    def present_bits(self) -> int:
        return int.from_bytes(self.present, "little")

    def to_bytes(self, bits: int) -> bytes:
        """As in the file."""
        return bits.to_bytes(self._width, "little")

    def is_absent(self, chunk: int) -> bool:
        return chunk < self.chunks and not self.present[chunk >> 3] >> (chunk & 7) & 1

    def absent(self, first: int = 0, stop: int | None = None, limit: int = 1 << 62) -> list[int]:
        """Up to `limit` chunks of [first, stop) that are not here, ascending."""
        found: list[int] = []
        chunk, stop = first, self.chunks if stop is None else min(stop, self.chunks)
        while chunk < stop and len(found) < limit:
            if not chunk & 7 and self.present[chunk >> 3] == 0xFF:
                lacking = _NOT_FULL.search(self.present, chunk >> 3)
                chunk = lacking.start() << 3 if lacking else stop
                continue
            if self.is_absent(chunk):
                found.append(chunk)
            chunk += 1
        return found

    def check_invariants(self) -> None:
        present = self.present_bits
        assert self.missing == self.chunks - present.bit_count()
        assert self.durable & ~present == 0
        assert present >> self.chunks == 0
