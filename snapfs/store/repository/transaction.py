"""One snapshot in the making: streams encoded objects (object_encoder.py) into a segment, and commits.

Invariants:
1. `append`, `put_page`, `commit` and `abort` are called by one thread at a time; encoding is done by any number of
   threads.
2. Nothing of an uncommitted transaction lasts. The order of `commit`, and what a crash after each step leaves:
   objects -> table -> trailer -> fsync of the segment   (an unfinished `.new` file: the next seal goes on with it)
   -> rename -> fsync of the folder                      (a segment without a record: removed by the next opening)
   -> the record in snapshots.log -> fsync of the log    (THE COMMIT POINT: with a whole line the snapshot exists)
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_records import AskedBy, CutFacts, SealStats, SnapshotRecord
from snapfs.store.objects import codec
from snapfs.store.objects.codec import Similarity
from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.objects.mosaic_payload import Mosaic
from snapfs.store.objects.object_encoder import Encoded, ObjectEncoder, provisional_number
from snapfs.store.objects.segment_writer import SegmentWriter

if TYPE_CHECKING:
    from snapfs.store.repository.sealing import Sealing
    from snapfs.store.repository.store_parts import StoreParts


class Transaction:
    """Made by `Repository.begin`; ends with `commit` or `abort`."""

    def __init__(self, parts: StoreParts, sealing: Sealing, writer: SegmentWriter, generation: Generation) -> None:
        self._parts, self._sealing, self._writer, self._generation = parts, sealing, writer, generation
        self._objects, self._dedup = parts.objects, parts.dedup
        self._encoder = ObjectEncoder(parts.objects, parts.dedup)
        self._next = Number(writer.last + 1)
        self._started = time.monotonic()
        self._open = True

    def encode_chunk(
        self,
        plain: bytes,
        base: Pointer | None,
        before: Pointer | None = None,
        after: Pointer | None = None,
        *,
        try_difference: bool = True,
        similar: Similarity | None = None,
    ) -> Encoded:
        """As `ObjectEncoder.encode_chunk`. Thread-safe."""
        return self._encoder.encode_chunk(plain, base, before, after, try_difference=try_difference, similar=similar)

    def best_dictionary(self, pointers: list[Pointer]) -> Pointer:
        """As `ObjectEncoder.best_dictionary`. Thread-safe."""
        return self._encoder.best_dictionary(pointers)

    def similarity(self, pointer: Pointer, *, careful: bool) -> Similarity | None:
        """As `ObjectEncoder.similarity`. Thread-safe."""
        return self._encoder.similarity(pointer, careful=careful)

    def encode_page(self, kind: ObjectKind, plain: bytes, base: Pointer | None) -> Encoded:
        """As `ObjectEncoder.encode_page`. Thread-safe."""
        return self._encoder.encode_page(kind, plain, base)

    def append(self, encoded: Encoded) -> Pointer:
        """Write the object to the segment. Raises OSError; the transaction must then be aborted."""
        if encoded.pointer is not None:
            return encoded.pointer
        known = self._dedup.find(encoded.kind, encoded.content_hash)
        if known is not None:  # another thread encoded the same content
            return known
        if encoded.mosaic is not None:
            encoded = self._with_blocks(encoded, encoded.mosaic)
        number = self._next
        self._writer.append(
            number, encoded.kind, encoded.encoding, encoded.ordinal, encoded.base, encoded.content_hash,
            len(encoded.plain), encoded.payload,
        )  # fmt: skip
        self._next = Number(number + 1)
        self._sealing.appended(number, encoded)
        return Pointer(number, encoded.content_hash)

    def _with_blocks(self, encoded: Encoded, mosaic: Mosaic) -> Encoded:
        """The MOSAIC after its new blocks are in the segment."""
        numbers = {provisional_number(index): self.append(block).number for index, block in enumerate(encoded.blocks)}
        places = tuple(place._replace(number=numbers.get(place.number, place.number)) for place in mosaic.places)
        made = Mosaic(places, mosaic.age)
        return replace(encoded, base=made.numbers[0], payload=made.payload(), mosaic=None, blocks=())

    def put_page(self, kind: ObjectKind, plain: bytes, base: Pointer | None) -> Pointer:
        """Encode and append a page."""
        return self.append(self.encode_page(kind, plain, base))

    def read(self, pointer: Pointer) -> bytes:
        """Like `Repository.read`, and finds the objects of this transaction too."""
        return self._objects.read(pointer)

    def commit(
        self,
        root: Pointer,
        *,
        parent: SnapshotNumber | None,
        name: str | None,
        cut_time_ns: int,
        trigger: str,
        files: int = 0,
        directories: int = 0,
        inodes: int = 0,
        dirty_bytes: int = 0,
        cut: CutFacts = CutFacts(),
        by: AskedBy | None = None,
    ) -> SnapshotRecord:
        """Make the snapshot durable. On any error nothing of it is left.

        Raises OSError; UserError if the name is taken, or if the parent has been dropped: what it shares with this
        snapshot may be gone.
        """
        assert self._open, "committed or aborted before"
        try:
            if parent is not None:
                self._parts.catalog.find(str(parent))
            record = SnapshotRecord(
                number=self._sealing.next_snapshot(name),
                name=name,
                generation=self._generation,
                parent=parent,
                cut_time_ns=cut_time_ns,
                seal_time_ns=self._parts.opening.clock(),
                trigger=trigger,
                root=root,
                last_number=self._next,
                stats=SealStats(files, directories, inodes, dirty_bytes, self._writer.count + 1),
                cut=cut,
                by=by,
            )
            self._append_record(record)
            size = self._writer.finish()
            seconds = round(time.monotonic() - self._started, 6)
            record = replace(record, stats=replace(record.stats, stored_bytes=size, seal_seconds=seconds))
            self._sealing.publish(self._writer, record)
        except Exception:
            self.abort()
            raise
        self._end()
        return record

    def abort(self) -> None:
        """Drop everything. Harmless after `commit` or a second time."""
        if self._open:
            self._end()
            self._objects.forget_from(self._writer.first)
            if not self._parts.log.broken:  # else the record may exist: the next opening sorts it out
                self._writer.abandon()

    def _end(self) -> None:
        self._open = False
        self._sealing.ended(self._next)
        self._writer.close()

    def _append_record(self, record: SnapshotRecord) -> None:
        plain = msgspec.json.encode(snapshot_records.to_fields(record))
        encoding, payload = codec.encode_full(plain)
        self._writer.append(
            self._next,
            ObjectKind.RECORD,
            encoding,
            0,
            Number(0),
            self._objects.content_hash_of(plain),
            len(plain),
            payload,
        )
        self._next = Number(self._next + 1)
