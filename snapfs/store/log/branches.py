"""Branches: snapshots that a new writer never saw, moved out of the history at a target (wire.py). They are read, and
no more.

A reference names one as `BRANCH/N` or `BRANCH/NAME`; `BRANCH` alone is its newest. No snapshot's name has a slash, and
the name of one in the history goes before that of a branch.
"""

from __future__ import annotations

from collections.abc import Iterable

from snapfs.store.log.snapshot_records import SnapshotRecord


def reference(record: SnapshotRecord) -> str:
    """How a record is named at a target: its number, with its branch if it is on one."""
    return f"{record.branch}/{record.number}" if record.branch else str(record.number)


def find(on_branches: Iterable[SnapshotRecord], ref: str) -> SnapshotRecord | None:
    """The one that `ref` means, the newest of several; None if there is none."""
    branch, _, which = ref.partition("/")
    found = [each for each in on_branches if each.branch == branch and which in ("", str(each.number), each.name)]
    return max(found, key=lambda record: record.number, default=None)
