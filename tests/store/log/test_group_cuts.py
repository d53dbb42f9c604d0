"""Which cuts of a group there are, which are whole, and whose places are the members': tables."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.store.log.group_cuts import GroupInstant, chosen, instants, misplaced
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, CutFacts, GroupCut, SealStats, SnapshotRecord
from snapfs.store.objects.format import NULL

A, B = "a" * 32, "b" * 32
CUTS = {1: "1" * 32, 2: "2" * 32}


def record(
    number: int, cut: int, *, name: str | None = None, group: str = "g", state: str = GOOD, branch: str = ""
) -> SnapshotRecord:
    its = GroupCut(group, CUTS[cut], (("db", A), ("files", B)))
    return SnapshotRecord(
        SnapshotNumber(number), name, Generation(1), None, cut * 100 + number, cut * 100 + number, "group",
        NULL, Number(number), SealStats(), state, "", branch, CutFacts(group=its),
    )  # fmt: skip


def found(a: Sequence[SnapshotRecord], b: Sequence[SnapshotRecord]) -> list[GroupInstant]:
    return instants("g", {A: a, B: b})


@pytest.mark.parametrize(
    ("a", "b", "missing"),
    [
        ([record(1, 1)], [record(7, 1)], [()]),
        ([record(1, 1)], [], [("files",)]),
        ([], [record(7, 1)], [("db",)]),
        ([record(1, 1), record(2, 2)], [record(7, 1)], [(), ("files",)]),
        ([record(2, 2), record(1, 1)], [record(7, 1), record(8, 2)], [(), ()]),
        ([record(1, 1)], [record(7, 1, state=DAMAGED)], [("files",)]),
        ([record(1, 1)], [record(7, 1, branch="old")], [("files",)]),
        ([record(1, 1, group="other")], [record(7, 1, group="other")], []),
    ],
)
def test_a_cut_is_whole_where_each_member_has_a_good_snapshot_of_it(
    a: list[SnapshotRecord], b: list[SnapshotRecord], missing: list[tuple[str, ...]]
) -> None:
    cuts = found(a, b)
    assert [cut.missing for cut in cuts] == missing
    assert [cut.is_whole for cut in cuts] == [not each for each in missing]


def test_what_another_volume_has_of_a_cut_is_no_members() -> None:
    assert instants("g", {"c" * 32: [record(1, 1)]}) == []


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (None, CUTS[1]),
        ("first", CUTS[1]),
        ("1111", CUTS[1]),
        ("111", "has no cut 111: `snapfs group show` lists those there are"),
        ("other", "has no cut other: `snapfs group show` lists those there are"),
        ("second", "not whole here: files has none"),
        ("2222", "not whole here: files has none"),
    ],
)
def test_the_cut_that_is_meant_is_offered_only_whole(reference: str | None, expected: str) -> None:
    cuts = found([record(1, 1, name="first"), record(2, 2, name="second")], [record(7, 1, name="first")])
    try:
        outcome = chosen(cuts, reference).group.cut
    except UserError as error:
        outcome = str(error)
    assert outcome.endswith(expected)


@pytest.mark.parametrize("cuts", [[], found([record(1, 1)], [])])
def test_without_a_whole_cut_there_is_no_newest(cuts: list[GroupInstant]) -> None:
    with pytest.raises(UserError):
        chosen(cuts, None)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"db": A, "files": B}, []),
        ({"db": B, "files": A}, ["db", "files"]),
        ({"db": A}, []),
        ({"db": A, "files": "c" * 32}, ["files"]),
    ],
)
def test_a_place_with_another_volume_is_no_members(ids: dict[str, str], expected: list[str]) -> None:
    (cut,) = found([record(1, 1)], [record(7, 1)])
    assert cut.snapshots == {"db": 1, "files": 7}
    assert misplaced(cut, ids) == expected
