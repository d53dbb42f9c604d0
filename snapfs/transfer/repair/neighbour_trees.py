"""The snapshots around a damaged one, as trees: what did not change between them is the same in all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from snapfs.base.errors import SnapfsError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import (
    SnapshotTree,
)

NEIGHBOURS: Final = 6
"""Snapshots around a damaged one whose pages are looked at."""


class NeighbourTrees:
    """The snapshots of a store that can be opened, as trees; the nearest first."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._records = repository.snapshots()
        self._trees: dict[int, SnapshotTree | None] = {}

    def near(self, record: SnapshotRecord | None = None) -> Iterator[SnapshotTree]:
        """Those around this one, or the newest."""
        wanted = record.number if record is not None else 1 << 62
        for each in sorted(self._records, key=lambda other: abs(other.number - wanted))[: NEIGHBOURS + 1]:
            tree = self._tree(each)
            if tree is not None:
                yield tree

    def _tree(self, record: SnapshotRecord) -> SnapshotTree | None:
        if record.number not in self._trees:
            self._trees[record.number] = None
            with contextlib.suppress(SnapfsError, OSError):
                self._trees[record.number] = SnapshotTree(self._repository, record.root)
        return self._trees[record.number]
