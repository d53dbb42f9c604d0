"""Keeps the checksums of the database's pages true (page_checksums.py) while checkpoints change pages.

Owns a descriptor of the database file, and the set of pages whose checksums are out of date. Where that set cannot be
known (the log was started over meanwhile, an earlier life left the checksums invalid), all are computed anew.

A crash between `begin` and `end` leaves checksums that are marked as changing: the next opening verifies the database
by its structure instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable

from snapfs.base.blocks import Disk
from snapfs.live.database.namespace_paths import sums_path
from snapfs.live.database.page_checksums import Sums
from snapfs.live.database.schema import PAGE_SIZE
from snapfs.live.database.wal_files import WalFiles

_PAGE_SIZE = struct.Struct(">H")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ChangedPages:
    """With the checkpoint lock held, or before and after all transactions."""

    def __init__(self, path: str, disk: Disk, files: WalFiles) -> None:
        self._path, self._disk, self._files = path, disk, files
        self._sums = Sums(sums_path(path), disk, PAGE_SIZE)
        self._database = -1
        self._changed: set[int] | None = set()

    @property
    def is_valid(self) -> bool:
        """Whether the checksums on the disk are those of the database."""
        return self._sums.is_valid

    def open(self) -> None:
        """OSError. Open until after the last connection, as the files of the log."""
        self._database = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def check(self, verify: bool) -> bool:
        """Compare the database with its checksums; False if these are not valid. CorruptionError, OSError.

        Without `verify` no page is read, and all are trusted.
        """
        (size,) = _PAGE_SIZE.unpack(os.pread(self._database, 2, 16))
        if size != PAGE_SIZE:
            self._files.use_page_size(size)
            self._sums = Sums(self._sums.path, self._disk, size)
        self._sums.load()
        return not verify or self._sums.check(self._path, self._database, self._files.pages(0, self._files.frames()))

    def sum_all(self) -> None:
        """The database was found to be sound: compute all checksums anew."""
        self._changed = None
        self.begin()
        self.end()

    def begin(self) -> None:
        """Frames are about to be written back. OSError."""
        if not self._sums.is_valid and self._changed is not None and not self._changed:
            self._changed = None  # what changed since they were valid is not known
        try:
            self._sums.begin()
        except OSError as failure:
            with contextlib.suppress(OSError):
                self._sums.forget()
            if failure.errno not in _FULL:
                raise

    def end(self) -> None:
        """Make the checksums those of the database again. On a full disk a later checkpoint does it. OSError."""
        try:
            self._sums.end(self._database, self._changed)
            self._changed = set()
        except OSError as failure:
            if failure.errno not in (*_FULL, errno.EBADF):
                raise
            self._changed = None

    def note_pages(self, write_back: Callable[[], None]) -> None:
        """Run a checkpoint, and note the pages that it changes; also of what is committed meanwhile."""
        files = self._files
        salts, stop = files.position()[:2], files.frames()
        pages = files.pages(files.backfilled(), stop)
        try:
            write_back()
        finally:
            pages |= files.pages(stop, files.backfilled())
            if files.position()[:2] != salts:  # it was started over meanwhile: its frames are gone
                self._changed = None
            elif self._changed is not None:
                self._changed |= pages

    def before_close(self) -> None:
        """The last connection is about to write back and remove the log: even one that was not opened well."""
        if not self._files.is_open:
            self._changed = None
        elif self._changed is not None:
            self._changed |= self._files.pages(0, self._files.frames())
        if self._database >= 0 or os.path.exists(self._sums.path):
            self.begin()

    def after_close(self) -> None:
        """The last connection is closed, the log removed."""
        if self._database >= 0 and not self._sums.is_valid:
            self.end()

    def close(self) -> None:
        self._sums.close()
        if self._database >= 0:
            os.close(self._database)
            self._database = -1
