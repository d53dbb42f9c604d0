"""Node ids can be taken apart again, and never meet those of the live tree."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.blocks import Ino, SnapshotNumber
from snapfs.fuse import nodes
from snapfs.fuse.nodes import BrowseId, ControlNode, View

views = st.sampled_from(View)
snapshots = st.integers(1, nodes.MAX_BROWSE_SNAPSHOT)
inodes = st.integers(1, nodes.MAX_BROWSE_INO)


@given(views, snapshots, inodes)
def test_a_browsed_node_can_be_taken_apart(view: View, snapshot: int, ino: int) -> None:
    node = nodes.browse_node(view, SnapshotNumber(snapshot), Ino(ino))
    assert nodes.is_virtual(node)
    assert node < 1 << 64
    assert nodes.split(node) == BrowseId(view, SnapshotNumber(snapshot), Ino(ino))


@pytest.mark.parametrize("which", ControlNode)
def test_control_nodes_are_virtual_and_of_no_snapshot(which: ControlNode) -> None:
    node = nodes.control_node(which)
    assert nodes.is_virtual(node)
    assert nodes.split(node) == BrowseId(View.BY_NUMBER, SnapshotNumber(0), Ino(which))


@pytest.mark.parametrize(
    ("snapshot", "ino"),
    [(nodes.MAX_BROWSE_SNAPSHOT + 1, 1), (1, nodes.MAX_BROWSE_INO + 1), (0, 1), (1, 0), (-1, 1)],
)
def test_what_has_no_room_in_a_node_id_overflows(snapshot: int, ino: int) -> None:
    with pytest.raises(OSError, match="Value too large") as caught:
        nodes.browse_node(View.BY_NUMBER, SnapshotNumber(snapshot), Ino(ino))
    assert caught.value.errno == errno.EOVERFLOW


def test_live_nodes_are_not_virtual() -> None:
    assert not nodes.is_virtual(1)
    assert not nodes.is_virtual((1 << 63) - 1)
