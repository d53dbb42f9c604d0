"""Patches of a history: git makes the one tree of the other with them."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.store.history import text_difference
from snapfs.store.history.file_patch import FileChange
from snapfs.store.tables.snapshot import SnapshotTree
from tests.fakes.histories.objects import MemoryObjects
from tests.fakes.histories.state_model import DIRECTORY, REGULAR, SYMLINK, Node, State

LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"\n", b"\\ x\n", b"-\n", b"+\xff\r\n"]), max_size=30)


def applied(old: list[bytes], patch: bytes) -> bytes:
    """The hunks made to the lines, each of which has to fit."""
    result, at, ends = list[bytes](), 0, patch.split(b"\n")
    position = 0
    while position < len(ends) - 1:
        words = ends[position].split()
        first, _, count = words[1][1:].partition(b",")
        start = int(first) - (count != b"0")
        result += old[at:start]
        at, position = start, position + 1
        while position < len(ends) - 1 and not ends[position].startswith(b"@@"):
            sign, line = ends[position][:1], ends[position][1:] + b"\n"
            if position + 1 < len(ends) and ends[position + 1].startswith(b"\\ No newline"):
                line = line[:-1]
                position += 1
            if sign in b" -":
                assert old[at] == line
                at += 1
            if sign in b" +":
                result.append(line)
            position += 1
    return b"".join([*result, *old[at:]])


@settings(max_examples=300)
@given(LINES, LINES, st.booleans(), st.booleans())
def test_hunks_make_the_one_of_the_other(a: list[bytes], b: list[bytes], cut_a: bool, cut_b: bool) -> None:
    old, new = b"".join(a)[: -1 if cut_a else None], b"".join(b)[: -1 if cut_b else None]
    olds, news = text_difference.lines_of(old), text_difference.lines_of(new)
    assert (b"".join(olds), b"".join(news)) == (old, new)
    found = text_difference.steps(olds, news)
    assert applied(olds, b"".join(text_difference.hunks(olds, news, found))) == new
    added, removed = text_difference.counted(found)
    assert len(olds) + added - removed == len(news)
    assert bool(added + removed) == (old != new)


def test_much_that_differs_is_a_right_patch_at_once() -> None:
    rng = random.Random(1)
    olds, news = ([b"%d\n" % rng.randrange(10**9) for _ in range(20_000)] for _ in range(2))
    found = text_difference.steps([b"same\n", *olds, b"end\n"], [b"same\n", *news, b"end\n"])
    assert text_difference.counted(found) == (20_000, 20_000)
    assert [step.same for step in found] == [True, False, True]


def text(rng: random.Random) -> bytes:
    lines = [b"%d\n" % rng.randrange(9) for _ in range(rng.choice([0, 1, 5, 40, 400]))]
    return b"".join(lines)[: rng.choice([None, -1])]


def grown(state: State, rng: random.Random, steps: int) -> State:
    """Another state: files written, made, renamed, removed, of another mode; links made and removed."""
    state = state.copy()
    for _ in range(steps):
        state.clock += 1
        act = rng.randrange(8)
        ino = state.pick(rng, REGULAR)
        if act < 3 or ino is None:
            state.create(rng, rng.choice([REGULAR, REGULAR, REGULAR, DIRECTORY, SYMLINK]))
        elif act == 3:
            state.rename(rng)
        elif act == 4:
            state.unlink(rng)
        elif act == 5:
            state.nodes[ino].mode = REGULAR | rng.choice([0o644, 0o755])
        else:
            content = text(rng)
            if act == 6 and state.nodes[ino].chunks:
                content = state.nodes[ino].chunks[0].replace(b"3\n", b"4\n4\n")
            state.nodes[ino].chunks = {0: content} if content else {}
            state.nodes[ino].size, state.nodes[ino].mtime = len(content), state.clock
    return state


def write(state: State, top: Path) -> None:
    """The files and links of a state as git would have them: without empty folders."""
    for path, (_, _, ino) in state.paths().items():
        node, place = state.nodes[ino], os.fsencode(top) + b"/" + path
        if stat.S_ISDIR(node.mode):
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if stat.S_ISLNK(node.mode):
            os.symlink(node.target, place)
            continue
        with open(place, "wb") as file:
            file.write(node.chunks.get(0, b""))
        os.chmod(place, 0o755 if node.mode & 0o100 else 0o644)


def contents(top: Path) -> dict[bytes, tuple[bool, bytes]]:
    found = {}
    for folder, _, names in os.walk(os.fsencode(top)):
        for name in names:
            path = os.path.join(folder, name)
            is_link = os.path.islink(path)
            content = os.readlink(path) if is_link else Path(os.fsdecode(path)).read_bytes()
            found[os.path.relpath(path, os.fsencode(top))] = (
                not is_link and bool(os.stat(path).st_mode & 0o100), content
            )  # fmt: skip
    return found


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
@pytest.mark.parametrize("seed", range(12))
def test_git_applies_the_patch(tmp_path: Path, seed: int) -> None:
    rng, objects = random.Random(seed), MemoryObjects()
    state = State()
    state.nodes[2] = Node(REGULAR | 0o644)
    state.nodes[1].names[b'odd "\t\n\xff name'] = 2
    state.next_ino = 3
    old = grown(state, rng, 40)
    new = grown(old, rng, 25)
    a = SnapshotTree(objects, old.seal(objects, None, None))
    b = SnapshotTree(objects, new.seal(objects, a, old))
    changes = list(FileChange.all(a, b))
    moved_folders = [each for each in changes if each.change.kind == "renamed" and not each.is_in_patches]
    patch = b"".join(piece for each in changes for piece in each.patch())
    for each in moved_folders:  # which a patch does not move
        assert b": directory from " in b"".join(each.patch())
    if moved_folders:
        return
    write(old, tmp_path / "old")
    write(new, tmp_path / "new")
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir(exist_ok=True)
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"], cwd=tmp_path / "old", input=patch, capture_output=True,
        check=False, env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "old") == contents(tmp_path / "new")
