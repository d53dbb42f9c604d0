"""A model of a state directory: plain dicts, random changes, and what a sealer would report of them."""

from __future__ import annotations

import copy
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ChunkIndex, Ino, chunk_count
from snapfs.store.objects.format import NULL, Pointer
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, RootInfo, SnapshotTree, SnapshotWriter
from snapfs.store.tables.table_pages import ObjectWriter

DIRECTORY, REGULAR, SYMLINK, FIFO = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO
SCATTERED, SCATTERED_BLOCKS = 3, 6


@dataclass
class Node:
    mode: int
    nlink: int = 1
    size: int = 0
    mtime: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    chunks: dict[int, bytes] = field(default_factory=dict)  # without zeros at their ends; no empty ones
    names: dict[bytes, int] = field(default_factory=dict)

    @property
    def kind(self) -> int:
        return self.mode >> 12


class Writer(ObjectWriter, Protocol):
    """What a sealer needs of a store; both the memory one and a real transaction fit."""

    def put_chunk(self, plain: bytes, base: Pointer | None = None, /) -> Pointer:
        """Store a chunk, or find it stored."""


class State:
    """Nodes by inode number. Numbers are never used again, also not by another copy."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {1: Node(DIRECTORY | 0o755, nlink=2)}
        self.next_ino = 2
        self.clock = 1_000_000_000
        self.scattered = False
        """Whether a chunk of the oldest file is overwritten at random with each write."""

    def copy(self) -> State:
        return copy.deepcopy(self)

    # -- changes ---------------------------------------------------------------------------------------------

    def change(self, rng: random.Random, steps: int) -> None:
        for _ in range(steps):
            self.clock += rng.randrange(1, 10**10)
            rng.choice(_CHANGES)(self, rng)

    def pick(self, rng: random.Random, form: int) -> int | None:
        found = [ino for ino, node in self.nodes.items() if stat.S_IFMT(node.mode) == form]
        return rng.choice(found) if found else None

    def links(self, rng: random.Random) -> tuple[int, bytes] | None:
        """A random name: (directory, name)."""
        found = [(ino, name) for ino, node in self.nodes.items() for name in node.names]
        return rng.choice(found) if found else None

    def create(self, rng: random.Random, form: int, count: int = 1) -> None:
        parent = self.pick(rng, DIRECTORY)
        assert parent is not None
        for _ in range(count):
            name = self._name(rng)
            if name in self.nodes[parent].names:
                continue
            ino = self.next_ino
            self.next_ino += rng.choice([1, 1, 1, 2, 40])
            node = Node(form | rng.choice([0o600, 0o644, 0o755]), mtime=self.clock)
            if form == SYMLINK:
                node.target = b"t" * rng.choice([1, 20, 254, 255, 300, 4000])
            if form == DIRECTORY:
                node.nlink = 2
            self.nodes[ino] = node
            self.nodes[parent].names[name] = ino

    def _name(self, rng: random.Random) -> bytes:
        if rng.random() < 0.1:
            return bytes(rng.choice(b"\x01\xff\x80ab.") for _ in range(rng.randrange(3, 256)))
        return b"%03d" % rng.randrange(600)

    def write(self, rng: random.Random) -> None:
        ino = self.pick(rng, REGULAR)
        if ino is None:
            return
        node = self.nodes[ino]
        for _ in range(rng.choice([1, 1, 3, 30])):
            index = rng.choice([0, 0, 1, 2, rng.randrange(5), rng.randrange(100), rng.randrange(5000), 1 << 30])
            plain = rng.randbytes(rng.choice([1, 9, 40]))
            node.chunks[index] = plain.rstrip(b"\0") or b"x"
            node.size = max(node.size, index * CHUNK_SIZE + len(plain) + rng.choice([0, 100]))
        node.mtime = self.clock
        if self.scattered:
            regular = (ino for ino, each in self.nodes.items() if stat.S_IFMT(each.mode) == REGULAR)
            self._scatter(self.nodes[min(regular)])

    def _scatter(self, node: Node) -> None:
        """Overwrite a block of noise in a chunk of such blocks."""
        chance, node.mtime = random.Random(self.clock), self.clock
        plain = bytearray(node.chunks.get(SCATTERED, b""))
        if len(plain) < SCATTERED_BLOCKS * BLOCK_SIZE:
            plain = bytearray(chance.randbytes(SCATTERED_BLOCKS * BLOCK_SIZE))
        start = chance.randrange(SCATTERED_BLOCKS) * BLOCK_SIZE
        plain[start : start + BLOCK_SIZE] = chance.randbytes(BLOCK_SIZE - 1) + b"x"
        node.chunks[SCATTERED] = bytes(plain).rstrip(b"\0") or b"x"
        node.size = max(node.size, SCATTERED * CHUNK_SIZE + len(plain))

    def truncate(self, rng: random.Random) -> None:
        ino = self.pick(rng, REGULAR)
        if ino is None:
            return
        node = self.nodes[ino]
        node.size = rng.choice([0, 1, CHUNK_SIZE, 3 * CHUNK_SIZE + 1, rng.randrange(node.size + 1), 1 << 45])
        node.mtime = self.clock
        for index in [index for index in node.chunks if index >= chunk_count(node.size)]:
            del node.chunks[index]
        last = node.size // CHUNK_SIZE
        if last in node.chunks:
            rest = node.chunks.pop(last)[: node.size % CHUNK_SIZE].rstrip(b"\0")
            if rest:
                node.chunks[last] = rest

    def punch(self, rng: random.Random) -> None:
        ino = self.pick(rng, REGULAR)
        if ino is not None and self.nodes[ino].chunks:
            first = rng.choice(list(self.nodes[ino].chunks))
            for index in [index for index in self.nodes[ino].chunks if first <= index < first + 40]:
                del self.nodes[ino].chunks[index]

    def attributes(self, rng: random.Random) -> None:
        node = self.nodes[rng.choice(list(self.nodes))]
        node.mode = stat.S_IFMT(node.mode) | rng.choice([0o600, 0o644, 0o755])
        if rng.random() < 0.5:
            size = rng.choice([0, 5, 200, 300, 3000, 65536])
            node.xattrs[b"user.%d" % rng.randrange(3)] = rng.randbytes(size)
        elif node.xattrs:
            del node.xattrs[rng.choice(list(node.xattrs))]

    def link(self, rng: random.Random) -> None:
        ino, parent = self.pick(rng, REGULAR), self.pick(rng, DIRECTORY)
        name = self._name(rng)
        if ino is not None and parent is not None and name not in self.nodes[parent].names:
            self.nodes[parent].names[name] = ino
            self.nodes[ino].nlink += 1

    def unlink(self, rng: random.Random) -> None:
        found = self.links(rng)
        if found is not None:
            self.drop(*found)

    def drop(self, parent: int, name: bytes) -> None:
        """Take a name away, and all that is reached by it alone."""
        ino = self.nodes[parent].names.pop(name)
        node = self.nodes[ino]
        for below in list(node.names):
            self.drop(ino, below)
        node.nlink -= 1
        if stat.S_ISDIR(node.mode) or node.nlink == 0:
            del self.nodes[ino]

    def rename(self, rng: random.Random) -> None:
        source, parent = self.links(rng), self.pick(rng, DIRECTORY)
        if source is None or parent is None:
            return
        ino = self.nodes[source[0]].names[source[1]]
        if self._is_below(parent, ino):
            return
        name = rng.choice([source[1], self._name(rng), *list(self.nodes[parent].names)[:2]])
        replaced = self.nodes[parent].names.get(name)
        if replaced == ino or (replaced is not None and self._is_below(source[0], replaced)):
            return
        if replaced is not None:
            self.drop(parent, name)
        self.nodes[parent].names[name] = self.nodes[source[0]].names.pop(source[1])

    def _is_below(self, ino: int, above: int) -> bool:
        return ino == above or any(self._is_below(ino, child) for child in self.nodes[above].names.values())

    # -- as a sealer reports it ------------------------------------------------------------------------------

    def seal(self, writer: Writer, tree: SnapshotTree | None, before: State | None) -> Pointer:
        """Write what changed since `before`, of which `tree` is the snapshot; the pointer of the new root."""
        made = SnapshotWriter(writer, tree)
        return made.finish(self._changes(writer, made, tree, before), extra=RootInfo(self.clock, Ino(self.next_ino)))

    def _changes(
        self, writer: Writer, made: SnapshotWriter, tree: SnapshotTree | None, before: State | None
    ) -> Iterator[tuple[Ino, InodeRecord | None]]:
        old_nodes = before.nodes if before else {}
        for ino in sorted(old_nodes.keys() | self.nodes.keys()):
            old, new = old_nodes.get(ino), self.nodes.get(ino)
            if old == new:
                continue
            parent = tree.inode(Ino(ino)) if tree and old else None
            yield Ino(ino), self._record(writer, made, Ino(ino), new, parent, old, tree) if new else None

    def _record(
        self, writer: Writer, made: SnapshotWriter, ino: Ino, node: Node, parent: InodeRecord | None, old: Node | None,
        tree: SnapshotTree | None,
    ) -> InodeRecord:  # fmt: skip
        content, height = NULL, 0
        if stat.S_ISDIR(node.mode):
            content = made.update_directory(parent, self._names(node, old))
        elif stat.S_ISREG(node.mode):
            chunks = self._chunks(writer, node, old, parent, tree)
            content, height = made.update_map(parent, node.size, chunks)
        xattrs = tuple(sorted(node.xattrs.items()))
        return InodeRecord(
            ino, node.mode, 1000, 100, node.nlink, 0, node.size, 5, node.mtime, self.clock, node.target, xattrs,
            content, height,
        )  # fmt: skip

    def _names(self, node: Node, old: Node | None) -> Iterator[tuple[bytes, DirEntry | None]]:
        old_names = old.names if old else {}
        for name in sorted(node.names.keys() | old_names.keys()):
            ino = node.names.get(name)
            if ino != old_names.get(name):
                yield name, DirEntry(name, Ino(ino), self.nodes[ino].kind) if ino else None

    def _chunks(
        self, writer: Writer, node: Node, old: Node | None, parent: InodeRecord | None, tree: SnapshotTree | None
    ) -> Iterator[tuple[ChunkIndex, Pointer]]:
        old_chunks = old.chunks if old else {}
        for index in sorted(node.chunks.keys() | old_chunks.keys()):
            plain = node.chunks.get(index)
            if plain != old_chunks.get(index):
                base = tree.chunk(parent, index) if tree and parent else None
                yield ChunkIndex(index), writer.put_chunk(plain, base) if plain else NULL

    # -- as a reader sees it ---------------------------------------------------------------------------------

    def assert_equals(self, tree: SnapshotTree) -> None:
        records = {record.ino: record for record in tree.inodes()}
        assert list(records) == sorted(self.nodes)
        for ino, record in records.items():
            node = self.nodes[ino]
            assert record == tree.inode(ino)
            assert (record.mode, record.nlink, record.size, record.mtime_ns) == (
                node.mode, node.nlink, node.size, node.mtime,
            )  # fmt: skip
            assert (record.target, dict(record.xattrs)) == (node.target, node.xattrs)
            if stat.S_ISDIR(node.mode):
                names = {entry.name: (entry.ino, entry.kind) for entry in tree.entries(record)}
                assert names == {name: (child, self.nodes[child].kind) for name, child in node.names.items()}
            else:
                chunks = {index: tree.pages.read(pointer).rstrip(b"\0") for index, pointer in tree.chunks(record)}
                assert chunks == node.chunks

    def paths(self) -> dict[bytes, tuple[int, bytes, int]]:
        """path -> (directory, name, inode)."""
        found, pending = {}, [(1, b"")]
        while pending:
            parent, prefix = pending.pop()
            for name, ino in self.nodes[parent].names.items():
                found[prefix + name] = (parent, name, ino)
                if stat.S_ISDIR(self.nodes[ino].mode):
                    pending.append((ino, prefix + name + b"/"))
        return found


_CHANGES = [
    lambda state, rng: state.create(rng, REGULAR),
    lambda state, rng: state.create(rng, REGULAR),
    lambda state, rng: state.create(rng, REGULAR, rng.choice([5, 40])),
    lambda state, rng: state.create(rng, DIRECTORY),
    lambda state, rng: state.create(rng, rng.choice([SYMLINK, FIFO])),
    State.write,
    State.write,
    State.write,
    State.truncate,
    State.punch,
    State.attributes,
    State.attributes,
    State.link,
    State.unlink,
    State.rename,
    State.rename,
]
