"""Clones share bytes and no lifetime; a lost log comes back from the segments."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, UserError
from snapfs.store.objects.format import ObjectKind
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.repair.duplicate_store import rebuild_log, share
from snapfs.store.repository.compaction import FAN_IN
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity

IDENTITY = StoreIdentity("aa" * 16, 42)
CLONE_ID = "bb" * 16


class NoLinks(Disk):
    def link(self, label: str, source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository.create(str(tmp_path / "store"), IDENTITY, Disk())
    for i in range(4):
        snap(made, b"content %d" % i, f"name-{i}")
    yield made
    made.close()


def clone(source: Repository, record: SnapshotRecord, place: str, volume_id: str, disk: Disk) -> Repository:
    """The store of a clone, open."""
    share(source, record, place, volume_id, disk)
    return Repository.open(place, StoreIdentity(volume_id, source.identity.seed), disk)


def snap(repository: Repository, content: bytes, name: str | None = None) -> SnapshotRecord:
    transaction = repository.begin(Generation(1))
    root = transaction.put_page(ObjectKind.ROOT, content, None)
    return transaction.commit(root, parent=None, name=name, cut_time_ns=1, trigger="manual")


@pytest.mark.parametrize("disk", [Disk(), NoLinks()], ids=["linked", "copied"])
def test_a_clone_holds_one_snapshot_and_goes_its_own_way(repository: Repository, tmp_path: Path, disk: Disk) -> None:
    record = repository.find("name-2")
    made = clone(repository, record, str(tmp_path / "clone"), CLONE_ID, disk)
    assert made.snapshots() == [record]
    assert made.read(record.root) == b"content 2"
    assert snap(made, b"its own").number == 4
    with repository.collection() as collection:
        for number in (1, 2, 3):
            repository.drop(SnapshotNumber(number))
        live = NumberSet()
        live.add(repository.find("4").root.number)
        assert collection.run(live).removed == 3
    made.close()
    again = Repository.open(str(tmp_path / "clone"), StoreIdentity(CLONE_ID, IDENTITY.seed), Disk())
    assert again.recovered == []
    assert again.read(record.root) == b"content 2"
    assert [event.kind for event in again.events()] == ["created", "cloned", "snapshot"]
    again.close()


def test_a_merge_in_the_middle_of_cloning_does_no_harm(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4, FAN_IN):
        snap(repository, b"content %d" % i)
    reader = Repository.open(repository.store_dir, IDENTITY, Disk(), readonly=True)
    infos = reader.index.segments

    def merged_meanwhile() -> Iterator[SegmentInfo]:
        for position, info in enumerate(infos()):
            if position == 3:
                repository.merge_once()
            yield info

    monkeypatch.setattr(reader.index, "segments", merged_meanwhile)
    record = reader.find("5")
    made = clone(reader, record, str(tmp_path / "clone"), CLONE_ID, Disk())
    assert made.read(record.root) == b"content 4"
    assert len(made.index.segments()) == 1
    made.close()
    reader.close()


def test_cloning_into_a_store_is_refused(repository: Repository) -> None:
    with pytest.raises(FileExistsError):
        clone(repository, repository.find("1"), repository.store_dir, CLONE_ID, Disk())


@pytest.mark.parametrize("damage", ["missing", "empty", "no end", "broken middle"])
def test_a_lost_log_is_rebuilt_from_the_segments(repository: Repository, damage: str) -> None:
    repository.record_event("mounted")
    before = repository.snapshots()
    repository.close()
    log = Path(repository.store_dir) / "snapshots.log"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    broken = {"empty": b"", "no end": b"".join(lines[:2]), "broken middle": whole.replace(b"name-1", b"name-X")}
    if damage == "missing":
        log.unlink()
    else:
        log.write_bytes(broken[damage])
    with pytest.raises((CorruptionError, UserError)):
        Repository.open(repository.store_dir, IDENTITY, Disk())
    found = rebuild_log(repository.store_dir, IDENTITY, Disk())
    assert len(found) >= 2
    again = Repository.open(repository.store_dir, IDENTITY, Disk())
    assert again.recovered == []
    assert [(record.number, record.name, record.root) for record in again.snapshots()] == [
        (record.number, record.name, record.root) for record in before
    ]
    assert all(again.read(record.root) == b"content %d" % (record.number - 1) for record in again.snapshots())
    assert snap(again, b"next").number == 5
    assert (log.with_name("snapshots.log.damaged").exists()) == (damage != "missing")
    again.close()


def test_rebuilding_the_log_of_another_volume_is_refused(repository: Repository) -> None:
    with pytest.raises(UserError, match="another volume"):
        rebuild_log(repository.store_dir, StoreIdentity("00" * 16, 1), Disk())
    assert repository.find("1").root.number > Number(0)
