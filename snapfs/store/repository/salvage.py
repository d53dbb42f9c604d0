"""Saves what is left of a damaged segment: its frames are found one after the other, and a new table is made of them.

Invariants:
1. A frame counts only if its own checksum is right and its content decodes; the content hash is made anew from the
   content, so that a pointer to anything else still finds out.
2. A frame whose payload is damaged is left out, and the search goes on behind it; where no frame can be made out at all
   it ends.
3. The new segment takes the place of the damaged one by a rename, after that one got a second name, `.damaged`. A
   crash in between leaves a `.new` file or only the second name; the next opening begins anew.

What could not be saved is missing: `verify` finds the snapshots that need it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from snapfs.base.blocks import Disk, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import codec, payload_types
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, HEADER_BYTES, Encoding, Frame, ObjectKind, Row
from snapfs.store.objects.payload_types import Bases
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.objects.segment_writer import SegmentWriter

DAMAGED_SUFFIX: Final = ".damaged"


class SalvagedSegment(NamedTuple):
    offset: int
    frame: Frame
    framed: bytes  # the frame and its payload


def salvage(
    info: SegmentInfo,
    volume_id: str,
    disk: Disk,
    full_plain: Callable[[Number], bytes],
    content_hash_of: Callable[[bytes], bytes],
) -> int:
    """Put a segment with what can be read in the place of the damaged one. Returns how many objects it has, 0 for none.

    `full_plain` reads full objects of other segments. With 0 nothing was changed. Raises OSError.
    """
    header = fmt.Header(volume_id, fmt.generation_of(info.first), info.first)
    folder = os.path.dirname(info.path)
    writer = SegmentWriter(folder, disk, header, "salvage")
    try:
        with open(info.path, "rb") as file:
            for row, framed in _rows(file.fileno(), info, full_plain, content_hash_of):
                writer.append_framed(row, framed)
        if writer.count:
            with contextlib.suppress(FileExistsError):
                disk.link("salvage:keep", info.path, info.path + DAMAGED_SUFFIX)
            writer.finish()
            return writer.count
        writer.abandon()
        return 0
    except Exception:
        writer.abandon_unnamed()
        raise
    finally:
        writer.close()


def frames(fd: int, first: Number) -> Iterator[SalvagedSegment]:
    """The undamaged frames of a segment, ascending."""
    size, offset, last = os.fstat(fd).st_size, HEADER_BYTES, first - 1
    while offset + FRAME_BYTES <= size:
        frame = fmt.unpack_frame(os.pread(fd, FRAME_BYTES, offset))
        if not _is_plausible(frame, first, last) or offset + FRAME_BYTES + frame.stored > size:
            return
        framed = os.pread(fd, FRAME_BYTES + frame.stored, offset)
        if fmt.frame_is_good(framed):
            yield SalvagedSegment(offset, frame, framed)
            last = frame.number
        offset += FRAME_BYTES + frame.stored


def _is_plausible(frame: Frame, first: int, last: int) -> bool:
    return (
        last < frame.number <= first + fmt.MAX_DELTA
        and frame.base < frame.number
        and frame.kind in set(ObjectKind)
        and frame.encoding in set(Encoding)
        and frame.ordinal <= (fmt.MAX_MORE_BASES if frame.encoding == Encoding.ENCRYPTED else fmt.MAX_ORDINAL)
    )


def _rows(
    fd: int, info: SegmentInfo, full_plain: Callable[[Number], bytes], content_hash_of: Callable[[bytes], bytes]
) -> Iterator[tuple[Row, bytes]]:
    here = _FullObjects(fd, info, full_plain)
    for _, frame, framed in frames(fd, info.first):
        try:
            plain = here.decode(frame, framed)
        except (CorruptionError, payload_types.DecodeError):
            continue
        kind, encoding, ordinal, stored = frame.kind, frame.encoding, frame.ordinal, frame.stored
        yield Row(frame.number, 0, kind, encoding, ordinal, stored, frame.base, content_hash_of(plain)), framed


class _FullObjects:
    """Reads bases, from the damaged segment itself or from the others."""

    def __init__(self, fd: int, info: SegmentInfo, elsewhere: Callable[[Number], bytes]) -> None:
        self._fd, self._first, self._elsewhere = fd, info.first, elsewhere
        self._places: dict[Number, int] = {}
        for offset, frame, _ in frames(fd, info.first):
            if frame.encoding in (Encoding.RAW, Encoding.ZSTD):
                self._places[frame.number] = offset

    def decode(self, frame: Frame, framed: bytes) -> bytes:
        payload = framed[FRAME_BYTES:]
        bases = None
        if frame.encoding in (Encoding.SHIFT, Encoding.MOSAIC, Encoding.PATCH, Encoding.DELTA):
            numbers = codec.base_numbers(frame.encoding, frame.ordinal, frame.base, payload)
            bases = Bases(*map(self._plain, numbers))
        return codec.decode(frame.encoding, payload, frame.plain, bases)

    def _plain(self, number: Number) -> bytes:
        place = self._places.get(number)
        if place is None:
            return self._elsewhere(number)
        frame = fmt.unpack_frame(os.pread(self._fd, FRAME_BYTES, place))
        return self.decode(frame, os.pread(self._fd, FRAME_BYTES + frame.stored, place))
