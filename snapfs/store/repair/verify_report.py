"""What `verify` reports: which objects are bad, and which snapshots need them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repair.damage_report import BadObject


@dataclass(slots=True)
class Report:
    """What `verify` found. `objects` and `stored_bytes` were read.

    `bad_objects` is how many are bad; `bad` has the first thousand of them, ascending by number. `damaged_snapshots`
    are all that cannot be restored in full, ascending.
    """

    snapshots: int = 0
    objects: int = 0
    stored_bytes: int = 0
    bad_objects: int = 0
    bad: list[BadObject] = field(default_factory=list)
    damaged_snapshots: list[SnapshotNumber] = field(default_factory=list)
    bad_numbers: NumberSet = field(default_factory=NumberSet)
    """Of all objects that are bad, reported one by one or not."""
    lost_records: list[SnapshotNumber] = field(default_factory=list)
    """Snapshots whose record has no readable copy in its segment; part of `other_damage`."""
    chosen: list[SnapshotNumber] = field(default_factory=list)
    """All that were verified."""
    other_damage: list[str] = field(default_factory=list)
    """A line each for what keeps no snapshot from being restored: a copy of a record in a segment that cannot be read,
    a root that does not continue the one that the record calls its parent."""

    @property
    def is_whole(self) -> bool:
        """Good, and nothing lost that is only needed to rebuild the log."""
        return self.is_good and not self.lost_records

    @property
    def is_good(self) -> bool:
        return not self.bad_objects and not self.other_damage

    @property
    def intact(self) -> list[SnapshotNumber]:
        """Those of which everything was read back, and is good."""
        bad = {*self.damaged_snapshots, *self.lost_records}
        return [number for number in self.chosen if number not in bad]

    def facts(self) -> dict[str, Any]:
        """As JSON. `bad_objects` has the first thousand, `bad_count` is how many there are."""
        return {
            "good": self.is_good,
            "snapshots": self.snapshots,
            "damaged_snapshots": self.damaged_snapshots,
            "objects": self.objects,
            "stored_bytes": self.stored_bytes,
            "bad_count": self.bad_objects,
            "bad_objects": [asdict(bad) for bad in self.bad],
            "other_damage": self.other_damage,
        }

    def why(self, number: SnapshotNumber) -> str:
        """What is wrong with a damaged snapshot, in a line; empty if nothing is."""
        if number not in self.damaged_snapshots:
            return ""
        first = next((bad.why for bad in self.bad if number in bad.snapshots), None)
        return first or f"it needs some of the {self.bad_objects} objects that are bad"
