"""Put a stored file's bytes into a plain file, leaving holes where the content is zero.

Invariant: the target had no data at the places written and has its final size before or after; what is not
written reads as zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ChunkIndex
from snapfs.store.objects.format import Pointer

_ZERO_BLOCK = bytes(BLOCK_SIZE)


class Reader(Protocol):
    def read(self, pointer: Pointer) -> bytes: ...


def write_chunks(reader: Reader, fd: int, chunks: Iterable[tuple[ChunkIndex, Pointer]], size: int) -> int:
    """Write the stored `chunks`, clipped at `size`. Returns the bytes written.

    Raises OSError of the write and CorruptionError of the store.
    """
    written = 0
    for chunk, pointer in chunks:
        offset = chunk * CHUNK_SIZE
        written += write_sparse(fd, reader.read(pointer)[: size - offset], offset)
    return written


def write_sparse(fd: int, plain: bytes, offset: int) -> int:
    """Write the blocks of `plain` that are not all zero; `offset` is a multiple of the block size."""
    if _ZERO_BLOCK not in plain:
        return _write_all(fd, plain, offset)
    written = start = 0
    for end in range(0, len(plain) + BLOCK_SIZE, BLOCK_SIZE):
        block = plain[end : end + BLOCK_SIZE]
        if not block.strip(b"\0"):
            written += _write_all(fd, plain[start:end], offset + start)
            start = end + BLOCK_SIZE
    return written


def _write_all(fd: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
    return len(data)
