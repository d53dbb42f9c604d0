"""Encodes one object: finds out whether it is there already, and else which encoding is the smallest.

Invariants:
1. Any number of threads may encode at once; nothing that lasts is touched.
2. No object refers to one that is not full: a difference is made against the full object behind its base. It is written
   full again after eight differences, or when the difference is larger than half of the full object. A difference to
   an object that is not its earlier version (`similar`) counts as the eighth: it is no help to the next version. A
   chunk that is written at random is stored as blocks (mosaic.py).
3. What was encoded is decoded and compared before it counts.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Final

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, FULL_MASK, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import codec
from snapfs.store.objects import format as fmt
from snapfs.store.objects import mosaic as scattered
from snapfs.store.objects.codec import Similarity
from snapfs.store.objects.dedup import Dedup
from snapfs.store.objects.format import NULL, Encoding, ObjectKind, Pointer
from snapfs.store.objects.mosaic_payload import Mosaic
from snapfs.store.objects.objects import FullBase, Objects
from snapfs.store.objects.payload_types import Bases, Payload

_GAIN_SIMILAR: Final = 16
"""A difference to a similar object must save a sixteenth: a full one is read with one frame, a version has versions."""
_SMALL: Final = CHUNK_SIZE // 32
"""What a chunk was encoded to in so few bytes is not worth a second try."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An object ready to be appended, or (`pointer` set) one that exists already."""

    pointer: Pointer | None
    kind: ObjectKind = ObjectKind.CHUNK
    encoding: Encoding = Encoding.RAW
    ordinal: int = 0
    base: Number = Number(0)
    content_hash: bytes = b""
    plain: bytes = b""
    payload: bytes = b""
    bases: Bases | None = None

    is_similar: bool = False
    mosaic: Mosaic | None = None
    """Of a MOSAIC, whose payload is made when the numbers of its new `blocks` are known: they have provisional ones."""
    blocks: tuple[Encoded, ...] = ()

    @property
    def is_difference(self) -> bool:
        return self.encoding > Encoding.ZSTD

    @property
    def is_next_version(self) -> bool:
        """True if the version before paid as a base; a file for which it never does can stop offering one."""
        return self.is_difference and not self.is_similar


class ObjectEncoder:
    """Encodes objects of one store. Thread-safe."""

    def __init__(self, objects: Objects, dedup: Dedup) -> None:
        self._objects, self._dedup = objects, dedup

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
        """Encode up to 64 KiB of a file. Thread-safe.

        `base` is the version before this one. `before` and `after` are the chunks around it, worth giving where content
        may have moved within the file, as when a new file was renamed over `base`'s. Without `try_difference`
        the base is only compared. `similar` is for a chunk that was written as a whole, as in the
        ring of a database's log. Raises OSError if a base cannot be read; a damaged base is not used.
        """
        if codec.is_zero(plain):
            return Encoded(NULL)
        return self._encode(ObjectKind.CHUNK, plain, base, before, after, try_difference, similar)

    def best_dictionary(self, pointers: list[Pointer]) -> Pointer:
        """The one with the largest compressed object behind it, NULL if there is none. Raises OSError."""
        found, largest = NULL, 0
        for pointer in pointers:
            with contextlib.suppress(CorruptionError):
                size = self._objects.compressed_bytes(pointer)
                found, largest = (pointer, size) if size > largest else (found, largest)
        return found

    def similarity(self, pointer: Pointer, *, careful: bool) -> Similarity | None:
        """What is behind `pointer`, to encode other chunks against; None if it is damaged. Raises OSError."""
        full = self._full_base(pointer)
        return Similarity(full.number, full.plain, careful=careful) if full else None

    def encode_page(self, kind: ObjectKind, plain: bytes, base: Pointer | None) -> Encoded:
        """Encode a page of a table. Thread-safe. Raises OSError as `encode_chunk` does."""
        return self._encode(kind, plain, base, None, None)

    def _encode(
        self,
        kind: ObjectKind,
        plain: bytes,
        base: Pointer | None,
        before: Pointer | None,
        after: Pointer | None,
        try_difference: bool = True,
        similar: Similarity | None = None,
    ) -> Encoded:
        content_hash = self._objects.content_hash_of(plain)
        if base is not None and base.content_hash == content_hash:
            return Encoded(base)
        known = self._dedup.find(kind, content_hash)
        if known is not None:
            return Encoded(known)
        encoded = None
        if try_difference and base is not None and base.number and plain:
            encoded = self._difference(kind, plain, content_hash, base, before, after)
        if encoded is None:
            encoding, payload = codec.encode_full(plain)
            encoded = Encoded(None, kind, encoding, 0, Number(0), content_hash, plain, payload)
        if similar is not None and _SMALL < len(encoded.payload) < CHUNK_SIZE and _is_filled(plain):
            encoded = _against(similar, encoded)
        _check(encoded)
        return encoded

    def _difference(
        self,
        kind: ObjectKind,
        plain: bytes,
        content_hash: bytes,
        base: Pointer,
        before: Pointer | None,
        after: Pointer | None,
    ) -> Encoded | None:
        """A difference to what is behind `base`; None if a full object is the better choice."""
        full = self._full_base(base)
        in_place = kind == ObjectKind.CHUNK and before is None and after is None
        if full is None or full.ordinal >= fmt.MAX_ORDINAL:
            return self._scattered(plain, content_hash, base) if in_place else None
        if in_place:
            mask = codec.difference_mask(plain, full.plain)
            payload, bases = codec.encode_patch(plain, full.plain, mask), Bases(full.plain)
            if scattered.does_not_resemble(len(payload.data), mask):
                return self._scattered(plain, content_hash, Pointer(full.number, content_hash), full.plain)
        else:
            payload, bases = self._best_difference(kind, plain, full, before, after)
        if 2 * len(payload.data) > full.stored:
            anew = codec.encode_full(plain)
            if 2 * len(payload.data) > len(anew.data) and not _is_rest(full, payload, anew, plain):
                return Encoded(None, kind, anew.encoding, 0, Number(0), content_hash, plain, anew.data)
        return Encoded(
            None, kind, payload.encoding, full.ordinal + 1, full.number, content_hash, plain, payload.data, bases
        )

    def _scattered(
        self, plain: bytes, content_hash: bytes, base: Pointer, known: bytes | None = None
    ) -> Encoded | None:
        """As a MOSAIC after `base`, whose content may be `known`; None if a full object is the better choice."""
        try:
            mosaic = self._objects.mosaic(base)
            if mosaic is None or len(plain) > CHUNK_SIZE:
                return None
            runs = scattered.new_blocks(plain, self._objects.read(base) if known is None else known)
            pieces = [plain[run.start * BLOCK_SIZE : run.stop * BLOCK_SIZE] for run in runs]
            blocks = tuple(self._block(piece) for piece in pieces)
            anew = codec.encode_full(plain)
            stored = sum(len(block.payload) for block in blocks)
            if scattered.is_due_full(mosaic, stored, runs, len(anew.data)):
                return Encoded(None, ObjectKind.CHUNK, anew.encoding, 0, Number(0), content_hash, plain, anew.data)
            numbers = [provisional_number(index) for index in range(len(runs))]
            made = scattered.with_new(mosaic, len(plain), runs, numbers)
            contents = dict(zip(numbers, pieces, strict=True))
            bases = Bases(*(contents.get(n) or self._objects.full_plain(n) for n in made.numbers))
        except CorruptionError:
            return None
        return Encoded(
            None, ObjectKind.CHUNK, Encoding.MOSAIC, fmt.MAX_ORDINAL, made.numbers[0], content_hash, plain,
            made.payload(), bases, mosaic=made, blocks=blocks,
        )  # fmt: skip

    def _block(self, plain: bytes) -> Encoded:
        content_hash = self._objects.content_hash_of(plain)
        known = self._dedup.find(ObjectKind.BLOCK, content_hash)
        if known is not None:
            return Encoded(known)
        encoding, payload = codec.encode_full(plain)
        return Encoded(None, ObjectKind.BLOCK, encoding, 0, Number(0), content_hash, plain, payload)

    def _best_difference(
        self, kind: ObjectKind, plain: bytes, full: FullBase, before: Pointer | None, after: Pointer | None
    ) -> tuple[Payload, Bases]:
        if kind != ObjectKind.CHUNK:
            return codec.encode_delta(plain, full.plain), Bases(full.plain)
        mask = codec.difference_mask(plain, full.plain)
        if mask & mask - 1 == 0:
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


def provisional_number(index: int) -> Number:
    """The number that a new block of a MOSAIC has until it is in the segment: beyond all that can be given out."""
    return Number((1 << 64) - 1 - index)


def _is_rest(full: FullBase, difference: Payload, anew: Payload, plain: bytes) -> bool:
    """True for a chunk that was filled up since: both parts together are hardly more than the whole."""
    return 8 * (full.stored + len(difference.data)) <= 9 * len(anew.data) and _is_filled(plain)


def _is_filled(plain: bytes) -> bool:
    """False for a chunk that may still be filled up: the best base for its next version is what it is now."""
    return len(plain) == CHUNK_SIZE and not codec.is_zero(plain[-BLOCK_SIZE:])


def _against(similar: Similarity, encoded: Encoded) -> Encoded:
    """As a difference to `similar` if that is smaller."""
    payload = similar.encode(encoded.plain)
    if len(payload.data) > len(encoded.payload) - len(encoded.payload) // _GAIN_SIMILAR:
        return encoded
    return replace(
        encoded, encoding=payload.encoding, ordinal=fmt.MAX_ORDINAL, base=similar.number, payload=payload.data,
        bases=Bases(similar.plain), is_similar=True,
    )  # fmt: skip


def _check(encoded: Encoded) -> None:
    again = codec.decode(encoded.encoding, encoded.payload, len(encoded.plain), encoded.bases)
    if again != encoded.plain:
        raise CorruptionError("a new object", "memory", "it does not decode to what was encoded")
