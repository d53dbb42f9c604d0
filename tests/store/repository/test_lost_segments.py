"""A segment that is lost is noticed before its snapshots are reported as good.

A server, or a host that takes over, looks first whether all that a snapshot needs is there; else the
older whole one is offered. Mirror, folder and an opened store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation
from snapfs.store.objects.segment_list import FILE
from snapfs.store.protocol import messages, refusals
from snapfs.store.repair.missing_objects import lacking
from snapfs.store.repository.repository import Repository
from snapfs.transfer.sources.folder_source import FolderSource
from tests.fakes.histories.history import IDENTITY, History
from tests.fakes.histories.mirrored_volume import WRITER_ID, mirrored, push


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    made = History(tmp_path_factory.mktemp("source") / "store", 11)
    made.grow(5, steps=8)
    made.part(made.numbers(*made.records))  # its segments are open from here on
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path, history: History) -> Path:
    """Of a mirror's volume with four snapshots, each in a segment of its own."""
    mirrored(tmp_path / "pg", history, 4)
    return tmp_path / "pg"


def needing(history: History, path: Path) -> set[int]:
    """The snapshots that need an object of this segment."""
    reader = history.repository.index  # the same numbers as at the mirror
    assert reader
    lost = {row.number for row in _rows(path)}
    return {record.number for record in history.records[:4] if lost & set(history.numbers(record))}


def _rows(path: Path) -> Iterator[object]:
    from snapfs.store.objects.segment_reader import SegmentReader

    yield from SegmentReader(str(path)).rows()


def _unlink(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _swap(path: Path) -> None:
    """With one of the same name that has less in it, as a copy of an older time has."""
    from snapfs.store.objects import format as fmt
    from snapfs.store.objects.segment_reader import SegmentReader
    from snapfs.store.objects.segment_writer import SegmentWriter

    reader = SegmentReader(str(path))
    rows = [(row, reader.frame(row)) for row in reader.rows()]
    writer = SegmentWriter(str(path.parent), Disk(), fmt.Header(IDENTITY.volume_id, Generation(1), reader.first))
    for row, framed in rows[:1] + rows[-2:]:
        writer.append_framed(row, framed)
    writer.finish()
    writer.close()


DAMAGES = [_unlink, _cut, _swap]


def segments(path: Path) -> list[Path]:
    return sorted((path / "store" / "segments").glob("*.seg"))


def states_of(snapshots: list[messages.Snapshot]) -> dict[int, str]:
    return {each.record["number"]: each.state for each in snapshots}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "of the time before"])
def test_a_mirror_reports_which_snapshots_are_not_whole(
    path: Path, history: History, which: int, damage: Callable[[Path], None], listed: bool
) -> None:
    segment = segments(path)[which]
    wanted = needing(history, segment)
    assert wanted
    damage(segment)
    if not listed:
        (path / "store" / FILE).unlink()
    mirror = MirrorVolume.open(str(path), Disk())
    states = states_of(mirror.snapshot_list().snapshots)
    if damage is _unlink:
        assert {number for number, state in states.items() if state != "good"} == wanted
    for number, state in states.items():
        if state == "good":
            history.assert_equal(mirror.repository, number)
    assert "damaged" in states.values()
    mirror.close()
    again = MirrorVolume.open(str(path), Disk())
    assert states_of(again.snapshot_list().snapshots) == states, "it is not forgotten"
    again.close()


def test_a_loss_while_a_mirror_serves_is_reported_to_the_next_caller(path: Path, history: History) -> None:
    mirror = MirrorVolume.open(str(path), Disk())
    assert set(states_of(mirror.snapshot_list().snapshots).values()) == {"good"}
    wanted = needing(history, segments(path)[-1])
    segments(path)[-1].unlink()
    states = states_of(mirror.snapshot_list().snapshots)
    assert {number for number, state in states.items() if state != "good"} == wanted
    mirror.close()


def test_what_was_lost_comes_again_with_the_next_snapshot_that_needs_it(path: Path, history: History) -> None:
    segments(path)[-1].unlink()
    mirror = MirrorVolume.open(str(path), Disk())
    with pytest.raises(refusals.RefusedError, match="not whole"):
        mirror.commit([history.records[4]], False, Generation(1), WRITER_ID)
    push(mirror, history, 5)
    history.assert_equal(mirror.repository, 5)
    mirror.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_as_a_source_offers_the_older_whole_one(
    path: Path, history: History, damage: Callable[[Path], None]
) -> None:
    damage(segments(path)[-1])
    source = FolderSource(str(path))
    states = {record.number: record.state for record in source.snapshots()}
    assert states[4] == "damaged"
    for number, state in states.items():
        if state == "good":
            history.assert_equal(source._repository, number)
    source.close()


def test_compaction_and_collection_are_no_loss(path: Path, history: History) -> None:
    mirror = MirrorVolume.open(str(path), Disk())
    mirror.drop([1, 2], Generation(1), WRITER_ID)
    mirror.collect()
    mirror.close()
    again = MirrorVolume.open(str(path), Disk())
    assert set(states_of(again.snapshot_list().snapshots).values()) == {"good"}
    assert not [line for line in again.recovered if "missing" in line]
    again.close()


def test_a_damaged_or_older_list_of_segments_costs_a_walk_and_no_snapshot(path: Path) -> None:
    listed = path / "store" / FILE
    whole = listed.read_bytes()
    for data in (b"", whole[:-9], whole.replace(b"size", b"sizd"), b"\0" * 50):
        listed.write_bytes(data)
        mirror = MirrorVolume.open(str(path), Disk())
        assert set(states_of(mirror.snapshot_list().snapshots).values()) == {"good"}
        mirror.close()
        assert listed.read_bytes() == whole


def test_a_store_that_is_opened_knows_what_it_lacks(tmp_path: Path) -> None:
    made = History(tmp_path / "store", 3)
    made.grow(3, steps=8)
    made.close()
    path = sorted((tmp_path / "store" / "segments").glob("*.seg"))[0]
    path.unlink()
    for readonly in (True, False):
        repository = Repository.open(str(tmp_path / "store"), IDENTITY, Disk(), readonly=readonly)
        assert repository.look_for_loss(lacking)
        assert repository.find("1").state == "damaged"
        assert repository.find("3").state == "damaged", "its root is there; what it shares with the first is not"
        repository.close()
