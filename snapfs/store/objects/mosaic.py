"""When a chunk that is written at random is stored as blocks, each an object of its own: a MOSAIC of them.

A patch has all blocks that differ from the full object behind it. Where they do not compress against it, each version
of a chunk stores again what the versions before it stored: 8 versions of one new block each, and the chunk full again,
are 52 blocks for 9. A mosaic stores the blocks that are new since the version before, and records of the others where
they are.

Invariants:
1. What a mosaic refers to is a full object, a chunk or a block: never another mosaic, however long the history. A block
   is read with two frames, the chunk with as many as it has objects, at most 17.
2. Over any sequence of overwrites of blocks that do not compress, what is stored is less than 1.3 times what changed:
   new blocks side by side are one object and take 72 bytes more than themselves, a mosaic takes 210 at most. The chunk
   is stored full again where that is hardly more (13 blocks of 16 are new), or when REBASE_BLOCKS were stored since it
   was full: so a read of all of it finds its blocks together again, and the old full object is let go.
3. A patch that pays stays a patch: where less than three quarters of the new blocks are new content.
"""

from __future__ import annotations

from typing import Final

from snapfs.base.blocks import BLOCK_SIZE, Number
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES
from snapfs.store.objects.mosaic_payload import BlockPlace, Mosaic

REBASE_BLOCKS: Final = 96
"""A full chunk for so many blocks: a sixth more. Fewer would break the bound of invariant 2."""
BLOCK_OVERHEAD: Final = FRAME_BYTES + ROW_BYTES


def does_not_resemble(patch_bytes: int, mask: int) -> bool:
    """Whether a patch of these blocks is hardly smaller than the blocks: none of them is like the one before. Pure."""
    return 4 * patch_bytes >= 3 * mask.bit_count() * BLOCK_SIZE


def new_blocks(plain: bytes, before: bytes) -> list[range]:
    """Runs of blocks of `plain` that are not the same, in the same length, in the version before. Pure."""
    runs: list[range] = []
    for block, start in enumerate(range(0, len(plain), BLOCK_SIZE)):
        if plain[start : start + BLOCK_SIZE] == before[start : start + BLOCK_SIZE]:
            continue
        if runs and runs[-1].stop == block:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs


def is_due_full(mosaic: Mosaic, stored_bytes: int, runs: list[range], full_bytes: int) -> bool:
    """Whether the chunk is to be stored full, in `full_bytes`, and not as these runs, in `stored_bytes`. Pure."""
    cost = stored_bytes + (len(runs) + 1) * BLOCK_OVERHEAD + 8 * len(mosaic.numbers) + 18
    return 5 * cost >= 4 * full_bytes or mosaic.age + sum(map(len, runs)) > REBASE_BLOCKS


def with_new(mosaic: Mosaic, length: int, runs: list[range], numbers: list[Number]) -> Mosaic:
    """The mosaic of a chunk of `length` bytes with these runs in these objects, the others where they were. Pure."""
    new = {block: BlockPlace(number, run.start) for run, number in zip(runs, numbers, strict=True) for block in run}
    count = -(-length // BLOCK_SIZE)
    places = tuple(new[block] if block in new else mosaic.places[block] for block in range(count))
    return Mosaic(places, mosaic.age + len(new))
