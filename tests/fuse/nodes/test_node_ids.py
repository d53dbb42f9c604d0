"""Node ids can be taken apart again, and never meet those of the live tree."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.base.blocks import Ino, SnapshotNumber
from snapfs.fuse.nodes import node_ids
from snapfs.fuse.nodes.node_ids import BrowseId, ControlNode, View

views = st.sampled_from(View)
snapshots = st.integers(1, node_ids.MAX_BROWSE_SNAPSHOT)
inodes = st.integers(1, node_ids.MAX_BROWSE_INO)


@given(views, snapshots, inodes)
def test_a_browsed_node_can_be_taken_apart(view: View, snapshot: int, ino: int) -> None:
    node = node_ids.browse_node(view, SnapshotNumber(snapshot), Ino(ino))
    assert node_ids.is_virtual(node)
    assert node < 1 << 64
    assert node_ids.split(node) == BrowseId(view, SnapshotNumber(snapshot), Ino(ino))


@pytest.mark.parametrize("which", ControlNode)
def test_control_nodes_are_virtual_and_of_no_snapshot(which: ControlNode) -> None:
    node = node_ids.control_node(which)
    assert node_ids.is_virtual(node)
    assert node_ids.split(node) == BrowseId(View.BY_NUMBER, SnapshotNumber(0), Ino(which))


@pytest.mark.parametrize(
    ("snapshot", "ino"),
    [(node_ids.MAX_BROWSE_SNAPSHOT + 1, 1), (1, node_ids.MAX_BROWSE_INO + 1), (0, 1), (1, 0), (-1, 1)],
)
def test_what_has_no_room_in_a_node_id_overflows(snapshot: int, ino: int) -> None:
    with pytest.raises(OSError, match="Value too large") as caught:
        node_ids.browse_node(View.BY_NUMBER, SnapshotNumber(snapshot), Ino(ino))
    assert caught.value.errno == errno.EOVERFLOW


def test_live_nodes_are_not_virtual() -> None:
    assert not node_ids.is_virtual(1)
    assert not node_ids.is_virtual((1 << 63) - 1)
