"""The scrub: little by little, over restarts, and what is bad is found by the step that comes to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import FRAME_BYTES
from snapfs.store.repair.scrub import SCRUB, Scrub, damaged_by, table_findings
from snapfs.store.repair.verify import verify
from snapfs.store.repository.repository import Repository
from tests.fakes.histories.history import IDENTITY, History


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "store", 11)
    made.grow(4)
    yield made
    made.close()


def whole_pass(scrub: Scrub, limit_bytes: int) -> tuple[int, list[int], int]:
    """Bytes read, numbers found bad, and steps."""
    read, bad, steps = 0, list[int](), 0
    while True:
        step = scrub.step(limit_bytes, lambda size: None)
        read, steps = read + step.read_bytes, steps + 1
        bad += list(step.bad.numbers)
        if step.ended:
            return read, bad, steps


def test_a_pass_reads_each_object_once_in_steps_over_restarts(history: History) -> None:
    repository = history.repository
    everything = sum(info.count for info in repository.index.segments())
    scrub = Scrub(repository, Disk())
    step = scrub.step(2000, lambda size: None)
    assert not step.ended
    assert 2000 <= step.read_bytes < 200_000
    history.grow(1)  # is of the next pass
    again = Scrub(repository, Disk())
    assert again.state == scrub.state
    assert [record.number for record in again.records()] == [1, 2, 3, 4]
    _, bad, steps = whole_pass(again, 2000)
    assert (bad, again.state.objects) == ([], everything)
    assert steps > 1
    assert table_findings(repository, again.records(), lambda: None) == {}
    again.begin()
    assert [record.number for record in again.records()] == [1, 2, 3, 4, 5]
    assert whole_pass(again, 1 << 30)[2] == 1


def test_what_is_bad_is_found_and_counts_against_the_snapshots_that_need_it(history: History) -> None:
    repository = history.repository
    record = repository.find("2")
    source, row = repository.index.locate(record.root.number)
    with open(source.path, "r+b") as file:
        file.seek(row.offset + FRAME_BYTES + row.stored // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0x55]))
    scrub = Scrub(repository, Disk())
    step = scrub.step(1 << 30, lambda size: None)
    assert step.ended
    assert record.root.number in step.bad.numbers
    assert scrub.state.bad == len(step.bad.numbers)
    expected = verify(repository, repository.snapshots()).damaged_snapshots
    assert sorted(damaged_by(repository, repository.snapshots(), step.bad)) == expected
    fresh = Repository.open(repository.store_dir, IDENTITY, Disk(), readonly=True)  # without pages in its caches
    assert 2 in table_findings(fresh, fresh.snapshots(), lambda: None)
    fresh.close()


def test_a_state_that_cannot_be_read_begins_anew(history: History) -> None:
    repository = history.repository
    scrub = Scrub(repository, Disk())
    scrub.step(2000, lambda size: None)
    path = Path(repository.store_dir, "scrub.json")
    path.write_bytes(path.read_bytes().replace(b"through", b"threugh"))
    with pytest.raises(CorruptionError):
        SCRUB.read(str(path))
    assert Scrub(repository, Disk()).state.through == 0
