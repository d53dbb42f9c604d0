"""Writes what people decided to hold into a store: by a command, or as a record that came from elsewhere.

A hold is a file of the store (store/log/holds.py, holder `person.NUMBER`), so that everything which drops sees it, and
a record of the log: "held" {snapshot, until_ns, why} or "released" {snapshot}. A record that came from elsewhere, or
whose time is not that of its line, has it in `decided_ns`.

Invariants:
1. The file is what protects. It is durable before the record, and removed after it: a crash between leaves a snapshot
   that is held, and the command, which failed, can be repeated; a record is sent again.
2. Of one snapshot the record with the latest time counts: taking in the same records again, or older ones, changes
   nothing. A record of a snapshot that is not there (yet) is taken in as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.log.holds import FOR_EVER_S, HELD, RELEASED, HoldRecord, Holds, holder_of, latest
from snapfs.store.repository.repository import Repository


def write_hold(repository: Repository, record: HoldRecord, by: str = "") -> None:
    """Make it so, durably. `by`: who brought it, "" if it was decided here, now. OSError. Of the store's writer, while
    nobody drops."""
    holds, now_ns = Holds(repository.store_dir, repository.disk, repository.clock), repository.clock()
    fields: dict[str, Any] = {"snapshot": record.snapshot}
    if not record.released:
        fields |= {"until_ns": record.until_ns, "why": record.why}
    if by or record.time_ns > now_ns:
        fields["decided_ns"] = record.time_ns
    if by:
        fields["by"] = by
    if record.keeps(now_ns):
        length_s = FOR_EVER_S if record.until_ns is None else (record.until_ns - now_ns) / 1e9
        holds.take(holder_of(record.snapshot), [SnapshotNumber(record.snapshot)], length_s, record.why)
        repository.record_event(HELD, **fields)
    else:
        repository.record_event(RELEASED if record.released else HELD, **fields)
        holds.release(holder_of(record.snapshot))


def take_in(repository: Repository, records: Iterable[HoldRecord], by: str) -> list[HoldRecord]:
    """Write those that are later than what is known here; which. `by`: who brought them. OSError."""
    known = repository.catalog.hold_records
    new = [record for _, record in sorted(latest(records).items()) if record.is_later(known.get(record.snapshot))]
    for record in new:
        write_hold(repository, record, by=by)
    return new


def decision_ns(repository: Repository, number: int) -> int:
    """The time of what is decided now: later than all that is known of the snapshot, whatever host's clock made it."""
    known = repository.catalog.hold_records.get(number)
    return max(repository.clock(), known.time_ns + 1 if known is not None else 0)
