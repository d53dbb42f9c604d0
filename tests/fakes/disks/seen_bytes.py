"""What a reader of a mount sees of a file, and where two contents differ, for tests of disks that fail."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MOST_BYTES = 1 << 26


def look_at(path: Path) -> bytes:
    """What a reader sees, up to 64 MiB. The kernel may report lost pages to the first process that closes the file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, MOST_BYTES, 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def difference(one: bytes, other: bytes) -> str:
    """Where two contents begin to differ, "" if they do not."""
    if one == other:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"at byte {at}: {one[at : at + 16].hex()} and {other[at : at + 16].hex()}; {len(one)} and {len(other)} bytes"
