"""Paths over a series of snapshots, against a reading of every snapshot by itself."""

from __future__ import annotations

import contextlib
import random
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.store.history.path_patterns import PathPatterns
from snapfs.store.history.path_search import PathSearch
from snapfs.store.history.path_versions import PathVersions
from snapfs.store.history.tree_lookup import look_up, newest_with
from snapfs.store.objects.format import Pointer
from snapfs.store.tables.snapshot import SnapshotTree
from tests.fakes.histories.history import History
from tests.fakes.histories.state_model import Node, State

SEEDS = range(4)
PATTERNS = [b"**", b"*", b"*/*", b"**/0*", b"**/[0-3]?[!5]", b"0*/**", b"**/*1*/**/2*", b"."]


@pytest.fixture(scope="module", params=SEEDS)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """Thirty snapshots, of which some were dropped."""
    made = History(tmp_path_factory.mktemp("history") / "store", request.param)
    rng = random.Random(request.param)
    for _ in range(10):
        made.grow(3, steps=rng.choice([1, 5, 40]))
    for number in rng.sample(range(1, 31), 8):
        made.repository.drop(SnapshotNumber(number))
        del made.states[number]
    made.numbers(*made.records)  # opens each segment, which is no leak of the first test then
    yield made
    made.repository.close()


def is_match(pattern: bytes, path: bytes) -> bool:
    """By a regular expression of the whole path: another way than the automaton's."""
    text = b""
    for at, part in enumerate(parts := pattern.split(b"/")):
        last = at == len(parts) - 1
        if part == b"**":
            text += rb"[^/]+(/[^/]+)*" if last else rb"([^/]+/)*"
            continue
        name = re.escape(part).replace(rb"\*", b"[^/]*").replace(rb"\?", b"[^/]")
        name = name.replace(rb"\[!", b"[^").replace(rb"\[", b"[").replace(rb"\]", b"]").replace(rb"\-", b"-")
        text += name + (b"" if last else b"/")
    return re.fullmatch(text, path, re.DOTALL) is not None


def content(node: Node) -> object:
    """What a user calls the content."""
    form = stat.S_IFMT(node.mode)
    if form == stat.S_IFDIR:
        return form
    return form, node.size, node.target, tuple(sorted(node.chunks.items()))


def attributes(node: Node) -> object:
    time = 0 if stat.S_ISDIR(node.mode) else node.mtime
    return content(node), node.mode, tuple(sorted(node.xattrs.items())), time


def expected(states: list[State], pattern: bytes, key: object = content) -> dict[bytes, list[tuple[int, list[int]]]]:
    """By path, for each version: the inode at first, and the positions of the snapshots."""
    found: dict[bytes, dict[object, tuple[int, list[int]]]] = {}
    for at, state in enumerate(states):
        paths = {path: ino for path, (_, _, ino) in state.paths().items() if is_match(pattern, path)}
        if pattern == b".":
            paths = {b".": 1}
        for path, ino in paths.items():
            version = key(state.nodes[ino])  # type: ignore[operator]
            found.setdefault(path, {}).setdefault(version, (ino, []))[1].append(at)
    return {path: list(versions.values()) for path, versions in found.items()}


def positions(found: PathVersions, version: int, count: int) -> list[int]:
    """The snapshots of a version, from its spans."""
    spans = found.spans_of(version)
    return [at for span in spans for at in range(span.first, count if span.end is None else span.end)]


def reported(search: PathSearch) -> dict[bytes, list[tuple[int, list[int]]]]:
    count = len(search.snapshots)
    return {
        path: [(record.ino, positions(found, version, count)) for version, record in enumerate(found.records)]
        for path, found in search.found.items()
    }


@pytest.mark.parametrize("attributes_too", [False, True])
def test_versions_are_those_of_a_reading_of_every_snapshot(history: History, attributes_too: bool) -> None:
    states = list(history.states.values())
    names = sorted({path for state in states for path in state.paths()})
    exact = random.Random(1).sample(names, 12)
    for pattern in (*PATTERNS, *exact):
        is_exact = pattern in exact
        search = PathSearch(history.repository, PathPatterns.of([pattern], exact=is_exact), attributes=attributes_too)
        search.run(history.repository.catalog.pages())
        search.check_invariants()
        assert not search.unreadable
        key = attributes if attributes_too else content
        if is_exact:
            wanted = {path: all_ for path, all_ in expected(states, b"**", key).items() if path == pattern}
        else:
            wanted = expected(states, pattern, key)
        assert reported(search) == wanted, pattern
        assert search.matched == ({0} if wanted else set())
        assert [each.path for each in search.in_order()] == sorted(wanted, key=lambda path: path.split(b"/"))
        assert {path for path, each in search.found.items() if each.is_there} == {
            path for path, versions in wanted.items() if any(len(states) - 1 in at for _, at in versions)
        }


def test_several_patterns_are_one_search(history: History) -> None:
    states = list(history.states.values())
    search = PathSearch(history.repository, PathPatterns.of([b"*", b"0*/**", b"no such", b"**/*/1*"]))
    search.run(history.repository.catalog.pages())
    wanted = expected(states, b"*") | expected(states, b"0*/**") | expected(states, b"**/*/1*")
    assert reported(search) == wanted
    assert 2 not in search.matched


def test_a_path_is_what_it_was_in_the_newest_snapshot_that_had_it(history: History) -> None:
    repository = history.repository
    last: dict[bytes, tuple[int, int]] = {}
    for number, state in history.states.items():
        last |= {path: (number, ino) for path, (_, _, ino) in state.paths().items()}
    for path, (number, ino) in random.Random(2).sample(sorted(last.items()), 40):
        found = newest_with(repository, repository.catalog.newest_first(), b"/" + path + b"/.")
        assert found is not None
        assert (found.snapshot.number, found.record.ino, found.path) == (number, ino, path)
    assert newest_with(repository, repository.catalog.newest_first(), b"no/such") is None


def test_a_snapshot_costs_the_pages_that_changed_and_are_watched(tmp_path: Path) -> None:
    """Of 40 snapshots in each of which another of 3,000 files changes, a path that does not is a few pages each."""
    history = History(tmp_path / "store", 1)
    with contextlib.closing(history.repository):
        state = history._state
        folder = Node(stat.S_IFDIR | 0o755, nlink=2)
        state.nodes[2], state.nodes[1].names[b"d"] = folder, 2
        for ino in range(10, 3010):
            state.nodes[ino] = Node(stat.S_IFREG | 0o644, size=3, chunks={0: b"%03d" % (ino % 1000)})
            folder.names[b"%05d" % ino] = ino
        state.next_ino = 3010
        history.grow(1, steps=0)
        for at in range(40):
            state.nodes[2060 + 23 * at].chunks = {0: b"n%02d" % at}
            history.grow(1, steps=0)
        reads: list[Pointer] = []

        class Counting:
            def read(self, pointer: Pointer, /) -> bytes:
                reads.append(pointer)
                return history.repository.read(pointer)

        search = PathSearch(Counting(), PathPatterns.of([b"d/00020"]))
        search.run(history.repository.catalog.pages())
        assert [(span.first, span.end) for span in search.found[b"d/00020"].spans] == [(0, None)]
        assert len(reads) < 10 + 41 * 2 + 6  # the root, and the top page of the inode table


def test_a_snapshot_that_cannot_be_read_is_left_out(history: History) -> None:
    """Its page is damaged for it alone, and for those that share it; the others are all found."""
    repository, records = history.repository, history.records
    first, middle = records[0], records[len(records) // 2]
    lost = {middle.root.number, SnapshotTree(repository, first.root).root.table.number}

    class Holed:
        def read(self, pointer: Pointer, /) -> bytes:
            if pointer.number in lost:
                pointer = Pointer(pointer.number, bytes(16))
            return repository.read(pointer)

    search = PathSearch(Holed(), PathPatterns.of([b"**"]))
    search.run(records)
    search.check_invariants()
    sharing = {
        record.number for record in records if SnapshotTree(repository, record.root).root.table.number in lost
    } | {middle.number}
    assert {record.number for record, _ in search.unreadable} == sharing
    assert all("is not the content that was expected" in str(error) for _, error in search.unreadable)
    states = [state for number, state in history.states.items() if number not in sharing]
    assert reported(search) == expected(states, b"**")


def test_what_a_path_is_in_one_snapshot(history: History) -> None:
    record = history.records[-1]
    tree, state = SnapshotTree(history.repository, record.root), history.states[record.number]
    for path, (_, _, ino) in state.paths().items():
        found = look_up(tree, path)
        assert found is not None
        assert found.ino == ino
        assert look_up(tree, path + b"/nothing below") is None
    assert look_up(tree, b"/") == tree.inode(next(iter(tree.inodes())).ino)


@pytest.mark.parametrize("path", [b"../x", b"a/../b", b"a\0b"])
def test_a_path_that_leads_out_is_refused(path: bytes) -> None:
    with pytest.raises(UserError, match="is no path in a snapshot"):
        PathPatterns.of([path])


def test_a_name_of_any_bytes_is_matched() -> None:
    patterns = PathPatterns.of([b"a\xff*\n", b"[\xfe\xff]x", b"gr\xc3\xbcn?"])
    start = patterns.start
    assert patterns.matched(patterns.step(start, b"a\xff\x80\n\n")) == {0}
    assert patterns.matched(patterns.step(start, b"\xfex")) == {1}
    assert patterns.matched(patterns.step(start, b"gr\xc3\xbcne")) == {2}
    assert not patterns.step(start, b"x")
