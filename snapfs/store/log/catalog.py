"""The snapshots there are, as the log lists them, and what is known of their state.

Invariants:
1. A snapshot is in here from its "snapshot" or "cloned" line on until its "dropped" one.
2. Numbers of snapshots and of objects that the log ever had only grow, also over drops.
3. A name means the newest snapshot that has it. A snapshot that is made here has a name of its own; where snapshots
   come from elsewhere, one that its source has dropped may stay, by its number, when its name is given anew.
4. The lock is held for memory only: a caller never waits for a disk.
5. A record is packed (record_table.py) until it is needed. What is needed with each snapshot, push step or
   status (the newest ones, one by number or name, how many there are) decodes a bounded number of records.
6. What is on a branch is no part of the history: it is found by `find_anywhere` alone, for reading (branches.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from snapfs.base.blocks import Number, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.store.gates.gates import DRILLED, KINDS, Gates, GateTable
from snapfs.store.gates.number_ranges import NumberRanges
from snapfs.store.log import branches, snapshot_records
from snapfs.store.log.claims import TAKEOVERS
from snapfs.store.log.holds import HELD, RELEASED, HoldTable
from snapfs.store.log.log_lines import Event, Line
from snapfs.store.log.record_table import RecordTable
from snapfs.store.log.snapshot_records import DAMAGED, GOOD, SnapshotRecord
from snapfs.store.objects.format import Pointer

GIVEN_UP: Final = "given-up"
"""A line about a snapshot that one member made of a group's cut which did not come to be."""
_PAGE: Final = 64
_CHANGES: Final = 4096
"""So many numbers of snapshots that changed are remembered; who was away for longer looks at everything."""


class Catalog:
    """Thread-safe."""

    def __init__(self, store_dir: str, volume_id: str) -> None:
        self._store_dir, self._volume_id = store_dir, volume_id
        self._lock = threading.Lock()
        self._table = RecordTable()
        self._damaged: set[SnapshotNumber] = set()
        """As the log has it."""
        self._unreadable: set[SnapshotNumber] = set()
        """Their root is not where it must be."""
        self._last_snapshot = SnapshotNumber(0)
        self.last_number = Number(0)
        """The highest object number of any snapshot there ever was."""
        self.takeovers: list[Event] = []
        """The lines of the log by which a host became the writer on purpose (claims.py)."""
        self.last_drill: Event | None = None
        """The newest line of kind "drilled": `snapshot`, `passed`, `recovery_s`, and more for people. Those of an older
        snapshot, tried after that one had failed (`instead_of`), do not hide that it failed."""
        self._gates = GateTable()
        self._given_up: set[SnapshotNumber] = set()
        self.hold_records = HoldTable()
        """What people decided to hold, also of snapshots that are not here (a takeover brings only the newest)."""
        self._branches: dict[tuple[str, SnapshotNumber], SnapshotRecord] = {}
        self._changes: list[SnapshotNumber] = []
        self._changes_before = 0  # how many were forgotten

    def snapshots(self) -> list[SnapshotRecord]:
        """Ascending by number: all of them decoded, for who needs them all at the same time."""
        with self._lock:
            return [self._with_state(record) for record in self._table.page()]

    def pages(self, after: int = 0) -> Iterator[SnapshotRecord]:
        """Those above a number, ascending, of which few are decoded at a time. What comes or goes meanwhile is seen or
        not."""
        while True:
            with self._lock:
                found = [self._with_state(record) for record in self._table.page(after, _PAGE)]
            yield from found
            if len(found) < _PAGE:
                return
            after = found[-1].number

    def newest_first(self) -> Iterator[SnapshotRecord]:
        """One decoded at a time."""
        below: int | None = None
        while (number := self.newest(below)) is not None:
            record = self.get(number)
            if record is not None:
                yield record
            below = number

    def latest(self) -> SnapshotRecord | None:
        return next(self.newest_first(), None)

    def newest(self, below: int | None = None) -> SnapshotNumber | None:
        """The highest number, or the highest below one."""
        with self._lock:
            return self._table.newest(below)

    def get(self, number: int) -> SnapshotRecord | None:
        with self._lock:
            found = self._table.get(number)
            return self._with_state(found) if found is not None else None

    def root(self, number: int) -> Pointer | None:
        with self._lock:
            return self._table.root(number)

    def root_number(self, number: int) -> int | None:
        """The number of the snapshot's root object, which no other snapshot has; None if there is none."""
        found = self.root(number)
        return None if found is None else found.number

    def roots(self) -> list[tuple[SnapshotNumber, Number]]:
        """The root object of each snapshot. Nothing is decoded."""
        with self._lock:
            return self._table.roots()

    def numbers(self, after: int = 0) -> list[SnapshotNumber]:
        """Ascending, those above one."""
        with self._lock:
            return self._table.numbers(after)

    def damaged(self) -> list[SnapshotRecord]:
        """Those that are, by the log or by their root."""
        with self._lock:
            bad = sorted(number for number in self._damaged | self._unreadable if number in self._table)
            return [self._with_state(record) for number in bad if (record := self._table.get(number)) is not None]

    def unreadable(self) -> list[SnapshotNumber]:
        with self._lock:
            return sorted(self._unreadable)

    def is_taken(self, name: str) -> bool:
        with self._lock:
            return self._taken_by(name) is not None

    def _taken_by(self, name: str) -> SnapshotNumber | None:
        number = self._table.newest_named(name)
        return None if number in self._given_up else number

    def newest_named(self, name: str) -> SnapshotNumber | None:
        with self._lock:
            return self._table.newest_named(name)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, number: object) -> bool:
        with self._lock:
            return number in self._table

    @property
    def decoded(self) -> int:
        """How many records were decoded so far."""
        return self._table.decoded

    @property
    def changes(self) -> int:
        """How many times a snapshot came, went or changed its state; it only grows."""
        with self._lock:
            return self._changes_before + len(self._changes)

    def changed_since(self, changes: int) -> set[SnapshotNumber] | None:
        """The snapshots to which something happened since `changes` was that; None if that is not known any more."""
        with self._lock:
            if changes < self._changes_before:
                return None
            return set(self._changes[changes - self._changes_before :])

    def find(self, ref: str) -> SnapshotRecord:
        """By number or name. Raises UserError if there is none."""
        with self._lock:
            number = int(ref) if ref.isdecimal() else self._table.newest_named(ref)
            found = self._table.get(number) if number is not None else None
            if found is not None:
                return self._with_state(found)
        raise UserError(f"there is no snapshot {ref!r}; `snapfs list` shows those there are")

    def branches(self) -> list[SnapshotRecord]:
        """The snapshots of branches, by branch and number."""
        with self._lock:
            return [self._branches[key] for key in sorted(self._branches)]

    def gates(self, number: SnapshotNumber) -> Gates:
        """What the snapshot has passed since it was sealed."""
        with self._lock:
            return self._gates.of(number)

    def copies(self, number: SnapshotNumber) -> frozenset[str]:
        """The targets that have the snapshot, as the log has it; by name."""
        with self._lock:
            return self._gates.copies(number)

    def on_target(self, name: str) -> NumberRanges:
        """The snapshots that a target has, as the log has it."""
        with self._lock:
            return self._gates.on_target(name)

    def passed_gates(self) -> list[tuple[SnapshotNumber, Gates]]:
        """The snapshots that have passed some gate but replication, ascending."""
        with self._lock:
            return list(self._gates.passed())

    def put_gates(self, number: SnapshotNumber, gates: Gates) -> None:
        """What a target reports of a snapshot, where there is no log to follow."""
        with self._lock:
            self._gates.put(number, gates)

    @property
    def gate_changes(self) -> int:
        """How many times a gate was passed or lost; it only grows."""
        return self._gates.changes

    @property
    def whole_pass_ns(self) -> int:
        """When all that the store has was verified last, by the log; 0: never."""
        return self._gates.whole_pass_ns

    def find_anywhere(self, ref: str) -> SnapshotRecord:
        """As `find`, and `BRANCH/N`, `BRANCH/NAME`, or `BRANCH` for its newest. UserError if there is none."""
        try:
            return self.find(ref)
        except UserError:
            found = branches.find(self.branches(), ref)
            if found is None:
                raise
            return found

    def add_branch(self, record: SnapshotRecord) -> None:
        """Of a snapshot on a branch; its `branch` has the name."""
        with self._lock:
            self._branches[record.branch, record.number] = record

    @property
    def damaged_count(self) -> int:
        """How many snapshots are damaged, by the log or because their root is not where it must be."""
        with self._lock:
            return len(self._damaged | self._unreadable)

    def next_number(self, name: str | None) -> SnapshotNumber:
        """For a snapshot of this name. Raises UserError if the name is taken or cannot be one."""
        with self._lock:
            if name is not None:
                snapshot_records.check_name(name)
                taken = self._taken_by(name)
                if taken is not None:
                    raise UserError(f"the name {name!r} is that of snapshot {taken} already: choose another")
            return SnapshotNumber(self._last_snapshot + 1)

    def apply(self, line: Line) -> None:
        """Take in a line of the log. Raises UserError if it is that of another volume."""
        record_fields = line.record_fields
        if record_fields is not None:
            with self._lock:
                self._table.put_fields(record_fields)
                self._added(SnapshotNumber(record_fields.number), Number(record_fields.last_number))
            return
        fields = line.event.fields
        if line.kind == "created" and fields["volume"] != self._volume_id:
            raise UserError(f"{self._store_dir} is the store of another volume ({fields['volume']})")
        if line.kind in ("dropped", "aside"):
            self.remove(fields["snapshot"])
            if line.kind == "aside":
                self.hold_records.forget(fields["snapshot"])
                self.add_branch(snapshot_records.from_fields(fields["record"]).on_branch(fields["branch"]))
        elif line.kind in ("damaged", "repaired"):
            self.set_state(fields["snapshot"], DAMAGED if line.kind == "damaged" else GOOD)
        elif line.kind in TAKEOVERS:
            self.takeovers.append(line.event)
        else:
            self.note(line.event)

    def note(self, event: Event) -> None:
        """Take in a line that changes no snapshot: about a gate, or what people hold."""
        if event.kind == DRILLED and not event.fields.get("instead_of"):
            self.last_drill = event
        with self._lock:
            if event.kind in KINDS:
                self._gates.apply(event.kind, event.time_ns, event.fields, self._table.numbers_between)
            elif event.kind in (HELD, RELEASED):
                self.hold_records.take(event)
            elif event.kind == GIVEN_UP and event.fields["snapshot"] in self._table:
                self._given_up.add(SnapshotNumber(event.fields["snapshot"]))

    def given_up(self) -> list[SnapshotNumber]:
        """Snapshots of a group's cut that was given up when they were made already: no part of a group, and to go."""
        with self._lock:
            return sorted(self._given_up)

    def add(self, record: SnapshotRecord) -> None:
        with self._lock:
            self._table.put(record)
            self._added(record.number, record.last_number)
            if record.state == DAMAGED:
                self._damaged.add(record.number)

    def is_newer(self, record: SnapshotRecord) -> bool:
        """Than all that there ever was."""
        with self._lock:
            return record.number > self._last_snapshot and record.root.number <= record.last_number > self.last_number

    def remove(self, number: SnapshotNumber) -> None:
        with self._lock:
            self._table.remove(number)
            self._given_up.discard(number)
            self._damaged.discard(number)
            self._unreadable.discard(number)
            self._gates.remove(number)
            self._changed(number)

    def clear(self) -> None:
        """Before the log is followed from its beginning again."""
        with self._lock:
            self._changes_before += len(self._changes) + 1  # whatever was known may be another now
            self._changes.clear()
            self._table.clear()
            self._damaged.clear()
            self._unreadable.clear()
            self.takeovers.clear()
            self.last_drill = None
            self._gates.clear()
            self.hold_records.clear()
            self._given_up.clear()
            self._branches.clear()

    def recorded_state(self, number: SnapshotNumber) -> str:
        """Its state by the log. Raises UserError if there is no such snapshot."""
        self.find(str(number))
        return DAMAGED if number in self._damaged else GOOD

    def set_state(self, number: SnapshotNumber, state: str) -> None:
        with self._lock:
            if number in self._table:
                (self._damaged.add if state == DAMAGED else self._damaged.discard)(number)
                if state == DAMAGED:
                    self._gates.damaged(number)
                self._changed(number)

    def set_readable(self, number: SnapshotNumber, readable: bool) -> bool:
        """Note whether its root is where it must be; False if that was known."""
        with self._lock:
            if readable == (number not in self._unreadable):
                return False
            (self._unreadable.discard if readable else self._unreadable.add)(number)
            self._changed(number)
            return True

    def check_invariants(self) -> None:
        with self._lock:
            self._table.check_invariants()
            assert all(number in self._table for number in self._damaged | self._unreadable)
        found = self.snapshots()
        assert all(record.last_number <= self.last_number for record in found)
        assert all(record.number <= self._last_snapshot for record in found)

    def _added(self, number: SnapshotNumber, last: Number) -> None:
        self._last_snapshot = max(self._last_snapshot, number)
        self.last_number = max(self.last_number, last)
        self._damaged.discard(number)
        self._gates.remove(number)
        self._changed(number)

    def _changed(self, number: SnapshotNumber) -> None:
        self._changes.append(number)
        if len(self._changes) > _CHANGES:
            half = len(self._changes) // 2
            self._changes_before += half
            del self._changes[:half]

    def _with_state(self, record: SnapshotRecord) -> SnapshotRecord:
        is_bad = record.number in self._damaged or record.number in self._unreadable
        return record.with_state(DAMAGED) if is_bad else record
