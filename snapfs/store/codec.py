"""Plain content to payload and back: pure functions on bytes.

Invariants:
1. `decode(encoding, payload, length, bases)` gives back exactly what was encoded, given the same bases.
2. A difference (PATCH, DELTA, SHIFT) is made against full objects only; who calls sees to that.
3. Nothing here is slower than the memory it touches needs: the contexts for full objects are kept per thread, and
   those with a dictionary are made with small tables (a fresh one then costs 10 µs). What several
   contents are compressed against (`Likeness`) is prepared once for all of them.
"""

from __future__ import annotations

import threading
from functools import cached_property, lru_cache
from typing import Final, NamedTuple

import zstandard

from snapfs.blocks import BLOCK_SIZE, CHUNK_SIZE, Number
from snapfs.store.format import MAX_OBJECT_BYTES, MORE_BASES, PATCH_MASK, SHIFT_BASES, Encoding

LEVEL: Final = 1
"""Of differences larger than SMALL_BYTES."""
FULL_LEVEL: Final = 3
"""Of full objects: for a database's log 7 % smaller than level 1's, in 73 µs a chunk, not 62."""
SMALL_BYTES: Final = 16384
"""Up to here differences are made with care: a changed row in a database page takes 78 bytes and 90 µs. It would be
84 and 34 at level 6, 174 and 25 at level 3, 78 and 200 at level 12."""
NEIGHBOUR_BYTES: Final = 32768
"""How much of the base's neighbours on either side a SHIFT may refer to."""
MAX_MORE_BASES: Final = 2
_ZERO: Final = bytes(CHUNK_SIZE)
_BLOCK_STARTS: Final = tuple((1 << i, i * BLOCK_SIZE) for i in range(CHUNK_SIZE // BLOCK_SIZE))


class Payload(NamedTuple):
    encoding: Encoding
    data: bytes


class DecodeError(ValueError):
    """A payload that is no payload of that encoding. Who knows the object's name makes it a CorruptionError."""


class Bases(NamedTuple):
    """Plain contents of the full objects that a difference refers to."""

    base: bytes
    before: bytes = b""
    after: bytes = b""


def is_zero(plain: bytes) -> bool:
    """True if `plain`, at most a chunk, has only zero bytes (or none)."""
    return _ZERO.startswith(plain)


def encode_full(plain: bytes) -> Payload:
    """RAW where compression gains less than a sixteenth, else ZSTD."""
    data = _context().compressor(len(plain)).compress(plain)
    if len(data) < len(plain) - (len(plain) >> 4):
        return Payload(Encoding.ZSTD, data)
    return Payload(Encoding.RAW, plain)


def encode_patch(plain: bytes, base: bytes, mask: int) -> Payload:
    """The blocks of the chunk `plain` in the mask, compressed against the same blocks of `base`.

    `mask` is that of `difference_mask`, or more.
    """
    packed = _compress_against(_pick(plain, mask), _pick(base, mask)) if mask else b""
    return Payload(Encoding.PATCH, PATCH_MASK.pack(mask) + packed)


def encode_delta(plain: bytes, base: bytes) -> Payload:
    """The whole of `plain` compressed against the whole of `base`."""
    return Payload(Encoding.DELTA, _compress_against(plain, base))


def encode_shift(plain: bytes, bases: Bases, before: int, after: int) -> Payload:
    """`plain` compressed against the base and its neighbours, whose numbers are `before` and `after` (0: none)."""
    packed = _compress_against(plain, _shift_dictionary(bases))
    return Payload(Encoding.SHIFT, SHIFT_BASES.pack(before, after) + packed)


class Likeness:
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
            _careful_parameters(16, 15, zstandard.STRATEGY_BTULTRA)
            if self._careful
            else _parameters(CHUNK_SIZE, CHUNK_SIZE, FULL_LEVEL)
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


def shift_neighbours(payload: bytes) -> tuple[int, int]:
    """The numbers of `before` and `after` in the payload of a SHIFT."""
    if len(payload) < SHIFT_BASES.size:
        raise DecodeError("too short")
    before, after = SHIFT_BASES.unpack_from(payload)
    return before, after


def sealed_bases(payload: bytes, count: int) -> tuple[Number, ...]:
    """The numbers at the beginning of a SEALED payload, `count` of them (its ordinal)."""
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
    if encoding in (Encoding.RAW, Encoding.SEALED):
        return bytes(payload)
    if encoding == Encoding.ZSTD:
        return _context().decompressor.decompress(payload, max_output_size=length)
    if bases is None:
        raise DecodeError("it needs a base")
    if encoding == Encoding.PATCH:
        return _decode_patch(payload, length, bases.base)
    if encoding == Encoding.DELTA:
        return _decompress_against(payload, length, bases.base)
    if encoding == Encoding.SHIFT:
        return _decompress_against(payload[SHIFT_BASES.size :], length, _shift_dictionary(bases))
    raise DecodeError(f"unknown encoding {encoding}")


def _decode_patch(payload: bytes | memoryview, length: int, base: bytes) -> bytes:
    if len(payload) < PATCH_MASK.size:
        raise DecodeError("too short")
    (mask,) = PATCH_MASK.unpack_from(payload)
    if not mask:
        return base[:length]
    starts = [start for bit, start in _BLOCK_STARTS if mask & bit]
    changed_bytes = sum(min(BLOCK_SIZE, max(length - start, 0)) for start in starts)
    changed = _decompress_against(payload[PATCH_MASK.size :], changed_bytes, _pick(base, mask))
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


def _compress_against(plain: bytes, base: bytes) -> bytes:
    if len(plain) <= SMALL_BYTES:
        parameters = _careful_parameters(15, 13, zstandard.STRATEGY_BTOPT)
    else:
        parameters = _parameters(_size_class(len(plain)), _size_class(len(base)), LEVEL)
    if not base:
        return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(plain)


def _decompress_against(data: bytes | memoryview, length: int, base: bytes) -> bytes:
    if not base:
        return _context().decompressor.decompress(data, max_output_size=length)
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    decompressor = zstandard.ZstdDecompressor(
        dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=_MAX_WINDOW
    )
    return decompressor.decompress(data, max_output_size=length)


_MAX_WINDOW: Final = 1 << 25
assert _MAX_WINDOW > MAX_OBJECT_BYTES


def _size_class(length: int) -> int:
    """The next power of two, so that few sets of parameters serve all sizes."""
    return 1 << max(length - 1, 511).bit_length()


@lru_cache(maxsize=2)
def _careful_parameters(chain_log: int, hash_log: int, strategy: int) -> zstandard.ZstdCompressionParameters:
    """The best choice among what a short search finds; a longer search gains a hundredth, for seven times the time."""
    return zstandard.ZstdCompressionParameters(
        window_log=18, chain_log=chain_log, hash_log=hash_log, search_log=1, min_match=3, target_length=16,
        strategy=strategy, format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False, write_checksum=False, write_dict_id=False,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _parameters(source_size: int, dict_size: int, level: int = LEVEL) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=source_size,
        dict_size=dict_size,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )


class _Context(threading.local):
    """A thread's own zstd contexts for content without a base."""

    def __init__(self) -> None:
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(
            format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=_MAX_WINDOW
        )

    def compressor(self, length: int) -> zstandard.ZstdCompressor:
        size = _size_class(length)
        found = self._compressors.get(size)
        if found is None:
            parameters = _parameters(size, 0, FULL_LEVEL)
            found = self._compressors[size] = zstandard.ZstdCompressor(compression_params=parameters)
        return found


_CONTEXT: Final = _Context()


def _context() -> _Context:
    return _CONTEXT
