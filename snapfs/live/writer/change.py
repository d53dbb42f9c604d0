"""The transaction of one operation on the namespace: committed when it is left, rolled back by any exception."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import TYPE_CHECKING

from snapfs.live.database.schema import os_error

if TYPE_CHECKING:
    from snapfs.live.writer.namespace_writer import NamespaceWriter


class Change:
    """The transaction of an operation; one object, entered again and again."""

    def __init__(self, writer: NamespaceWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        writer = self._writer
        writer.turn.__enter__()
        try:
            writer.db.execute("BEGIN IMMEDIATE")
        except BaseException as failure:
            try:
                self._fail(failure)
            finally:
                writer.turn.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end(failure)
        finally:
            self._writer.turn.__exit__(None, None, None)

    def _end(self, failure: BaseException | None) -> None:
        if failure is not None:
            self._fail(failure)
            return
        writer = self._writer
        try:
            writer.epochs.purge_some()
            writer.db.execute("COMMIT")
        except BaseException as late:
            self._fail(late)
            raise
        writer.after_commit()
        if writer.wal.checkpoints.writer_should_finish:
            writer.wal.checkpoints.finish()

    def _fail(self, failure: BaseException) -> None:
        """Undo, and give the failure its errno."""
        writer = self._writer
        writer.after_rollback()
        if isinstance(failure, sqlite3.Error):
            raise os_error(failure, writer.path) from failure
