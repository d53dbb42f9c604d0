"""Which blocks of one file changed in one epoch. Pure data: no locks, no files, no clock.

The native data path has its own (native/dirty.c); only this file and tests look inside a `DirtyMap`.

Invariants:
1. A map never forgets: marking, lowering the floor and joining only ever add to what is dirty.
2. A chunk is dirty if its mask is not zero, or if it is at or above `floor`, whatever its mask is. So a truncate or
   an append costs one number however many chunks it concerns.
3. `reach` is the highest length in chunks that a truncate cut down from. Chunks in [floor, reach) may have had
   data that is a hole now; above `reach` only data can be new, so holes there need no mention.
4. `whole` means that nothing is known (a new file, or one met after a power cut): floor is 0, and the reader of the
   map compares the file in full, the holes included.
5. `CLEAN` is shared and never marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from snapfs.base.blocks import (
    BLOCK_SIZE,
    BLOCKS_PER_CHUNK,
    CHUNK_SIZE,
    FULL_MASK,
    BlockIndex,
    ChunkIndex,
    chunk_count,
    masks_of_range,
)

NO_FLOOR = 1 << 52
"""Above any chunk: file sizes are below 2**63 bytes."""

BLOCK_SHIFT = BLOCK_SIZE.bit_length() - 1
CHUNK_SHIFT = CHUNK_SIZE.bit_length() - 1


class DirtyMap:
    __slots__ = ("floor", "masks", "reach", "whole")

    def __init__(self, floor: int = NO_FLOOR, reach: int = 0, whole: bool = False) -> None:
        self.masks: dict[int, int] = {}
        self.floor = floor
        self.reach = reach
        self.whole = whole

    @property
    def count(self) -> int:
        """How many chunks it holds a mask of."""
        return len(self.masks)

    # -- queries

    def covers(self, chunk: int) -> bool:
        """Whether anything of `chunk` is dirty."""
        return chunk >= self.floor or chunk in self.masks

    def has(self, offset: int, length: int) -> bool:
        """Whether all blocks of the bytes [offset, offset + length) are dirty already."""
        first, last = offset >> CHUNK_SHIFT, (offset + length - 1) >> CHUNK_SHIFT
        if first >= self.floor:
            return True
        if first == last:
            low = (offset >> BLOCK_SHIFT) % BLOCKS_PER_CHUNK
            high = ((offset + length - 1) >> BLOCK_SHIFT) % BLOCKS_PER_CHUNK
            mask = (FULL_MASK >> (BLOCKS_PER_CHUNK - 1 - high + low)) << low
            return not mask & ~self.masks.get(first, 0)
        return all(
            chunk >= self.floor or not mask & ~self.masks.get(chunk, 0)
            for chunk, mask in masks_of_range(offset, length)
        )

    def is_clean(self) -> bool:
        return not self.masks and self.floor == NO_FLOOR

    def listed_chunks(self) -> list[tuple[ChunkIndex, int]]:
        """(chunk, mask) of all chunks below the floor that are dirty, ascending."""
        floor = self.floor
        return [(ChunkIndex(chunk), mask) for chunk, mask in sorted(self.masks.items()) if chunk < floor]

    def runs(self) -> Iterator[tuple[BlockIndex, int]]:
        """(first block, count) of all runs of dirty blocks below the floor, ascending: what an intent records."""
        first = end = 0
        for chunk, mask in self.listed_chunks():
            for low, count in mask_runs(mask):
                block = chunk * BLOCKS_PER_CHUNK + low
                if block != end:
                    if end > first:
                        yield BlockIndex(first), end - first
                    first = block
                end = block + count
        if end > first:
            yield BlockIndex(first), end - first

    # -- adding

    def mark(self, offset: int, length: int) -> int:
        """Make the blocks of these bytes dirty. Returns how many chunks are new in the map."""
        masks, before = self.masks, len(self.masks)
        for chunk, mask in masks_of_range(offset, length):
            if chunk >= self.floor:
                break
            masks[chunk] = masks.get(chunk, 0) | mask
        return len(masks) - before

    def mark_blocks(self, first: int, count: int) -> int:
        """As `mark`, for whole blocks."""
        return self.mark(first << BLOCK_SHIFT, count << BLOCK_SHIFT)

    def lower(self, floor: int, reach: int = 0) -> None:
        """Make everything from chunk `floor` on dirty; `reach` as in invariant 3."""
        self.floor = min(self.floor, floor)
        self.reach = max(self.reach, reach)

    def mark_whole(self) -> None:
        """Forget all detail: the file must be compared in full."""
        self.whole, self.floor = True, 0
        self.masks = {}

    def join(self, other: DirtyMap) -> None:
        """Add all that is dirty in `other`."""
        if other.whole:
            self.mark_whole()
        self.lower(other.floor, other.reach)
        masks = self.masks
        for chunk, mask in other.masks.items():
            masks[chunk] = masks.get(chunk, 0) | mask

    def check_invariants(self) -> None:
        assert not self.whole or self.floor == 0
        assert 0 <= self.floor <= NO_FLOOR
        assert self.reach >= 0
        assert all(0 < mask <= FULL_MASK and chunk >= 0 for chunk, mask in self.masks.items())


CLEAN = DirtyMap()


def joined(maps: Iterable[DirtyMap]) -> DirtyMap:
    """A new map with all that is dirty in any of `maps`, which are of one kind."""
    union: DirtyMap | None = None
    for each in maps:
        union = union or type(each)()
        union.join(each)
    return union or DirtyMap()


def mask_runs(mask: int) -> Iterator[tuple[int, int]]:
    """(first bit, count) of each run of ones in `mask`, ascending."""
    low = 0
    while mask:
        skip = (mask & -mask).bit_length() - 1
        mask >>= skip
        low += skip
        count = (~mask & (mask + 1)).bit_length() - 1
        yield low, count
        mask >>= count
        low += count


def growth(dirty: DirtyMap, size: int, new_size: int) -> tuple[int, tuple[int, int] | None]:
    """What an extension from `size` to `new_size` bytes makes dirty: a floor, and a (first, count) of blocks or None.

    All beyond the old end is new. The chunk that held the old end gets longer even where no byte is
    written to it, so its blocks from the old end on count as changed.
    """
    floor = chunk_count(size)
    if not size % CHUNK_SIZE or (dirty.covers(floor - 1) and dirty.has(size - 1, floor * CHUNK_SIZE - size + 1)):
        return floor, None
    first = (size - 1) >> BLOCK_SHIFT
    return floor, (first, floor * BLOCKS_PER_CHUNK - first)
