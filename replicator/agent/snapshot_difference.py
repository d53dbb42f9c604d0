"""What a target has, beside what its source has; and the next step between them, found where something has changed.

Comparing the two takes as long as the history. But where they once agreed and nothing happened since, they agree: so
the comparison is kept, and `next_step` looks at the numbers to which something happened. With a snapshot a second on a
history of thousands that is a handful.

Invariants:
1. `next_step` gives what `push.plan` gives for everything that both sides have.
2. `_settled` is the target's newest snapshot of a moment when there was nothing to do up to it: nothing lacking that is
   wanted, nothing to drop or to branch off. It is given up when the target is opened anew, when another log takes
   the place of the source's, and when that snapshot is not the same on both sides any more.
3. What may make work below `_settled` is a change in the source's catalog (which counts them), and nothing else: what a
   target keeps, holds or loses is learned by opening it.
4. `there` changes by `opened`, `put` and `remove` alone, so that `present` follows at the cost of what changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from replicator.agent.push_plan import Step, StepKind, TargetView, plan
from snapfs.base.blocks import SnapshotNumber
from snapfs.store.gates.number_ranges import NumberRanges
from snapfs.store.log.catalog import Catalog
from snapfs.store.log.record_table import RecordTable
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord

ViewOf = Callable[[Sequence[SnapshotNumber], list[SnapshotNumber]], Awaitable[TargetView]]
"""Makes the view of a target of those of its snapshots that are looked at; the second are those the source lacks."""

_FAR_BELOW = frozenset({StepKind.DIVERGED, StepKind.HISTORY})
"""Steps that depend on more than what has changed."""


class Compared:
    """One target and one source. One task at a time; the catalog may change meanwhile."""

    def __init__(self) -> None:
        self.there = RecordTable()
        """All of the target's history."""
        self._catalog: Catalog | None = None
        self._settled: SnapshotNumber | None = None
        self._changes = 0  # of the catalog, when it was settled
        self.is_open = False
        self._bad_there: set[SnapshotNumber] = set()  # the target's own state of them: damaged
        self._present = NumberRanges()
        self._present_of: tuple[Catalog, int] | None = None  # as of which change of which catalog; None: make it anew
        self._touched: set[SnapshotNumber] = set()  # in `there`, since then
        self.looked_at = 0
        """How many numbers have been compared so far: the work that has to stay bounded."""

    def opened(self, snapshots: Iterable[SnapshotRecord]) -> None:
        """The target reports that it has these."""
        self.there.clear()
        self._bad_there.clear()
        for record in snapshots:
            self.there.put(record)
            if record.state != GOOD:
                self._bad_there.add(record.number)
        self._settled, self._present_of, self.is_open = None, None, True

    def put(self, record: SnapshotRecord) -> None:
        """The target has acknowledged it."""
        self.there.put(record)
        self._touched.add(record.number)
        self._bad_there.discard(record.number)

    def remove(self, number: SnapshotNumber) -> None:
        """The target has dropped it."""
        self.there.remove(number)
        self._touched.add(number)

    def present(self, catalog: Catalog) -> NumberRanges | None:
        """The snapshots of the source that the target has, the same ones and whole there; None before it was opened."""
        if not self.is_open:
            return None
        changes = catalog.changes
        changed = None
        if self._present_of is not None and self._present_of[0] is catalog:
            changed = catalog.changed_since(self._present_of[1])
        if changed is None:
            self._present = NumberRanges.of(number for number in self.there if self._is_present(catalog, number))
        else:
            for number in changed | self._touched:
                (self._present.add if self._is_present(catalog, number) else self._present.discard)(number)
        self._touched.clear()
        self._present_of = catalog, changes
        return self._present

    def _is_present(self, catalog: Catalog, number: SnapshotNumber) -> bool:
        root = self.there.root(number)
        return root is not None and root == catalog.root(number) and number not in self._bad_there

    def newest_common(self, catalog: Catalog, *, same: bool = True) -> SnapshotNumber | None:
        """The newest number that both have; with `same`, of the same snapshot."""
        number = self.there.newest()
        while number is not None:
            root = catalog.root(number)
            if root is not None and (not same or root == self.there.root(number)):
                return number
            number = self.there.newest(number)
        return None

    async def next_step(self, catalog: Catalog, view_of: ViewOf) -> Step:
        changes = catalog.changes
        numbers = self._unsettled(catalog)
        if numbers is not None:
            step = await self._planned(catalog, view_of, numbers, changes)
            if step.kind not in _FAR_BELOW:
                return step
            self._settled = None
        return await self._planned(catalog, view_of, sorted({*catalog.numbers(), *self.there.numbers()}), changes)

    def _unsettled(self, catalog: Catalog) -> list[SnapshotNumber] | None:
        """The numbers that may make work, None for all; the settled one, which is common, is always among them."""
        settled = self._settled
        if settled is None or self._catalog is not catalog:
            return None
        changed = catalog.changed_since(self._changes)
        root = self.there.root(settled)
        if changed is None or root is None or catalog.root(settled) != root:
            return None
        return sorted({settled, *changed, *catalog.numbers(settled), *self.there.numbers(settled)})

    async def _planned(self, catalog: Catalog, view_of: ViewOf, numbers: list[SnapshotNumber], changes: int) -> Step:
        self.looked_at += len(numbers)
        here = [record for number in numbers if (record := catalog.get(number)) is not None]
        existing = {record.number for record in here}
        there = [number for number in numbers if number in self.there]
        view = await view_of(there, [number for number in there if number not in existing])
        self._settle(catalog, here, view, changes)
        return plan(here, view)

    def _settle(self, catalog: Catalog, here: list[SnapshotRecord], view: TargetView, changes: int) -> None:
        newest = self.there.newest()
        if newest is None or view.snapshots.get(newest) is None:
            return
        if plan([record for record in here if record.number <= newest], view).kind is StepKind.DONE:
            root = self.there.root(newest)
            if root is not None and catalog.root(newest) == root:
                self._catalog, self._settled, self._changes = catalog, newest, changes
