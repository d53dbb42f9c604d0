"""The head of a volume in an object store, with the pages of the catalog that it names, as it was read last.

Invariants:
1. `read` returns what is there now. `known` may be older, which is enough to find objects, since segments are
   immutable.
2. The head is changed only by a put on condition that it is the head that was judged.
"""

from __future__ import annotations

import threading
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final, NamedTuple

from snapfs.base.errors import CorruptionError
from snapfs.store.bucket import catalog_pages
from snapfs.store.bucket.bucket_tables import Segments
from snapfs.store.bucket.catalog_pages import BucketCatalog, Page
from snapfs.store.bucket.head_object import Head
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.transfer.sources.bucket_reader import BucketReader, GoneError

if TYPE_CHECKING:
    from obstore import UpdateVersion

PAGES_READ: Final = 3
"""The last so many pages of the catalog: all segments, and if there are so many the newest 4,096 snapshots."""
ATTEMPTS: Final = 4
"""Reads, where others change the head all the time."""


class KnownHead(NamedTuple):
    """The head that was read last, with its version, and the catalog that it stands for."""

    head: Head
    version: UpdateVersion
    segments: Segments
    snapshots: list[SnapshotRecord]

    @property
    def newest(self) -> SnapshotRecord | None:
        return self.snapshots[-1] if self.snapshots else None


class BucketHead:
    """Reads and replaces one head. Any thread."""

    def __init__(self, reader: BucketReader, pool: Executor, *, whole_history: bool = False) -> None:
        """Sends no request. `whole_history`: read all pages of the catalog, not only the last ones."""
        self._reader, self._pool = reader, pool
        self._pages_read = 1 << 30 if whole_history else PAGES_READ
        self._lock = threading.Lock()
        self._known: KnownHead | None = None
        self._pages: dict[str, Page] = {}

    def known(self) -> KnownHead:
        """The head that was read last, however long ago; read now if none was."""
        known = self._known
        return known if known is not None else self.read()

    def read(self) -> KnownHead:
        """The head that is there now. Raises RefusedError ("not found"), VersionError, CorruptionError, OSError."""
        last = None
        with self._lock:
            for _ in range(ATTEMPTS):
                read = self._reader.read_head(self._known.version if self._known is not None else None)
                if read is None:
                    assert self._known is not None
                    return self._known
                try:
                    self._known = self._with_catalog(*read)
                except GoneError as error:  # a page that another head does not name any more
                    if read == last:
                        why = f"the head names a page that is not there: {error}"
                        raise CorruptionError("the catalog", self._reader.name, why) from None
                    self._known, last = None, read
                    continue
                return self._known
        raise OSError(f"{self._reader.name}: the catalog is changed all the time")

    def _with_catalog(self, head: Head, version: UpdateVersion) -> KnownHead:
        keys = head.pages[-self._pages_read :]
        new = [key for key in keys if key not in self._pages]
        for key, data in zip(new, self._pool.map(self._reader.read_whole, new), strict=True):
            self._pages[key] = catalog_pages.decode_page(data, key)
        self._pages = {key: self._pages[key] for key in keys}
        paged = BucketCatalog()
        for page in self._pages.values():
            paged.take(page.snapshots, page.segments)
        catalog = paged.with_head(head)
        ordered = [catalog.snapshots[number] for number in sorted(catalog.snapshots)]
        return KnownHead(head, version, Segments(catalog.segments.values()), ordered)

    def replace(self, known: KnownHead, head: Head) -> bool:
        """Put `head` in the place of the known one; False if another writer has changed that. Raises OSError."""
        with self._lock:
            version = self._reader.put_head(head, known.version)
            if version is not None:
                self._known = known._replace(head=head, version=version)
        return version is not None
