"""The check `sqlite`: every SQLite database of the snapshot is opened as after a crash, and passes integrity_check."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from snapfs.commands.drills.check_process import CheckContext, CheckFailedError

_MAGIC = b"SQLite format 3\0"
_STEPS = 10_000


def check_sqlite(context: CheckContext) -> None:
    """Raises CheckFailedError for the first that is bad, or if there is none."""
    count, tables = 0, 0
    for path in databases_in(context.mount):
        tables += _check(context, path)
        count += 1
        context.answered()
    if not count:
        raise CheckFailedError("there is no SQLite database in the snapshot")
    context.lines.append(f"SQLite: {count} databases with {tables} tables are whole")


def databases_in(mount: Path) -> Iterator[Path]:
    """The files that begin as one."""
    for folder, _, names in os.walk(mount):
        for name in sorted(names):
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    with open(path, "rb") as file:
                        if file.read(len(_MAGIC)) == _MAGIC:
                            yield path


def _check(context: CheckContext, path: Path) -> int:
    """How many tables it has."""
    where = path.relative_to(context.mount).as_posix()
    context.left_s()
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5)) as database:
        database.set_progress_handler(lambda: time.monotonic() > context.deadline_s, _STEPS)
        try:
            found = database.execute("PRAGMA integrity_check(1)").fetchone()
            tables: int = database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        except sqlite3.Error as error:
            context.left_s()
            raise CheckFailedError(f"{where}: {error}") from None
    if found is None or found[0] != "ok":
        raise CheckFailedError(f"{where}: {' '.join(str(found[0] if found else 'no answer').split())[:300]}")
    return tables
