"""Lost pages of radix tables and of inodes, put together from the slots that neighbouring snapshots have there."""

from __future__ import annotations

import stat
from collections.abc import Callable
from itertools import product, zip_longest
from typing import Any, Final

from snapfs.base.errors import SnapfsError
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import NULL
from snapfs.store.repair.repair_candidates import RepairCandidates
from snapfs.store.tables import inode_table, radix
from snapfs.store.tables.reachability import Role, Visit
from snapfs.store.tables.snapshot import (
    SnapshotTree,
)
from snapfs.transfer.repair.neighbour_trees import NeighbourTrees

MAX_MIXTURES: Final = 4096


class SiblingPages:
    """Pages of radix tables and of inodes, put together from the slots that other snapshots have there."""

    def __init__(self, trees: NeighbourTrees, content_hash_of: Callable[[bytes], bytes]) -> None:
        self._trees, self._content_hash_of = trees, content_hash_of

    def find(self, lost: RepairCandidates) -> bytes | None:
        """The content of a lost page; None if no mixture of the siblings' slots has its content hash."""
        for visit, record in zip(lost.places, lost.records, strict=True):
            if visit.role is Role.INODES or (visit.role is Role.MAP and visit.level):
                found = self._mixed(lost, visit, record)
                if found is not None:
                    return found
        return None

    def _mixed(self, lost: RepairCandidates, visit: Visit, record: SnapshotRecord) -> bytes | None:
        is_inodes = visit.role is Role.INODES and visit.level == 0
        empty: Any = inode_table.EMPTY if is_inodes else NULL
        versions = [slots for tree in self._trees.near(record) if (slots := _slots_at(tree, visit))]
        choices: list[list[Any]] = [list(dict.fromkeys(column)) for column in zip_longest(*versions, fillvalue=empty)]
        count = 1
        for choice in choices:
            count *= len(choice)
        if not choices or count > MAX_MIXTURES:
            return None
        for mixture in product(*choices):
            slots = list(mixture)
            while slots and slots[-1] == empty:
                slots.pop()
            if slots:
                plain = inode_table.encode_page(slots) if is_inodes else radix.encode_map(visit.level, slots)
                if self._content_hash_of(plain) == lost.pointer.content_hash:
                    return plain
        return None


def _slots_at(tree: SnapshotTree, visit: Visit) -> list[Any] | None:
    """The slots of the page at this place of another snapshot; None if there is none that can be read."""
    try:
        if visit.role is Role.INODES:
            pointer, height = tree.root.table, tree.root.height
        else:
            record = tree.inode(visit.ino)
            if record is None or not stat.S_ISREG(record.mode):
                return None
            pointer, height = record.content, record.height
        for level in range(height, visit.level, -1):
            rows = radix.load_rows(tree.pages, pointer, level) if pointer.number else []
            slot = visit.start >> radix.BITS * (level - 1) & (radix.FANOUT - 1)
            pointer = rows[slot] if slot < len(rows) else NULL
        if not pointer.number or height < visit.level:
            return None
        return list(
            radix.load_rows(tree.pages, pointer, visit.level)
            if visit.level
            else inode_table.load(tree.pages, pointer).slots
        )
    except (SnapfsError, OSError):
        return None
