"""Reads a finished segment, which is never changed: it can be read for as long as it is open.

Invariants:
1. Header, trailer and file agree, or the segment does not open; the table is checked once by `check_table`.
2. Frames are handed out as they lie in the file: who decodes them checks them.
3. A table of at most CACHED_TABLE bytes is kept in memory; of a larger one a block of rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Final, Protocol

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, HEADER_BYTES, ROW_BYTES, TRAILER_BYTES, Row

CACHED_TABLE: Final = 1 << 17
"""A table up to this size is kept in memory while its segment is open; of a larger one a few rows are."""
_BLOCK_ROWS: Final = 100


class RowSource(Protocol):
    """A segment, finished or not, in which objects are found."""

    @property
    def path(self) -> str: ...

    def row(self, number: Number) -> Row | None:
        """The row of the object, None if it is not here."""

    def frame(self, row: Row) -> bytes:
        """The object's frame and payload, as they lie in the file; not checked."""


class SegmentReader:
    """A finished segment, open. Thread-safe; its descriptor closes when the last user lets go of it."""

    def __init__(self, path: str) -> None:
        """Raises FileNotFoundError, VersionError, CorruptionError if header, trailer or their agreement are damaged."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        self.header = fmt.unpack_header(os.pread(self._fd, HEADER_BYTES, 0), path)
        self.trailer = read_trailer(self._fd, self.size, path)
        self.first, self.last, self.count = self.trailer.first, self.trailer.last, self.trailer.rows
        if self.header.first != self.first:
            raise CorruptionError("segment trailer", path, "it belongs to another segment")
        self._table: bytes | None = None
        self._block: tuple[int, bytes] = -1, b""  # the rows around the last one that was read alone
        if self.count * ROW_BYTES <= CACHED_TABLE:
            self._table = self._read_table(0, self.count)

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            os.close(fd)

    def forget_pages(self) -> None:
        """Let the kernel forget its pages of the segment: what is read next comes from the disk."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def check_table(self) -> None:
        """Raises CorruptionError if the table is not the one that the trailer names."""
        digest = hashlib.sha256()
        for piece, _ in self._pieces():
            digest.update(piece)
        if digest.digest() != self.trailer.table_hash:
            raise CorruptionError("segment table", self.path, "wrong SHA-256")

    def row(self, number: Number) -> Row | None:
        delta = number - self.first
        low, high = 0, self.count
        guess = delta
        while low < high:
            middle = guess if low <= guess < high else (low + high) // 2
            guess = -1
            data, offset = self._row_at(middle)
            found = fmt.row_delta(data, offset)
            if found == delta:
                return fmt.unpack_row(self.first, data, offset)
            low, high = (middle + 1, high) if found < delta else (low, middle)
        return None

    def frame(self, row: Row) -> bytes:
        return os.pread(self._fd, FRAME_BYTES + row.stored, row.offset)

    def rows(self) -> Iterator[Row]:
        """All rows, ascending, in bounded memory."""
        for piece, count in self._pieces():
            for index in range(count):
                yield fmt.unpack_row(self.first, piece, index * ROW_BYTES)

    def _pieces(self) -> Iterator[tuple[bytes, int]]:
        step = CACHED_TABLE // ROW_BYTES
        for start in range(0, self.count, step):
            count = min(step, self.count - start)
            yield self._read_table(start, count), count

    def _row_at(self, index: int) -> tuple[bytes, int]:
        if self._table is not None:
            return self._table, index * ROW_BYTES
        block, place = divmod(index, _BLOCK_ROWS)
        known, data = self._block
        if known != block:
            first = block * _BLOCK_ROWS
            data = self._read_table(first, min(_BLOCK_ROWS, self.count - first))
            self._block = block, data
        return data, place * ROW_BYTES

    def _read_table(self, index: int, count: int) -> bytes:
        data = os.pread(self._fd, count * ROW_BYTES, self.trailer.table_offset + index * ROW_BYTES)
        if len(data) != count * ROW_BYTES:
            raise CorruptionError("segment table", self.path, "it was cut off")
        return data


def read_trailer(fd: int, size: int, path: str) -> fmt.Trailer:
    """The trailer of the segment open as `fd`. Raises CorruptionError if it does not fit the file."""
    if size < HEADER_BYTES + TRAILER_BYTES:
        raise CorruptionError("segment trailer", path, "the file is too short")
    trailer = fmt.unpack_trailer(os.pread(fd, TRAILER_BYTES, size - TRAILER_BYTES), path)
    if trailer.table_offset + trailer.rows * ROW_BYTES + TRAILER_BYTES != size:
        raise CorruptionError("segment trailer", path, "the file does not have the length in it")
    return trailer
