"""SQLite on the mount, in both journal modes: every snapshot opens, is whole, and holds what was acknowledged."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.patience import PATIENCE_S


def connect(path: Path, mode: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=PATIENCE_S)
    assert database.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
    database.execute("PRAGMA synchronous=FULL")
    # Small, so that checkpoints fall inside a short load as well.
    database.execute("PRAGMA wal_autocheckpoint=50")
    database.execute("CREATE TABLE IF NOT EXISTS entry(id INTEGER PRIMARY KEY, filler BLOB)")
    database.execute("CREATE TABLE IF NOT EXISTS total(id INTEGER PRIMARY KEY, n INTEGER, bytes INTEGER)")
    database.execute("INSERT OR IGNORE INTO total VALUES(1, 0, 0)")
    return database


def insert(database: sqlite3.Connection, sequence: int) -> None:
    """One transaction over two tables, so that a torn one shows."""
    filler = random.Random(sequence).randbytes(sequence % 5000)
    with contextlib.closing(database.cursor()) as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute("INSERT INTO entry VALUES(?, ?)", (sequence, filler))
        cursor.execute("UPDATE total SET n = n + 1, bytes = bytes + ?", (len(filler),))
        cursor.execute("COMMIT")


def newest_entry(path: Path, mode: str) -> int:
    """Open, check, and return the highest sequence number; entries are contiguous and exact."""
    with contextlib.closing(connect(path, mode)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.execute("SELECT id, filler FROM entry ORDER BY id").fetchall()
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        assert all(filler == random.Random(row).randbytes(row % 5000) for row, filler in rows)
        assert database.execute("SELECT n, bytes FROM total").fetchone() == (len(rows), sum(len(f) for _, f in rows))
        return len(rows)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_every_snapshot_holds_every_acknowledged_transaction(host: Any, story: Any, tmp_path: Path, mode: str) -> None:
    host.mount()
    database = connect(host.mountpoint / "app.db", mode)
    writer = story.Writer(lambda sequence: insert(database, sequence))
    writer.start()
    names = story.snapshots_under_load(host)
    writer.stop(at_least=21)
    assert writer.error is None
    database.close()
    host.umount()
    records = {record["name"]: record for record in host.snapshots() if record["name"]}
    assert set(names) <= set(records)
    for name in names:
        host.restore(name, tmp_path / name)
        wanted = writer.acknowledged.newest_before(records[name]["cut_time_ns"])
        assert wanted <= newest_entry(tmp_path / name / "app.db", mode) <= writer.acknowledged.newest + 1
    assert writer.acknowledged.newest > 20


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_killed_daemon_loses_nothing_acknowledged(host: Any, story: Any, mode: str) -> None:
    chance = random.Random(mode)
    newest = 0
    for life in range(3):
        host.mount()
        database = connect(host.mountpoint / "app.db", mode)
        assert newest <= newest_entry(host.mountpoint / "app.db", mode)
        first = newest_entry(host.mountpoint / "app.db", mode) + 1
        writer = story.Writer(lambda sequence, database=database: insert(database, sequence), first)
        writer.start()
        writer.wait_for(first)
        time.sleep(chance.uniform(0.2, 1.0))
        host.snapshot(f"life-{life}")
        time.sleep(chance.uniform(0.0, 0.8))
        host.kill()
        writer.join(PATIENCE_S)
        assert isinstance(writer.error, sqlite3.Error)
        newest = max(newest, writer.acknowledged.newest)
        with contextlib.suppress(sqlite3.Error):
            database.close()
    host.mount()
    assert newest_entry(host.mountpoint / "app.db", mode) >= newest > 0
    host.umount()
