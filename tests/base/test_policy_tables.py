"""What to keep, as a table (when to cut: schedule/test_rules_tables.py)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.settings.policy import expired


@dataclass(frozen=True)
class Past:
    number: SnapshotNumber
    trigger: str = "interval"
    name: str | None = None


def past(*numbers: int) -> list[Past]:
    return [Past(SnapshotNumber(number)) for number in numbers]


@pytest.mark.parametrize(
    ("snapshots", "keep", "gone"),
    [
        ([], 1, []),
        (past(1, 2, 3), 0, []),
        (past(1, 2, 3), 3, []),
        (past(1, 2, 3), 2, [1]),
        (past(3, 1, 2), 1, [1, 2]),
        ([*past(1, 2), Past(SnapshotNumber(3), "control")], 1, [1]),
        ([Past(SnapshotNumber(1), "control"), *past(2, 3)], 1, [2]),
        ([Past(SnapshotNumber(1), name="kept"), *past(2, 3)], 1, [2]),
        ([Past(SnapshotNumber(1), "objective"), Past(SnapshotNumber(2), "lull"), *past(3)], 1, [1, 2]),
    ],
)
def test_what_to_keep(snapshots: list[Past], keep: int, gone: list[int]) -> None:
    assert expired(snapshots, keep) == gone
