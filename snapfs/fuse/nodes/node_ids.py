"""Node ids: the kernel's numbers for inodes, computed and never stored.

A node of the live tree is its inode number, 1 for the root. A node with bit 63 set is virtual:

    bit 63      1
    bit 62      the view: 0 by number, 1 by name
    bits 61-35  the snapshot's number (27 bits); 0 means a control node
    bits 34-0   the inode number inside the snapshot (35 bits), or which control node

Invariants:
1. `split(browse_node(view, snapshot, ino))` gives back what went in; no two triples share a node id.
2. The two views of a snapshot share no node, so no directory has two parents, which the kernel forbids.
3. Nothing here depends on the daemon's memory: a daemon started anew answers for every node id that the
   kernel still holds from its predecessor.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import NamedTuple, NewType

from snapfs.base.blocks import Ino, SnapshotNumber

NodeId = NewType("NodeId", int)

_INO_BITS = 35
_SNAPSHOT_BITS = 27
_VIRTUAL = 1 << 63
_INO_MASK = (1 << _INO_BITS) - 1
_SNAPSHOT_MASK = (1 << _SNAPSHOT_BITS) - 1

MAX_BROWSE_INO = _INO_MASK
MAX_BROWSE_SNAPSHOT = _SNAPSHOT_MASK


class View(IntEnum):
    """Which name of the snapshot a browsed node was reached by."""

    BY_NUMBER = 0
    BY_NAME = 1


class ControlNode(IntEnum):
    """The nodes of `.snapfs` itself; they live where the snapshot number is 0."""

    DIRECTORY = 1
    CONTROL = 2
    STATUS = 3
    METRICS = 4
    SNAPSHOTS = 5
    FENCE = 6


class BrowseId(NamedTuple):
    """A virtual node id taken apart. `snapshot` is 0 for a control node, and `ino` is then which one."""

    view: View
    snapshot: SnapshotNumber
    ino: Ino


def is_virtual(node: int) -> bool:
    """Whether `node` belongs to `.snapfs` and not to the live tree."""
    return node >= _VIRTUAL


def control_node(which: ControlNode) -> NodeId:
    """The node id of one of the nodes of `.snapfs` itself."""
    return NodeId(_VIRTUAL | which)


def browse_node(view: View, snapshot: SnapshotNumber, ino: Ino) -> NodeId:
    """The node id of inode `ino` in `snapshot`, seen in `view`.

    Raises OSError(EOVERFLOW) where either is out of the range that a node id has room for.
    """
    if not 0 < snapshot <= MAX_BROWSE_SNAPSHOT or not 0 < ino <= MAX_BROWSE_INO:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW), f"snapshot {snapshot}, inode {ino}")
    return NodeId(_VIRTUAL | view << 62 | snapshot << _INO_BITS | ino)


def split(node: int) -> BrowseId:
    """Take a virtual node id apart."""
    assert is_virtual(node)
    snapshot = node >> _INO_BITS & _SNAPSHOT_MASK
    return BrowseId(View(node >> 62 & 1), SnapshotNumber(snapshot), Ino(node & _INO_MASK))
