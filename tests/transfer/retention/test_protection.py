"""What no drop takes, by whatever rule or person: each reason alone keeps a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import BusyError, CorruptionError, UserError
from snapfs.base.volumes.volume import Volume
from snapfs.store.log import replica_state
from snapfs.store.log.drops import POLICY
from snapfs.store.log.holds import Holds
from snapfs.store.log.replica_state import Replication, TargetFacts
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.transfer.retention import named_holds, protection
from tests.fakes.disks.crashes import Crash, CrashDisk
from tests.fakes.histories.history import IDENTITY, History


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "store", seed=5)
    made.grow(5, steps=3)
    yield made
    made.close()


@pytest.fixture
def store(history: History) -> Repository:
    return history.repository


def stays(store: Repository, number: int, why: str, *reasons: protection.Reasons) -> None:
    with pytest.raises(BusyError, match=why):
        protection.drop(store, store.find(str(number)), POLICY, "a rule", reasons)
    assert number in store.catalog


def test_each_reason_keeps_a_snapshot(store: Repository) -> None:
    store.mark(SnapshotNumber(5), "damaged", "for a test")
    Holds(store.store_dir, Disk()).take("drill", [SnapshotNumber(2)], 60, "a drill reads it")
    named_holds.hold(store, store.find("3"), "the audit", None)

    def of_a_group() -> dict[SnapshotNumber, str]:
        return {SnapshotNumber(1): "it is a member of group shop, whose other members stay"}

    stays(store, 5, "newest")
    stays(store, 4, "newest good one")
    stays(store, 2, r"held by drill \(a drill reads it\)")
    stays(store, 3, r"held by person.3 \(the audit\)")
    stays(store, 1, "member of group shop", of_a_group)
    protection.drop(store, store.find("1"), POLICY, "retention: last = 1")
    dropped = [event.fields for event in store.events() if event.kind == "dropped"]
    assert dropped == [{"snapshot": 1, "name": None, "by": "policy", "why": "retention: last = 1"}]


def test_nothing_goes_while_it_is_not_known_what_is_held(store: Repository) -> None:
    Holds(store.store_dir, Disk()).take("drill", [SnapshotNumber(2)], 60)
    Path(store.store_dir, "holds", "drill.json").write_bytes(b"{")
    with pytest.raises(CorruptionError):
        protection.drop(store, store.find("1"))
    assert 1 in store.catalog


def facts(name: str, newest: int | None, had: int = 0) -> TargetFacts:
    return TargetFacts(name, f"file:///{name}", "idle", newest, had=had)


@pytest.mark.parametrize(
    ("copies", "targets", "newest"),
    [
        (1, [], None),
        (1, [facts("a", None)], None),
        (1, [facts("a", 7)], 7),
        (1, [facts("a", 7), facts("b", 9)], 9),
        (2, [facts("a", 7), facts("b", 9)], 7),
        (2, [facts("a", 7), facts("b", None)], None),
        (1, [facts("a", 7), facts("gone", 9)], 7),  # not in the settings any more
        (1, [facts("a", None, had=7)], 7),  # it has not answered since the agent began anew
        (2, [facts("a", 9), facts("b", None, had=7)], 7),
    ],
)
def test_the_newest_that_counts_as_replicated(copies: int, targets: list[TargetFacts], newest: int | None) -> None:
    known = Replication("ab" * 16, 1, 1, 1, targets)
    found = protection.newest_replicated(known, {("a", "file:///a"), ("b", "file:///b")}, copies)
    assert list(found) == ([] if newest is None else [newest])


def test_nothing_goes_while_what_is_replicated_cannot_be_read(tmp_path: Path) -> None:
    volume = Volume.create(str(tmp_path / "volume"), Disk())
    named = volume.toml_path
    Path(named).write_text(f'{Path(named).read_text()}\n[[replication.target]]\nurl = "file:///a"\n')
    reasons = protection.replicated_reasons(Volume.open(volume.path, Disk()))
    assert reasons() == {}
    Path(replica_state.path_of(volume.path)).write_bytes(b"{")
    with pytest.raises(CorruptionError):
        reasons()


def test_a_hold_ends_by_itself_or_is_released(store: Repository) -> None:
    now_ns = [store.clock()]
    store.clock = lambda: now_ns[0]
    held = named_holds.hold(store, store.find("2"), "the migration", 3600)
    assert named_holds.until(held, now_ns[0]) == now_ns[0] + 3600 * 10**9
    named_holds.hold(store, store.find("3"), "", None)
    named_holds.release(store, SnapshotNumber(3))
    with pytest.raises(UserError, match="nobody holds snapshot 3"):
        named_holds.release(store, SnapshotNumber(3))
    stays(store, 2, "held")
    now_ns[0] += 3601 * 10**9
    with pytest.raises(UserError, match="nobody holds"):
        named_holds.release(store, SnapshotNumber(2))
    log = [(event.kind, event.fields) for event in store.events() if event.kind in ("held", "released")]
    assert log[-1][1].pop("decided_ns") > 0  # this store's clock stands still, its log's does not
    assert log == [
        ("held", {"snapshot": 2, "until_ns": now_ns[0] - 10**9, "why": "the migration"}),
        ("held", {"snapshot": 3, "until_ns": None, "why": ""}),
        ("released", {"snapshot": 3}),
    ]


@pytest.mark.parametrize("why", ["two\nlines", "x" * 401])
def test_a_reason_is_one_line(store: Repository, why: str) -> None:
    with pytest.raises(UserError, match="one line"):
        named_holds.hold(store, store.find("2"), why, None)


def test_a_crash_leaves_a_snapshot_that_is_held(history: History) -> None:
    """Whichever step of `release` or `hold` is the last: what the log calls held is held."""
    store_dir, identity = history.repository.store_dir, IDENTITY
    named_holds.hold(history.repository, history.repository.find("2"), "kept", None)
    history.repository.close()

    def released(store: Repository, record: SnapshotRecord) -> object:
        return named_holds.release(store, record.number)

    for act in (released, lambda store, record: named_holds.hold(store, record, "again", None)):
        for step in range(100):
            disk = CrashDisk()
            store = Repository.open(store_dir, identity, disk)
            disk.at, ended = len(disk.labels) + step, True
            try:
                act(store, store.find("2"))
            except Crash:
                ended = False
            except UserError:  # the one before came as far as to release it
                assert act is released
            finally:
                disk.at = None
                store.close()
            if ended:
                break
            found = Repository.open(store_dir, identity, Disk(), readonly=True)
            last = [event.kind for event in found.events() if event.kind in ("held", "released")][-1]
            found.close()
            assert last == "released" or 2 in Holds(store_dir, Disk()).held(), (step, last)
        assert step > 1
