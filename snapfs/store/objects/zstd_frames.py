"""zstd frames without a header: compression with and without a dictionary, and back.

Invariants:
1. A frame declares no content size and has no magic number, checksum or dictionary id; one that declares a size is
   refused, because zstandard would allocate that much before it decodes.
2. Contexts for content without a base are kept per thread. Those with a dictionary are made with small tables: a fresh
   one costs 10 µs.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Final

import zstandard

from snapfs.store.objects.format import MAX_OBJECT_BYTES
from snapfs.store.objects.payload_types import DecodeError

LEVEL: Final = 1
"""Of differences larger than SMALL_BYTES."""
FULL_LEVEL: Final = 3
"""Of full objects: for a database's log 7 % smaller than level 1's, in 73 µs a chunk, not 62."""
SMALL_BYTES: Final = 16384
"""Up to here differences are made with care: a changed row in a database page takes 78 bytes and 90 µs. It would be
84 and 34 at level 6, 174 and 25 at level 3, 78 and 200 at level 12."""

_DECLARES_A_SIZE: Final = 0xE0
"""Bits of a zstd frame's first byte: a content size follows, which zstandard allocates before it decodes. Ours has none
(RFC 8878, 3.1.1.1.1)."""


def compress_against(plain: bytes, base: bytes) -> bytes:
    if len(plain) <= SMALL_BYTES:
        parameters = careful_parameters(15, 13, zstandard.STRATEGY_BTOPT)
    else:
        parameters = parameters_for(_size_class(len(plain)), _size_class(len(base)), LEVEL)
    if not base:
        return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(plain)


def decompress_against(data: bytes | memoryview, length: int, base: bytes) -> bytes:
    if not base:
        return decompress(thread_context().decompressor, data, length)
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    decompressor = zstandard.ZstdDecompressor(
        dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=_MAX_WINDOW
    )
    return decompress(decompressor, data, length)


def decompress(decompressor: zstandard.ZstdDecompressor, data: bytes | memoryview, length: int) -> bytes:
    if len(data) and data[0] & _DECLARES_A_SIZE:
        raise DecodeError("the compressed frame declares a size")
    return decompressor.decompress(data, max_output_size=length)


_MAX_WINDOW: Final = 1 << 25
assert _MAX_WINDOW > MAX_OBJECT_BYTES


def _size_class(length: int) -> int:
    """The next power of two, so that few sets of parameters serve all sizes."""
    return 1 << max(length - 1, 511).bit_length()


@lru_cache(maxsize=2)
def careful_parameters(chain_log: int, hash_log: int, strategy: int) -> zstandard.ZstdCompressionParameters:
    """The best choice among what a short search finds; a longer search gains a hundredth, for seven times the time."""
    return zstandard.ZstdCompressionParameters(
        window_log=18, chain_log=chain_log, hash_log=hash_log, search_log=1, min_match=3, target_length=16,
        strategy=strategy, format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False, write_checksum=False, write_dict_id=False,
    )  # fmt: skip


@lru_cache(maxsize=256)
def parameters_for(source_size: int, dict_size: int, level: int = LEVEL) -> zstandard.ZstdCompressionParameters:
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
            parameters = parameters_for(size, 0, FULL_LEVEL)
            found = self._compressors[size] = zstandard.ZstdCompressor(compression_params=parameters)
        return found


_CONTEXT: Final = _Context()


def thread_context() -> _Context:
    return _CONTEXT
