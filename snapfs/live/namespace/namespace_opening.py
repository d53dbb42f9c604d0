"""Opens and closes the database of a namespace, in the order that its log needs.

SQLite reads the log first, the high-water mark judges it before anything is written, then the pages are compared with
their checksums. Where no checksums confirm the database, its structure and its invariants are checked instead. Files
beside it are closed after the last connection (schema.py, invariant 4).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError
from snapfs.live.database.high_water_mark import LogVerdict
from snapfs.live.database.schema import open_database, opening_error
from snapfs.live.database.wal import Wal
from snapfs.live.namespace import namespace_invariants
from snapfs.live.namespace.reader_pool import ReaderPool
from snapfs.live.writer.namespace_writer import NamespaceWriter


@dataclass(frozen=True, slots=True)
class OpenDatabase:
    wal: Wal
    writer: NamespaceWriter
    readers: ReaderPool

    def close(self) -> None:
        """Write everything back to the database file and close it. OSError."""
        self.readers.close()
        self.wal.checkpoints.close()
        try:
            try:
                self.wal.mark.end()
            finally:
                self.writer.close()
            self.wal.pages.after_close()
            self.wal.mark.closed()
        finally:
            self.wal.close_files()


def open_all(path: str, disk: Disk, clock: Callable[[], int], boot_id: str, *, verify: bool) -> OpenDatabase:
    """Arguments and errors as for `Namespace`."""
    wal, readers = Wal(path, disk, boot_id), ReaderPool(path)
    try:
        db = open_database(path, clock(), wal.look, wal.pages.before_close)
    except BaseException:
        wal.close_files()
        raise
    try:
        wal.open()
        known = wal.pages.check(verify)
        writer = NamespaceWriter(db, path, wal, clock)
        if not known or wal.mark.found is LogVerdict.CUT_SHORT:
            _verify(path, db, writer)
            wal.pages.sum_all()
        readers.fill()
    except BaseException as failure:
        readers.close()
        wal.checkpoints.close()
        _abandon(db, wal)
        if isinstance(failure, (sqlite3.Error, UnicodeDecodeError)):
            raise opening_error(failure, path) from failure
        raise
    return OpenDatabase(wal, writer, readers)


def _abandon(db: sqlite3.Connection, wal: Wal) -> None:
    """Close what could not be opened well; the log stays what it is for the next opening where it can."""
    try:
        with contextlib.suppress(OSError):
            wal.mark.end()
            wal.pages.before_close()
            db.close()
            wal.pages.after_close()
            wal.mark.closed()
    finally:
        db.close()
        wal.close_files()


def _verify(path: str, db: sqlite3.Connection, writer: NamespaceWriter) -> None:
    """Check the structure of the database, and its invariants. CorruptionError.

    Reads all of it: after a crash in the middle of a checkpoint, and of a database of an earlier snapfs.
    """
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise CorruptionError("the namespace", path, " ".join(str(verdict).split()))
    try:
        namespace_invariants.check(writer)
    except AssertionError as broken:
        raise CorruptionError("the namespace", path, str(broken).splitlines()[0]) from None
