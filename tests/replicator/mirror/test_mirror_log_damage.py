"""A mirror whose snapshots.log lost its end: what it acknowledged is recovered, or the volume is not served, with why.

Mirrors likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.commands import replicator_cli
from replicator.mirror.mirror import Mirror, MirrorOptions
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, Generation
from snapfs.base.errors import CorruptionError
from snapfs.store.protocol import refusals
from snapfs.store.repair.verify import verify
from snapfs.store.repository.repository import Repository
from tests.fakes.histories.history import IDENTITY, History
from tests.fakes.histories.mirrored_volume import CREATE, WRITER_ID, mirrored, push


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    made = History(tmp_path_factory.mktemp("source") / "store", 8)
    made.grow(4, steps=6)
    made.part(made.numbers(*made.records))  # its segments are open from here on
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path, history: History) -> Path:
    """Of a mirror's volume that has acknowledged three snapshots, each by itself."""
    mirrored(tmp_path / "pg", history, 3)
    return tmp_path / "pg"


def cut_last_line(path: Path, beyond: int = 0) -> bytes:
    log = path / "store" / "snapshots.log"
    whole = log.read_bytes()
    log.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1 + beyond])
    return whole


@pytest.mark.parametrize("beyond", [0, 1, 100])
@pytest.mark.parametrize("witness", [True, False])
def test_the_newest_is_recovered(path: Path, history: History, beyond: int, witness: bool) -> None:
    cut_last_line(path, beyond)
    if not witness:
        (path / "store" / "snapshots.end").unlink()
    mirror = MirrorVolume.open(str(path), Disk())
    assert [record.number for record in mirror.repository.snapshots()] == [1, 2, 3]
    assert "snapshot 3 was whole and not in snapshots.log: it is recovered" in mirror.recovered
    history.assert_equal(mirror.repository, 3)
    assert verify(mirror.repository, mirror.repository.snapshots()).is_good
    push(mirror, history, 4)
    mirror.check_invariants()
    mirror.close()


def test_a_reader_of_its_folder_gets_the_error(path: Path) -> None:
    cut_last_line(path)
    with pytest.raises(CorruptionError, match=r"snapshots\.log in .* lost its end"):
        Repository.open(str(path / "store"), IDENTITY, Disk(), readonly=True)


def test_a_claim_that_was_lost_keeps_the_volume_from_being_served(path: Path) -> None:
    """Else a fenced writer could write again."""
    mirror = MirrorVolume.open(str(path), Disk())
    mirror.claim(Generation(2), "host-b", "")
    mirror.close()
    log = path / "store" / "snapshots.log"
    cut_last_line(path)
    before = log.read_bytes()
    served = Mirror(str(path.parent), Disk(), MirrorOptions())
    assert "snapshots.log" in served.failed["pg"]
    assert "lost its end" in served.failed["pg"]
    served.close()
    assert log.read_bytes() == before


def test_what_was_never_acknowledged_is_parts_again(path: Path, history: History) -> None:
    """The witness shows that the log is whole: the writer sends the commit again, if it still may."""
    before = [(path / "store" / name).read_bytes() for name in ("snapshots.log", "snapshots.end")]
    mirror = MirrorVolume.open(str(path), Disk())
    push(mirror, history, 4)
    mirror.close()
    for name, data in zip(("snapshots.log", "snapshots.end"), before, strict=True):
        (path / "store" / name).write_bytes(data)
    again = MirrorVolume.open(str(path), Disk())
    assert [record.number for record in again.repository.snapshots()] == [1, 2, 3]
    assert again.receiver.staging.parts()
    again.commit([history.records[3]], False, Generation(1), WRITER_ID)
    history.assert_equal(again.repository, 4)
    again.close()


def test_where_more_is_lost_than_can_be_found_nothing_is_touched(path: Path) -> None:
    newest = max((path / "store" / "segments").iterdir())
    newest.unlink()
    cut_last_line(path)
    before = {each: each.read_bytes() for each in (path / "store").rglob("*") if each.is_file()}
    with pytest.raises(CorruptionError, match="lost its end"):
        MirrorVolume.open(str(path), Disk())
    assert {each: each.read_bytes() for each in (path / "store").rglob("*") if each.is_file()} == before


@pytest.mark.parametrize("lost", ["snapshots.log", "segments"])
def test_a_volume_that_lost_its_log_is_named_and_never_made_anew(path: Path, lost: str) -> None:
    """A push made a new log, of generation 0: what was acknowledged became parts, which are removed after a week."""
    if lost == "segments":  # the witness alone, of claims: a new log would let in a fenced writer
        for each in (path / "store" / "segments").iterdir():
            each.unlink()
    (path / "store" / "snapshots.log").unlink()
    before = {each: each.read_bytes() for each in (path / "store").rglob("*") if each.is_file()}
    served = Mirror(str(path.parent), Disk(), MirrorOptions())
    assert "it is missing" in served.failed["pg"]
    with pytest.raises(refusals.RefusedError, match="it is missing"):
        served.create("pg", CREATE)
    served.close()
    with pytest.raises(CorruptionError, match="it is missing"):
        MirrorVolume.create(str(path), CREATE, Disk())
    assert {each: each.read_bytes() for each in (path / "store").rglob("*") if each.is_file()} == before


def test_a_volume_is_not_taken_for_an_empty_root(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`verify --root ROOT/VOLUME` checked nothing, printed nothing, and ended with 0."""
    for words in (["verify", "--root", str(path)], ["list", str(path)], ["serve", "--root", str(path)]):
        assert replicator_cli.run(words) == 3
        assert "is a volume itself: name the folder that it lies in" in capfd.readouterr().err
