"""A part on its way in: parsed, each object decoded with its bases and checked against its content hash, then staged.

Invariants:
1. What has another content than its content hash is refused, and what came before it in the part is kept
   (`finish`) if the caller wants it so. What is here already is passed over.
2. A difference whose base is not here yet is staged as unverified; `receiver.py` looks at it before a commit.
3. Nothing is known, or lasts, before `finish` has made it durable; who was fenced meanwhile leaves nothing.
4. Memory: a segment's write buffer, 8 bytes an object, one unfinished object, and what the shared cache of bases holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from snapfs.base.blocks import Generation, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import codec, payload_types
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, ObjectKind, Row
from snapfs.store.objects.payload_types import Bases
from snapfs.store.objects.staging import PartWriter
from snapfs.store.protocol import messages
from snapfs.store.protocol.object_stream import Item, StreamParser, content_hash_matches
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse

if TYPE_CHECKING:
    from snapfs.store.ingest.receiver import Receiver

MAX_RECEIVED_BYTES: Final = 4 << 20
"""Of one object; the largest that is written has some tens of KiB."""
_FULL: Final = (Encoding.RAW, Encoding.ZSTD)
_ALONE: Final = (*_FULL, Encoding.ENCRYPTED)

Fence = Callable[[], None]
"""Raises RefusedError if the caller may not write any more."""


class PartReceiver:
    """One part on its way in. One thread at a time."""

    def __init__(self, receiver: Receiver, generation: Generation, fence: Fence) -> None:
        self._receiver, self._generation, self._fence = receiver, generation, fence
        self.parser = StreamParser(max_object_bytes=MAX_RECEIVED_BYTES, allow_absent=False)
        self._writer: PartWriter | None = None
        self._unverified: set[Number] = set()
        self._last = Number(0)
        self._known = 0
        self.received_bytes = 0

    def feed(self, *pieces: bytes) -> None:
        """Take in some bytes of the stream. Raises RefusedError, OSError; then `finish` keeps what came, or `abort`."""
        for data in pieces:
            self.received_bytes += len(data)
            if self.received_bytes > self._receiver.limits.part_bytes + (1 << 16):
                raise refuse(Refusal.TOO_LARGE, f"a part of more than {self._receiver.limits.part_bytes} bytes")
            for item in self.parser.feed(data):
                self._take(item)

    def finish(self) -> messages.PartReceipt:
        """Make what came durable and known. Raises RefusedError (fenced meanwhile: nothing stays), OSError."""
        writer, self._writer = self._writer, None
        if writer is None:
            return messages.PartReceipt(0, self._known, 0)
        try:
            self._fence()
            if self._unverified:
                writer.name_unverified()
            writer.finish()
            with self._receiver.lock:
                self._fence()
                part = self._receiver.staging.add(writer, self._unverified)
        except BaseException:
            writer.abandon()
            self._receiver.objects.forget_from(writer.first)
            raise
        finally:
            writer.close()
        return messages.PartReceipt(part.count, self._known, part.size, len(self._unverified))

    def abort(self) -> None:
        """Keep nothing. Harmless after `finish`."""
        if self._writer is not None:
            self._writer.abandon()
            self._receiver.objects.forget_from(self._writer.first)
            self._writer = None

    def _take(self, item: Item) -> None:
        frame = item.frame
        self._check(item)
        self._last = frame.number
        if self._receiver.has(frame.number, item.content_hash):
            self._known += 1
            return
        plain = self._decode(item)
        if plain is not None and not content_hash_matches(item, plain, self._receiver.objects.seed):
            raise _corrupt(frame.number, "its content does not match its content hash")
        self._append(item, plain)

    def _append(self, item: Item, plain: bytes | None) -> None:
        number = item.frame.number
        if self._writer is None:
            repository = self._receiver.repository
            self._writer = PartWriter(
                self._receiver.staging.folder, self._receiver.disk, repository.identity.volume_id,
                fmt.generation_of(number), number,
            )  # fmt: skip
        self._writer.append_framed(item.row(), item.framed)
        if plain is None:
            self._unverified.add(number)
        elif item.frame.encoding == Encoding.ZSTD:  # there are few differences to what does not compress
            self._receiver.objects.bases.put(number, item.content_hash, plain)

    def _check(self, item: Item) -> None:
        number = item.frame.number
        self._check_kind(item)
        if number <= self._last:
            raise refuse(Refusal.BAD_REQUEST, f"object {number:#x} comes after {self._last:#x}: numbers ascend")
        generation = fmt.generation_of(number)
        if generation > self._generation or (self._last and generation != fmt.generation_of(self._last)):
            why = f"object {number:#x} is of generation {generation}: a part has one generation, and no later one"
            raise refuse(Refusal.BAD_REQUEST, why, number=number)
        if self.parser.count > self._receiver.limits.part_objects:
            raise refuse(Refusal.TOO_LARGE, f"a part of more than {self._receiver.limits.part_objects} objects")
        if self._writer is not None and number - self._writer.first > fmt.MAX_DELTA:
            raise refuse(Refusal.BAD_REQUEST, "the numbers of a part span more than 32 bits", number=number)

    def _check_kind(self, item: Item) -> None:
        """Ciphertext belongs into an encrypted store, and nothing else does, but for records."""
        encrypted, number = self._receiver.repository.identity.encrypted, item.frame.number
        if encrypted and item.frame.encoding != Encoding.ENCRYPTED and not _is_record(item):
            raise refuse(Refusal.BAD_REQUEST, f"object {number:#x} is not encrypted, and this volume is", number=number)
        if not encrypted and (item.frame.encoding == Encoding.ENCRYPTED or item.frame.kind == ObjectKind.ENCRYPTED):
            raise refuse(Refusal.BAD_REQUEST, f"object {number:#x} is encrypted, and this volume is not", number=number)

    def _decode(self, item: Item) -> bytes | None:
        """The plain content; None if a base has not come yet. Raises RefusedError."""
        try:
            if item.frame.encoding in _ALONE:
                return item.decode(None)
            contents = [self._base(number) for number in item.bases_in_order()]
            known = [content for content in contents if content is not None]
            return item.decode(Bases(*known)) if len(known) == len(contents) else None
        except payload_types.DecodeError as error:
            raise _corrupt(item.frame.number, str(error)) from None

    def _base(self, number: Number) -> bytes | None:
        """The content of a full object, None if it is not here (or cannot be read, which the commit will report)."""
        objects, writer = self._receiver.objects, self._writer
        if not number:
            return b""
        found = objects.bases.get(number)
        if found is not None:
            return found[1]
        row = writer.row(number) if writer is not None else None
        if writer is not None and row is not None:
            return _plain_of(writer, row)
        here = self._receiver.union.row(number)
        if here is None:
            return None
        if here.encoding not in _FULL:
            raise payload_types.DecodeError(f"its base {number:#x} is no full object")
        try:
            return objects.full_plain(number)
        except CorruptionError:
            return None


def _is_record(item: Item) -> bool:
    return item.frame.kind == ObjectKind.RECORD and item.frame.encoding == Encoding.RAW


def _plain_of(writer: PartWriter, row: Row) -> bytes:
    if row.encoding not in _FULL:
        raise payload_types.DecodeError(f"its base {row.number:#x} is no full object")
    framed = writer.frame(row)
    return codec.decode(row.encoding, framed[fmt.FRAME_BYTES :], fmt.unpack_frame(framed).plain, None)


def _corrupt(number: Number, why: str) -> RefusedError:
    return refuse(Refusal.CORRUPT, f"object {number:#x} is damaged: {why}; send it again", number=number)
