"""What the snapshots of a history have passed, as its sources know it: it comes back with the history.

A takeover brings one snapshot, a standby and a fetch all of them. What was found out about each elsewhere is a line of
the new log, with the time at which it was found out and who brought it: a drill says that this state recovers, on
whatever host; a verification, that what it was made of was whole there.
"""

from __future__ import annotations

from collections.abc import Sequence

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.gates.gate_entries import GateEntry, lines_for
from snapfs.store.gates.gates import Gates
from snapfs.store.repository.repository import Repository
from snapfs.transfer.lazy.snapshot_choice import gates_of
from snapfs.transfer.sources.sources import Source


def take_in_gates(repository: Repository, sources: Sequence[Source], by: str) -> None:
    """Record what is later than what is known here, of the snapshots that are here. A source that does not answer is
    passed over. `by`: who brings it. OSError. Of the store's writer."""
    catalog = repository.catalog
    entries = [GateEntry(*key, gates) for key, gates in gates_of(list(sources)).items()]
    for line in lines_for(entries, lambda number: catalog.gates(SnapshotNumber(number)), catalog.root_number):
        repository.record_event(line.pop("kind"), **line, by=by)


def drill_lines(gates: Gates, number: SnapshotNumber | str) -> list[str]:
    """For people, of a snapshot that is taken over: that the application did not recover from it in a drill."""
    if not gates.is_bad:
        return []
    check = f" ({gates.check})" if gates.check else ""
    return [f"the drill of snapshot {number} failed{check}: the application may not recover from it"]
