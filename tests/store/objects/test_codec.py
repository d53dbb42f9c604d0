"""What is encoded comes back, for all contents and bases; and a payload that is none never passes."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, FULL_MASK
from snapfs.store.objects import codec
from snapfs.store.objects.format import Encoding
from snapfs.store.objects.payload_types import Bases, DecodeError


def content(seed: int, length: int, noise: bool) -> bytes:
    """Deterministic bytes: incompressible, or words."""
    source = random.Random(seed)
    if noise:
        return source.randbytes(length)
    words = [source.randbytes(source.randint(1, 9)) for _ in range(50)]
    return b"".join(source.choices(words, k=length))[:length]


CONTENTS = st.builds(
    content, st.integers(0, 1000), st.sampled_from([1, 7, 100, 4095, 4096, 4097, 40000, 65535, 65536]), st.booleans()
)
EDITS = st.lists(st.tuples(st.integers(0, CHUNK_SIZE - 1), st.binary(min_size=1, max_size=300)), max_size=20)


def edited(plain: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(plain)
    for at, data in edits:
        start = at % len(changed)
        changed[start : start + len(data)] = data[: len(changed) - start]
    return bytes(changed)


@given(CONTENTS)
def test_full_objects_round_trip(plain: bytes) -> None:
    payload = codec.encode_full(plain)
    assert payload.encoding in (Encoding.RAW, Encoding.ZSTD)
    assert len(payload.data) <= len(plain)
    assert codec.decode(payload.encoding, payload.data, len(plain), None) == plain


@given(CONTENTS, CONTENTS, EDITS, st.booleans())
def test_patches_round_trip_whatever_the_resemblance(
    base: bytes, other: bytes, edits: list[tuple[int, bytes]], related: bool
) -> None:
    plain = edited(base if related else other, edits)
    mask = codec.difference_mask(plain, base)
    payload = codec.encode_patch(plain, base, mask)
    assert codec.decode(payload.encoding, payload.data, len(plain), Bases(base)) == plain


@given(CONTENTS, st.integers(1, CHUNK_SIZE), st.integers(0, CHUNK_SIZE))
def test_patches_round_trip_when_the_end_of_the_file_moves(base: bytes, length: int, seed: int) -> None:
    plain = (base + content(seed, CHUNK_SIZE, True))[:length]
    payload = codec.encode_patch(plain, base, codec.difference_mask(plain, base))
    assert codec.decode(payload.encoding, payload.data, length, Bases(base)) == plain


@given(CONTENTS, CONTENTS, EDITS, st.booleans())
def test_deltas_round_trip(base: bytes, other: bytes, edits: list[tuple[int, bytes]], related: bool) -> None:
    plain = edited(base if related else other, edits)
    payload = codec.encode_delta(plain, base)
    assert codec.decode(payload.encoding, payload.data, len(plain), Bases(base)) == plain


@given(st.integers(0, 99), st.integers(-CHUNK_SIZE, CHUNK_SIZE), st.booleans(), st.booleans())
@settings(max_examples=50)
def test_moved_content_is_found_in_the_neighbours(seed: int, move: int, left: bool, right: bool) -> None:
    file = content(seed, 3 * CHUNK_SIZE, True)
    before, base, after = (file[i * CHUNK_SIZE : (i + 1) * CHUNK_SIZE] for i in range(3))
    plain = file[CHUNK_SIZE + move : 2 * CHUNK_SIZE + move]
    bases = Bases(base, before if left else b"", after if right else b"")
    payload = codec.encode_shift(plain, bases, 5 if left else 0, 6 if right else 0)
    assert codec.shift_neighbours(payload.data) == (5 if left else 0, 6 if right else 0)
    assert codec.decode(payload.encoding, payload.data, len(plain), bases) == plain
    if left and right and abs(move) <= codec.NEIGHBOUR_BYTES:
        assert len(payload.data) < 200


@given(CONTENTS, EDITS)
def test_the_mask_names_exactly_the_blocks_that_differ(base: bytes, edits: list[tuple[int, bytes]]) -> None:
    plain = edited(base, edits)
    mask = codec.difference_mask(plain, base)
    for block in range(CHUNK_SIZE // BLOCK_SIZE):
        start = block * BLOCK_SIZE
        differs = plain[start : start + BLOCK_SIZE] != base[start : start + BLOCK_SIZE]
        assert bool(mask >> block & 1) == differs


def test_a_changed_block_costs_little() -> None:
    base = content(1, CHUNK_SIZE, True)
    plain = edited(base, [(5 * BLOCK_SIZE + 100, b"forty bytes of change, more or less, yes")])
    assert codec.difference_mask(plain, base) == 1 << 5
    assert len(codec.encode_patch(plain, base, 1 << 5).data) < 70


def test_a_mask_with_more_than_the_differences_is_as_good() -> None:
    base = content(1, CHUNK_SIZE, False)
    plain = edited(base, [(9000, b"change")])
    payload = codec.encode_patch(plain, base, FULL_MASK)
    assert codec.decode(payload.encoding, payload.data, len(plain), Bases(base)) == plain


@pytest.mark.parametrize("length", [0, 1, 4096, 65535, 65536])
def test_zero_chunks_are_known_at_any_length(length: int) -> None:
    assert codec.is_zero(bytes(length))
    if length:
        assert not codec.is_zero(bytes(length - 1) + b"\1")
        assert not codec.is_zero(b"\1" + bytes(length - 1))


@example(Encoding.ZSTD, b"\xf1" + bytes(8) + b"\x01", 0, False)  # a frame that declares 2**56 bytes
@given(st.integers(0, 15), st.binary(max_size=300), st.integers(0, CHUNK_SIZE), st.booleans())
def test_nonsense_never_decodes_to_another_length(encoding: int, payload: bytes, length: int, based: bool) -> None:
    try:
        plain = codec.decode(encoding, payload, length, Bases(b"base" * 2000) if based else None)
    except DecodeError:
        return
    assert len(plain) == length
