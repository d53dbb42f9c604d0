"""The bytes of one part of a file: copied with their hash, and read back.

A part is PART_BYTES of a file. Of it the ranges with data are copied, and the rest stays a hole. The hash is the
XXH3-128 of these ranges' bytes, as they were read from the source, after each range's place.

RANGES (packed): offset (8) and length (8), little-endian, of each range with data; in ascending order.

Invariant: what `check` accepts has in each range what was read there, and reads as zeros elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

import xxhash

PART_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20
_RANGE = struct.Struct("<QQ")
_FICLONE = 0x40049409
_CANNOT_SHARE = (
    errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.ETXTBSY, errno.EPERM, errno.EACCES,
)  # fmt: skip


def part_count(size: int) -> int:
    return max(-(-size // PART_BYTES), 1)


def share(source: int, copy: int) -> bool:
    """Let `copy` have the bytes of `source` without copying; whether these filesystems can. OSError of a full disk."""
    try:
        fcntl.ioctl(copy, _FICLONE, source)
    except OSError as failure:
        if failure.errno not in _CANNOT_SHARE:
            raise
        return False
    return True


def copy_part(source: int, copy: int, number: int, size: int, sparse: bool) -> tuple[bytes, bytes]:
    """Copy part `number` of a file of `size` bytes to the same place in `copy`, where it is a hole.

    Returns the ranges, packed, and the hash. A source that ends earlier than it did is copied up to there. OSError.
    """
    end = min((number + 1) * PART_BYTES, size)
    ranges, hashed = bytearray(), xxhash.xxh3_128()
    for start, stop in _data(source, number * PART_BYTES, end) if sparse else [(number * PART_BYTES, end)]:
        place = _RANGE.pack(start, stop - start)
        ranges += place
        hashed.update(place)
        for at, data in _pieces(source, start, stop):
            hashed.update(data)
            _write_all(copy, data, at)
    return bytes(ranges), hashed.digest()


def _pieces(fd: int, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a range, up to the end of the file."""
    while start < stop and (data := os.pread(fd, min(_PIECE_BYTES, stop - start), start)):
        yield start, data
        start += len(data)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def _data(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges with data in [start, end)."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as failure:
            if failure.errno == errno.ENXIO:
                return
            raise
        if start >= end:
            return
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield start, stop
        start = stop


def check(copy: int, number: int, size: int, ranges: bytes, wanted: bytes) -> bool:
    """Whether the part has what was copied, read past the page cache. The copy is on the disk. OSError."""
    first, end = number * PART_BYTES, min((number + 1) * PART_BYTES, size)
    os.posix_fadvise(copy, first, end - first, os.POSIX_FADV_DONTNEED)
    hashed, at = xxhash.xxh3_128(), first
    for place in _RANGE.iter_unpack(ranges):
        if not _is_zero(copy, at, place[0]):
            return False
        hashed.update(_RANGE.pack(*place))
        at = place[0] + place[1]
        for _, data in _pieces(copy, place[0], at):
            hashed.update(data)
    return hashed.digest() == wanted and _is_zero(copy, at, end)


def _is_zero(fd: int, start: int, end: int) -> bool:
    pieces = (data for begin, stop in _data(fd, start, end) for _, data in _pieces(fd, begin, stop))
    return not any(data.strip(b"\0") for data in pieces)
