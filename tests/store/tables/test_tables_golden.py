"""Pages written by layout version 1 are read for ever; and what is written today is the same to the byte."""

from __future__ import annotations

from snapfs.store.objects.format import ObjectKind, Pointer
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.store.tables.snapshot_invariants import check_tree
from tests.fakes.histories.objects import MemoryObjects
from tests.golden.make_pages_v1 import PATH, make, states


def kept() -> tuple[MemoryObjects, list[Pointer]]:
    """The objects in the file, and the roots of its snapshots."""
    objects = MemoryObjects()
    pointers: dict[int, Pointer] = {}
    *lines, last = PATH.read_text().splitlines()
    for line in lines:
        number, kind, base, plain = line.split()
        base_pointer = pointers[int(base)] if base != "0" else None
        pointers[int(number)] = objects.put(ObjectKind[kind], bytes.fromhex(plain), base_pointer)
    return objects, [pointers[int(number)] for number in last.split()[1:]]


def test_the_kept_pages_are_read() -> None:
    objects, roots = kept()
    for root, state in zip(roots, states(), strict=True):
        tree = SnapshotTree(objects, root)
        state.assert_equals(tree)
        check_tree(tree)


def test_the_same_states_give_the_same_pages() -> None:
    assert make() == PATH.read_text().splitlines()
