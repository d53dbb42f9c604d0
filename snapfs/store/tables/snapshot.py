"""A snapshot: its root page, how it is read (`SnapshotTree`), and how the next one is made of it (`SnapshotWriter`).

ROOT page (header of table_pages.py: level = height of the inode table, count 0), then
     0  table number  8  radix table of inode pages; page n holds the inodes 32 * n and on
     8  table content hash  16
    24  next inode    8  every inode number that the volume ever gave out is smaller
    32  inodes        8  in this snapshot
    40  bytes         8  sum of the sizes of all files
    48  cut time      8  ns since 1970, signed
    56  parent       32  SHA-256 of the parent's root page, zero for a snapshot without one

Invariants:
1. A snapshot is reached from its root alone. Two snapshots share every page and chunk that did not change.
2. Through the parent's hash in the root, and the newest root in snapshots.log, a history cannot be rewritten unnoticed.
3. Writing streams: memory is a few pages, whatever the size of the state or of the change.
4. The root is the last page that a snapshot writes; with its pointer one has the whole snapshot.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Ino, Number, chunk_count
from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.tables import directory_table, directory_update, inode_table, radix
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.inode_table import EMPTY, INODES_PER_PAGE, InodeRecord, Slot
from snapfs.store.tables.table_pages import (
    CACHE_BYTES,
    HEADER,
    ObjectReader,
    ObjectWriter,
    Pages,
    PageType,
    damaged,
    open_page,
    page_header,
)

__all__ = ["DirEntry", "InodeRecord", "Root", "RootInfo", "SnapshotTree", "SnapshotWriter"]

_ROOT: Final = struct.Struct("<Q16sQQQq32s")
WRITER_CACHE_BYTES: Final = 512 << 10
"""A writer goes through each table once; what it needs again is on the way from the top to where it is."""
_NO_PARENT: Final = bytes(32)
_NO_INO: Final = Ino(0)


@dataclass(frozen=True, slots=True)
class RootInfo:
    """What the one who seals knows of a snapshot. `next_ino` need only be given if numbers were skipped."""

    cut_time_ns: int
    next_ino: Ino = _NO_INO


@dataclass(frozen=True, slots=True)
class Root:
    """A root page. `total_bytes` is the sum of all files' sizes."""

    table: Pointer
    height: int
    next_ino: Ino
    inodes: int
    total_bytes: int
    cut_time_ns: int
    parent_sha256: bytes


def encode_root(root: Root) -> bytes:
    return page_header(PageType.ROOT, root.height, 0) + _ROOT.pack(
        *root.table, root.next_ino, root.inodes, root.total_bytes, root.cut_time_ns, root.parent_sha256
    )


def decode_root(pointer: Pointer, plain: bytes) -> Root:
    height, count = open_page(pointer, plain, PageType.ROOT)
    if count or height > radix.MAX_HEIGHT or len(plain) != HEADER.size + _ROOT.size:
        raise damaged(pointer, f"a root of {len(plain)} bytes and height {height}")
    number, content_hash, next_ino, inode_count, size, cut_time_ns, parent = _ROOT.unpack_from(plain, HEADER.size)
    table = Pointer(Number(number), content_hash)
    return Root(table, height, Ino(next_ino), inode_count, size, cut_time_ns, parent)


def map_of(file: InodeRecord | None) -> tuple[Pointer, int]:
    """The block map (root, height) of a regular file, empty for anything else."""
    return (file.content, file.height) if file and stat.S_ISREG(file.mode) else (NULL, 0)


def listing_of(parent: InodeRecord | None) -> Pointer:
    """The top page of a directory's entries, NULL for anything else."""
    return parent.content if parent and stat.S_ISDIR(parent.mode) else NULL


class SnapshotTree:
    """The read side of one snapshot. Thread-safe. Everything here raises CorruptionError if the store is damaged."""

    def __init__(
        self, reader: ObjectReader, root: Pointer, *, cache_bytes: int = CACHE_BYTES, pages: Pages | None = None
    ) -> None:
        """`pages`, those of another tree on the same reader, lets many snapshots share one cache."""
        self.pages = pages or Pages(reader, cache_bytes)
        self.pointer = root
        plain = reader.read(root)
        self.root = decode_root(root, plain)
        self.sha256 = hashlib.sha256(plain).digest()

    def inode(self, ino: Ino) -> InodeRecord | None:
        """The record of `ino`, or None if this snapshot has no such inode."""
        pointer = radix.lookup(self.pages, self.root.table, self.root.height, ino >> inode_table.BITS)
        return inode_table.record_of(self.pages, inode_table.load(self.pages, pointer), ino)

    def inodes(self, start: Ino = _NO_INO) -> Iterator[InodeRecord]:
        """All records with a number of at least `start`, ascending."""
        for index, pointer in radix.items(self.pages, self.root.table, self.root.height, start >> inode_table.BITS):
            page = inode_table.load(self.pages, pointer)
            first = index << inode_table.BITS
            for ino in range(max(first, start), first + len(page.slots)):
                record = inode_table.record_of(self.pages, page, Ino(ino))
                if record is not None:
                    yield record

    def entry(self, parent: InodeRecord, name: bytes) -> DirEntry | None:
        """The entry called `name` of the directory `parent`, or None."""
        return directory_table.lookup(self.pages, listing_of(parent), name)

    def entries(self, parent: InodeRecord, after: bytes | None = None) -> Iterator[DirEntry]:
        """The entries of the directory `parent` with names greater than `after`, ascending by name."""
        return directory_table.entries(self.pages, listing_of(parent), after)

    def chunk(self, file: InodeRecord, index: int) -> Pointer:
        """The pointer of a file's chunk, NULL for a hole or beyond the end."""
        return radix.lookup(self.pages, *map_of(file), index)

    def chunks(
        self, file: InodeRecord, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[ChunkIndex, Pointer]]:
        """(index, pointer) of the file's chunks with first <= index < stop that are no holes, ascending."""
        for index, pointer in radix.items(self.pages, *map_of(file), first, stop):
            yield ChunkIndex(index), pointer

    def read(self, file: InodeRecord, offset: int, size: int) -> bytes:
        """The file's bytes [offset, offset + size), clipped at its end; holes are zeros."""
        end = min(offset + size, file.size)
        if offset >= end:
            return b""
        first, stop = offset // CHUNK_SIZE, chunk_count(end)
        parts: list[bytes] = []
        reached = offset
        for index, pointer in self.chunks(file, first, stop):
            start = index * CHUNK_SIZE
            begin = max(offset, start)
            piece = self.pages.read_part(pointer, begin - start, end - begin)
            parts += (bytes(begin - reached), piece)
            reached = begin + len(piece)
        parts.append(bytes(end - reached))
        return b"".join(parts)

    def next_data(self, file: InodeRecord, offset: int) -> int | None:
        """The first byte at or after `offset` that lies in a chunk that is no hole; None if there is none."""
        for index, _ in self.chunks(file, offset // CHUNK_SIZE, chunk_count(file.size)):
            start = max(offset, index * CHUNK_SIZE)
            return start if start < file.size else None
        return None

    def next_hole(self, file: InodeRecord, offset: int) -> int:
        """The first byte at or after `offset` that lies in a hole, or the file's end."""
        expected = offset // CHUNK_SIZE
        for index, _ in self.chunks(file, expected, chunk_count(file.size)):
            if index != expected:
                break
            expected += 1
        return min(max(offset, expected * CHUNK_SIZE), file.size)


class SnapshotWriter:
    """The write side: the parent's tables with changes made, page by page, into a transaction. One thread at a time."""

    def __init__(self, transaction: ObjectWriter, parent: SnapshotTree | None) -> None:
        self._transaction = transaction
        self._parent = parent
        self._pages = self.pages = Pages(transaction, WRITER_CACHE_BYTES)
        self._inodes = parent.root.inodes if parent else 0
        self._bytes = parent.root.total_bytes if parent else 0
        self._next_ino = parent.root.next_ino if parent else Ino(0)

    def update_map(
        self, parent: InodeRecord | None, size: int, changes: Iterable[tuple[ChunkIndex, Pointer]]
    ) -> tuple[Pointer, int]:
        """The block map of `parent` with the ascending `changes` made (NULL: a hole), cut off at `size` bytes.

        Gives (content, height) for the new record. `changes` is consumed to its end.
        """
        limit = chunk_count(size)
        return radix.update(self._pages, self._transaction, ObjectKind.MAP_PAGE, map_of(parent), changes, limit=limit)

    def update_directory(self, parent: InodeRecord | None, changes: Iterable[tuple[bytes, DirEntry | None]]) -> Pointer:
        """The directory `parent` with the changes, ascending by name, made; None takes an entry out."""
        return directory_update.update(self._pages, self._transaction, listing_of(parent), changes)

    def finish(self, changes: Iterable[tuple[Ino, InodeRecord | None]], *, extra: RootInfo) -> Pointer:
        """Make the changes, ascending by inode, to the inode table, write the root and give its pointer.

        `changes` is consumed as it comes and may itself call `update_map` and `update_directory`.
        """
        old = self._parent.root if self._parent else None
        table, height = (old.table, old.height) if old else (NULL, 0)
        pages = self._inode_pages(changes, table, height)
        table, height = radix.update(self._pages, self._transaction, ObjectKind.INODE_PAGE, (table, height), pages)
        next_ino = Ino(max(self._next_ino, extra.next_ino))
        parent_sha256 = self._parent.sha256 if self._parent else _NO_PARENT
        root = Root(table, height, next_ino, self._inodes, self._bytes, extra.cut_time_ns, parent_sha256)
        base = self._parent.pointer if self._parent else None
        return self._transaction.put_page(ObjectKind.ROOT, encode_root(root), base)

    def _inode_pages(
        self, changes: Iterable[tuple[Ino, InodeRecord | None]], table: Pointer, height: int
    ) -> Iterator[tuple[int, Pointer]]:
        for index, group in groupby(_ascending(changes), key=lambda change: change[0] >> inode_table.BITS):
            yield index, self._inode_page(radix.lookup(self._pages, table, height, index), group)

    def _inode_page(self, base: Pointer, changes: Iterable[tuple[Ino, InodeRecord | None]]) -> Pointer:
        old = inode_table.load(self._pages, base).slots
        slots = old + [EMPTY] * (INODES_PER_PAGE - len(old))
        for ino, record in changes:
            index = ino & (INODES_PER_PAGE - 1)
            slots[index] = self._slot(ino, record, slots[index])
        while slots and slots[-1] == EMPTY:
            slots.pop()
        if not slots or slots == old:
            return base if slots else NULL
        return self._transaction.put_page(
            ObjectKind.INODE_PAGE, inode_table.encode_page(slots), base if base.number else None
        )

    def _slot(self, ino: Ino, record: InodeRecord | None, before: Slot) -> Slot:
        after = inode_table.encode_slot(self._pages, self._transaction, record, before) if record else EMPTY
        self._inodes += (after != EMPTY) - (before != EMPTY)
        self._bytes += inode_table.size_of(after) - inode_table.size_of(before)
        self._next_ino = max(self._next_ino, Ino(ino + 1))
        return after


def _ascending(changes: Iterable[tuple[Ino, InodeRecord | None]]) -> Iterator[tuple[Ino, InodeRecord | None]]:
    last = 0
    for ino, record in changes:
        if ino <= last or (record is not None and (record.ino != ino or record.mode == 0)):
            raise ValueError(f"inode {ino} after {last} with {record}: changes must ascend and fit their records")
        last = ino
        yield ino, record
