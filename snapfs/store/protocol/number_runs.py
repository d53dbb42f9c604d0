"""Sets of object numbers as runs: in memory, as bytes (LACKS, BASES) and as text within a message (`needs`, `live`).

A run is its first and last number, inclusive. Packed: 16 bytes each, u64 little-endian, ascending, not overlapping. As
text: the packed runs in zstd and base64.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Final

import zstandard

from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import MAX_LACKS_NUMBERS, MAX_NEEDS_BYTES, MAX_NEEDS_RUNS, MAX_RUNS

_RUN: Final = struct.Struct("<QQ")
RUN_BYTES: Final = _RUN.size
Run = tuple[int, int]
"""First and last number, inclusive."""


def runs_of(numbers: Iterable[int]) -> Iterator[Run]:
    """Ascending numbers as runs."""
    first = last = -1
    for number in numbers:
        if number == last + 1 and first >= 0:
            last = number
            continue
        if first >= 0:
            yield first, last
        first = last = number
    if first >= 0:
        yield first, last


def in_requests(runs: Iterable[Run], numbers: int = MAX_LACKS_NUMBERS) -> Iterator[list[Run]]:
    """Runs as one LACKS after the other may have them: at most so many `numbers`, and MAX_RUNS, in each."""
    batch: list[Run] = []
    room = numbers
    for first, last in runs:
        start = first
        while start <= last:
            stop = min(last, start + room - 1)
            batch.append((start, stop))
            room -= stop - start + 1
            start = stop + 1
            if not room or len(batch) == MAX_RUNS:
                yield batch
                batch, room = [], numbers
    if batch:
        yield batch


def pack_runs(runs: Iterable[Run]) -> bytes:
    return b"".join(_RUN.pack(*run) for run in runs)


def unpack_runs(data: bytes, limit: int = MAX_RUNS) -> list[Run]:
    """Raises RefusedError ("bad_request", "too_large") for anything but ascending runs.

    The answer to LACKS may have more runs than the request had: `limit` is MAX_LACKS_NUMBERS there.
    """
    if len(data) > limit * RUN_BYTES:
        raise refuse(Refusal.TOO_LARGE, f"more than {limit} runs of numbers in one message")
    if len(data) % RUN_BYTES:
        raise refuse(Refusal.BAD_REQUEST, "not a list of runs: its length is wrong")
    runs = [(first, last) for first, last in _RUN.iter_unpack(data)]
    if any(first > last or not first for first, last in runs) or any(b[0] <= a[1] for a, b in pairwise(runs)):
        raise refuse(Refusal.BAD_REQUEST, "not a list of runs: they do not ascend")
    return runs


def pack_needs(runs: Iterable[Run]) -> str:
    """Runs as text for `needs` and `live`: as they are packed, in zstd and base64."""
    return base64.b64encode(zstandard.ZstdCompressor(level=3).compress(pack_runs(runs))).decode()


def fits(numbers: Iterable[int]) -> bool:
    """Whether they fit into one message."""
    count = sum(1 for _ in islice(runs_of(numbers), MAX_NEEDS_RUNS // 2))
    return count < MAX_NEEDS_RUNS // 2 and len(pack_needs(runs_of(numbers))) <= MAX_NEEDS_BYTES


def unpack_needs(text: str) -> list[Run]:
    """Raises RefusedError ("bad_request", "too_large")."""
    if len(text) > MAX_NEEDS_BYTES:
        raise refuse(Refusal.TOO_LARGE, f"a list of numbers of more than {MAX_NEEDS_BYTES} bytes")
    try:
        data = base64.b64decode(text, validate=True)
        if zstandard.frame_content_size(data) > MAX_NEEDS_RUNS * RUN_BYTES:
            raise refuse(Refusal.TOO_LARGE, f"more than {MAX_NEEDS_RUNS} runs of numbers in one message")
        packed = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_NEEDS_RUNS * RUN_BYTES)
    except (ValueError, zstandard.ZstdError) as error:
        raise refuse(Refusal.BAD_REQUEST, f"not a list of numbers: {error}") from None
    return unpack_runs(packed, MAX_NEEDS_RUNS)
