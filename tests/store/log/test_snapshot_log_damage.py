"""The end of snapshots.log: what is cut off or flipped there is recovered or named, and never silently missing.

Each record checks itself; the newest is witnessed by its segment and by snapshots.end; a segment
that is newer than the log is recovered from, and never deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk, Generation, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, VersionError
from snapfs.store.log import snapshot_records
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import AskedBy, SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import ObjectKind
from snapfs.store.repair.duplicate_store import rebuild_log
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.salvage import DAMAGED_SUFFIX

IDENTITY = StoreIdentity("cd" * 16, 99)
BY = AskedBy(1000, 100, 4711)


def snap(repository: Repository, name: str | None = None) -> SnapshotRecord:
    transaction = repository.begin(Generation(1))
    newest = repository.latest()
    root = transaction.put_page(ObjectKind.ROOT, b"root of %d" % (newest.number if newest else 0), None)
    parent = newest.number if newest else None
    return transaction.commit(root, parent=parent, name=name, cut_time_ns=5, trigger="control", by=BY)


def make(volume: Path, snapshots: int = 2) -> Path:
    """A volume's folder that no process uses; its store."""
    volume.mkdir()
    (volume / "lock").touch()
    repository = Repository.create(str(volume / "store"), IDENTITY, Disk())
    for number in range(snapshots):
        snap(repository, f"name-{number}")
    repository.close()
    return volume / "store"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make(tmp_path / "volume")


def facts(store: Path, *, readonly: bool) -> list[dict[str, object]]:
    """What a store reports of its snapshots: all but what only the log knew."""
    repository = Repository.open(str(store), IDENTITY, Disk(), readonly=readonly, cache_bytes=0)
    try:
        found = []
        for record in repository.snapshots():
            assert repository.read(record.root)
            fields = snapshot_records.to_fields(record)
            fields["stats"] = {**fields["stats"], "seal_seconds": 0}
            found.append({**fields, "state": record.state})
            assert readonly or found[-1].get("log_head"), "a record that is written again states it as well"
            found[-1].pop("log_head", None)
        return found
    finally:
        repository.close()


def outcome(store: Path, wanted: list[dict[str, object]], *, readonly: bool) -> str:
    """What comes of opening it: "same", or the kind of error, which names the log."""
    try:
        found = facts(store, readonly=readonly)
    except (CorruptionError, VersionError) as error:
        answer = error
    else:
        assert found == wanted
        return "same"
    assert "snapshots." in str(answer)
    return type(answer).__name__


@pytest.mark.parametrize("readonly", [True, False], ids=["reader", "writer"])
def test_every_truncation_of_the_log_is_recovered_or_named(store: Path, readonly: bool) -> None:
    wanted, log = facts(store, readonly=True), store / "snapshots.log"
    whole, end = log.read_bytes(), (store / "snapshots.end").read_bytes()
    last = whole[:-1].rindex(b"\n")
    outcomes = {}
    for size in range(len(whole)):
        log.write_bytes(whole[:size])
        (store / "snapshots.end").write_bytes(end)
        outcomes[size] = outcome(store, wanted, readonly=readonly)
        if not readonly and outcomes[size] == "same":
            assert outcome(store, wanted, readonly=False) == "same", "it stays so"
        elif not readonly:
            assert log.read_bytes() == whole[:size], "nothing is touched"
    assert {outcomes[size] for size in range(last, len(whole))} == {"same"}, "the newest is recovered"
    assert {outcomes[size] for size in range(last)} == {"CorruptionError"}


def test_every_flip_of_the_newest_record_and_of_any_byte_before_it_is_named_or_harmless(store: Path) -> None:
    wanted, log = facts(store, readonly=True), store / "snapshots.log"
    whole = log.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    seen = set()
    for at in range(len(whole)):
        for bit in range(8) if at >= last else (at % 8,):
            log.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            seen.add(outcome(store, wanted, readonly=True))
    assert seen == {"CorruptionError", "VersionError", "same"}
    log.write_bytes(whole[:-1] + b"\x0b")
    assert outcome(store, wanted, readonly=True) == "same", "a newline that was flipped takes no snapshot along"


def test_every_flip_and_truncation_of_the_witness_is_harmless(store: Path) -> None:
    wanted, end = facts(store, readonly=True), store / "snapshots.end"
    whole = end.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            end.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            assert outcome(store, wanted, readonly=True) == "same"
    for size in range(len(whole)):
        end.write_bytes(whole[:size])
        assert outcome(store, wanted, readonly=True) == "same"
    end.unlink()
    assert outcome(store, wanted, readonly=False) == "same"
    assert end.read_bytes() == whole, "the next opening for writing makes it anew"


def old_form(store: Path) -> None:
    """The log as it was written before its lines had sums, and without a witness."""
    log = store / "snapshots.log"
    records = [json.loads(line) for line in log.read_bytes().splitlines()]
    log.unlink()
    (store / "snapshots.end").unlink()
    head, lines = "", b""
    for fields in records:
        del fields["sum"]
        line = json.dumps({**fields, "prev": head}, separators=(",", ":")).encode()
        head = hashlib.sha256(line).hexdigest()
        lines += line + b"\n"
    log.write_bytes(lines)


@pytest.mark.parametrize("readonly", [True, False], ids=["reader", "writer"])
def test_the_newest_record_of_a_log_without_sums_and_witness_is_recovered_as_well(store: Path, readonly: bool) -> None:
    old_form(store)
    wanted, log = facts(store, readonly=True), store / "snapshots.log"
    whole = log.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for size in range(last, len(whole)):
        log.write_bytes(whole[:size])
        (store / "snapshots.end").unlink(missing_ok=True)
        assert outcome(store, wanted, readonly=readonly) == "same"


def test_new_records_follow_old_ones_and_the_other_way_round(store: Path) -> None:
    old_form(store)
    repository = Repository.open(str(store), IDENTITY, Disk())
    snap(repository)
    repository.close()
    kinds = [b'"sum":' in line for line in (store / "snapshots.log").read_bytes().splitlines()]
    assert kinds == [False, False, False, True]
    assert [each["number"] for each in facts(store, readonly=True)] == [1, 2, 3]


def test_a_lost_record_of_another_kind_is_named_and_a_rebuilt_log_goes_on(store: Path) -> None:
    repository = Repository.open(str(store), IDENTITY, Disk())
    repository.record_event("mounted", at="/mnt")
    repository.close()
    log = store / "snapshots.log"
    whole = log.read_bytes()
    log.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
    for readonly in (True, False):
        with pytest.raises(CorruptionError, match=r"snapshots\.log in .* it has lost its end: 1 lines"):
            facts(store, readonly=readonly)
    rebuild_log(str(store), IDENTITY, Disk())
    assert [each["number"] for each in facts(store, readonly=False)] == [1, 2]


@pytest.mark.parametrize("readonly", [True, False], ids=["reader", "writer"])
def test_a_line_that_a_crash_cut_off_behind_a_record_is_passed_over(store: Path, readonly: bool) -> None:
    """Two lines for one act, as of a drop and its command: the second was not answered, wherever it ends."""
    wanted, log, end = facts(store, readonly=True), store / "snapshots.log", store / "snapshots.end"
    before, witness = log.read_bytes(), end.read_bytes()
    repository = Repository.open(str(store), IDENTITY, Disk())
    repository.record_event("command", command="hold", by={"uid": 0, "gid": 0, "pid": 1})
    repository.close()
    whole = log.read_bytes()
    for size in range(len(before), len(whole) + 1):
        log.write_bytes(whole[:size])
        end.write_bytes(witness)
        assert outcome(store, wanted, readonly=readonly) == "same"
        assert readonly or log.read_bytes() == (before if size < len(whole) - 1 else whole)


def test_nothing_is_appended_to_a_log_that_has_lost_lines(store: Path) -> None:
    """Also not by a writer that appends without opening the store: a claim in a folder."""
    path = store / "snapshots.log"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 20])
    log = SnapshotLog(str(path), Disk(), readonly=False)
    list(log.follow())
    for act in (log.cut_torn_tail, lambda: log.append("claimed", {"generation": 2, "holder": "b"})):
        with pytest.raises(CorruptionError, match="lost its end"):
            act()
    log.close()


def test_a_segment_that_was_never_acknowledged_is_a_snapshot_after_the_crash(store: Path) -> None:
    """Promise 3: all of it is durable and verified. The witness shows that its record was never written."""
    log, end = store / "snapshots.log", store / "snapshots.end"
    before = log.read_bytes(), end.read_bytes()
    repository = Repository.open(str(store), IDENTITY, Disk())
    record = snap(repository, "third")
    repository.close()
    log.write_bytes(before[0])
    end.write_bytes(before[1])
    again = Repository.open(str(store), IDENTITY, Disk())
    assert again.latest() is not None
    assert again.find("third").root == record.root
    assert again.recovered == ["snapshot 3 was whole and not in snapshots.log: it is recovered"]
    assert snap(again).number == 4
    again.close()


def test_a_reader_beside_a_writer_does_not_see_what_is_not_committed(store: Path) -> None:
    """Between segment and record only the writer knows what will become of it."""
    log, end = store / "snapshots.log", store / "snapshots.end"
    before = log.read_bytes(), end.read_bytes()
    repository = Repository.open(str(store), IDENTITY, Disk())
    snap(repository, "third")
    repository.close()
    log.write_bytes(before[0])
    end.write_bytes(before[1])
    with open(store.parent / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [each["number"] for each in facts(store, readonly=True)] == [1, 2]
    assert [each["number"] for each in facts(store, readonly=True)] == [1, 2, 3]


def segments(store: Path) -> list[Path]:
    return sorted((store / "segments").glob("*.seg"))


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def _flipped(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])


@pytest.mark.parametrize("damage", [_torn, _flipped])
@pytest.mark.parametrize("witness", [True, False])
def test_debris_is_set_aside_and_never_deleted(store: Path, damage: Callable[[Path], None], witness: bool) -> None:
    log = store / "snapshots.log"
    newest = segments(store)[-1]
    damage(newest)
    kept = newest.read_bytes()
    whole = log.read_bytes()
    log.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
    if witness:  # its existence was acknowledged
        with pytest.raises(CorruptionError, match="lost its end"):
            facts(store, readonly=False)
        assert newest.read_bytes() == kept
        return
    (store / "snapshots.end").unlink()
    repository = Repository.open(str(store), IDENTITY, Disk())
    assert [record.number for record in repository.snapshots()] == [1]
    assert "is set aside" in repository.recovered[0]
    repository.close()
    assert Path(f"{newest}{DAMAGED_SUFFIX}").read_bytes() == kept


def test_an_older_log_in_the_place_of_a_newer_one_is_named(store: Path) -> None:
    log = store / "snapshots.log"
    older = log.read_bytes()
    repository = Repository.open(str(store), IDENTITY, Disk())
    snap(repository)
    snap(repository)
    repository.drop(SnapshotNumber(1))
    repository.close()
    log.write_bytes(older)
    for readonly in (True, False):
        with pytest.raises(CorruptionError, match="lost its end"):
            facts(store, readonly=readonly)


def test_fields_that_are_no_facts_are_damage_also_where_there_is_no_sum(store: Path) -> None:
    """640 of 3,850 flips of the newest line ended in tracebacks."""
    old_form(store)
    log = store / "snapshots.log"
    whole = log.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for at in range(last, len(whole)):
        for bit in range(8):
            log.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with contextlib.suppress(SnapfsError):
                facts(store, readonly=True)


@pytest.fixture(autouse=True)
def _few_descriptors() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_copy_of_a_volume_is_one(store: Path, tmp_path: Path) -> None:
    """With and without its witness, which a copy by hand may leave behind."""
    shutil.copytree(store.parent, tmp_path / "copy")
    assert facts(tmp_path / "copy" / "store", readonly=False) == facts(store, readonly=True)
    (tmp_path / "copy" / "store" / "snapshots.end").unlink()
    assert facts(tmp_path / "copy" / "store", readonly=True) == facts(store, readonly=True)
