"""The next step, found where something has changed, is the one that a look at everything gives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.agent.push_plan import Step, StepKind, TargetView, plan
from replicator.agent.snapshot_difference import Compared
from replicator.targets.folder_target import DirectoryTarget
from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.store.log.catalog import Catalog
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, SealStats, SnapshotRecord
from snapfs.store.objects.format import Pointer
from tests.fakes.replication.push_source import SourceVolume, feeder


def record(number: int, root: bytes | None = None) -> SnapshotRecord:
    return SnapshotRecord(
        SnapshotNumber(number), None, Generation(1), None, number, number, "interval",
        Pointer(Number(number * 10), root or b"%016d" % number), Number(number * 10 + 1), SealStats(stored_bytes=100),
    )  # fmt: skip


class Model:
    """A source and a target, of which the model knows everything."""

    def __init__(self, rng: random.Random, *, history: bool, follow: bool) -> None:
        self.rng, self.history, self.follow = rng, history, follow
        self.catalog, self.compared = Catalog("store", "ab" * 16), Compared()
        self.there: dict[SnapshotNumber, SnapshotRecord] = {}
        self.dropped: set[tuple[SnapshotNumber, bytes]] = set()
        self.kept: set[SnapshotNumber] = set()
        self.failed: set[SnapshotNumber] = set()
        self.complete_through = SnapshotNumber(0)
        self.rate = 0.0
        self.last = 0

    def view(self, numbers: Sequence[SnapshotNumber]) -> TargetView:
        return TargetView(
            {number: self.there[number].root.content_hash for number in numbers}, Generation(1), self.rate,
            self.history, self.follow, frozenset((n, root) for n, root in self.dropped if n not in self.catalog and n in
            numbers), frozenset(self.kept), failed=frozenset(self.failed), complete_through=self.complete_through,
            most_snapshots=5,
        )  # fmt: skip

    async def view_of(self, numbers: Sequence[SnapshotNumber], absent: list[SnapshotNumber]) -> TargetView:
        assert absent == [number for number in numbers if number not in self.catalog]
        return self.view(numbers)

    def reopen(self) -> None:
        self.kept.clear()
        self.complete_through = min(self.complete_through, max(self.there, default=SnapshotNumber(0)))
        self.compared.opened(self.there[number] for number in sorted(self.there))

    def happen(self) -> None:
        """Something at the source, or at the target."""
        some = self.rng.choice(self.catalog.numbers() or [SnapshotNumber(1)])
        match self.rng.randrange(14):
            case 0 | 1 | 2 | 3 | 4:
                for _ in range(self.rng.choice([1, 1, 1, 3])):
                    self.last += 1
                    self.catalog.add(record(self.last))
            case 5 | 6 | 7 if some in self.catalog:
                root = self.catalog.root(some)
                assert root is not None
                if self.rng.randrange(4):
                    self.dropped.add((some, root.content_hash))
                self.catalog.remove(some)
            case 8:
                self.catalog.set_state(some, self.rng.choice([GOOD, DAMAGED]))
            case 9:
                self.rate = self.rng.choice([0.0, 1e6])
            case 10:  # it is put back from an older copy, or loses one
                for number in self.rng.sample(sorted(self.there), min(2, len(self.there))):
                    del self.there[number]
                self.reopen()
            case 11 if self.there and not self.rng.randrange(3):
                number = self.rng.choice(sorted(self.there))
                self.there[number] = record(number, b"another".ljust(16))
                self.reopen()
            case 12 if not self.rng.randrange(3):
                self.failed.add(SnapshotNumber(self.last))
            case 13:
                self.reopen()

    def take(self, step: Step) -> None:
        if step.sends:
            for number in step.snapshots:
                found = self.catalog.get(number)
                assert found is not None
                self.there[number] = replace(found, state=GOOD)
                self.compared.put(self.there[number])
        elif step.kind is StepKind.DROP:
            for number in step.snapshots:
                if self.rng.randrange(5):
                    del self.there[number]
                    self.compared.remove(number)
                else:
                    self.kept.add(number)
        elif step.kind is StepKind.DIVERGED:
            for number in step.snapshots:
                self.there.pop(number, None)
            self.reopen()
        elif self.history:
            self.complete_through = max(self.there, default=SnapshotNumber(0))


@pytest.mark.parametrize("seed", range(12))
def test_a_step_found_by_what_changed_is_the_step_found_by_everything(seed: int) -> None:
    rng = random.Random(seed)
    model = Model(rng, history=bool(seed & 1), follow=bool(seed & 2))

    async def story() -> None:
        kinds: set[StepKind] = set()
        for _ in range(500):
            model.happen()
            for _ in range(rng.choice([0, 1, 1, 4])):
                step = await model.compared.next_step(model.catalog, model.view_of)
                assert step == plan(model.catalog.snapshots(), model.view(sorted(model.there)))
                kinds.add(step.kind)
                model.take(step)
        assert {StepKind.NEXT, StepKind.NEWEST, StepKind.DONE, StepKind.DIVERGED} <= kinds
        assert (StepKind.HISTORY in kinds, StepKind.DROP in kinds) == (model.history, model.follow)

    asyncio.run(story())


@pytest.mark.parametrize("drops", [False, True])
def test_a_step_on_a_long_history_looks_at_what_changed(drops: bool) -> None:
    """A push step with 3,000 snapshots on both sides, one more, and (as by a policy) the oldest one dropped."""
    model = Model(random.Random(1), history=True, follow=True)
    for number in range(1, 3001):
        model.catalog.add(record(number))
        model.there[SnapshotNumber(number)] = record(number)
    model.last = 3000
    model.reopen()

    async def story() -> None:
        assert (await model.compared.next_step(model.catalog, model.view_of)).kind is StepKind.DONE
        for turn in range(1, 20):
            model.last += 1
            model.catalog.add(record(model.last))
            if drops:
                model.dropped.add((SnapshotNumber(turn), record(turn).root.content_hash))
                model.catalog.remove(SnapshotNumber(turn))
            seen, decoded = model.compared.looked_at, model.catalog.decoded
            for kind in (StepKind.NEXT, StepKind.DROP, StepKind.DONE) if drops else (StepKind.NEXT, StepKind.DONE):
                step = await model.compared.next_step(model.catalog, model.view_of)
                assert step.kind is kind
                model.take(step)
            assert model.compared.looked_at - seen <= 9
            assert model.catalog.decoded - decoded <= 9

    asyncio.run(story())


def test_a_new_snapshot_and_its_push_decode_few_records_of_a_real_history(tmp_path: Path) -> None:
    """Sealing, noticing and sending one more snapshot: the same work after 20 snapshots and after 120."""
    source = SourceVolume(tmp_path / "source", seed=5)

    async def work_of_one_more(snapshots: int) -> tuple[int, int]:
        source.grow(snapshots, steps=1)
        made = feeder(source, DirectoryTarget(str(tmp_path / "target")))
        await made.run_once()
        catalogs = [source.history.repository.catalog, made.session.source.repository.catalog]
        before, looked_at = sum(each.decoded for each in catalogs), made.session.compared.looked_at
        source.grow(1, steps=1)
        await made.thread.refresh()
        step = await made.session.plan()
        assert step.kind is StepKind.NEXT
        await made.take(step)
        assert (await made.session.plan()).kind is StepKind.DONE
        work = sum(each.decoded for each in catalogs) - before, made.session.compared.looked_at - looked_at
        await made.close()
        return work

    async def story() -> None:
        first, last = await work_of_one_more(20), await work_of_one_more(100)
        assert last == first
        assert max(last) <= 12

    asyncio.run(story())
    source.close()
