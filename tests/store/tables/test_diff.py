"""Differences of two snapshots against differences of plain dicts."""

from __future__ import annotations

import random
import stat
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import CHUNK_SIZE
from snapfs.store.objects.format import NULL
from snapfs.store.tables.diff import PathChange, diff, diff_entries, diff_map, diff_paths
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.store.tables.table_compare import is_same
from tests.fakes.histories.objects import MemoryObjects
from tests.fakes.histories.state_model import DIRECTORY, REGULAR, Node, State


class Two:
    """Two states and their snapshots in one store."""

    def __init__(self) -> None:
        self.objects = MemoryObjects()
        self.old, self.new = State(), State()

    def seal(self) -> tuple[SnapshotTree, SnapshotTree]:
        a = SnapshotTree(self.objects, self.old.seal(self.objects, None, None))
        b = SnapshotTree(self.objects, self.new.seal(self.objects, a, self.old))
        return a, b

    def changes(self) -> list[tuple[str, ...]]:
        """The story, as tuples of text."""
        a, b = self.seal()
        return [
            (change.kind, change.path.decode(), *([change.old_path.decode()] if change.old_path else []))
            for change in diff_paths(a, b)
        ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_difference_equals_that_of_the_dicts(seed: int) -> None:
    rng, objects = random.Random(seed), MemoryObjects()
    states, trees = [State()], [SnapshotTree(objects, State().seal(objects, None, None))]
    for _ in range(3):
        state = states[-1].copy()
        state.change(rng, rng.randrange(50))
        trees.append(SnapshotTree(objects, state.seal(objects, trees[-1], states[-1])))
        states.append(state)
    for a in range(len(trees)):
        for b in range(len(trees)):
            assert_difference(trees[a], states[a], trees[b], states[b])


def assert_difference(a: SnapshotTree, old: State, b: SnapshotTree, new: State) -> None:
    changes = {change.ino: change for change in diff(a, b)}
    assert list(changes) == sorted(changes)
    expected = {ino for ino in old.nodes.keys() | new.nodes.keys() if old.nodes.get(ino) != new.nodes.get(ino)}
    assert expected <= changes.keys()
    for ino, (_, before, after) in changes.items():
        assert before == a.inode(ino)
        assert after == b.inode(ino)
        x, y = old.nodes.get(ino, Node(0)), new.nodes.get(ino, Node(0))
        if not stat.S_ISDIR(x.mode) and not stat.S_ISDIR(y.mode):
            chunks = {index: (p, q) for index, p, q in diff_map(a, before, b, after)}
            differing = {i for i in x.chunks.keys() | y.chunks.keys() if x.chunks.get(i) != y.chunks.get(i)}
            assert chunks.keys() == differing
            for index, (p, q) in chunks.items():
                assert p == (a.chunk(before, index) if before else NULL)
                assert q == (b.chunk(after, index) if after else NULL)
        else:
            names = {name: (e and e.ino, f and f.ino) for name, e, f in diff_entries(a, before, b, after)}
            assert names == {
                name: (x.names.get(name), y.names.get(name))
                for name in x.names.keys() | y.names.keys()
                if x.names.get(name) != y.names.get(name)
            }
    found = list(diff_paths(a, b))
    assert_story(found, old, new)


def assert_story(found: list[PathChange], old: State, new: State) -> None:
    """Applied to the names of the old state, the story gives those of the new one."""
    paths = [b"" if change.path == b"." else change.path for change in found]
    assert paths == sorted(paths, key=lambda path: path.replace(b"/", b"\0"))
    by_kind = {kind: [c for c in found if c.kind == kind] for kind in ("added", "removed", "changed", "renamed")}
    before, after = old.paths(), new.paths()
    edges = {(parent, name): ino for parent, name, ino in before.values()}
    for change in by_kind["removed"]:
        del edges[before[change.path][:2]]
    for change in by_kind["renamed"]:
        assert change.old_path is not None
        edges.pop(before[change.old_path][:2], None)
    for change in [*by_kind["renamed"], *by_kind["added"], *by_kind["changed"]]:
        if change.path != b".":
            parent, name, ino = after[change.path]
            edges[parent, name] = ino
    assert edges == {(parent, name): ino for parent, name, ino in after.values()}
    for change in by_kind["renamed"]:
        assert before[change.old_path or b""][2] == after[change.path][2]
    named = {after[change.path][2] for change in found if change.kind != "removed" and change.path != b"."}
    for ino in old.nodes.keys() & new.nodes.keys():
        x, y = old.nodes[ino], new.nodes[ino]
        if (x.mode, x.target, x.xattrs, x.chunks, x.size) != (y.mode, y.target, y.xattrs, y.chunks, y.size) and ino > 1:
            assert ino in named
    assert all(count == 1 for count in Counter((c.kind, c.path) for c in found).values())


def add(state: State, ino: int, parent: int, name: str, form: int = REGULAR, **fields: object) -> None:
    state.nodes[ino] = Node(form | 0o644, **fields)  # type: ignore[arg-type]
    state.nodes[parent].names[name.encode()] = ino
    state.next_ino = max(state.next_ino, ino + 1)


def begin(two: Two) -> None:
    """a/f (two chunks), a/g, b/, both states the same."""
    for state in (two.old, two.new):
        add(state, 2, 1, "a", DIRECTORY, nlink=2)
        add(state, 3, 1, "b", DIRECTORY, nlink=2)
        add(state, 4, 2, "f", size=2 * CHUNK_SIZE, chunks={0: b"x" * 9000, 1: b"y" * 9000})
        add(state, 5, 2, "g")


def test_nothing() -> None:
    two = Two()
    begin(two)
    assert two.changes() == []


def test_a_changed_file_is_found_wherever_it_is() -> None:
    two = Two()
    begin(two)
    two.new.nodes[4].chunks[1] = b"y" * 5000 + b"z" * 4000
    a, b = two.seal()
    (change,) = diff_paths(a, b)
    assert (change.path, change.kind, change.changed_bytes) == (b"a/f", "changed", 4904)
    (change,) = diff_paths(a, b, exact=False)
    assert change.changed_bytes == CHUNK_SIZE


def test_an_access_time_is_no_change_but_a_mode_is() -> None:
    two = Two()
    begin(two)
    two.new.clock += 5  # which is every inode's ctime
    two.new.nodes[5].mode = REGULAR | 0o600
    two.new.nodes[2].mode = DIRECTORY | 0o700
    two.new.nodes[1].mode = DIRECTORY | 0o700
    assert two.changes() == [("changed", "."), ("changed", "a"), ("changed", "a/g")]


def test_a_renamed_directory_is_reported_once_and_what_changed_in_it() -> None:
    two = Two()
    begin(two)
    names = two.new.nodes
    names[3].names[b"moved"] = names[1].names.pop(b"a")
    names[4].chunks[0] = b"z"
    names[2].names[b"new"] = 9
    add(two.new, 9, 2, "new")
    del names[2].names[b"g"]
    del names[5]
    assert two.changes() == [
        ("removed", "a/g"),
        ("renamed", "b/moved", "a"),
        ("changed", "b/moved/f"),
        ("added", "b/moved/new"),
    ]


def test_a_file_saved_by_renaming_a_new_one_over_it_is_changed() -> None:
    two = Two()
    begin(two)
    del two.new.nodes[4]
    add(two.new, 10, 2, "f", size=2 * CHUNK_SIZE, chunks={0: b"x" * 9000, 1: b"q" * 4096 + b"y" * 4904})
    a, b = two.seal()
    (change,) = diff_paths(a, b)
    assert (change.kind, change.path, change.changed_bytes) == ("changed", b"a/f", 4096)


def test_a_log_that_was_rotated() -> None:
    two = Two()
    begin(two)
    two.new.nodes[2].names[b"f.1"] = 4
    add(two.new, 10, 2, "f")
    assert two.changes() == [("added", "a/f"), ("renamed", "a/f.1", "a/f")]


def test_two_names_exchanged() -> None:
    two = Two()
    begin(two)
    two.new.nodes[2].names.update({b"f": 5, b"g": 4})
    assert two.changes() == [("renamed", "a/f", "a/g"), ("renamed", "a/g", "a/f")]


def test_hard_links_come_and_go() -> None:
    two = Two()
    begin(two)
    two.new.nodes[3].names[b"link"] = 4
    two.new.nodes[4].nlink = 2
    two.new.nodes[4].chunks[0] = b"new"
    a, b = two.seal()
    found = [(change.kind, change.path, change.changed_bytes) for change in diff_paths(a, b)]
    assert found == [("changed", b"a/f", 9000), ("added", b"b/link", 0)]
    found = [(change.kind, change.path, change.changed_bytes) for change in diff_paths(b, a)]
    assert found == [("changed", b"a/f", 9000), ("removed", b"b/link", 0)]


def test_a_directory_in_the_place_of_a_file() -> None:
    two = Two()
    begin(two)
    del two.new.nodes[5]
    add(two.new, 11, 2, "g", DIRECTORY, nlink=2)
    add(two.new, 12, 11, "in")
    assert two.changes() == [("removed", "a/g"), ("added", "a/g"), ("added", "a/g/in")]


def test_equal_pages_are_not_opened() -> None:
    two = Two()
    begin(two)
    for state in (two.old, two.new):
        for ino in range(100, 5100):
            add(state, ino, 3, f"{ino:05}")
        state.nodes[4].chunks = {index: b"%d" % index for index in range(5000)}
        state.nodes[4].size = 5000 * CHUNK_SIZE
    two.new.nodes[4].chunks[2500] = b"other"
    two.new.nodes[3].names[b"02500+"] = 6000
    add(two.new, 6000, 3, "02500+")
    a, b = two.seal()
    two.objects.reads.clear()
    changes = list(diff(a, b))
    assert [change.ino for change in changes] == [3, 4, 6000]
    assert len(list(diff_entries(a, changes[0].before, b, changes[0].after))) == 1
    assert len(list(diff_map(a, changes[1].before, b, changes[1].after))) == 1
    assert len(two.objects.reads) < 30
    two.objects.reads.clear()
    assert len(list(diff_paths(a, b))) == 2


def test_what_is_stored_anew_but_equal_is_no_difference() -> None:
    objects = MemoryObjects()
    assert is_same(objects.put_chunk(b"x"), objects.put_chunk(b"x"))
    assert not is_same(objects.put_chunk(b"x"), NULL)
    assert is_same(NULL, NULL)


def test_unrelated_snapshots_can_be_compared() -> None:
    one, other = Two(), Two()
    begin(one)
    begin(other)
    other.new.nodes[4].chunks[0] = b"z"
    a, _ = one.seal()
    _, b = other.seal()
    assert [change.path for change in diff_paths(a, b)] == [b"a/f"]


@pytest.mark.parametrize("depth", [2000])
def test_directories_may_be_deep(depth: int) -> None:
    two = Two()
    for ino in range(2, depth):
        for state in (two.old, two.new):
            add(state, ino, ino - 1, "d", DIRECTORY, nlink=2)
    add(two.new, depth + 5, depth - 1, "f")
    assert two.changes() == [("added", "d/" * (depth - 2) + "f")]
