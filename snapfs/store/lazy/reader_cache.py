"""Objects that are fetched for a reader that comes and goes: kept in memory, the newest of them, and nowhere else.

What `FetchedObjects` is to a lazily mounted volume, this is to a command that reads a snapshot of a target from another
host: a restore of any size leaves nothing behind but what was requested.

Invariants:
1. What is kept was checked by the fetcher, and is checked again at each read.
2. At most `most_bytes` are kept, and one object more. What goes first was used longest ago; it is fetched anew if it is
   needed again. The bound is several times what the fetcher has under way at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError
from snapfs.store.lazy.fetched_objects import FetchedObjects
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Row

MOST_BYTES: Final = 128 << 20


class PassingObjects(FetchedObjects):
    """Thread-safe. A row's offset means nothing here: the frame is found by the number."""

    def __init__(self, place: str, most_bytes: int = MOST_BYTES) -> None:
        """`place`: where they come from, for messages."""
        # Nothing of a folder on disk is opened, so the constructor of `FetchedObjects` has nothing to do.
        self.path = place
        self.count = self.stored_bytes = 0
        self._most_bytes = most_bytes
        self._lock = threading.RLock()
        self._kept: OrderedDict[Number, tuple[bytes, bytes]] = OrderedDict()

    def find(self, number: Number) -> Row | None:
        with self._lock:
            known = self._kept.get(number)
            if known is None:
                return None
            self._kept.move_to_end(number)
        content_hash, framed = known
        frame = fmt.unpack_frame(framed)
        return Row(number, 0, frame.kind, frame.encoding, frame.ordinal, frame.stored, frame.base, content_hash)

    def frame(self, row: Row) -> bytes:
        with self._lock:
            known = self._kept.get(row.number)
        if known is None:
            raise CorruptionError(f"object {row.number:#x}", self.path, "it has made room for others: it comes again")
        return known[1]

    def has(self, number: Number) -> bool:
        with self._lock:
            return number in self._kept

    def add(self, objects: Iterable[tuple[bytes, bytes]]) -> None:
        with self._lock:
            for content_hash, framed in objects:
                number = fmt.unpack_frame(framed).number
                self._drop(number)
                self._kept[number] = content_hash, framed
                self.count += 1
                self.stored_bytes += len(framed)
            while self.stored_bytes > self._most_bytes and len(self._kept) > 1:
                self._drop(next(iter(self._kept)))

    def forget(self, number: Number) -> None:
        with self._lock:
            self._drop(number)

    def _drop(self, number: Number) -> None:
        known = self._kept.pop(number, None)
        if known is not None:
            self.count -= 1
            self.stored_bytes -= len(known[1])

    def sync(self) -> None:
        """Nothing of it is durable."""

    def close(self) -> None:
        with self._lock:
            self._kept.clear()

    def check_invariants(self) -> None:
        with self._lock:
            assert self.stored_bytes == sum(len(framed) for _, framed in self._kept.values())
            assert self.stored_bytes <= self._most_bytes or len(self._kept) == 1
