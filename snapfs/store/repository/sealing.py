"""The write side of a store: who may write, which object numbers are next, and the one snapshot in the making.

Invariants:
1. At most one transaction is open.
2. Object numbers only grow, also over aborted transactions of this process; a number that is in a finished segment is
   never given out again.
3. What a seal before left unfinished is continued by the next one, or removed by it (resume_segment.py).
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from typing import Final

from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.base.errors import BusyError, UserError
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects import format as fmt
from snapfs.store.objects.object_encoder import Encoded
from snapfs.store.objects.segment_writer import SegmentWriter
from snapfs.store.repository.resume_segment import resume, unfinished_bytes, unfinished_name
from snapfs.store.repository.store_parts import StoreParts
from snapfs.store.repository.transaction import Transaction

_FILL_AT_BEGIN: Final = 4096  # rows of old segments put into the dedup map, about 5 ms
_FILL_AT_APPEND: Final = 8


class Sealing:
    """The seals of one store. Thread-safe."""

    def __init__(self, parts: StoreParts, last_given: Number, left: list[str]) -> None:
        """`last_given`: the highest number in use. `left`: unfinished segments that the next seal may continue."""
        self._parts, self._last_given, self._left = parts, last_given, left
        self._lock = threading.RLock()
        self._transaction: Transaction | None = None
        self.resumed_objects = 0
        """How many objects the newest seal found ready, of one that was cut off with its process."""

    @property
    def last_given(self) -> Number:
        """The highest object number that is in use."""
        return self._last_given

    def begin(self, generation: Generation) -> Transaction:
        """Start a snapshot. Raises BusyError if one is under way, UserError if a newer generation has written."""
        parts = self._parts
        assert not parts.opening.readonly
        with self._lock:
            if self._transaction is not None:
                raise BusyError("another snapshot is being sealed")
            header = fmt.Header(parts.identity.volume_id, generation, self._next_number(generation))
            writer = self._resumed(header) or SegmentWriter(parts.index.folder, parts.disk, header)
            self._transaction = Transaction(parts, self, writer, generation)
            parts.index.begin_unfinished(writer)
        parts.dedup.fill(_FILL_AT_BEGIN)
        return self._transaction

    def _next_number(self, generation: Generation) -> Number:
        newest = fmt.generation_of(self._last_given)
        if generation < newest:
            raise UserError(f"generation {newest} has written here already; this is {generation}, which is fenced off")
        if generation == newest and self._last_given:
            return Number(self._last_given + 1)
        return fmt.make_number(generation, 1)

    def _resumed(self, header: fmt.Header) -> SegmentWriter | None:
        """The segment that a seal before left unfinished; another one that is left is of no use to anybody."""
        if not self._remove_stale(header.first):
            return None
        parts = self._parts
        objects = parts.objects
        writer = resume(parts.index.folder, parts.disk, header, objects.full_plain, objects.content_hash_of)
        if writer is not None:
            for number in range(writer.first, writer.last + 1):
                row = writer.row(Number(number))
                assert row is not None
                parts.dedup.add(row.content_hash, row.number)
            self.resumed_objects = writer.count
        return writer

    def _remove_stale(self, first: Number) -> bool:
        """Remove what no seal can continue any more; whether there was any unfinished segment."""
        left, self._left = self._left, []
        for path in left:
            if os.path.basename(path) != unfinished_name(first):
                with contextlib.suppress(FileNotFoundError):
                    self._parts.disk.unlink("seal:stale", path)
        return bool(left)

    def unfinished_bytes(self) -> int:
        """Bytes of a seal that was cut off with its process, with which the next one goes on."""
        return unfinished_bytes(self._left)

    def horizon(self) -> Number:
        """From now on new snapshots share no older object than the one returned, by content. Raises BusyError.

        For a collection, which may be about to drop them.
        """
        with self._lock:
            if self._transaction is not None:
                raise BusyError("a snapshot is being sealed; space is collected when it is done")
            self._parts.dedup.set_floor(self._last_given)
            return self._last_given

    def reserve(self, last: Number) -> None:
        """Numbers up to `last` are in use: of a snapshot that came from elsewhere."""
        with self._lock:
            self._last_given = max(self._last_given, last)

    def abort(self) -> None:
        """Abort what is under way, if anything is."""
        if self._transaction is not None:
            self._transaction.abort()

    # For Transaction.

    def appended(self, number: Number, encoded: Encoded) -> None:
        """An object has been written: remember it for dedup, and as a base if it is full."""
        parts = self._parts
        parts.dedup.add(encoded.content_hash, number)
        if not encoded.is_difference:
            parts.objects.bases.put(number, encoded.content_hash, encoded.plain)
        parts.dedup.fill(_FILL_AT_APPEND)

    def next_snapshot(self, name: str | None) -> SnapshotNumber:
        """The number for a snapshot of this name. Raises UserError if the name is taken or cannot be one."""
        return self._parts.catalog.next_number(name)

    def publish(self, writer: SegmentWriter, record: SnapshotRecord) -> None:
        """Write the record of a snapshot whose segment is finished: the commit point. Raises OSError."""
        parts = self._parts
        event = parts.log.append("snapshot", snapshot_records.to_fields(record), with_head=snapshot_records.head_of)
        parts.index.add(writer.path)
        parts.catalog.add(replace(record, log_head=event.fields["log_head"]))
        parts.loss.list_segments()

    def ended(self, next_number: Number) -> None:
        """The transaction is over; its numbers are not given out again."""
        with self._lock:
            self.reserve(Number(next_number - 1))
            self._parts.index.end_unfinished()
            self._transaction = None
