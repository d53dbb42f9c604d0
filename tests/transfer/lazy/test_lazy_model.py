"""A lazily mounted tree against a model: random changes of what is here and of what is not, seals, kills, hydration.

No mount and no daemon: the live tree and the store as the daemon wires them. A kill is a copy of the volume at that
instant; what the abandoned life still does counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.base.volumes.volume import Volume
from snapfs.live.database.namespace_rows import NotLoadedError
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.transfer.lazy.attachment import Attachment
from snapfs.transfer.lazy.remount import remount
from snapfs.transfer.seal.sealer import seal
from tests.fakes.disks.crashes import Crash, CrashDisk

T = TypeVar("T")
BIG = 12 * CHUNK_SIZE


@dataclass
class Node:
    """A file or directory of the model."""

    ino: Ino
    data: bytearray | None = None  # None: a directory
    children: dict[bytes, Node] = field(default_factory=dict)
    links: int = 1
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def copied(self, seen: dict[int, Node]) -> Node:
        known = seen.get(id(self))
        if known is None:
            data = None if self.data is None else bytearray(self.data)
            known = seen[id(self)] = Node(self.ino, data, links=self.links, xattrs=dict(self.xattrs))
            known.children = {name: child.copied(seen) for name, child in self.children.items()}
        return known


class Life:
    """A volume that is open as the daemon opens it, but for the mount."""

    def __init__(self, path: str, disk: Disk | None = None, boot: str = "boot") -> None:
        disk = disk or Disk()
        self.volume = Volume.open(path, disk)
        identity = StoreIdentity(self.volume.volume_id, self.volume.seed)
        if not os.listdir(self.volume.store_dir):
            Repository.create(self.volume.store_dir, identity, disk).close()
        self.repository = Repository.open(self.volume.store_dir, identity, disk)
        self.attachment = Attachment.of(self.volume, self.repository, disk)
        names = Namespace(self.volume.namespace_path, disk)
        source = self.attachment.source() if self.attachment is not None else None
        self.tree = LiveTree(self.volume.live_dir, names, disk, boot_id=boot, source=source)

    def call(self, function: Callable[..., T], *arguments: Any, **more: Any) -> T:
        """As the handlers of requests do: what meets an unloaded directory is done again when it is loaded."""
        while True:
            try:
                return function(*arguments, **more)
            except NotLoadedError as missing:
                self.tree.load(missing.ino, self.tree.fetch_names(missing.listing))

    def seal(self) -> SnapshotRecord:
        record = seal(
            self.tree.cut(), self.repository, self.repository.latest(), generation=self.volume.generation, threads=1
        )
        self.tree.tidy()
        return record

    def close(self, clean: bool = True) -> None:
        if self.attachment is not None:
            self.attachment.close()
        self.tree.close(clean=clean)
        self.repository.close()


def make_source(path: str, chance: random.Random) -> Node:
    """A volume with some directories, small and large files, hard links; sealed twice. Its model."""
    Volume.create(path, Disk())
    life = Life(path)
    tree, root = life.tree, Node(ROOT_INO)
    directories, files = [root], []
    for number in range(14):
        parent, name = chance.choice(directories), b"d%d" % number
        node = Node(tree.mknod(parent.ino, name, stat.S_IFDIR | 0o755, 0, 0, 0).ino)
        parent.children[name] = node
        directories.append(node)
    for number in range(30):
        parent, name = chance.choice(directories), b"f%d" % number
        size = chance.choice((0, 100, 70_000, BIG))
        node = Node(tree.mknod(parent.ino, name, stat.S_IFREG | 0o644, 0, 0, 0).ino, bytearray(chance.randbytes(size)))
        if number % 5 == 0:
            tree.setxattr(node.ino, b"user.n", b"%d" % number)
            node.xattrs[b"user.n"] = b"%d" % number
        assert node.data is not None
        tree.write(node.ino, 0, bytes(node.data))
        parent.children[name] = node
        files.append(node)
    for number in range(8):
        parent, node = chance.choice(directories), chance.choice(files)
        tree.link(node.ino, parent.ino, b"l%d" % number)
        parent.children[b"l%d" % number] = node
        node.links += 1
    life.seal()
    for node in chance.sample(files, 3):
        tree.write(node.ino, 0, b"second")
        assert node.data is not None
        node.data[:6] = b"second"
    life.seal()
    life.close()
    return root


class Story:
    def __init__(self, tmp_path: Path, seed: int) -> None:
        self.chance, self.tmp_path, self.count = random.Random(seed), tmp_path, 0
        self.root = make_source(str(tmp_path / "source"), self.chance)
        self.path = str(tmp_path / "lazy-0")
        assert remount(self.path, [str(tmp_path / "source")], Disk()) is not None
        self.life = Life(self.path)
        self.born = 0

    def directories(self) -> list[Node]:
        found = [self.root]
        for node in found:
            found += [child for child in node.children.values() if child.data is None]
        return found

    def some_name(self) -> tuple[Node, bytes, Node] | None:
        parent = self.chance.choice(self.directories())
        if not parent.children:
            return None
        name = self.chance.choice(sorted(parent.children))
        return parent, name, parent.children[name]

    def step(self) -> None:
        kinds = [self.write, self.write, self.truncate, self.create, self.mkdir, self.unlink, self.rename, self.link]
        self.chance.choice([*kinds, self.hydrate, self.look, self.setxattr])()

    def reach(self, node: Node) -> None:
        """Look up every name on the way to an inode, as the kernel has before it requests it."""
        way: list[tuple[Node, bytes]] = []

        def search(parent: Node) -> bool:
            for name, child in parent.children.items():
                way.append((parent, name))
                if child is node or (child.data is None and search(child)):
                    return True
                way.pop()
            return False

        assert node is self.root or search(self.root)
        for parent, name in way:
            assert self.life.call(self.life.tree.lookup, parent.ino, name).ino == parent.children[name].ino

    def write(self) -> None:
        found = self.some_name()
        if found is None or found[2].data is None:
            return
        node, tree = found[2], self.life.tree
        assert node.data is not None
        self.reach(node)
        offset = self.chance.randrange(len(node.data) + 1)
        data = self.chance.randbytes(self.chance.randrange(1, 80_000))
        tree.prepare_write(node.ino, offset, len(data))
        tree.write(node.ino, offset, data)
        node.data[offset : offset + len(data)] = data

    def truncate(self) -> None:
        found = self.some_name()
        if found is None or found[2].data is None:
            return
        node, tree = found[2], self.life.tree
        assert node.data is not None
        self.reach(node)
        size = self.chance.randrange(len(node.data) + 1000)
        tree.prepare_truncate(node.ino, size)
        tree.setattr(node.ino, size=size)
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))

    def create(self) -> None:
        self._make(bytearray())

    def mkdir(self) -> None:
        self._make(None)

    def _make(self, data: bytearray | None) -> None:
        parent = self.chance.choice(self.directories())
        self.reach(parent)
        self.born += 1
        name, mode = b"new%d" % self.born, (stat.S_IFDIR if data is None else stat.S_IFREG) | 0o700
        made = self.life.call(self.life.tree.mknod, parent.ino, name, mode, 0, 0, 0)
        parent.children[name] = Node(made.ino, data)

    def unlink(self) -> None:
        found = self.some_name()
        if found is None:
            return
        parent, name, node = found
        self.reach(parent)
        tree = self.life.tree
        if node.data is not None:
            self.life.call(tree.unlink, parent.ino, name)
            node.links -= 1
        elif node.children:
            with pytest.raises(OSError, match="not empty"):
                self.life.call(tree.rmdir, parent.ino, name)
            return
        else:
            self.life.call(tree.rmdir, parent.ino, name)
        del parent.children[name]

    def rename(self) -> None:
        found = self.some_name()
        target = self.chance.choice(self.directories())
        if found is None or found[2] is target:
            return
        parent, name, node = found
        self.reach(parent)
        self.reach(target)
        self.born += 1
        new = b"moved%d" % self.born
        with contextlib.suppress(OSError):  # a directory into itself
            self.life.call(self.life.tree.rename, parent.ino, name, target.ino, new)
            del parent.children[name]
            target.children[new] = node

    def link(self) -> None:
        found = self.some_name()
        if found is None or found[2].data is None:
            return
        parent, node = self.chance.choice(self.directories()), found[2]
        self.reach(parent)
        self.reach(node)
        self.born += 1
        self.life.call(self.life.tree.link, node.ino, parent.ino, b"also%d" % self.born)
        parent.children[b"also%d" % self.born] = node
        node.links += 1

    def setxattr(self) -> None:
        found = self.some_name()
        if found is not None:
            self.reach(found[2])
            self.life.call(self.life.tree.setxattr, found[2].ino, b"user.x", b"y")
            found[2].xattrs[b"user.x"] = b"y"

    def hydrate(self) -> None:
        names = self.life.tree.names
        for ino in self.chance.sample(names.absent_inos(), min(2, len(names.absent_inos()))):
            self.life.tree.hydrate(ino, self.chance.randrange(1, 9))

    def look(self) -> None:
        found = self.some_name()
        if found is not None and found[2].data:
            self.reach(found[2])
            offset = self.chance.randrange(len(found[2].data))
            data = self.life.tree.read(found[2].ino, offset, 100_000)
            assert data == found[2].data[offset : offset + 100_000]

    def reopen(self, clean: bool) -> None:
        if clean:
            self.life.close()
        old, self.count = self.path, self.count + 1
        self.path = str(self.tmp_path / f"lazy-{self.count}")
        shutil.copytree(old, self.path)
        if not clean:
            self.life.close(clean=False)
        self.life = Life(self.path)

    def check_live(self) -> None:
        tree, call = self.life.tree, self.life.call
        for directory in self.directories():
            self.reach(directory)
            shown = {name: attr for _, name, attr in call(tree.readdir, directory.ino, 0, 10_000)}
            assert shown.keys() == directory.children.keys()
            for name, child in directory.children.items():
                assert shown[name].ino == child.ino
                if child.data is None:
                    below = sum(1 for each in child.children.values() if each.data is None)
                    assert shown[name].nlink == 2 + below
                else:
                    assert (shown[name].nlink, shown[name].size) == (child.links, len(child.data))
                    assert tree.read(child.ino, 0, len(child.data)) == child.data
                assert {key: tree.getxattr(child.ino, key) for key in tree.listxattr(child.ino)} == child.xattrs
        tree.names.check_invariants()
        tree.check_invariants()

    def check_snapshot(self, record: SnapshotRecord, model: Node) -> None:
        tree = SnapshotTree(self.life.repository, record.root)
        root = tree.inode(ROOT_INO)
        assert root is not None
        self._check_recorded(tree, root, model)

    def _check_recorded(self, tree: SnapshotTree, record: InodeRecord, node: Node) -> None:
        if node.data is not None:
            assert (record.nlink, record.size, dict(record.xattrs)) == (node.links, len(node.data), node.xattrs)
            assert tree.read(record, 0, record.size) == node.data
            return
        entries = {entry.name: entry.ino for entry in tree.entries(record)}
        assert entries == {name: child.ino for name, child in node.children.items()}
        for name, child in node.children.items():
            below = tree.inode(entries[name])
            assert below is not None
            self._check_recorded(tree, below, child)

    def make_whole(self) -> None:
        """As hydration does, to the end."""
        tree, attachment = self.life.tree, self.life.attachment
        assert attachment is not None
        while found := tree.names.unloaded(10):
            for ino, listing in found:
                tree.load(ino, tree.fetch_names(listing))
        assert all(size >= 0 for size in attachment.backfill(supply=tree.supply))
        tree.hydrate_small(tree.names.absent_inos()[::2], 100_000)
        for ino in tree.names.absent_inos():
            while not tree.hydrate(ino, 5):
                pass
        tree.tidy()
        assert not tree.names.absent_inos()
        attachment.finish(lambda: None)


@pytest.fixture
def make_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Story]]:
    monkeypatch.setattr("snapfs.live.file_hydration.WHOLE_BYTES", 4 * CHUNK_SIZE)  # larger ones come in piece by piece
    made: list[Story] = []

    def make(seed: int) -> Story:
        made.append(Story(tmp_path, seed))
        return made[-1]

    yield make
    for story in made:
        if story.life.tree.is_open:
            story.life.close(clean=False)


@pytest.mark.parametrize("seed", range(6))
def test_a_lazy_tree_is_the_model_whatever_is_loaded(make_story: Callable[[int], Story], seed: int) -> None:
    story = make_story(seed)
    chance = random.Random(seed + 1000)
    snapshots: list[tuple[SnapshotRecord, Node]] = []
    for _ in range(120):
        story.step()
        event = chance.random()
        if event < 0.04:
            model = story.root.copied({})
            snapshots.append((story.life.seal(), model))
        elif event < 0.07:
            story.reopen(clean=chance.random() < 0.3)
        elif event < 0.1:
            story.life.tree.tidy()
            story.life.tree.sync_soon()
    for record, model in snapshots:
        story.check_snapshot(record, model)
    story.check_live()
    story.make_whole()
    os.rename(story.tmp_path / "source", story.tmp_path / "gone")
    story.reopen(clean=True)
    assert story.life.attachment is None
    assert story.life.repository.lazy is None
    story.check_live()
    for record, model in snapshots:
        story.check_snapshot(record, model)
    first = story.life.repository.snapshots()[0]
    assert first.number == 2


def test_a_crash_at_any_step_of_hydration_leaves_what_goes_on(tmp_path: Path) -> None:
    """Die at each labelled durable act from the first fetched byte to the last segment; the next life goes on."""
    story = Story(tmp_path, 99)
    story.life.close()
    at, crashed = 0, True
    while crashed:
        path = str(tmp_path / f"crash-{at}")
        shutil.copytree(story.path, path)
        disk = CrashDisk()
        life = Life(path, disk)
        disk.at = len(disk.labels) + at
        crashed = False
        try:
            whole = Story.__new__(Story)
            whole.life = life
            whole.make_whole()
        except Crash:
            crashed = True
        disk.at = None
        life.close(clean=False)
        again = Story.__new__(Story)
        again.life, again.root, again.path = Life(path), story.root, path
        again.check_live()
        if again.life.attachment is not None:
            again.make_whole()
        again.check_live()
        again.life.close()
        shutil.rmtree(path)
        at += 17 if at > 30 else 4
