"""The payload of a MOSAIC: in which full objects the blocks of a chunk are (mosaic.py decides what is stored so)."""

from __future__ import annotations

from typing import NamedTuple

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, Number
from snapfs.store.objects.format import MAX_MORE_BASES, MORE_BASES, MOSAIC_HEAD
from snapfs.store.objects.payload_types import Bases, DecodeError


class BlockPlace(NamedTuple):
    """Where a block of a chunk is: in a full object, which begins with the block `start` of the chunk."""

    number: Number
    start: int


class Mosaic(NamedTuple):
    """Where the blocks of a chunk are. `age`: blocks that were stored since the chunk was stored full."""

    places: tuple[BlockPlace, ...]
    age: int

    @property
    def bases(self) -> tuple[BlockPlace, ...]:
        """Which parts of which objects, each once, in the order of their first block: 16 at most."""
        return tuple(dict.fromkeys(self.places))

    @property
    def numbers(self) -> tuple[Number, ...]:
        """The objects of `bases`. One may be there twice, with another beginning."""
        return tuple(place.number for place in self.bases)

    def payload(self) -> bytes:
        """The payload of the MOSAIC whose base is the first of `numbers`."""
        bases = self.bases
        which = {place: index for index, place in enumerate(bases)}
        mapped = _to_nibbles([which[place] for place in self.places])
        head = MOSAIC_HEAD.pack(min(self.age, 255), len(bases) - 1, mapped, _to_nibbles([p.start for p in bases]))
        return head + b"".join(MORE_BASES.pack(place.number) for place in bases[1:])


def mosaic_of(base: Number, payload: bytes | memoryview, length: int) -> Mosaic:
    """Where the blocks of a MOSAIC of so many bytes are. DecodeError."""
    head = mosaic_head(payload)
    numbers = (base, *head.more)
    if length > CHUNK_SIZE:
        raise DecodeError(f"a mosaic of {length} bytes")
    places = []
    for block in range(-(-length // BLOCK_SIZE)):
        which = head.mapped[block]
        if which >= len(numbers) or head.starts[which] > block:
            raise DecodeError(f"block {block} is in base {which} of {len(numbers)}")
        places.append(BlockPlace(numbers[which], head.starts[which]))
    return Mosaic(tuple(places), head.age)


class _MosaicHead(NamedTuple):
    age: int
    mapped: list[int]
    starts: list[int]
    more: tuple[Number, ...]


def _to_nibbles(values: list[int]) -> bytes:
    padded = values + [0] * (16 - len(values))
    return bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2], strict=True))


def _from_nibbles(packed: bytes) -> list[int]:
    return [byte >> shift & 15 for byte in packed for shift in (0, 4)]


def mosaic_head(payload: bytes | memoryview) -> _MosaicHead:
    if len(payload) < MOSAIC_HEAD.size:
        raise DecodeError("too short")
    age, count, mapped, starts = MOSAIC_HEAD.unpack_from(payload)
    end = MOSAIC_HEAD.size + count * MORE_BASES.size
    if count > MAX_MORE_BASES or len(payload) < end:
        raise DecodeError("too short")
    more = tuple(Number(number) for (number,) in MORE_BASES.iter_unpack(bytes(payload[MOSAIC_HEAD.size : end])))
    return _MosaicHead(age, _from_nibbles(mapped), _from_nibbles(starts), more)


def decode_mosaic(payload: bytes | memoryview, length: int, bases: Bases) -> bytes:
    contents, mapped = bases.contents, mosaic_head(payload).mapped
    parts = []
    for block, place in enumerate(mosaic_of(Number(0), payload, length).places):  # the number does not matter
        if mapped[block] >= len(contents):
            raise DecodeError(f"it needs {mapped[block] + 1} bases, not {len(contents)}")
        parts.append(block_of(contents[mapped[block]], block, place, length))
    return b"".join(parts)


def block_of(content: bytes, block: int, place: BlockPlace, length: int) -> bytes:
    """A block of a chunk of so many bytes, from the object that should have it. DecodeError if it has not."""
    offset, size = (block - place.start) * BLOCK_SIZE, min(BLOCK_SIZE, length - block * BLOCK_SIZE)
    found = content[offset : offset + size]
    if len(found) != size:
        raise DecodeError(f"block {block} is not where the payload places it")
    return found
