"""The gates of snapshots: what lines of the log say of them, over reopening, damage, drops and another drill."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.store.gates.gate_entries import GateEntry, lines_for, merged
from snapfs.store.gates.gates import DRILLED, NO_GATES, PAST_THE_CACHE, VERIFIED, Gates, drill_facts, facts_of, words_of
from snapfs.store.gates.number_ranges import NumberRanges
from snapfs.store.log.snapshot_records import DAMAGED, GOOD
from snapfs.store.repair import verify
from snapfs.store.repair.gate_lines import line_of, verified_fields
from snapfs.store.repository.repository import Repository
from tests.fakes.histories.history import IDENTITY, History

ONE, TWO, THREE = SnapshotNumber(1), SnapshotNumber(2), SnapshotNumber(3)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "store", 5)
    made.grow(3)
    yield made
    made.close()


def reopened(history: History) -> Repository:
    return Repository.open(history.repository.store_dir, IDENTITY, Disk(), readonly=True)


def test_gates_are_lines_that_a_reopened_store_has(history: History) -> None:
    repository = history.repository
    report = verify.verify(repository, repository.snapshots()[:2])
    fields = verified_fields(repository, report, whole=False)
    assert fields is not None
    assert (fields["snapshots"], fields["how"]) == ([[1, 2]], PAST_THE_CACHE)
    repository.record_event(VERIFIED, **fields)
    assert verified_fields(repository, report, whole=False) is None
    repository.record_event(DRILLED, snapshot=2, passed=True, recovery_s=1.5, rto_s=30.0, check="sqlite")
    repository.record_event("replicated", target="near", snapshot=3, there=[[1, 1], [3, 9]])
    for store in (repository, reopened(history)):
        catalog = store.catalog
        gates = [catalog.gates(number) for number in (ONE, TWO, THREE)]
        assert [bool(each.verified_ns) for each in gates] == [True, True, False]
        assert [each.is_drilled for each in gates] == [False, True, False]
        assert [sorted(catalog.copies(number)) for number in (ONE, TWO, THREE)] == [["near"], [], ["near"]]
        assert [number for number, _ in catalog.passed_gates()] == [1, 2]
        assert catalog.whole_pass_ns == 0
        assert words_of(gates[1], 0, 2) == "verified, drilled"
        assert words_of(gates[0], 1, 2) == "verified, replicated 1/2"
        assert facts_of(gates[1], (), 2)["drilled"]["recovery_s"] == 1.5
        assert gates[1].rto_s == 30.0
        (line,) = lines_for([GateEntry(TWO, 7, gates[1])], {TWO: gates[0]}.__getitem__, {TWO: 7}.__getitem__)
        assert (line["recovery_s"], line["rto_s"]) == (1.5, 30.0), "a target hears of the objective"
        if store is not repository:
            store.close()


def test_a_gate_ends_with_damage_with_the_snapshot_and_with_a_later_drill(history: History) -> None:
    repository, catalog = history.repository, history.repository.catalog
    repository.record_event(VERIFIED, snapshots=[[1, 3]], how="", whole=True)
    assert catalog.whole_pass_ns
    repository.mark(TWO, DAMAGED, "a test")
    repository.mark(TWO, GOOD, "a test")
    assert [bool(catalog.gates(number).verified_ns) for number in (ONE, TWO, THREE)] == [True, False, True]
    repository.record_event(DRILLED, snapshot=3, passed=True, check="redis")
    repository.record_event(DRILLED, snapshot=3, passed=False, check="redis")
    assert catalog.gates(THREE).is_bad
    assert catalog.gates(THREE).why_not("verified") == "its drill failed (redis)"
    assert catalog.gates(TWO).why_not("verified") == "it is not verified"
    assert catalog.gates(ONE).why_not("verified") == ""
    assert catalog.gates(ONE).why_not("drilled") == "it is not drilled"
    changes = catalog.gate_changes
    repository.drop(ONE)
    assert catalog.gates(ONE) == NO_GATES
    assert catalog.gate_changes > changes
    again = reopened(history)
    assert again.catalog.passed_gates() == catalog.passed_gates()
    again.close()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([{"snapshot": 3, "there": [[1, 3]]}], [1, 2, 3]),
        ([{"snapshot": 3, "there": [[1, 3]]}, {"snapshot": 3, "there": [], "gone": [[1, 2]]}], [3]),
        ([{"snapshot": 3, "there": [[1, 1], [3, 3]]}, {"snapshot": 3, "there": [[2, 2]]}], [1, 2, 3]),
        ([{"snapshot": 3, "complete": 3}], [3]),  # of the time before: it had had all, and kept who knows what
        ([{"snapshot": 3, "there": [[1, 3]]}, {"snapshot": 2, "complete": 2}], [2]),
        ([{"snapshot": 3}], [3]),
        ([{"snapshot": 0, "there": []}], []),
        ([{"snapshot": 3, "there": "all"}], []),
    ],
)
def test_a_copy_counts_where_it_was_seen(history: History, lines: list[dict[str, object]], expected: list[int]) -> None:
    repository = history.repository
    for fields in lines:
        repository.record_event("replicated", target="near", **fields)
    for store in (repository, reopened(history)):
        assert [number for number in (1, 2, 3) if store.catalog.copies(SnapshotNumber(number))] == expected
        assert list(store.catalog.on_target("near")) == expected
        if store is not repository:
            store.close()


def test_a_copy_is_of_the_snapshot_and_not_of_its_number(history: History) -> None:
    """A takeover may leave another one of the same number."""
    repository, catalog = history.repository, history.repository.catalog
    repository.record_event("replicated", target="near", snapshot=3, there=[[1, 3]])
    again = repository.find("3")
    catalog.remove(THREE)
    assert list(catalog.on_target("near")) == [1, 2]
    catalog.add(again)
    assert catalog.copies(THREE) == frozenset()
    assert catalog.copies(TWO) == {"near"}


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), max_size=4),
    st.lists(st.tuples(st.booleans(), st.integers(1, 14)), max_size=20),
    st.lists(st.integers(1, 16), max_size=10),
)
def test_ranges_are_a_set_of_numbers(
    runs: list[tuple[int, int]], changes: list[tuple[bool, int]], others: list[int]
) -> None:
    ranges = NumberRanges((first, first + more) for first, more in runs)
    model = {number for first, more in runs for number in range(first, first + more + 1)}
    for added, number in changes:
        (ranges.add if added else ranges.discard)(number)
        (model.add if added else model.discard)(number)
    other = NumberRanges.of(others)
    assert [list(ranges), len(ranges), bool(ranges)] == [sorted(model), len(model), bool(model)]
    assert [number in ranges for number in range(20)] == [number in model for number in range(20)]
    assert list(ranges.without(other)) == sorted(model - set(others))
    found = ranges.runs()
    assert all(before[1] + 1 < after[0] for before, after in pairwise(found))


def test_lines_of_a_later_version_are_passed_over(history: History) -> None:
    repository = history.repository
    repository.record_event(VERIFIED, snapshots="all")
    repository.record_event(DRILLED, snapshot=[1], passed="mostly")
    assert repository.catalog.passed_gates() == []
    assert repository.catalog.last_drill is not None


def test_what_another_process_reports_has_to_be_of_a_snapshot_here(history: History) -> None:
    repository = history.repository
    root = repository.find("2").root.number
    assert line_of(repository, DRILLED, f'{{"snapshot": 2, "passed": true, "root": {root}}}')["passed"] is True
    wrong = [
        (DRILLED, f'{{"snapshot": 2, "passed": true, "root": {root + 1}}}', "another"),
        (DRILLED, '{"snapshot": 9, "passed": true}', "no snapshot 9"),
        (DRILLED, '{"snapshot": 1}', "true or false"),
        (VERIFIED, '{"snapshots": [[1]]}', "runs"),
        ("damaged", "{}", "verified or drilled"),
        (DRILLED, "{", "."),
    ]
    for kind, text, why in wrong:
        with pytest.raises(ValueError, match=why):
            line_of(repository, kind, text)


OLD = Gates(verified_ns=10, how="a", drilled_ns=20, passed=True, check="redis", recovery_s=1.0)
NEW = Gates(verified_ns=5, how="b", drilled_ns=30, passed=False, check="redis")
BOTH = Gates(verified_ns=10, how="a", drilled_ns=30, passed=False, check="redis")


@pytest.mark.parametrize(
    ("known", "sent", "expected"),
    [(OLD, NEW, BOTH), (NEW, OLD, BOTH), (BOTH, OLD, BOTH), (NO_GATES, OLD, OLD), (OLD, NO_GATES, OLD)],
)
def test_of_each_gate_the_later_one_counts(history: History, known: Gates, sent: Gates, expected: Gates) -> None:
    """An older record of another writer once took the place of a drill that had failed since."""
    repository, catalog = history.repository, history.repository.catalog
    root = repository.find("2").root.number

    def take_in(gates: Gates) -> None:
        lines = lines_for([GateEntry(TWO, root, gates)], lambda _: catalog.gates(TWO), catalog.root_number)
        for line in lines:
            repository.record_event(line.pop("kind"), **line)

    take_in(known)
    take_in(sent)
    assert catalog.gates(TWO) == expected
    found = merged([GateEntry(TWO, root, known)], [GateEntry(TWO, root, sent)], catalog.root_number)
    assert [entry.gates for entry in found] == [expected]


def test_of_what_comes_from_elsewhere_the_last_drill_is_the_last_line(history: History) -> None:
    repository, catalog = history.repository, history.repository.catalog
    entries = [
        GateEntry(THREE, repository.find("3").root.number, OLD),
        GateEntry(ONE, repository.find("1").root.number, NEW),
    ]
    for line in lines_for(entries[::-1], lambda number: catalog.gates(SnapshotNumber(number)), catalog.root_number):
        repository.record_event(line.pop("kind"), **line)
    assert catalog.last_drill is not None
    found = drill_facts(catalog.last_drill.time_ns, catalog.last_drill.fields)
    assert (found["snapshot"], found["time_ns"]) == (1, 30)
    assert drill_facts(7, {"drilled_ns": "yesterday"})["time_ns"] == 7


def test_a_target_that_reports_gates_is_as_good_as_a_log(history: History) -> None:
    catalog = history.repository.catalog
    catalog.put_gates(TWO, Gates(verified_ns=5, drilled_ns=6, passed=True, check="files", recovery_s=2.0))
    assert catalog.gates(TWO) == Gates(5, "", 6, True, "files", 2.0)


@pytest.mark.on_disk
def test_verification_reads_past_the_page_cache(history: History, tmp_path: Path) -> None:
    """What the kernel holds of a segment is forgotten first: a read that may not touch the disk finds nothing."""
    paths = [info.path for info in history.repository.index.segments()]

    def cached(path: str) -> bool:
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.preadv(fd, [bytearray(4096)], 0, os.RWF_NOWAIT) > 0
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            pytest.skip(f"this filesystem cannot say what is cached: {error}")
        finally:
            os.close(fd)

    for path in paths:
        Path(path).read_bytes()
    assert all(map(cached, paths))
    history.repository.index.forget_pages()
    assert not any(map(cached, paths))
