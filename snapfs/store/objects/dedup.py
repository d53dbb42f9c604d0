"""Finds an object that has the same content already: best effort, in bounded memory.

Invariants:
1. The map costs 12 bytes a slot, whatever it holds, and is filled with the chunks of old segments little by little. Who
   writes nothing (a mirror) has none.
2. What it finds is verified against the object's row: a stale entry costs a lookup and never a wrong answer. So no
   locks are needed, and nothing is taken out when objects cease to exist.
3. Objects up to the floor are not found: a collection in progress may be about to drop them, or a damaged snapshot
   needs them, so that they may be the damaged ones.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator
from typing import Final

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.objects.segment_index import SegmentIndex

SLOTS: Final = 1 << 20
"""One object each: 64 GiB of full chunks, in 12 MiB."""


class Dedup:
    """From a content hash to an object of one store. `find` from any thread; the rest from one at a time."""

    def __init__(self, index: SegmentIndex, slots: int = SLOTS) -> None:
        """`slots` is a power of two."""
        assert slots & (slots - 1) == 0
        self._index = index
        self._slots = slots
        self._numbers, self._tags = array("Q"), array("I")
        self._filling = self._fill_from_segments()
        self._floor = Number(0)

    def set_floor(self, floor: Number) -> None:
        """Find only objects that are newer than this one (invariant 3)."""
        self._floor = floor

    def find(self, kind: ObjectKind, content_hash: bytes) -> Pointer | None:
        """An object of this kind with this content, if one is known."""
        if not self._numbers:
            return None
        key = int.from_bytes(content_hash[:8], "little")
        slot = key & self._slots - 1
        number = self._numbers[slot]
        if number <= self._floor or self._tags[slot] != key >> 32:
            return None
        row = self._index.peek(Number(number))
        return (
            Pointer(row.number, content_hash)
            if row is not None and row.content_hash == content_hash and row.kind == kind
            else None
        )

    def add(self, content_hash: bytes, number: Number) -> None:
        """Remember an object; it takes the place of whatever was in its slot."""
        if not self._numbers:
            self._tags = array("I", bytes(4 * self._slots))
            self._numbers = array("Q", bytes(8 * self._slots))
        key = int.from_bytes(content_hash[:8], "little")
        slot = key & self._slots - 1
        self._numbers[slot] = number
        self._tags[slot] = key >> 32

    def fill(self, rows: int) -> None:
        """Take in as many rows of the segments that were there before, newest first (about 1 µs each)."""
        for _ in range(rows):
            if next(self._filling, False) is False:
                return

    def _fill_from_segments(self) -> Iterator[None]:
        room = self._slots // 2
        for info in reversed(self._index.segments()):
            if room <= 0 or info.damage:
                continue
            room -= info.count
            with contextlib.suppress(OSError, CorruptionError):
                reader = self._index.reader(info.first)
                for row in reader.rows() if reader is not None else ():
                    if row.kind == ObjectKind.CHUNK:
                        self._add_older(row.content_hash, row.number)
                    yield None

    def _add_older(self, content_hash: bytes, number: Number) -> None:
        if not self._numbers or not self._numbers[int.from_bytes(content_hash[:8], "little") & self._slots - 1]:
            self.add(content_hash, number)
