"""Lost chunks of files, recovered from the live tree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from snapfs.base.blocks import CHUNK_SIZE
from snapfs.base.errors import SnapfsError
from snapfs.live.tree import LiveTree
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.repair.repair_candidates import RepairCandidates
from snapfs.store.tables.reachability import Visit
from snapfs.transfer.repair.neighbour_trees import NeighbourTrees


class LiveChunks:
    """Chunks of lost files as the live tree has them."""

    def __init__(self, tree: LiveTree, trees: NeighbourTrees, content_hash_of: Callable[[bytes], bytes]) -> None:
        self._tree, self._trees, self._content_hash_of = tree, trees, content_hash_of

    def find(self, lost: RepairCandidates) -> bytes | None:
        """The content of a lost chunk; None if the live tree does not have it any more."""
        for visit, record in zip(lost.places, lost.records, strict=True):
            if visit.ino and visit.is_leaf:
                for plain in self._candidates(visit, record):
                    if self._content_hash_of(plain) == lost.pointer.content_hash:
                        return plain
        return None

    def _candidates(self, visit: Visit, record: SnapshotRecord) -> Iterator[bytes]:
        """The chunk as it is now, and cut to the sizes that the file had in neighbouring snapshots."""
        try:
            plain = self._tree.read(visit.ino, visit.start * CHUNK_SIZE, CHUNK_SIZE) or b""
        except (SnapfsError, OSError):
            return
        yield plain
        for size in self._sizes(visit, record):
            length = min(max(size - visit.start * CHUNK_SIZE, 0), CHUNK_SIZE)
            yield plain[:length].ljust(length, b"\0")

    def _sizes(self, visit: Visit, record: SnapshotRecord) -> Iterator[int]:
        for tree in self._trees.near(record):
            with contextlib.suppress(SnapfsError, OSError):
                found = tree.inode(visit.ino)
                if found is not None:
                    yield found.size
