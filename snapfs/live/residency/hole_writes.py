"""Writes into a sparse backing file, in which a hole stands for bytes that are not here or for zeros."""

from __future__ import annotations

import os

from snapfs.live.backing.backing_files import data_ranges


def holes(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """(from, to) of what is no data in [start, end) of a file."""
    found = []
    for begin, stop in data_ranges(fd, start, end):
        if begin > start:
            found.append((start, begin))
        start = stop
    if start < end:
        found.append((start, end))
    return found


def write_data(fd: int, plain: bytes, offset: int) -> int:
    """Write `plain`; zeros stay a hole, unless a write that was cut short had left something there. Bytes written."""
    if not plain.strip(b"\0") and next(data_ranges(fd, offset, offset + len(plain)), None) is None:
        return 0
    view, start = memoryview(plain), offset
    while view:
        done = os.pwrite(fd, view, start)
        view, start = view[done:], start + done
    return len(plain)
