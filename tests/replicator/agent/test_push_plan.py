"""What is sent next, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.agent.push_plan import HISTORY_BYTES, Step, StepKind, TargetView, plan
from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, SealStats, SnapshotRecord
from snapfs.store.objects.format import Pointer

SECOND_OF_LINK = 1000.0


def record(number: int, *, size: int = 100, state: str = GOOD, generation: int = 1) -> SnapshotRecord:
    return SnapshotRecord(
        SnapshotNumber(number), None, Generation(generation), None, number * 10**9, number * 10**9, "interval",
        Pointer(Number(number * 10), root(number)), Number(number * 10 + 1), SealStats(stored_bytes=size), state,
    )  # fmt: skip


def root(number: int) -> bytes:
    return b"%016d" % number


def view(*numbers: int, rate: float = SECOND_OF_LINK, dropped: tuple[int, ...] = (), **more: object) -> TargetView:
    """A target that follows drops has these numbers; of `dropped` the source's log has records."""
    if dropped:
        more |= {"follow_drops": True, "dropped": frozenset((SnapshotNumber(each), root(each)) for each in dropped)}
    have = {SnapshotNumber(number): root(number) for number in numbers}
    return TargetView(have, Generation(1), rate, **more)  # type: ignore[arg-type]


def step(kind: StepKind, *numbers: int, base: int | None = None) -> Step:
    snapshots = tuple(SnapshotNumber(number) for number in numbers)
    return Step(kind, snapshots, None if base is None else SnapshotNumber(base))


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        pytest.param([], view(), step(StepKind.DONE), id="nothing anywhere"),
        pytest.param([1], view(), step(StepKind.NEWEST, 1), id="the first one"),
        pytest.param([1, 2, 3], view(), step(StepKind.NEWEST, 3), id="an empty target gets the newest first"),
        pytest.param([1, 2, 3], view(3), step(StepKind.HISTORY, 1, 2), id="then what was before it"),
        pytest.param([1, 2, 3], view(1, 2, 3), step(StepKind.DONE), id="everything is there"),
        pytest.param([1, 2, 3], view(1, 2), step(StepKind.NEXT, 3, base=2), id="one behind"),
        pytest.param([1, 2, 3, 4], view(1), step(StepKind.NEXT, 2, base=1), id="a few behind, soon sent: in order"),
        pytest.param([1, 2, 3, 4], view(1, rate=0), step(StepKind.NEWEST, 4, base=1), id="a few behind, unknown link"),
        pytest.param([1, *range(2, 30)], view(1), step(StepKind.NEWEST, 29, base=1), id="far behind: combined"),
        pytest.param([1, 2, 3, 4], view(1, 4), step(StepKind.HISTORY, 2, 3, base=1), id="fill what was passed over"),
        pytest.param([1, 2, 3, 4], view(1, 4, history=False), step(StepKind.DONE), id="no history wanted"),
        pytest.param(
            [1, 2, 3], view(1, history=False), step(StepKind.NEWEST, 3, base=1), id="no history: the newest only"
        ),
        pytest.param([2, 3], view(1, 2, 3), step(StepKind.DONE), id="dropped here, kept there"),
        pytest.param([2, 3], view(1, 2, 3, dropped=(1,)), step(StepKind.DROP, 1), id="dropped here and there"),
        pytest.param([2, 3], view(1, 2, 3, follow_drops=True), step(StepKind.DONE), id="absent here without a record"),
        pytest.param([3], view(1, 2, 3, dropped=(2,)), step(StepKind.DROP, 2), id="only what a record names"),
        pytest.param(
            [2, 3], view(1, 2, 3, dropped=(1,), held=frozenset({1})), step(StepKind.DONE), id="but held there"
        ),
        pytest.param(
            [2, 3], view(1, 2, 3, dropped=(1,), kept=frozenset({1})), step(StepKind.DONE), id="but locked there"
        ),
        pytest.param([3, 4], view(1, 3, dropped=(1,)), step(StepKind.NEXT, 4, base=3), id="what is new goes first"),
        pytest.param([], view(1, 2, dropped=(1, 2)), step(StepKind.DROP, 1), id="never the newest"),
        pytest.param(
            [8],
            view(*range(1, 9), dropped=tuple(range(1, 8)), most_snapshots=3),
            step(StepKind.DROP, 1, 2, 3),
            id="some at a time",
        ),
        pytest.param(
            [3, 7],
            view(1, 3, 4, left_behind=frozenset({4})),
            step(StepKind.DIVERGED, 4, base=3),
            id="a branch left behind",
        ),
        pytest.param(
            [], view(1, 2, follow_drops=True), step(StepKind.DONE), id="a store that lost its log drops nothing"
        ),
        pytest.param([1, 2, 3], view(2, 3, complete_through=3), step(StepKind.DONE), id="it dropped it itself"),
        pytest.param(
            [1, 2, 3, 4], view(2, 4, complete_through=2), step(StepKind.HISTORY, 3, base=2), id="not this one"
        ),
        pytest.param(
            [1, 2, 3, 4],
            view(3, 4, complete_through=4, owed=frozenset({2})),
            step(StepKind.HISTORY, 2),
            id="it never had it",
        ),
        pytest.param([1, 2], view(1, failed=frozenset({2})), step(StepKind.DONE), id="unreadable here"),
        pytest.param([1, 2], view(1, 2, 3), step(StepKind.DIVERGED, 3, base=2), id="it has what we never had"),
    ],
)
def test_the_next_step(source: list[int], target: TargetView, expected: Step) -> None:
    assert plan([record(number) for number in source], target) == expected


def test_a_damaged_snapshot_is_not_sent_but_exists() -> None:
    source = [record(1), record(2, state=DAMAGED), record(3)]
    assert plan(source, view(1)) == step(StepKind.NEXT, 3, base=1)
    assert plan(source, view(1, 2, 3, follow_drops=True)) == step(StepKind.DONE)


def test_another_snapshot_of_the_same_number_is_another_history() -> None:
    other = TargetView({SnapshotNumber(1): root(1), SnapshotNumber(2): b"x" * 16}, Generation(1))
    assert plan([record(1), record(2), record(3)], other) == step(StepKind.DIVERGED, 2, base=1)


def test_a_drop_record_means_one_snapshot_and_not_another_of_its_number() -> None:
    dropped = frozenset({(SnapshotNumber(1), b"x" * 16)})
    found = TargetView({SnapshotNumber(1): root(1), SnapshotNumber(2): root(2)}, Generation(1), dropped=dropped)
    assert plan([record(2)], replace(found, follow_drops=True)) == step(StepKind.DONE)


def test_history_comes_in_stretches_the_most_recent_first() -> None:
    source = [record(number, size=HISTORY_BYTES // 3) for number in range(1, 9)]
    assert plan(source, view(8)) == step(StepKind.HISTORY, 5, 6, 7)
    assert plan(source, view(5, 6, 7, 8)) == step(StepKind.HISTORY, 2, 3, 4)
    assert plan(source, view(2, 3, 4, 5, 6, 7, 8)) == step(StepKind.HISTORY, 1)
    assert plan(source, view(8, most_snapshots=1)) == step(StepKind.HISTORY, 7)


def test_one_snapshot_larger_than_a_stretch_is_sent_all_the_same() -> None:
    source = [record(1, size=2 * HISTORY_BYTES), record(2)]
    assert plan(source, view(2)) == step(StepKind.HISTORY, 1)


def test_following_the_plan_brings_everything_there() -> None:
    """Whatever the target begins with, and whatever the link carries, the steps come to an end with everything."""
    source = [record(number) for number in range(1, 40)]
    for rate in (0.0, 150.0, 1e9):
        for begin in ([], [1], [39], [5, 6, 20]):
            have = set(begin)
            for _ in range(100):
                found = plan(source, view(*have, rate=rate, most_snapshots=7))
                if found.kind is StepKind.DONE:
                    break
                assert found.sends
                assert not have & set(found.snapshots)
                assert found.base is None or found.base in have
                have |= set(found.snapshots)
            assert have == set(range(1, 40))
