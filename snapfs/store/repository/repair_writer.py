"""Puts content back where objects were lost: a segment that holds a bad object is written anew with a good one.

Invariants:
1. Segments never change. A repaired one takes the place of the damaged one by a rename, as in compaction; the damaged
   one stays beside it as `.damaged`, for a later attempt, until everything is good again.
2. An object gets its old number and its old content back, stored in full: whatever points to it, or is a difference to
   it, is right again. The caller has checked the content against the content hash in the pointer.
3. Frames that are good are copied as they are. One that is bad and has no content here is left out: the object is
   missing then, as it was before, and can still come back later.
4. Numbers that no segment holds (a segment that is gone) get a segment of their own.

A crash before the rename leaves a `.new` file, which the next opening removes, and maybe the second name `.damaged`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from heapq import merge
from itertools import groupby
from typing import NamedTuple

from snapfs.base.blocks import Disk, Number
from snapfs.base.errors import CorruptionError
from snapfs.store.objects import codec
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, ObjectKind, Row
from snapfs.store.objects.objects import Objects
from snapfs.store.objects.segment_index import SegmentIndex, SegmentInfo
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.objects.segment_writer import SegmentWriter
from snapfs.store.repository.salvage import DAMAGED_SUFFIX


class RepairContent(NamedTuple):
    """What an object has to hold again."""

    kind: ObjectKind
    plain: bytes


class RepairWriter:
    """Rewrites segments of one store. One thread at a time, and never beside a compaction."""

    def __init__(self, index: SegmentIndex, objects: Objects, disk: Disk, volume_id: str) -> None:
        self._index, self._objects, self._disk, self._volume_id = index, objects, disk, volume_id

    def repair(self, contents: Mapping[Number, RepairContent]) -> list[str]:
        """Give these objects their content back; returns the names of the segments that were written. Raises OSError.

        What was done before an error stays done.
        """
        written = []
        places = [(self._index.find(number), self._gap(number), number) for number in sorted(contents)]
        for (info, _), group in groupby(places, key=lambda place: (place[0], place[1])):
            written.append(self._rewrite(info, {number: contents[number] for _, _, number in group}))
        return written

    def _gap(self, number: Number) -> tuple[int, int]:
        """What numbers that no segment holds must have in common to be put into one."""
        below = sum(info.first <= number for info in self._index.segments())
        return below, fmt.generation_of(number)

    def _rewrite(self, info: SegmentInfo | None, contents: dict[Number, RepairContent]) -> str:
        first = info.first if info is not None else min(contents)
        header = fmt.Header(self._volume_id, fmt.generation_of(first), first)
        writer = SegmentWriter(self._index.folder, self._disk, header, "repair")
        try:
            self._fill(writer, self._reader(info), contents)
            if info is not None:
                with contextlib.suppress(FileExistsError):
                    self._disk.link("repair:keep", info.path, info.path + DAMAGED_SUFFIX)
            writer.finish()
        except Exception:
            writer.abandon_unnamed()
            self._index.refresh()
            raise
        finally:
            writer.close()
        self._index.replace([info] if info is not None else [], self._index.inspect(writer.path))
        return os.path.basename(writer.path)

    def _reader(self, info: SegmentInfo | None) -> SegmentReader | None:
        if info is None:
            return None
        with contextlib.suppress(CorruptionError):
            return self._index.reader(info.first)
        return None

    def _fill(self, writer: SegmentWriter, reader: SegmentReader | None, contents: dict[Number, RepairContent]) -> None:
        rows: Iterator[Row] = reader.rows() if reader is not None else iter(())
        old = ((row.number, row) for row in rows if row.number not in contents)
        new: Iterator[tuple[Number, Row | None]] = ((number, None) for number in contents)
        for number, row in merge(old, new, key=lambda each: each[0]):
            if row is None:
                self._append(writer, number, contents[number])
            elif reader is not None:
                framed = reader.frame(row)
                if len(framed) >= FRAME_BYTES and fmt.frame_is_good(framed):
                    writer.append_framed(row, framed)

    def _append(self, writer: SegmentWriter, number: Number, content: RepairContent) -> None:
        plain = content.plain
        encoding, payload = codec.encode_full(plain)
        if codec.decode(encoding, payload, len(plain), None) != plain:
            raise CorruptionError("a new object", "memory", "it does not decode to what was encoded")
        content_hash = self._objects.content_hash_of(plain)
        writer.append(number, content.kind, encoding, 0, Number(0), content_hash, len(plain), payload)


def damaged_files(folder: str) -> list[str]:
    """What repairing and salvaging have left beside the segments."""
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(DAMAGED_SUFFIX))
