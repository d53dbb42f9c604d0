"""Random operations on names against a model of dictionaries, with cuts, seals and reopenings.

At every cut the frozen namespace must equal the model as it was then, and what it calls changed must hold
everything that differs from the last sealed cut; when nothing was touched twice, nothing else.
"""

from __future__ import annotations

import copy
import errno
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snapfs.base.blocks import ROOT_INO, Disk, Epoch, Ino
from snapfs.live.database.namespace_rows import RENAME_EXCHANGE, RENAME_NOREPLACE
from snapfs.live.namespace.frozen_namespace import FrozenNamespace
from snapfs.live.namespace.namespace import Namespace

FILE, DIR = 0o100644, 0o040755
NAMES = st.sampled_from([b"a", b"b", b"\xff"])
PICK = st.integers(0, 1000)
PLACE = st.tuples(st.sampled_from(["held", "held", "any"]), PICK, NAMES)
"""A name somewhere: one that means something, or any in any directory."""
Place = tuple[str, int, bytes]


@dataclass
class Node:
    mode: int
    links: int = 1
    uid: int = 0
    names: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Model:
    """A filesystem of names in memory; every method raises what Linux would."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {1: Node(DIR, 2)}

    def copy(self) -> Model:
        return copy.deepcopy(self)

    def dirs(self) -> list[int]:
        """Also those that were removed and not forgotten yet."""
        return [ino for ino, node in self.nodes.items() if node.is_dir]

    def find(self, parent: int, name: bytes) -> int:
        if name not in self.nodes[parent].names:
            raise OSError(errno.ENOENT, "")
        return self.nodes[parent].names[name]

    def living(self, parent: int) -> Node:
        if not self.nodes[parent].links:
            raise OSError(errno.ENOENT, "")
        return self.nodes[parent]

    def create(self, parent: int, name: bytes, mode: int, ino: int) -> None:
        directory = self.living(parent)
        if name in directory.names:
            raise OSError(errno.EEXIST, "")
        self.nodes[ino] = Node(mode, 2 if stat.S_ISDIR(mode) else 1)
        directory.names[name] = ino
        directory.links += stat.S_ISDIR(mode)

    def link(self, ino: int, parent: int, name: bytes) -> None:
        directory = self.living(parent)
        if self.nodes[ino].is_dir:
            raise OSError(errno.EPERM, "")
        if not self.nodes[ino].links:
            raise OSError(errno.ENOENT, "")
        if name in directory.names:
            raise OSError(errno.EEXIST, "")
        directory.names[name] = ino
        self.nodes[ino].links += 1

    def unlink(self, parent: int, name: bytes) -> None:
        ino = self.find(parent, name)
        if self.nodes[ino].is_dir:
            raise OSError(errno.EISDIR, "")
        self.drop(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        node = self.nodes[self.find(parent, name)]
        if not node.is_dir:
            raise OSError(errno.ENOTDIR, "")
        if node.names:
            raise OSError(errno.ENOTEMPTY, "")
        self.drop(parent, name)

    def drop(self, parent: int, name: bytes) -> None:
        node = self.nodes[self.nodes[parent].names.pop(name)]
        if node.is_dir:
            node.links = 0
            self.nodes[parent].links -= 1
        else:
            node.links -= 1

    def below(self, ino: int) -> set[int]:
        found = {ino}
        for child in self.nodes[ino].names.values():
            found |= self.below(child)
        return found

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self.living(parent), self.living(new_parent)
        ino = self.find(parent, name)
        there = self.nodes[new_parent].names.get(new_name)
        if there is None and flags & RENAME_EXCHANGE:
            raise OSError(errno.ENOENT, "")
        if there is not None and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, "")
        if there == ino:
            return
        if self.nodes[ino].is_dir and new_parent in self.below(ino):
            raise OSError(errno.EINVAL, "")
        if flags & RENAME_EXCHANGE:
            assert there is not None
            if self.nodes[there].is_dir and parent in self.below(there):
                raise OSError(errno.EINVAL, "")
            self.put(parent, name, there)
        else:
            if there is not None:
                self.check_replace(self.nodes[ino], self.nodes[there])
                self.drop(new_parent, new_name)
            self.take(parent, name)
        self.put(new_parent, new_name, ino)

    def check_replace(self, moved: Node, there: Node) -> None:
        if moved.is_dir and not there.is_dir:
            raise OSError(errno.ENOTDIR, "")
        if there.is_dir and not moved.is_dir:
            raise OSError(errno.EISDIR, "")
        if there.names:
            raise OSError(errno.ENOTEMPTY, "")

    def take(self, parent: int, name: bytes) -> None:
        ino = self.nodes[parent].names.pop(name)
        self.nodes[parent].links -= self.nodes[ino].is_dir

    def put(self, parent: int, name: bytes, ino: int) -> None:
        if name in self.nodes[parent].names:
            self.take(parent, name)
        self.nodes[parent].names[name] = ino
        self.nodes[parent].links += self.nodes[ino].is_dir

    def differing(self, older: Model) -> dict[int, set[bytes]]:
        """Every inode that differs from `older`, where it has links in either, and its differing names."""
        found = {}
        for ino in self.nodes.keys() | older.nodes.keys():
            now, then = living_node(self, ino), living_node(older, ino)
            if now != then:
                nows, thens = now.names if now else {}, then.names if then else {}
                found[ino] = {name for name in nows.keys() | thens.keys() if nows.get(name) != thens.get(name)}
        return found


def living_node(model: Model, ino: int) -> Node | None:
    node = model.nodes.get(ino)
    return node if node is not None and node.links else None


class Names(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="snapfs-names-"))
        self.ns = Namespace(str(self.folder / "namespace.db"), Disk())
        self.model = Model()
        self.sealed = Model()
        self.sealed.nodes = {}
        self.open_cut: tuple[FrozenNamespace, Model] | None = None
        self.used: set[int] = {1}

    def both(self, act: str, *arguments: object) -> bool:
        """Do it to model and namespace; whether it worked, which must be the same, with the same errno."""
        trial = self.model.copy()
        expected: int | None = None
        try:
            getattr(trial, act)(*arguments)
        except OSError as failure:
            expected = failure.errno
        actual: int | None = None
        try:
            if act == "create":
                parent, name, mode, ino = arguments
                self.ns.create(parent, name, mode, 0, 0, ino=ino)  # type: ignore[arg-type]
            else:
                getattr(self.ns, act)(*arguments)
        except OSError as failure:
            actual = failure.errno
        assert actual == expected, (act, arguments, actual, expected)
        if expected is None:
            self.model = trial
        return expected is None

    def directory(self, pick: int) -> Ino:
        dirs = self.model.dirs()
        return Ino(dirs[pick % len(dirs)])

    def place(self, place: Place) -> tuple[Ino, bytes]:
        which, pick, name = place
        held = [(Ino(ino), name) for ino, node in self.model.nodes.items() for name in node.names]
        return held[pick % len(held)] if which == "held" and held else (self.directory(pick), name)

    def any_inode(self, pick: int) -> Ino:
        inos = list(self.model.nodes)
        return Ino(inos[pick % len(inos)])

    @rule(parent=PICK, name=NAMES, mode=st.sampled_from([FILE, DIR, DIR]))
    def create(self, parent: int, name: bytes, mode: int) -> None:
        ino = self.ns.allocate_ino()
        assert ino not in self.used
        self.used.add(ino)
        self.both("create", self.directory(parent), name, mode, ino)

    @rule(ino=PICK, parent=PICK, name=NAMES)
    def link(self, ino: int, parent: int, name: bytes) -> None:
        self.both("link", self.any_inode(ino), self.directory(parent), name)

    @rule(place=PLACE)
    def unlink(self, place: Place) -> None:
        self.both("unlink", *self.place(place))

    @rule(place=PLACE)
    def rmdir(self, place: Place) -> None:
        self.both("rmdir", *self.place(place))

    @rule(place=PLACE, new_place=PLACE, flags=st.sampled_from([0, 0, 0, RENAME_EXCHANGE, RENAME_NOREPLACE]))
    def rename(self, place: Place, new_place: Place, flags: int) -> None:
        self.both("rename", *self.place(place), *self.place(new_place), flags)

    @rule(place=PLACE, name=NAMES)
    def rename_within(self, place: Place, name: bytes) -> None:
        parent, old = self.place(place)
        self.both("rename", parent, old, parent, name, 0)

    @rule(ino=PICK, uid=st.integers(0, 3))
    def chown(self, ino: int, uid: int) -> None:
        number = self.any_inode(ino)
        self.ns.setattr(number, uid=uid)
        self.model.nodes[number].uid = uid

    @rule(ino=PICK, name=st.sampled_from([b"user.x", b"user.y"]), value=st.binary(max_size=3))
    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        number = self.any_inode(ino)
        self.ns.setxattr(number, name, value)
        self.model.nodes[number].xattrs[name] = value

    @rule()
    def forget_orphans(self) -> None:
        orphans = self.ns.orphans()
        assert set(orphans) == {ino for ino, node in self.model.nodes.items() if not node.links}
        self.ns.remove_orphans(orphans)
        for ino in orphans:
            del self.model.nodes[ino]

    @rule()
    def sync_and_checkpoint(self) -> None:
        self.ns.sync()
        self.ns.checkpoint()
        assert not any(self.ns.needs_sync(Ino(ino)) for ino in self.used)

    @precondition(lambda self: self.open_cut is None)
    @rule()
    def cut_and_seal(self) -> None:
        """As when nothing happens meanwhile: the state from which the next changes are recorded exactly."""
        self.cut()
        self.end_cut(True)

    @precondition(lambda self: self.open_cut is None)
    @rule()
    def cut(self) -> None:
        self.open_cut = (self.ns.cut(self.ns.epoch), self.model.copy())

    @precondition(lambda self: self.open_cut is not None)
    @rule(sealed=st.booleans())
    def end_cut(self, sealed: bool) -> None:
        assert self.open_cut is not None
        frozen, then = self.open_cut
        self.open_cut = None
        check_frozen(frozen, then, self.sealed)
        frozen.close()
        if sealed:
            self.ns.mark_sealed(frozen.epoch)
            self.sealed = then

    @precondition(lambda self: self.open_cut is None)
    @rule()
    def reopen(self) -> None:
        epoch, changes = self.ns.epoch, self.ns.has_changes()
        self.ns.close()
        self.ns = Namespace(self.ns.path, Disk())
        assert (self.ns.epoch, self.ns.has_changes()) == (epoch, changes)

    @initialize()
    def start(self) -> None:
        assert self.ns.has_changes()

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        self.ns.check_invariants()
        assert self.ns.counts() == len(self.model.nodes)
        if self.model.differing(self.sealed):
            assert self.ns.has_changes()
        for ino, node in self.model.nodes.items():
            inode = self.ns.inode(Ino(ino))
            assert (inode.mode, inode.nlink, inode.uid) == (node.mode, node.links, node.uid)
            assert self.ns.listxattr(Ino(ino)) == sorted(node.xattrs)
            assert self.xattr(Ino(ino), b"user.x") == node.xattrs.get(b"user.x")
            if node.is_dir:
                listed = {entry.name: entry.inode.ino for entry in self.ns.readdir(Ino(ino), 0, 100)}
                assert listed == node.names

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        try:
            return self.ns.getxattr(ino, name)
        except OSError as failure:
            assert failure.errno == errno.ENODATA  # noqa: PT017 - most have none
            return None

    def teardown(self) -> None:
        if self.open_cut is not None:
            self.open_cut[0].close()
        self.ns.close()
        shutil.rmtree(self.folder)


def check_frozen(frozen: FrozenNamespace, then: Model, sealed: Model) -> None:
    """The view is the model at the cut; what it calls changed covers the difference, in order."""
    for ino, node in then.nodes.items():
        inode = frozen.inode(Ino(ino))
        if not node.links:
            assert inode is None
            continue
        assert inode is not None
        assert (inode.mode, inode.nlink, inode.uid) == (node.mode, node.links, node.uid)
        assert dict(frozen.xattrs(Ino(ino))) == node.xattrs
        if node.is_dir:
            expected = [(name, node.names[name], then.nodes[node.names[name]].mode) for name in sorted(node.names)]
            assert list(frozen.entries(Ino(ino))) == expected
    changed = list(frozen.changed())
    assert [ino for ino, _ in changed] == sorted({ino for ino, _ in changed})
    called = dict(changed)
    assert all(names == sorted(set(names)) for names in called.values())
    for ino, names in then.differing(sealed).items():
        assert ino in called
        if living_node(then, ino):
            assert names <= set(called[Ino(ino)])
        for name in names:
            entry = frozen.entry(Ino(ino), name)
            assert (entry and entry[0]) == (then.nodes[ino].names.get(name) if ino in then.nodes else None)


TestNames = Names.TestCase
TestNames.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_what_is_called_changed_is_tight_in_steady_state(tmp_path: Path) -> None:
    """Of a tree that was sealed, a cut names just what each operation touched."""
    ns = Namespace(str(tmp_path / "namespace.db"), Disk())
    docs = ns.create(ROOT_INO, b"docs", DIR, 0, 0).ino
    files = [ns.create(docs, b"%d" % i, FILE, 0, 0).ino for i in range(5)]

    def changed() -> list[tuple[Ino, list[bytes]]]:
        frozen = ns.cut(ns.epoch)
        found = list(frozen.changed())
        frozen.close()
        ns.mark_sealed(frozen.epoch)
        return found

    changed()
    assert not ns.has_changes()
    assert changed() == []
    ns.setattr(files[1], mode=0o600)
    ns.setattr(files[1], mode=0o640)
    assert changed() == [(files[1], [])]
    ns.rename(docs, b"0", ROOT_INO, b"moved")
    assert changed() == [(ROOT_INO, [b"moved"]), (docs, [b"0"]), (files[0], [])]
    new = ns.create(docs, b"new", FILE, 0, 0).ino
    below = ns.create(docs, b"below", DIR, 0, 0).ino
    inside = ns.create(below, b"inside", FILE, 0, 0).ino
    assert changed() == [(docs, [b"below", b"new"]), (new, []), (below, [b"inside"]), (inside, [])]
    ns.unlink(docs, b"new")
    assert changed() == [(docs, [b"new"]), (new, [])]
    ns.close()


@pytest.mark.parametrize("seals_fail", [1, 3])
def test_the_changes_of_a_failed_seal_are_in_the_next_cut(tmp_path: Path, seals_fail: int) -> None:
    ns = Namespace(str(tmp_path / "namespace.db"), Disk())
    first = ns.cut(Epoch(1))
    first.close()
    ns.mark_sealed(Epoch(1))
    made = []
    for i in range(seals_fail):
        made.append(ns.create(ROOT_INO, b"%d" % i, FILE, 0, 0).ino)
        ns.cut(ns.epoch).close()
    frozen = ns.cut(ns.epoch)
    names = [b"%d" % i for i in range(seals_fail)]
    assert list(frozen.changed()) == [(ROOT_INO, names), *((ino, []) for ino in made)]
    frozen.close()
    ns.close()


def test_a_seal_that_was_not_marked_leaves_no_ghosts(tmp_path: Path) -> None:
    """The process dies between a snapshot's commit and `mark_sealed`: what goes then must be called changed."""
    ns = Namespace(str(tmp_path / "namespace.db"), Disk())
    folder = ns.create(ROOT_INO, b"d", DIR, 0, 0).ino
    ino = ns.create(folder, b"f", FILE, 0, 0).ino
    ns.cut(ns.epoch).close()  # sealed, and the daemon is killed before it could record that
    ns.unlink(folder, b"f")
    ns.remove_orphans([ino])
    frozen = ns.cut(ns.epoch)
    assert list(frozen.changed()) == [(ROOT_INO, [b"d"]), (folder, [b"f"]), (ino, [])]
    frozen.close()
    ns.close()
