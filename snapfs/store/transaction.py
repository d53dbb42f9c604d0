"""One snapshot in the making: encodes objects, streams them into a segment, commits.

Invariants:
1. Encoding is done by any number of threads at once and touches nothing that lasts; `append`, `put_page`, `commit` and
   `abort` are called by one thread at a time.
2. No object refers to one that is not full: a difference is made against the full object behind its base. It is written
   full again after eight differences, or when the difference is larger than half of the full object. A difference to
   an object that is not its earlier version (`alike`) counts as the eighth: it is no help to the next version.
3. What was encoded is decoded and compared before it counts.
4. Nothing of an uncommitted transaction lasts. The order of `commit`, and what a crash after each step leaves:
   objects -> table -> trailer -> fsync of the segment   (an unfinished `.new` file: removed by the next opening)
   -> rename -> fsync of the folder                      (a segment without a record: removed by the next opening)
   -> the record in snapshots.log -> fsync of the log    (THE COMMIT POINT: with a whole line the snapshot exists)
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from snapfs.blocks import BLOCK_SIZE, CHUNK_SIZE, FULL_MASK, Generation, Number, SnapshotNumber
from snapfs.errors import CorruptionError
from snapfs.store import codec, records
from snapfs.store import format as fmt
from snapfs.store.codec import Bases, Likeness, Payload
from snapfs.store.format import NULL, Encoding, Kind, Pointer
from snapfs.store.objects import FullBase
from snapfs.store.records import SealStats, SnapshotRecord
from snapfs.store.segment import SegmentWriter

if TYPE_CHECKING:
    from snapfs.store.repository import Repository


_GAIN_ALIKE: Final = 16
"""A difference to an object alike must save a sixteenth: a full one is read with one frame, a version has versions."""
_SMALL: Final = CHUNK_SIZE // 32
"""What a chunk was encoded to in so few bytes is not worth a second try."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An object ready to be appended, or (`pointer` set) one that exists already."""

    pointer: Pointer | None
    kind: Kind = Kind.CHUNK
    encoding: Encoding = Encoding.RAW
    ordinal: int = 0
    base: Number = Number(0)
    proof: bytes = b""
    plain: bytes = b""
    payload: bytes = b""
    bases: Bases | None = None

    is_alike: bool = False

    @property
    def is_difference(self) -> bool:
        return self.encoding > Encoding.ZSTD

    @property
    def is_next_version(self) -> bool:
        """True if the version before paid as a base; a file for which it never does can stop offering one."""
        return self.is_difference and not self.is_alike


class Transaction:
    """Made by `Repository.begin`; ends with `commit` or `abort`."""

    def __init__(self, repository: Repository, writer: SegmentWriter, generation: Generation) -> None:
        self._repository, self._writer, self._generation = repository, writer, generation
        self._objects = repository.objects
        self._dedup = repository.dedup
        self._next = writer.first
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
        alike: Likeness | None = None,
    ) -> Encoded:
        """Encode up to 64 KiB of a file. Thread-safe.

        `base` is the version before this one. `before` and `after` are the chunks around it, worth giving where content
        may have moved within the file, as when a new file was renamed over `base`'s. Without `try_difference`
        the base is only asked whether it is the same. `alike` is for a chunk that was written as a whole, as in the
        ring of a database's log. Raises OSError if a base cannot be read; a damaged base is not used.
        """
        if codec.is_zero(plain):
            return Encoded(NULL)
        return self._encode(Kind.CHUNK, plain, base, before, after, try_difference, alike)

    def richest(self, pointers: list[Pointer]) -> Pointer:
        """The one with the largest compressed object behind it, NULL if there is none. Raises OSError."""
        found, largest = NULL, 0
        for pointer in pointers:
            with contextlib.suppress(CorruptionError):
                size = self._objects.compressed_bytes(pointer)
                found, largest = (pointer, size) if size > largest else (found, largest)
        return found

    def likeness(self, pointer: Pointer, *, careful: bool) -> Likeness | None:
        """What is behind `pointer`, to encode other chunks against; None if it is damaged. Raises OSError."""
        full = self._full_base(pointer)
        return Likeness(full.number, full.plain, careful=careful) if full else None

    def encode_page(self, kind: Kind, plain: bytes, base: Pointer | None) -> Encoded:
        """Encode a page of a table. Thread-safe. Raises OSError as `encode_chunk` does."""
        return self._encode(kind, plain, base, None, None)

    def append(self, encoded: Encoded) -> Pointer:
        """Write the object to the segment. Raises OSError; the transaction must then be aborted."""
        if encoded.pointer is not None:
            return encoded.pointer
        known = self._dedup.find(encoded.kind, encoded.proof)
        if known is not None:  # another thread encoded the same content
            return known
        number = self._next
        self._writer.append(
            number, encoded.kind, encoded.encoding, encoded.ordinal, encoded.base, encoded.proof, len(encoded.plain),
            encoded.payload,
        )  # fmt: skip
        self._next = Number(number + 1)
        self._repository.appended(number, encoded)
        return Pointer(number, encoded.proof)

    def put_page(self, kind: Kind, plain: bytes, base: Pointer | None) -> Pointer:
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
    ) -> SnapshotRecord:
        """Make the snapshot durable. On any error nothing of it is left.

        Raises OSError; UserError if the name is taken, or if the parent has been dropped: what it shares with this
        snapshot may be gone.
        """
        assert self._open, "committed or aborted before"
        try:
            if parent is not None:
                self._repository.find(str(parent))
            record = SnapshotRecord(
                number=self._repository.next_snapshot(name),
                name=name,
                generation=self._generation,
                parent=parent,
                cut_time_ns=cut_time_ns,
                seal_time_ns=self._repository.clock(),
                trigger=trigger,
                root=root,
                last_number=self._next,
                stats=SealStats(files, directories, inodes, dirty_bytes, self._writer.count + 1),
            )
            self._append_record(record)
            size = self._writer.finish()
            seconds = round(time.monotonic() - self._started, 6)
            record = replace(record, stats=replace(record.stats, stored_bytes=size, seal_seconds=seconds))
            self._repository.publish(self._writer, record)
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
            if not self._repository.log.broken:  # else the record may exist: the next opening sorts it out
                self._writer.abandon()

    def _end(self) -> None:
        self._open = False
        self._repository.ended(self._next)
        self._writer.close()

    def _append_record(self, record: SnapshotRecord) -> None:
        plain = msgspec.json.encode(records.to_fields(record))
        encoding, payload = codec.encode_full(plain)
        self._writer.append(
            self._next, Kind.RECORD, encoding, 0, Number(0), self._objects.proof_of(plain), len(plain), payload
        )
        self._next = Number(self._next + 1)

    def _encode(
        self,
        kind: Kind,
        plain: bytes,
        base: Pointer | None,
        before: Pointer | None,
        after: Pointer | None,
        try_difference: bool = True,
        alike: Likeness | None = None,
    ) -> Encoded:
        proof = self._objects.proof_of(plain)
        if base is not None and base.proof == proof:
            return Encoded(base)
        known = self._dedup.find(kind, proof)
        if known is not None:
            return Encoded(known)
        encoded = None
        if try_difference and base is not None and base.number and plain:
            encoded = self._difference(kind, plain, proof, base, before, after)
        if encoded is None:
            encoding, payload = codec.encode_full(plain)
            encoded = Encoded(None, kind, encoding, 0, Number(0), proof, plain, payload)
        if alike is not None and _SMALL < len(encoded.payload) < CHUNK_SIZE and _is_filled(plain):
            encoded = _against(alike, encoded)
        _check(encoded)
        return encoded

    def _difference(
        self, kind: Kind, plain: bytes, proof: bytes, base: Pointer, before: Pointer | None, after: Pointer | None
    ) -> Encoded | None:
        """A difference to what is behind `base`; None if a full object is the better choice."""
        full = self._full_base(base)
        if full is None or full.ordinal >= fmt.MAX_ORDINAL:
            return None
        payload, bases = self._best_difference(kind, plain, full, before, after)
        if 2 * len(payload.data) > full.stored:
            anew = codec.encode_full(plain)
            if 2 * len(payload.data) > len(anew.data) and not _is_rest(full, payload, anew, plain):
                return Encoded(None, kind, anew.encoding, 0, Number(0), proof, plain, anew.data)
        return Encoded(None, kind, payload.encoding, full.ordinal + 1, full.number, proof, plain, payload.data, bases)

    def _best_difference(
        self, kind: Kind, plain: bytes, full: FullBase, before: Pointer | None, after: Pointer | None
    ) -> tuple[Payload, Bases]:
        if kind != Kind.CHUNK:
            return codec.encode_delta(plain, full.plain), Bases(full.plain)
        mask = codec.difference_mask(plain, full.plain)
        if not (before or after) or mask & mask - 1 == 0:
            return codec.encode_patch(plain, full.plain, mask), Bases(full.plain)
        shift = self._shift(plain, full, before, after)
        if mask == FULL_MASK:
            return shift
        patch = codec.encode_patch(plain, full.plain, mask), Bases(full.plain)
        return min(patch, shift, key=lambda choice: len(choice[0].data))

    def _shift(
        self, plain: bytes, full: FullBase, before: Pointer | None, after: Pointer | None
    ) -> tuple[Payload, Bases]:
        left, right = self._neighbour(before), self._neighbour(after)
        bases = Bases(full.plain, left.plain, right.plain)
        return codec.encode_shift(plain, bases, left.number, right.number), bases

    def _neighbour(self, pointer: Pointer | None) -> FullBase:
        found = self._full_base(pointer) if pointer is not None and pointer.number else None
        return found or FullBase(Number(0), 0, 0, b"")

    def _full_base(self, pointer: Pointer) -> FullBase | None:
        try:
            return self._objects.full_base(pointer)
        except CorruptionError:
            return None


def _is_rest(full: FullBase, difference: Payload, anew: Payload, plain: bytes) -> bool:
    """True for a chunk that was filled up since: both parts together are hardly more than the whole."""
    return 8 * (full.stored + len(difference.data)) <= 9 * len(anew.data) and _is_filled(plain)


def _is_filled(plain: bytes) -> bool:
    """False for a chunk that may still be filled up: the best base for its next version is what it is now."""
    return len(plain) == CHUNK_SIZE and not codec.is_zero(plain[-BLOCK_SIZE:])


def _against(alike: Likeness, encoded: Encoded) -> Encoded:
    """As a difference to `alike` if that is smaller."""
    payload = alike.encode(encoded.plain)
    if len(payload.data) > len(encoded.payload) - len(encoded.payload) // _GAIN_ALIKE:
        return encoded
    return replace(
        encoded, encoding=payload.encoding, ordinal=fmt.MAX_ORDINAL, base=alike.number, payload=payload.data,
        bases=Bases(alike.plain), is_alike=True,
    )  # fmt: skip


def _check(encoded: Encoded) -> None:
    again = codec.decode(encoded.encoding, encoded.payload, len(encoded.plain), encoded.bases)
    if again != encoded.plain:
        raise CorruptionError("a new object", "memory", "it does not decode to what was encoded")
