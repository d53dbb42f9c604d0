"""Which snapshot the next one is made against: the one that the live tree's changes are relative to.

The live tree knows what has changed since it was last sealed, and under which number (of its root) the store has that
snapshot. A store that lost its end, or was put back from an older copy, has another one as its newest: what changed
between the two is in no list.

Invariant: a snapshot is only ever made against one that is good, and that the tree was last sealed as, or the one after
it, of which the tree had not learned yet when its daemon died. Or else it has everything.
"""

from __future__ import annotations

from itertools import islice

from snapfs.live.tree import LiveTree
from snapfs.store.log.snapshot_records import GOOD
from snapfs.store.repository.repository import Repository, SnapshotRecord


def mistrust(tree: LiveTree, repository: Repository) -> str | None:
    """Why the newest snapshot is not what the tree's changes are relative to; None if it is."""
    names, newest = tree.names, list(islice(repository.catalog.newest_first(), 2))[::-1]
    if not newest:
        return "the snapshots that were made of this are gone" if names.sealed_epoch else None
    if tree.damaged:
        return "the namespace lost the end of its log"
    if newest[-1].state != GOOD:
        return f"snapshot {newest[-1].number} is damaged"
    if names.sealed_as and names.sealed_as not in [record.root.number for record in newest]:
        return f"snapshot {newest[-1].number} is not the last one that was made of this, which is gone"
    return None


def parent_of(tree: LiveTree, repository: Repository) -> tuple[SnapshotRecord | None, str | None]:
    """The snapshot to build on, None for one of everything; and a line about why that is, if it is no matter of course.

    BusyError where not all is here that everything takes.
    """
    why = mistrust(tree, repository)
    if why is None:
        return repository.latest(), None
    tree.mark_all_suspect()
    return None, f"{why}: the next one will have everything, whatever changed"
