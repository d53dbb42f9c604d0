"""Hot lists as bytes: 16 each, hottest first: inode (u64), first chunk (u32), number of chunks (u32)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from snapfs.base.blocks import ChunkIndex, Ino
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import MAX_HOT_BYTES

_HOT: Final = struct.Struct("<QII")
Hot = tuple[Ino, ChunkIndex, int]
"""Inode, first chunk, number of chunks."""


def pack_hot(entries: Iterable[Hot]) -> bytes:
    """A hot list, hottest first, cut off at MAX_HOT_BYTES."""
    return b"".join(_HOT.pack(*entry) for entry in entries)[:MAX_HOT_BYTES]


def unpack_hot(data: bytes) -> list[Hot]:
    """Raises RefusedError ("bad_request", "too_large")."""
    if len(data) > MAX_HOT_BYTES:
        raise refuse(Refusal.TOO_LARGE, f"a hot list of {len(data)} bytes; at most {MAX_HOT_BYTES} are kept")
    if len(data) % _HOT.size:
        raise refuse(Refusal.BAD_REQUEST, "not a hot list: its length is wrong")
    found = [(Ino(ino), ChunkIndex(first), count) for ino, first, count in _HOT.iter_unpack(data)]
    if not all(0 < ino < 1 << 63 for ino, _, _ in found):
        raise refuse(Refusal.BAD_REQUEST, "not a hot list: there is no such inode number")
    return found
