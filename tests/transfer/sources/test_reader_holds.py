"""Who reads a snapshot in a process of its own keeps it from being dropped, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation
from snapfs.base.errors import BusyError, UserError
from snapfs.store.log.holds import Holds
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.store.tables.snapshot import RootInfo, SnapshotWriter
from snapfs.transfer.lazy.snapshot_hold import held_while
from snapfs.transfer.retention import protection

IDENTITY = StoreIdentity("ab" * 16, 7)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Repository]:
    """With two snapshots."""
    made = Repository.create(str(tmp_path / "store"), IDENTITY, Disk())
    for number in range(2):
        transaction = made.begin(Generation(1))
        root = SnapshotWriter(transaction, None).finish([], extra=RootInfo(number))
        transaction.commit(root, parent=None, name=None, cut_time_ns=number, trigger="interval")
    yield made
    made.close()


@pytest.fixture
def reader(store: Repository) -> Iterator[Repository]:
    opened = Repository.open(store.store_dir, IDENTITY, Disk(), readonly=True)
    yield opened
    opened.close()


def test_what_is_being_read_is_not_dropped(store: Repository, reader: Repository) -> None:
    with held_while(reader, reader.find("1"), "restore"), pytest.raises(BusyError, match=f"restore-{os.getpid()}"):
        protection.drop(store, store.find("1"))
    assert not Holds(store.store_dir, Disk()).all()
    protection.drop(store, store.find("1"))


def test_what_was_dropped_a_moment_before_is_reported(store: Repository, reader: Repository) -> None:
    record = reader.find("1")
    protection.drop(store, store.find("1"))
    with pytest.raises(UserError, match="no snapshot"), held_while(reader, record, "restore"):
        pytest.fail("it is gone")
    assert not Holds(store.store_dir, Disk()).all()


def test_who_does_not_own_the_store_leaves_nothing_in_it(
    store: Repository, reader: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(store.store_dir).st_uid + 1)
    with held_while(reader, reader.find("1"), "restore"):
        assert not Holds(store.store_dir, Disk()).all()
