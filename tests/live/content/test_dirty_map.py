"""Dirty maps against a set of blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.blocks import BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, FULL_MASK
from snapfs.live.intents.dirty_map import NO_FLOOR, DirtyMap, growth, joined, mask_runs

offsets = st.integers(0, 40 * CHUNK_SIZE)
lengths = st.integers(1, 3 * CHUNK_SIZE)
marks = st.lists(st.tuples(offsets, lengths), max_size=8)


def blocks_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {block for at, length in ranges for block in range(at // BLOCK_SIZE, (at + length - 1) // BLOCK_SIZE + 1)}


def marked(ranges: list[tuple[int, int]], floor: int = NO_FLOOR) -> DirtyMap:
    dirty = DirtyMap(floor)
    for at, length in ranges:
        dirty.mark(at, length)
    dirty.check_invariants()
    return dirty


@given(marks, offsets, lengths)
def test_a_map_is_the_blocks_that_were_marked(ranges: list[tuple[int, int]], at: int, length: int) -> None:
    dirty, blocks = marked(ranges), blocks_of(ranges)
    listed = {chunk * BLOCKS_PER_CHUNK + bit for chunk, mask in dirty.listed_chunks() for bit in bits(mask)}
    assert listed == blocks
    assert {block for first, count in dirty.runs() for block in range(first, first + count)} == blocks
    assert dirty.has(at, length) == (blocks_of([(at, length)]) <= blocks)
    assert dirty.is_clean() == (not blocks)


@given(marks, marks, st.integers(0, 50), st.integers(0, 50))
def test_joining_forgets_nothing(
    one: list[tuple[int, int]], two: list[tuple[int, int]], floor: int, reach: int
) -> None:
    first, second = marked(one), marked(two, floor)
    second.lower(floor, reach)
    union = joined([first, second])
    union.check_invariants()
    for chunk in range(60):
        assert union.covers(chunk) == (first.covers(chunk) or second.covers(chunk))
    assert (union.floor, union.reach) == (floor, reach)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 100)), max_size=6))
def test_runs_bring_a_map_back(ranges: list[tuple[int, int]]) -> None:
    dirty = marked([(first * BLOCK_SIZE, count * BLOCK_SIZE) for first, count in ranges])
    again = DirtyMap()
    for first, count in dirty.runs():
        again.mark_blocks(first, count)
    assert again.masks == dirty.masks


def test_a_floor_covers_all_above_it() -> None:
    dirty = DirtyMap()
    dirty.mark(0, 10)
    dirty.lower(7, 9)
    assert [chunk for chunk in range(12) if dirty.covers(chunk)] == [0, 7, 8, 9, 10, 11]
    assert dirty.has(7 * CHUNK_SIZE, 1 << 40)
    assert not dirty.has(6 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    dirty.mark(6 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    assert dirty.has(6 * CHUNK_SIZE, 2 * CHUNK_SIZE)
    assert 7 not in dirty.masks


def test_whole_covers_everything_and_stays() -> None:
    dirty = marked([(5 * CHUNK_SIZE, 1)])
    dirty.mark_whole()
    assert dirty.covers(0)
    assert joined([DirtyMap(), dirty]).whole
    assert dirty.mark(0, CHUNK_SIZE) == 0


@given(st.integers(0, 5 * CHUNK_SIZE), st.integers(1, CHUNK_SIZE * 5))
def test_growth_makes_the_old_end_dirty(size: int, more: int) -> None:
    dirty = DirtyMap()
    floor, blocks = growth(dirty, size, size + more)
    dirty.lower(floor)
    if blocks is not None:
        dirty.mark_blocks(*blocks)
    assert dirty.has(size, more)
    if size:
        assert dirty.covers((size - 1) // CHUNK_SIZE) == bool(size % CHUNK_SIZE)
    assert not any(dirty.covers(chunk) for chunk in range((size - 1) // CHUNK_SIZE))
    assert growth(dirty, size, size + more) == (floor, None)


@given(st.integers(0, FULL_MASK))
def test_mask_runs(mask: int) -> None:
    assert [bit for low, count in mask_runs(mask) for bit in range(low, low + count)] == bits(mask)


def bits(mask: int) -> list[int]:
    return [bit for bit in range(BLOCKS_PER_CHUNK) if mask >> bit & 1]
