"""What a seal looks at, and against what it stores each piece: an iterator that does no work on bytes.

It visits every inode that changed by name, attribute or byte once, in ascending order. Of a regular file the batches of
chunks to look at follow its visit. It belongs to the thread that seals and is advanced a little ahead of the work.

Invariants:
1. Every inode and chunk that may differ from the parent is visited. What an inode has no trustworthy dirty set for
   (`FrozenFile.whole`) is looked at in full, holes included.
2. The parent may be newer than what the live tree takes for sealed (a crash after the commit, before `Cut.finish`).
   Then every change since the older snapshot is visited, and what the parent has of inodes that the tree calls new.
3. The plan depends on the cut and on the parent alone, not on the time that anything takes.
4. A file is open from its visit until `let_go`; `close` lets go of what is left.

A new file that took the name of another (an editor's or Redis's rename, or unlink and create) takes that file's
chunks as bases. Directories have smaller inode numbers than the files made in them later, so the ascending visit
sees the changed name before the new file.

A chunk of a known file that was written as a whole, as in the ring of a database's log, owes little to its earlier
version. It is encoded against one of the chunks before it in the parent: that is what the application wrote last, of
the same kind; and it is the one that compresses worst, because that has the most to refer to. Chunks that are only
appended are not: what is appended to a table will be changed in place, and then its version before is the better base.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import itemgetter

from snapfs.base.blocks import CHUNK_SIZE, FULL_MASK, ChunkIndex, Ino, chunk_count
from snapfs.live.cut import Cut, FrozenFile
from snapfs.live.database.namespace_rows import Inode
from snapfs.store.objects.format import NULL, Pointer
from snapfs.store.repository.repository import Transaction
from snapfs.store.tables import radix
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree, map_of
from snapfs.store.tables.table_pages import Pages
from snapfs.transfer.common.store_source import record_of
from snapfs.transfer.seal.shown_names import CutNames

BATCH_CHUNKS = 16
SIMILAR_AT_LEAST = 2
"""Chunks of a batch that were written as a whole; for fewer it does not pay to prepare similar chunks."""
SIMILAR_AMONG = 32
"""So many chunks before them are looked at, or so many that they take the place of."""
CAREFUL_CHUNKS = 128
"""How many of them, in one seal, are worth more than a millisecond each: 8 MiB, 200 ms."""


def _no_chunk(file: InodeRecord, chunk: int) -> Pointer:
    return NULL


@dataclass(slots=True)
class File:
    """A regular file under way."""

    inode: Inode
    frozen: FrozenFile
    parent: InodeRecord | None
    model: InodeRecord | None  # whose chunks are the bases: the parent's own, or those of the file it replaced
    origin: InodeRecord | None = None  # has what of the file is still only in the store
    chunk_of: Callable[[InodeRecord, int], Pointer] = _no_chunk


@dataclass(slots=True)
class Batch:
    file: File
    chunks: list[ChunkIndex]
    whole: set[ChunkIndex]  # those of them that were written as a whole
    partly: set[ChunkIndex]  # and those of which only some blocks were
    similar: Pointer = NULL  # what these may be encoded against
    careful: bool = False


@dataclass(slots=True)
class SealVisit:
    """An inode's turn. Of a file the batches follow, up to the next visit."""

    ino: Ino
    file: File | None = None


class Plan:
    """The visits and batches of one seal."""

    def __init__(
        self, cut: Cut, names: CutNames, parent: SnapshotTree | None, transaction: Transaction, pages: Pages
    ) -> None:
        """`names`: those of the cut that are to be in the snapshot. `pages` reads the tables of what is only in the
        store."""
        self._cut, self._names, self._parent = cut, names, parent
        self._transaction, self._pages = transaction, pages
        self._replaced: dict[Ino, Ino] = {}
        self._open: set[FrozenFile] = set()
        self._careful_left = CAREFUL_CHUNKS
        self._similar: tuple[int, Pointer] = (0, NULL)  # the last one that was found, after the size of its file
        self.planned_bytes = 0
        """Of the chunks in the batches so far."""

    def steps(self) -> Iterator[SealVisit | Batch]:
        for ino, _ in groupby(merge(self._names.changed_inodes(), self._cut.changed_files(), self._unacknowledged())):
            inode = self._names.inode(ino)
            if inode is not None and stat.S_ISREG(inode.mode):
                file = self._open_file(inode)
                yield SealVisit(ino, file)
                yield from self._batches(file)
            else:
                if inode is not None and stat.S_ISDIR(inode.mode):
                    self._note_replaced(ino)
                yield SealVisit(ino)

    def _unacknowledged(self) -> Iterator[Ino]:
        """What the parent has and the live tree calls new; nothing but in the case of invariant 2."""
        return (record.ino for record in self._parent.inodes(self._names.first_new)) if self._parent else iter(())

    def _open_file(self, inode: Inode) -> File:
        frozen = self._cut.open_file(inode.ino)
        if frozen is None:
            raise OSError(errno.EIO, f"the bytes of inode {inode.ino} are gone")
        self._open.add(frozen)
        parent = self.in_parent(inode.ino)
        replaced = self._replaced.pop(inode.ino, frozen.replaced)
        model = parent if parent or replaced is None else self.in_parent(replaced)
        file = File(inode, frozen, parent, model)
        if frozen.origin is not None:
            file.origin, file.chunk_of = record_of(inode.ino, frozen.origin), self._chunk
        return file

    def _chunk(self, file: InodeRecord, chunk: int) -> Pointer:
        return radix.lookup(self._pages, *map_of(file), chunk)

    def in_parent(self, ino: Ino) -> InodeRecord | None:
        return self._parent.inode(ino) if self._parent else None

    def _note_replaced(self, directory: Ino) -> None:
        """Remember which file of the parent snapshot each name that now leads to a newer one belonged to."""
        before = self.in_parent(directory)
        if before is None or self._parent is None:
            return
        for name in self.changed_names(before):
            old, new = self._parent.entry(before, name), self._names.entry(directory, name)
            if old and new and old.ino < new[0] and stat.S_ISREG(new[1]) and old.kind == stat.S_IFREG >> 12:
                self._replaced[Ino(new[0])] = old.ino

    def _batches(self, file: File) -> Iterator[Batch]:
        known = chunk_count(file.parent.size) if file.parent and not file.frozen.whole else 0
        batch = Batch(file, [], set(), set())
        for chunk, mask in self._chunks(file):
            batch.chunks.append(chunk)
            if mask == FULL_MASK and chunk < known:
                batch.whole.add(chunk)
            elif mask and mask != FULL_MASK:
                batch.partly.add(chunk)
            if len(batch.chunks) == BATCH_CHUNKS:
                yield self._planned(batch)
                batch = Batch(file, [], set(), set(), batch.similar)
        if batch.chunks:
            yield self._planned(batch)

    def _planned(self, batch: Batch) -> Batch:
        self.planned_bytes += len(batch.chunks) * CHUNK_SIZE
        if len(batch.whole) < SIMILAR_AT_LEAST:
            batch.whole.clear()
            return batch
        batch.similar = batch.similar if batch.similar.number else self._similar_of(batch)
        if batch.similar.number:
            batch.careful = self._careful_left > 0
            self._careful_left -= len(batch.whole)
        return batch

    def _similar_of(self, batch: Batch) -> Pointer:
        """The best of the chunks before these, else that of the last file of this size, else of what they replace."""
        size, first = batch.file.frozen.size, min(batch.whole)
        found = self._best_dictionary(batch.file, max(first - SIMILAR_AMONG, 0), first)
        if not found.number and self._similar[0] == size:
            return self._similar[1]
        if not found.number:
            found = self._best_dictionary(batch.file, first, first + SIMILAR_AMONG)
        if found.number:
            self._similar = size, found
        return found

    def _best_dictionary(self, file: File, first: int, stop: int) -> Pointer:
        assert self._parent is not None
        assert file.parent is not None
        return self._transaction.best_dictionary(
            [pointer for _, pointer in self._parent.chunks(file.parent, first, stop)]
        )

    def _chunks(self, file: File) -> Iterator[tuple[ChunkIndex, int]]:
        """The chunks to look at, ascending, none at or beyond the end, each with the mask of its dirty blocks."""
        end = chunk_count(file.frozen.size)
        sources: list[Iterable[tuple[ChunkIndex, int]]] = [file.frozen.dirty_chunks(holes=False)]
        if file.parent and self._parent:
            before, mask = (range(end), 0) if file.frozen.whole else (file.frozen.dropped, FULL_MASK)
            known = self._parent.chunks(file.parent, before.start, before.stop) if before else ()
            sources.append((chunk, mask) for chunk, _ in known)
        if file.origin and file.frozen.is_here and (file.frozen.whole or not file.parent):
            sources.append((ChunkIndex(chunk), 0) for chunk in range(chunk_count(file.origin.size)))
        for chunk, found in groupby(merge(*sources), key=itemgetter(0)):
            if chunk >= end:
                return
            yield chunk, max(mask for _, mask in found)

    def changed_names(self, before: InodeRecord) -> Iterator[bytes]:
        """Names of a directory of the parent that may mean something else now, ascending."""
        changed = self._names.changed_names(before.ino)
        if before.ino < self._names.first_new or self._parent is None:
            return changed
        known = (entry.name for entry in self._parent.entries(before))
        return (name for name, _ in groupby(merge(changed, known)))

    def let_go(self, frozen: FrozenFile) -> None:
        self._open.discard(frozen)
        frozen.close()

    def close(self) -> None:
        for frozen in list(self._open):
            self.let_go(frozen)
