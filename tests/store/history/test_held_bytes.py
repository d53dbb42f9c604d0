"""What snapshots hold, against the objects that live with them and without them."""

from __future__ import annotations

import contextlib
import random
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.history.held_bytes import TABLES, HeldBytes, freed_by_dropping, held_alone, summed_to_depth
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES
from tests.fakes.histories.history import History
from tests.fakes.histories.state_model import Node


def freed(history: History, dropped: Iterable[SnapshotRecord]) -> HeldBytes:
    """What lives no more without them: how space is collected."""
    gone = {record.number for record in dropped}
    kept = [record for record in history.records if record.number not in gone]
    found = HeldBytes()
    live = history.numbers(*kept)
    for number in history.numbers(*history.records):
        if number not in live:
            _, row = history.repository.index.locate(number)
            found.add(FRAME_BYTES + row.stored + ROW_BYTES)
    return found


@pytest.mark.parametrize("seed", range(2))
def test_what_snapshots_hold_is_what_dropping_them_frees(tmp_path: Path, seed: int) -> None:
    """Of twelve snapshots with objects of every encoding, of which some were dropped."""
    history, rng = History(tmp_path / "store", seed), random.Random(seed)
    with contextlib.closing(history.repository):
        history.scatter()
        history.grow(12, steps=12)
        for number in rng.sample(range(1, 12), 3):
            history.repository.drop(SnapshotNumber(number))
            del history.states[number]
        records = history.records
        alone = held_alone(history.repository, records)
        assert alone == [freed(history, [record]) for record in records]
        assert sum(held.stored_bytes > 1000 for held in alone) > 3
        for count in (1, 2, 5, len(records) - 1, len(records)):
            dropped = sorted(rng.sample(records, count), key=lambda record: record.number)
            check_dropping(history, dropped)


def check_dropping(history: History, dropped: list[SnapshotRecord]) -> None:
    kept = [record for record in history.records if record not in dropped]
    found = freed_by_dropping(history.repository, dropped, kept, by_path=True)
    assert found.held == freed(history, dropped)
    assert sum(held.stored_bytes for held in found.by_path.values()) == found.held.stored_bytes
    known = {path for record in dropped for path in history.states[record.number].paths()} | {b".", TABLES}
    assert found.by_path.keys() <= known
    for depth in (1, 2, 9):
        summed = summed_to_depth(found.by_path, depth)
        assert sum(held.objects for _, held in summed) == found.held.objects
        assert all(path in (b".", TABLES) or path.count(b"/") < depth for path, _ in summed)


def test_bytes_belong_to_the_path_that_has_them(tmp_path: Path) -> None:
    """A large file that only one snapshot has is most of what that holds."""

    history = History(tmp_path / "store", 1)
    with contextlib.closing(history.repository):
        state = history._state
        state.nodes[2] = Node(stat.S_IFDIR | 0o755, nlink=2)
        state.nodes[1].names[b"d"] = 2
        history.grow(1, steps=0)
        state.nodes[3] = Node(stat.S_IFREG | 0o644, size=60_000, chunks={0: random.Random(1).randbytes(60_000)})
        state.nodes[2].names[b"large"] = 3
        history.grow(1, steps=0)
        state.drop(2, b"large")
        history.grow(1, steps=0)
        records = history.records
        found = freed_by_dropping(history.repository, records[1:2], [records[0], records[2]], by_path=True)
        assert 60_000 < found.by_path[b"d/large"].stored_bytes < 61_000
        assert found.by_path[b"d/large"].objects == 1
        assert summed_to_depth(found.by_path, 1)[0][0] == b"d"
