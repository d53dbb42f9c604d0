"""Plain content to payload and back: pure functions on bytes.

Invariants:
1. `decode(encoding, payload, length, bases)` gives back exactly what was encoded, given the same bases.
2. A difference (PATCH, DELTA, SHIFT) or a MOSAIC is made against full objects only; who calls sees to that.
3. Nothing here is slower than the memory it touches needs: the contexts for full objects are kept per thread, and
   those with a dictionary are made with small tables (a fresh one then costs 10 µs). What several
   contents are compressed against (`Similarity`) is prepared once for all of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import zstandard

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, Number
from snapfs.store.objects.format import MAX_MORE_BASES, MORE_BASES, PATCH_MASK, SHIFT_BASES, Encoding
from snapfs.store.objects.mosaic_payload import decode_mosaic, mosaic_head
from snapfs.store.objects.payload_types import Bases, DecodeError, Payload
from snapfs.store.objects.zstd_frames import (
    FULL_LEVEL,
    careful_parameters,
    compress_against,
    decompress,
    decompress_against,
    parameters_for,
    thread_context,
)

NEIGHBOUR_BYTES: Final = 32768
"""How much of the base's neighbours on either side a SHIFT may refer to."""

_ZERO: Final = bytes(CHUNK_SIZE)
_BLOCK_STARTS: Final = tuple((1 << i, i * BLOCK_SIZE) for i in range(CHUNK_SIZE // BLOCK_SIZE))


def is_zero(plain: bytes) -> bool:
    """True if `plain`, at most a chunk, has only zero bytes (or none)."""
    return _ZERO.startswith(plain)


def encode_full(plain: bytes) -> Payload:
    """RAW where compression gains less than a sixteenth, else ZSTD."""
    data = thread_context().compressor(len(plain)).compress(plain)
    if len(data) < len(plain) - (len(plain) >> 4):
        return Payload(Encoding.ZSTD, data)
    return Payload(Encoding.RAW, plain)


def encode_patch(plain: bytes, base: bytes, mask: int) -> Payload:
    """The blocks of the chunk `plain` in the mask, compressed against the same blocks of `base`.

    `mask` is that of `difference_mask`, or more.
    """
    packed = compress_against(_pick(plain, mask), _pick(base, mask)) if mask else b""
    return Payload(Encoding.PATCH, PATCH_MASK.pack(mask) + packed)


def encode_delta(plain: bytes, base: bytes) -> Payload:
    """The whole of `plain` compressed against the whole of `base`."""
    return Payload(Encoding.DELTA, compress_against(plain, base))


def encode_shift(plain: bytes, bases: Bases, before: int, after: int) -> Payload:
    """`plain` compressed against the base and its neighbours, whose numbers are `before` and `after` (0: none)."""
    packed = compress_against(plain, _shift_dictionary(bases))
    return Payload(Encoding.SHIFT, SHIFT_BASES.pack(before, after) + packed)


class Similarity:
    """A full object that several chunks resemble, each of which is compressed against the whole of it.

    It is prepared once, at its first use. For one thread.
    """

    def __init__(self, number: Number, plain: bytes, *, careful: bool) -> None:
        """`careful` makes a difference a tenth smaller, and takes 1.6 ms a chunk, not 0.1."""
        self.number, self.plain, self._careful = number, plain, careful

    def encode(self, plain: bytes) -> Payload:
        """A DELTA, with this object as its base."""
        return Payload(Encoding.DELTA, self._compressor.compress(plain))

    @cached_property
    def _compressor(self) -> zstandard.ZstdCompressor:
        parameters = (
            careful_parameters(16, 15, zstandard.STRATEGY_BTULTRA)
            if self._careful
            else parameters_for(CHUNK_SIZE, CHUNK_SIZE, FULL_LEVEL)
        )
        dictionary = zstandard.ZstdCompressionDict(self.plain, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        dictionary.precompute_compress(compression_params=parameters)
        return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)


def decode(encoding: int, payload: bytes | memoryview, length: int, bases: Bases | None) -> bytes:
    """The plain content, `length` bytes. Raises DecodeError if the payload does not give exactly that."""
    try:
        plain = _decode(encoding, payload, length, bases)
    except (zstandard.ZstdError, ValueError, IndexError, OverflowError) as error:
        raise DecodeError(str(error)) from error
    if len(plain) != length:
        raise DecodeError(f"{len(plain)} bytes came out, not {length}")
    return plain


def base_numbers(encoding: int, ordinal: int, base: Number, payload: bytes) -> tuple[Number, ...]:
    """The objects that decoding needs, in the order of `Bases`; 0 where there is none. DecodeError.

    Of the payload the first BASES_HEAD_BYTES are enough, and of one without `has_more` none of it.
    """
    if encoding == Encoding.ENCRYPTED:
        return (base, *encrypted_bases(payload, ordinal))
    if encoding == Encoding.SHIFT:
        return (base, *map(Number, shift_neighbours(payload)))
    if encoding == Encoding.MOSAIC:
        return (base, *mosaic_head(payload).more)
    return (base,)


def has_more(encoding: int, ordinal: int) -> bool:
    """Whether the payload names more bases than the row."""
    return encoding in (Encoding.SHIFT, Encoding.MOSAIC) or (encoding == Encoding.ENCRYPTED and ordinal > 0)


def shift_neighbours(payload: bytes) -> tuple[int, int]:
    """The numbers of `before` and `after` in the payload of a SHIFT."""
    if len(payload) < SHIFT_BASES.size:
        raise DecodeError("too short")
    before, after = SHIFT_BASES.unpack_from(payload)
    return before, after


def encrypted_bases(payload: bytes, count: int) -> tuple[Number, ...]:
    """The numbers at the beginning of an ENCRYPTED payload, `count` of them (its ordinal)."""
    if count > MAX_MORE_BASES or len(payload) < count * MORE_BASES.size:
        raise DecodeError("too short")
    return tuple(Number(number) for (number,) in MORE_BASES.iter_unpack(payload[: count * MORE_BASES.size]))


def difference_mask(plain: bytes, base: bytes) -> int:
    """Bit i is set if block i of `plain` is not the same in `base`; blocks beyond the end of `plain` are not."""
    if plain == base:
        return 0
    mask, length = 0, len(plain)
    for bit, start in _BLOCK_STARTS:
        if start >= length:
            break
        if plain[start : start + BLOCK_SIZE] != base[start : start + BLOCK_SIZE]:
            mask |= bit
    return mask


def _decode(encoding: int, payload: bytes | memoryview, length: int, bases: Bases | None) -> bytes:
    if encoding in (Encoding.RAW, Encoding.ENCRYPTED):
        return bytes(payload)
    if encoding == Encoding.ZSTD:
        return decompress(thread_context().decompressor, payload, length)
    if bases is None:
        raise DecodeError("it needs a base")
    if encoding == Encoding.PATCH:
        return _decode_patch(payload, length, bases.base)
    if encoding == Encoding.DELTA:
        return decompress_against(payload, length, bases.base)
    if encoding == Encoding.SHIFT:
        return decompress_against(payload[SHIFT_BASES.size :], length, _shift_dictionary(bases))
    if encoding == Encoding.MOSAIC:
        return decode_mosaic(payload, length, bases)
    raise DecodeError(f"unknown encoding {encoding}")


def _decode_patch(payload: bytes | memoryview, length: int, base: bytes) -> bytes:
    if len(payload) < PATCH_MASK.size:
        raise DecodeError("too short")
    (mask,) = PATCH_MASK.unpack_from(payload)
    if not mask:
        return base[:length]
    starts = [start for bit, start in _BLOCK_STARTS if mask & bit]
    changed_bytes = sum(min(BLOCK_SIZE, max(length - start, 0)) for start in starts)
    changed = decompress_against(payload[PATCH_MASK.size :], changed_bytes, _pick(base, mask))
    if len(changed) != changed_bytes:
        raise DecodeError(f"{len(changed)} bytes of blocks came out, not {changed_bytes}")
    plain, taken = bytearray(base[:length].ljust(length, b"\0")), 0
    for start in starts:
        size = min(BLOCK_SIZE, length - start)
        plain[start : start + size] = changed[taken : taken + size]
        taken += size
    return bytes(plain)


def _pick(content: bytes, mask: int) -> bytes:
    if mask & (mask + 1) == 0:  # a run from block 0, such as all of them: one slice
        return content[: mask.bit_length() * BLOCK_SIZE]
    return b"".join([content[start : start + BLOCK_SIZE] for bit, start in _BLOCK_STARTS if mask & bit])


def _shift_dictionary(bases: Bases) -> bytes:
    return b"".join((bases.before[-NEIGHBOUR_BYTES:], bases.after[:NEIGHBOUR_BYTES], bases.base))
