"""What the newest snapshots wrote, fetched before the rest where no source has a hot list: an application that recovers
from a crash reads its logs and the pages that it wrote last.

Objects are numbered as they are written, so these are the highest numbers. They are kept as those that readers fetch
(`FetchedObjects`), from where the backfill takes them into its segments, and put into large files as they arrive.

Memory: a window of `WINDOW_OBJECTS` objects with their contents. Which they are is listed in a file
(backfill_queue.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from snapfs.base.blocks import Disk, Number
from snapfs.store.lazy.lazy_objects import LazyObjects
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import Pointer
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.common.store_source import origin_of, sized
from snapfs.transfer.lazy.backfill import Supply
from snapfs.transfer.lazy.backfill_queue import BackfillQueue
from snapfs.transfer.lazy.backfill_survey import BackfillSurvey
from snapfs.transfer.sources.fetcher import Fetcher

LIST: Final = "newest.db"
NEWEST_OBJECTS: Final = 4096
"""Of 64 KiB at most each, before compression."""
WINDOW_OBJECTS: Final = 64


class NewestObjects:
    """Fetches the newest objects of one snapshot. One thread at a time; `steps` runs once."""

    def __init__(
        self, repository: Repository, lazy: LazyObjects, fetcher: Fetcher, record: SnapshotRecord, disk: Disk,
        tree: SnapshotTree, supply: Supply | None = None,
    ) -> None:  # fmt: skip
        """`tree` is that of the snapshot. `supply`: see backfill.py."""
        self._repository, self._fetcher, self._disk = repository, fetcher, disk
        self._tree, self._supply = tree, supply
        self._folder = lazy.places.fetched.path
        self._survey = BackfillSurvey(repository, lazy, fetcher, record, tree, with_places=supply is not None)
        self._above = Number(max(record.last_number - NEWEST_OBJECTS, 0))

    def steps(self) -> Iterator[int]:
        """Fetch them, in small steps; each yields about how many bytes it fetched. OSError, CorruptionError."""
        needed = BackfillQueue(os.path.join(self._folder, LIST), self._disk)
        with contextlib.closing(needed):
            yield from self._survey.objects(needed, self._above)
            after = self._above
            while pointers := needed.after(after, WINDOW_OBJECTS):
                after = pointers[-1].number
                yield self._bring(pointers, needed)

    def _bring(self, pointers: Sequence[Pointer], needed: BackfillQueue) -> int:
        self._fetcher.fetch_in_background(pointers)
        by_number = {pointer.number: pointer for pointer in pointers}
        size = 0
        for ino, chunks in groupby(needed.places(pointers[0].number, pointers[-1].number), key=itemgetter(0)):
            record = self._tree.inode(ino)
            assert record is not None
            pieces = [
                (chunk, sized(self._repository.read(by_number[number]), record.size, chunk))
                for _, chunk, number in chunks
            ]
            size += sum(len(plain) for _, plain in pieces)
            if self._supply is not None:
                self._supply(ino, origin_of(record), pieces)
        return size
