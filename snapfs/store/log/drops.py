"""Drop records: which snapshots this volume's log has as dropped, by which rule or person.

A "dropped" line of snapshots.log has the number of the snapshot and, since this version, `by` and `why`. It is the only
thing that makes a target drop a snapshot, too: what a store never had, it has no statement about. A volume that took
over begins with one snapshot and an empty past; a log may have lost its end; a store may be a copy of an older time.
In each case a snapshot is absent here without a record, and stays wherever it is.

Invariants:
1. A drop is of one snapshot: number and root content hash. Another snapshot of that number, of another branch, is not
   meant.
2. What left a standby's window of recent snapshots (WINDOW), or was dropped by the rules for one target alone (TARGET),
   was never dropped from the history. A line without `by`, of
   an earlier version, is WINDOW's if the volume was taken over afterwards ("remounted"): only a standby wrote lines
   before that. All other records travel.
3. Memory is bounded by what is here and what a target has; what was forgotten is read from the log again if need be.

A record stays in the log for ever. If the host that wrote it is replaced before a target heard of it, that target keeps
the snapshot until a person drops it there (`snapfs-replicator drop`): too much is kept, never too little.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.store.log import snapshot_records
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.objects.number_set import NumberSet

PERSON: Final = "person"
POLICY: Final = "policy"
WRITER: Final = "writer"
"""On a target: the volume's writer sent its own record."""
TARGET: Final = "target"
"""On a target: by the rules that are for it alone. Like the next, such a record is none about other places."""
WINDOW: Final = "window"
"""A standby keeps the last few snapshots; the history is elsewhere, and does not have this."""

Dropped = frozenset[tuple[SnapshotNumber, bytes]]
"""Number and root content hash of each."""


class Drops:
    """Follows one store's log. One thread at a time."""

    def __init__(self, path: str, disk: Disk) -> None:
        """`path` of snapshots.log. Raises UserError if there is none."""
        self._log = SnapshotLog(path, disk, readonly=True)
        self._begin()
        self._undropped = NumberSet()  # numbers that were looked up, and that no record has

    def close(self) -> None:
        self._log.close()

    def among(
        self, numbers: Iterable[SnapshotNumber], there: Collection[SnapshotNumber], *, by_rules: bool = True
    ) -> Dropped:
        """The drop records of these numbers, which are not here; `there`: all that the target has.

        Without `by_rules` only those of persons: a target with rules of its own does not follow those of this host.
        Raises CorruptionError, VersionError, OSError.
        """
        self._follow()
        wanted = list(numbers)
        unknown = [each for each in wanted if each not in self._dropped and each not in self._undropped]
        if unknown and self._forgot:
            self._log.rewind()
            self._begin()
            self._follow()
        for number in wanted:
            if number not in self._dropped:
                self._undropped.add(number)
        found = frozenset(
            (number, root)
            for number in wanted for root in self._dropped.get(number, ())
            if by_rules or (number, root) not in self._by_rule
        )  # fmt: skip
        self._forget(there)
        return found

    def _begin(self) -> None:
        self._here: dict[SnapshotNumber, bytes] = {}
        self._dropped: dict[SnapshotNumber, set[bytes]] = {}
        self._unsigned: set[SnapshotNumber] = set()  # of `_dropped`, those without `by`
        self._by_rule: set[tuple[SnapshotNumber, bytes]] = set()  # of `_dropped`, those that a rule decided
        self._forgot = False

    def _follow(self) -> None:
        for event in self._log.follow():
            self._take(event)

    def _take(self, event: Event) -> None:
        if event.kind in ("snapshot", "cloned"):
            record = snapshot_records.from_fields(event.fields)
            self._here[record.number] = record.root.content_hash
        elif event.kind == "dropped":
            self._take_drop(SnapshotNumber(event.fields["snapshot"]), event.fields.get("by", ""))
        elif event.kind == "remounted":
            for number in self._unsigned:
                self._dropped.pop(number, None)
            self._unsigned.clear()

    def _take_drop(self, number: SnapshotNumber, by: str) -> None:
        root = self._here.pop(number, None)
        if root is None or by in (WINDOW, TARGET):
            return
        if by == POLICY:
            self._by_rule.add((number, root))
        self._dropped.setdefault(number, set()).add(root)
        if not by:
            self._unsigned.add(number)

    def _forget(self, there: Collection[SnapshotNumber]) -> None:
        gone = [number for number in self._dropped if number not in there]
        for number in gone:
            self._by_rule -= {(number, root) for root in self._dropped.pop(number)}
            self._unsigned.discard(number)
        self._forgot |= bool(gone)
