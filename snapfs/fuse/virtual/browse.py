"""`.snapfs/snapshots/<number or name>/...`: the trees of the past, read-only.

A browsed node is computed from (view, snapshot, inode); what this file keeps in memory is only caches. Everything
that may touch the disk or decompress runs in a worker thread with a small limit of its own, so that reading the
past cannot take the threads that the present needs. What it shows never changes, so the kernel may keep all of it.

Invariants:
1. Any node id that the kernel presents is answered from the store alone, whichever daemon gave it out.
2. A directory cookie is the position of the entry in the order of the directory, from 1: computed, and the same in
   every daemon. The name that a position was reached with is remembered to go on quickly; without it the entries
   before are counted through again.
3. A damaged object is EIO for what needs it, is named in the log, and harms nothing else.
4. A snapshot that was dropped is ESTALE for those who are still inside it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import pyfuse3
import trio

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ROOT_INO, Ino, SnapshotNumber
from snapfs.base.errors import CorruptionError, UserError
from snapfs.fuse.nodes import virtual_attributes
from snapfs.fuse.nodes.node_ids import NodeId, View, browse_node, split
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, SnapshotTree

log = logging.getLogger(__name__)

BROWSE_THREADS = 4
_TREES = 16
_RECORDS = 4096
_POSITIONS = 256
_COUNTED_CHUNKS = 4096
"""A file with more is shown as if it had no holes, lest a listing takes long: 256 MiB of data."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Result = TypeVar("Result")


class _Recent(Generic[Key, Value]):
    """The last few values by key; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._latch = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._latch:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        with self._latch:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._limit:
                self._values.popitem(last=False)

    def clear(self) -> None:
        with self._latch:
            self._values.clear()


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """An entry of the `snapshots` directory. Its cookie: two for each number, the second for the name."""

    cookie: int
    name: bytes


class Browser:
    """The read-only trees. Its methods raise OSError; the caller turns it into a reply."""

    def __init__(self, repository: Repository, damaged: Callable[[CorruptionError], None]) -> None:
        self._repository = repository
        self._damaged = damaged
        self._limiter = trio.CapacityLimiter(BROWSE_THREADS)
        self._trees: _Recent[SnapshotNumber, SnapshotTree] = _Recent(_TREES)
        self._records: _Recent[tuple[SnapshotNumber, Ino], InodeRecord] = _Recent(_RECORDS)
        self._positions: _Recent[tuple[NodeId, int], bytes] = _Recent(_POSITIONS)

    def forget_all(self) -> None:
        """Drop the caches, because a snapshot was dropped."""
        for cache in (self._trees, self._records, self._positions):
            cache.clear()

    def entries(self, start: int = 0) -> Iterator[SnapshotEntry]:
        """What the `snapshots` directory lists behind the cookie `start`: each snapshot by its number, and by its name
        if it has one. Few are decoded ahead of the caller."""
        catalog = self._repository.catalog
        for record in catalog.pages(max(start // 2 - 1, 0)):
            by_number = SnapshotEntry(record.number * 2 + View.BY_NUMBER, b"%d" % record.number)
            if by_number.cookie > start:
                yield by_number
            if record.name is not None and catalog.newest_named(record.name) == record.number:
                by_name = SnapshotEntry(record.number * 2 + View.BY_NAME, record.name.encode())
                if by_name.cookie > start:
                    yield by_name

    async def root(self, reference: bytes) -> pyfuse3.EntryAttributes:
        """The top directory of the snapshot with this number or name. ENOENT if there is none."""
        return await self._in_thread(self._root, reference)

    async def lookup(self, parent: NodeId, name: bytes) -> pyfuse3.EntryAttributes:
        """The entry `name` of the browsed directory `parent`."""
        return await self._in_thread(self._lookup, parent, name)

    async def getattr(self, node: NodeId) -> pyfuse3.EntryAttributes:
        return await self._in_thread(self._of_record, node)

    async def record(self, node: NodeId) -> InodeRecord:
        """The inode behind a browsed node, with its xattrs and link target. ESTALE if it is not there any more."""
        known = self._records.get(split(node)[1:])
        return known if known is not None else await self._in_thread(self._record, node)

    async def read(self, node: NodeId, offset: int, size: int) -> bytes:
        """Bytes of a browsed file, fewer than `size` only at its end."""
        return await self._in_thread(self._read, node, offset, size)

    async def lseek(self, node: NodeId, offset: int, whence: int) -> int:
        """The next data (os.SEEK_DATA) or hole from `offset` on, to the chunk. ENXIO beyond the end."""
        return await self._in_thread(self._lseek, node, offset, whence)

    async def readdir(self, node: NodeId, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Report entries after cookie `start` until the kernel's buffer is full."""
        await self._in_thread(self._readdir, node, start, token)

    async def _in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        try:
            return await trio.to_thread.run_sync(work, *arguments, limiter=self._limiter)
        except CorruptionError as error:
            log.error("browsing: %s", error)
            self._damaged(error)
            raise OSError(errno.EIO, str(error)) from error

    def _root(self, reference: bytes) -> pyfuse3.EntryAttributes:
        record = self._find(reference)
        node = browse_node(View.BY_NUMBER if reference.isdigit() else View.BY_NAME, record.number, ROOT_INO)
        return self._of_record(node)

    def _find(self, reference: bytes) -> SnapshotRecord:
        try:
            return self._repository.find(reference.decode())
        except (UserError, UnicodeDecodeError):
            raise _error(errno.ENOENT) from None

    def _tree(self, number: SnapshotNumber) -> SnapshotTree:
        tree = self._trees.get(number)
        if tree is None:
            try:
                record = self._repository.find(str(number))
            except UserError:
                raise _error(errno.ESTALE) from None
            tree = SnapshotTree(self._repository, record.root)
            self._trees.put(number, tree)
        return tree

    def _record(self, node: NodeId) -> InodeRecord:
        _, number, ino = split(node)
        record = self._records.get((number, ino))
        if record is None:
            record = self._tree(number).inode(ino)
            if record is None:
                raise _error(errno.ESTALE)
            self._records.put((number, ino), record)
        return record

    def _directory(self, node: NodeId) -> InodeRecord:
        record = self._record(node)
        if not stat.S_ISDIR(record.mode):
            raise _error(errno.ENOTDIR)
        return record

    def _lookup(self, parent: NodeId, name: bytes) -> pyfuse3.EntryAttributes:
        entry = self._tree(split(parent).snapshot).entry(self._directory(parent), name)
        if entry is None:
            raise _error(errno.ENOENT)
        return self._child(parent, entry)

    def _child(self, parent: NodeId, entry: DirEntry) -> pyfuse3.EntryAttributes:
        view, number, _ = split(parent)
        return self._of_record(browse_node(view, number, entry.ino))

    def _read(self, node: NodeId, offset: int, size: int) -> bytes:
        return self._tree(split(node).snapshot).read(self._record(node), offset, size)

    def _lseek(self, node: NodeId, offset: int, whence: int) -> int:
        tree, record = self._tree(split(node).snapshot), self._record(node)
        if offset >= record.size:
            raise _error(errno.ENXIO)
        found = tree.next_data(record, offset) if whence == os.SEEK_DATA else tree.next_hole(record, offset)
        if found is None:
            raise _error(errno.ENXIO)
        return found

    def _of_record(self, node: NodeId) -> pyfuse3.EntryAttributes:
        """Attributes with the blocks that are no holes; counting ends where a file has very many."""
        record = self._record(node)
        entry = virtual_attributes.of_record(node, record)
        if stat.S_ISREG(record.mode) and record.size:
            counted = list(itertools.islice(self._tree(split(node).snapshot).chunks(record), _COUNTED_CHUNKS))
            if len(counted) < _COUNTED_CHUNKS:
                sizes = (min(CHUNK_SIZE, record.size - index * CHUNK_SIZE) for index, _ in counted)
                entry.st_blocks = sum(-(-size // BLOCK_SIZE) * (BLOCK_SIZE // 512) for size in sizes)
        return entry

    def _readdir(self, node: NodeId, start: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._directory(node)
        tree = self._tree(split(node).snapshot)
        last = self._positions.get((node, start)) if start else None
        position = start if last is not None else 0
        for entry in tree.entries(directory, last):
            position += 1
            if position > start and not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(entry.name), self._child(node, entry), position
            ):
                position -= 1
                break
            last = entry.name
        if last is not None:
            self._positions.put((node, position), last)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
