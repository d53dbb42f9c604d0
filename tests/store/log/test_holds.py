"""Holds: what a holder needs is not dropped, for as long as it is needed, and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import BusyError, CorruptionError
from snapfs.store.log.holds import Holds
from snapfs.store.objects.format import ObjectKind
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.transfer.retention import protection
from tests.fakes.disks.crashes import CrashDisk, PowerCutDisk


class Clock:
    now_ns = 1_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def numbers(*found: int) -> set[SnapshotNumber]:
    return {SnapshotNumber(number) for number in found}


def test_a_hold_is_replaced_and_released_as_a_whole(tmp_path: Path) -> None:
    clock = Clock()
    holds = Holds(str(tmp_path), Disk(), clock)
    assert holds.held() == frozenset()
    holds.take("a", numbers(1, 2), 10)
    holds.take("b", numbers(2, 5), 10)
    assert holds.held() == numbers(1, 2, 5)
    holds.take("a", numbers(3), 10, "a reason")
    assert holds.held() == numbers(2, 3, 5)
    assert [(hold.holder, hold.why) for hold in holds.all()] == [("a", "a reason"), ("b", "")]
    holds.release("b")
    holds.release("b")
    assert holds.held() == numbers(3)
    holds.take("a", (), 10)
    assert holds.held() == frozenset()


def test_a_durable_hold_outlives_a_power_cut_and_so_does_its_folder(tmp_path: Path) -> None:
    """The name of the folder was not synced: a power cut could take the first hold with it."""
    disk = CrashDisk()
    Holds(str(tmp_path), disk).take("a", numbers(1), 10)
    assert disk.labels[:3] == ["hold:folder", "hold:folder", "hold:take"]
    again = PowerCutDisk(tmp_path)
    Holds(str(tmp_path), again).take("a", numbers(2), 1e9)
    again.cut()
    assert Holds(str(tmp_path), Disk()).held() == numbers(2)


def test_a_hold_ends_by_itself(tmp_path: Path) -> None:
    clock = Clock()
    holds = Holds(str(tmp_path), Disk(), clock)
    holds.take("a", numbers(1), 10)
    clock.now_ns += 9_999_999_999
    assert holds.held() == numbers(1)
    clock.now_ns += 1
    assert holds.held() == frozenset()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}', b"\xff"])
def test_while_a_hold_is_not_understood_nothing_is_dropped(tmp_path: Path, text: bytes) -> None:
    """A damaged hold is not "no hold"."""
    holds = Holds(str(tmp_path), Disk(), Clock())
    holds.take("a", numbers(1), 10)
    (tmp_path / "holds" / "b.json").write_bytes(text)
    with pytest.raises(CorruptionError, match=r"holds/b\.json"):
        holds.held()
    holds.take("b", numbers(2), 10)
    assert holds.held() == numbers(1, 2)


@pytest.mark.parametrize("name", ["", "../a", "a/b", "a b", "x" * 101])
def test_the_name_of_a_hold_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        Holds(str(tmp_path), Disk()).take(name, numbers(1), 10)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository.create(str(tmp_path / "store"), StoreIdentity("aa" * 16, 42), Disk())
    for content in (b"one", b"two", b"three"):
        snap(made, content)
    yield made
    made.close()


def snap(repository: Repository, content: bytes) -> SnapshotRecord:
    transaction = repository.begin(Generation(1))
    root = transaction.put_page(ObjectKind.ROOT, content, None)
    return transaction.commit(root, parent=None, name=None, cut_time_ns=1, trigger="manual")


def test_a_held_snapshot_is_not_dropped(repository: Repository) -> None:
    holds = Holds(repository.store_dir, Disk())
    holds.take("push-1", numbers(2), 60, "it is being sent to a mirror")
    with pytest.raises(BusyError, match="held by push-1"):
        protection.drop(repository, repository.find("2"))
    protection.drop(repository, repository.find("1"))
    holds.release("push-1")
    protection.drop(repository, repository.find("2"))
    assert [record.number for record in repository.snapshots()] == [3]
