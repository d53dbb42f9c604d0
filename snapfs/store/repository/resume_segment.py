"""Takes up the segment of a seal that was cut off with its process: what is in it and checks out is kept.

A daemon may die more often than a seal takes. The next seal begins with the same object number, so the unfinished file
has its name: its objects become the first ones of the new segment, and what is still the content of the state is found
among them by dedup instead of being encoded and written again.

Invariants:
1. An object counts if its frame's checksum is right, its number is the next one, and its content decodes: the content
   hash is made of that, so nothing in the file is trusted. At the first one that does not count the file is
   cut off.
2. Nothing of an unfinished file is needed by any snapshot: where it cannot be taken up, it is begun anew.
3. A RECORD ends it: with that the old seal was about to be committed, and a segment has one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

from snapfs.base.blocks import Disk, Number
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.store.objects import codec
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, HEADER_BYTES, ObjectKind, Row
from snapfs.store.objects.payload_types import Bases, DecodeError
from snapfs.store.objects.segment_writer import SegmentWriter
from snapfs.store.repository.salvage import frames

FullPlain = Callable[[Number], bytes]


def can_be_resumed(path: str, volume_id: str, beyond: Number) -> bool:
    """Whether the unfinished file may be that of the next seal: of this volume, with numbers of no other segment."""
    try:
        with open(path, "rb") as file:
            header = fmt.unpack_header(file.read(HEADER_BYTES), path)
    except (SnapfsError, OSError):
        return False
    named = os.path.basename(path) == unfinished_name(header.first)
    return named and header.volume_id == volume_id and header.first > beyond


def resume(
    folder: str, disk: Disk, header: fmt.Header, full_plain: FullPlain, content_hash_of: Callable[[bytes], bytes]
) -> SegmentWriter | None:
    """The writer of the segment that was begun with this header, with what is good of it; None if there is none.

    `full_plain` reads full objects of the store. Raises OSError.
    """
    path = os.path.join(folder, unfinished_name(header.first))
    if not os.path.exists(path):
        return None
    writer = SegmentWriter(folder, disk, header, resume=True)
    try:
        if writer.is_of(header):
            for row in _good(writer, header, full_plain, content_hash_of):
                writer.adopt(row)
        writer.cut_off(header)
    except BaseException:
        writer.close()
        raise
    return writer


def _good(
    writer: SegmentWriter, header: fmt.Header, full_plain: FullPlain, content_hash_of: Callable[[bytes], bytes]
) -> Iterator[Row]:
    expected = header.first

    def plain_of(number: Number) -> bytes:
        row = writer.row(number) if number >= header.first else None
        if row is None:
            return full_plain(number)
        framed = writer.frame(row)
        return codec.decode(row.encoding, framed[FRAME_BYTES:], fmt.unpack_frame(framed).plain, None)

    for offset, frame, framed in frames(writer.fileno(), header.first):
        if frame.number != expected or frame.kind == ObjectKind.RECORD:
            return
        payload = framed[FRAME_BYTES:]
        try:
            numbers = codec.base_numbers(frame.encoding, frame.ordinal, frame.base, payload) if frame.base else ()
            bases = Bases(*(plain_of(number) if number else b"" for number in numbers)) if numbers else None
            plain = codec.decode(frame.encoding, payload, frame.plain, bases)
        except (DecodeError, CorruptionError):
            return
        yield Row(
            frame.number,
            offset,
            frame.kind,
            frame.encoding,
            frame.ordinal,
            frame.stored,
            frame.base,
            content_hash_of(plain),
        )
        expected = Number(expected + 1)


def unfinished_name(first: Number) -> str:
    """The file name of a segment before it is whole."""
    return fmt.segment_name(first).removesuffix(fmt.SEGMENT_SUFFIX) + fmt.UNFINISHED_SUFFIX


def unfinished_bytes(paths: Iterable[str]) -> int:
    """Bytes of these files, of which some may be gone."""
    size = 0
    for path in paths:
        with contextlib.suppress(OSError):
            size += os.stat(path).st_size
    return size
