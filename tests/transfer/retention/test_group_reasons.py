"""Which members of a group's cuts stay for the sake of the others: the rule, as a table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.log.group_cuts import OtherMember, kept_for_others
from snapfs.store.log.snapshot_records import CutFacts, GroupCut

OURS, PG, WEB = (digit * 32 for digit in "abc")
FIRST, SECOND = "1" * 32, "2" * 32
IS_KEPT = "it is a member of group shop, whose member pg stays"
UNKNOWN = "it is a member of group shop, and pg cannot be read"


@dataclass(frozen=True)
class Snapshot:
    number: SnapshotNumber
    cut: CutFacts = CutFacts()


def of(number: int, cut: str = "", *members: tuple[str, str]) -> Snapshot:
    named = members or (("us", OURS), ("pg", PG), ("web", WEB))
    return Snapshot(SnapshotNumber(number), CutFacts(group=GroupCut("shop", cut, named)) if cut else CutFacts())


OWN = [of(1), of(2, FIRST), of(3), of(4, SECOND)]
TABLE = [
    ("nobody else", OWN, [], {}),
    ("the others keep nothing", OWN, [OtherMember(PG, frozenset()), OtherMember(WEB, frozenset())], {}),
    ("one keeps one", OWN, [OtherMember(PG, frozenset({FIRST})), OtherMember(WEB, frozenset())], {2: IS_KEPT}),
    ("one keeps both", OWN, [OtherMember(PG, frozenset({FIRST, SECOND}))], {2: IS_KEPT, 4: IS_KEPT}),
    ("a cut that is not ours", OWN, [OtherMember(PG, frozenset({"3" * 32}))], {}),
    ("one cannot be read", OWN, [OtherMember(PG, None)], {2: UNKNOWN, 4: UNKNOWN}),
    (
        "one cannot be read, another keeps", OWN, [OtherMember(PG, None), OtherMember(WEB, frozenset({FIRST}))],
        {2: "it is a member of group shop, whose member web stays", 4: UNKNOWN},
    ),
    ("it was no member then", [of(2, FIRST, ("us", OURS), ("web", WEB))], [OtherMember(PG, frozenset({FIRST}))], {}),
    ("what we keep ourselves says nothing", OWN, [OtherMember("d" * 32, frozenset({FIRST}))], {}),
]  # fmt: skip


@pytest.mark.parametrize(("own", "others", "kept"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_member_stays_while_another_one_does(
    own: list[Snapshot], others: list[OtherMember], kept: dict[int, str]
) -> None:
    assert kept_for_others(own, others) == kept
