"""The snapshots there are, as the log tells them, and what is known of their state.

Invariants:
1. A snapshot is in here from its "snapshot" or "cloned" line on until its "dropped" one.
2. Numbers of snapshots and of objects that the log ever told of only grow, also over drops.
3. A name means the newest snapshot that has it. A snapshot that is made here has a name of its own; where snapshots
   come from elsewhere, one that its source has dropped may stay, by its number, when its name is given anew.
4. The lock is held for memory only: who asks never waits for a disk.
"""

from __future__ import annotations

import threading

from snapfs.blocks import Number, SnapshotNumber
from snapfs.errors import UserError
from snapfs.store import records
from snapfs.store.log import Event
from snapfs.store.records import DAMAGED, GOOD, SnapshotRecord


class Catalog:
    """Thread-safe."""

    def __init__(self, store_dir: str, volume_id: str) -> None:
        self._store_dir, self._volume_id = store_dir, volume_id
        self._lock = threading.Lock()
        self._records: dict[SnapshotNumber, SnapshotRecord] = {}
        self._unreadable: set[SnapshotNumber] = set()
        """Their root is not where it must be; what the log says of damage is in the records themselves."""
        self._last_snapshot = SnapshotNumber(0)
        self.last_number = Number(0)
        """The highest object number of any snapshot there ever was."""

    def snapshots(self) -> list[SnapshotRecord]:
        """Ascending by number."""
        with self._lock:
            return [self._with_state(self._records[number]) for number in sorted(self._records)]

    def latest(self) -> SnapshotRecord | None:
        with self._lock:
            return self._with_state(self._records[max(self._records)]) if self._records else None

    def find(self, ref: str) -> SnapshotRecord:
        """By number or name. Raises UserError if there is none."""
        with self._lock:
            found = self._records.get(SnapshotNumber(int(ref))) if ref.isdecimal() else self._named(ref)
            if found is not None:
                return self._with_state(found)
        raise UserError(f"there is no snapshot {ref!r}; `snapfs list` shows those there are")

    def next_number(self, name: str | None) -> SnapshotNumber:
        """For a snapshot of this name. Raises UserError if the name is taken or cannot be one."""
        with self._lock:
            if name is not None:
                records.check_name(name)
                taken = self._named(name)
                if taken is not None:
                    raise UserError(f"the name {name!r} is that of snapshot {taken.number} already")
            return SnapshotNumber(self._last_snapshot + 1)

    def apply(self, event: Event) -> None:
        """Take in a line of the log. Raises UserError if it is that of another volume."""
        fields = event.fields
        if event.kind == "created" and fields["volume"] != self._volume_id:
            raise UserError(f"{self._store_dir} is the store of another volume ({fields['volume']})")
        if event.kind in ("snapshot", "cloned"):
            self.add(records.from_fields(fields))
        elif event.kind in ("dropped", "aside"):
            self.remove(fields["snapshot"])
        elif event.kind in ("damaged", "repaired"):
            self.set_state(fields["snapshot"], DAMAGED if event.kind == "damaged" else GOOD)

    def add(self, record: SnapshotRecord) -> None:
        with self._lock:
            self._records[record.number] = record
            self._last_snapshot = max(self._last_snapshot, record.number)
            self.last_number = max(self.last_number, record.last_number)

    def remove(self, number: SnapshotNumber) -> None:
        with self._lock:
            self._records.pop(number, None)
            self._unreadable.discard(number)

    def clear(self) -> None:
        with self._lock:
            self._records.clear()
            self._unreadable.clear()

    def told_state(self, number: SnapshotNumber) -> str:
        """What the log says of it. Raises UserError if there is no such snapshot."""
        self.find(str(number))
        return self._records[number].state

    def set_state(self, number: SnapshotNumber, state: str) -> None:
        with self._lock:
            if number in self._records:
                self._records[number] = self._records[number].with_state(state)

    def set_readable(self, number: SnapshotNumber, readable: bool) -> bool:
        """Note whether its root is where it must be; False if that was known."""
        with self._lock:
            if readable == (number not in self._unreadable):
                return False
            (self._unreadable.discard if readable else self._unreadable.add)(number)
            return True

    def check_invariants(self) -> None:
        found = self.snapshots()
        assert all(record.last_number <= self.last_number for record in found)
        assert all(record.number <= self._last_snapshot for record in found)

    def _named(self, name: str) -> SnapshotRecord | None:
        named = (record for record in self._records.values() if record.name == name)
        return max(named, key=lambda record: record.number, default=None)

    def _with_state(self, record: SnapshotRecord) -> SnapshotRecord:
        return record.with_state(DAMAGED) if record.number in self._unreadable else record
