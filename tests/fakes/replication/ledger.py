"""An application on a host: writes numbered rows into a database, and notes each one that was acknowledged, with when.

    python ledger.py sqlite FILE NOTES
    python ledger.py postgres CONNECTION NOTES

NOTES (one line each, `NUMBER TIME_NS`) is what a client outside of the host would remember.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.fakes.patience import PATIENCE_S

_ROW = "x" * 400


@contextlib.contextmanager
def sqlite(path: str) -> Iterator[Callable[[int], Any]]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S)) as base:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
        base.execute("CREATE TABLE IF NOT EXISTS ledger (k INTEGER PRIMARY KEY, v TEXT)")
        yield lambda number: base.execute("INSERT INTO ledger VALUES (?, ?)", (number, _ROW))


@contextlib.contextmanager
def postgres(where: str) -> Iterator[Callable[[int], Any]]:
    import psycopg

    with psycopg.connect(where, autocommit=True) as base:
        base.execute("CREATE TABLE IF NOT EXISTS ledger (k BIGINT PRIMARY KEY, v TEXT)")
        yield lambda number: base.execute("INSERT INTO ledger VALUES (%s, %s)", (number, _ROW))


def insist(add: Callable[[int], Any], number: int) -> None:
    """A full disk passes. What was committed though an error was reported is there already when it is tried again."""
    while True:
        try:
            add(number)
            return
        except sqlite3.IntegrityError:
            return
        except sqlite3.OperationalError:
            time.sleep(0.1)


def main(kind: str, where: str, notes: str) -> None:
    with (sqlite if kind == "sqlite" else postgres)(where) as add, open(notes, "a", buffering=1) as file:
        number = 0
        while True:
            number += 1
            insist(add, number)
            file.write(f"{number} {time.time_ns()}\n")
            time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
