"""The sealer: turns what a cut froze into one segment and one snapshot record.

It visits every inode that changed by name, attribute or byte once, in ascending order, as one lazy iterator
that the `SnapshotWriter` consumes. Reading and encoding of chunks run ahead in threads (`Pipeline`); numbering,
appending and the tables belong to the calling thread alone, so a segment's content does not depend on timing.

Invariants:
1. Before `Transaction.commit` returns nothing exists; when it has returned the snapshot does. That is the one
   commit point; the steps before it are the transaction's.
2. Whatever fails before it, the unfinished segment is removed and the cut's dirty sets are merged back
   (`Cut.finish(False)`): the next snapshot contains every change. A crash does the same by itself: the stray
   segment is removed when the store is opened, the dirty sets come back from the intents and the namespace.
3. A chunk or page that equals the parent's is the parent's: nothing is stored for it.
4. What an inode has no trustworthy dirty set for (`FrozenFile.whole`) is compared in full, holes included.
5. Memory is bounded by the pipeline's window and a few pages, whatever the size of the change.
6. What is still only in the store, a file or chunks of it, is taken over by its pointers: nothing of it is read.
7. The parent may be newer than what the live tree takes for sealed (a crash after the commit, before `Cut.finish`).
   Then every change since the older snapshot is visited, and what the parent has of inodes that the tree calls new.

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

from snapfs.blocks import CHUNK_SIZE, FULL_MASK, ChunkIndex, Generation, Ino, chunk_count
from snapfs.errors import SnapfsError, SnapshotError
from snapfs.live.cut import Cut, FrozenFile
from snapfs.live.records import Inode
from snapfs.store import radix
from snapfs.store.codec import Likeness
from snapfs.store.format import NULL, Pointer
from snapfs.store.repository import Encoded, Repository, SnapshotRecord, Transaction
from snapfs.store.snapshot import DirEntry, InodeRecord, RootInfo, SnapshotTree, SnapshotWriter, map_of
from snapfs.transfer.hydrator import record_of
from snapfs.transfer.pipeline import Pipeline

BATCH_CHUNKS = 16
WINDOW_BYTES = 32 << 20
UNPAID_LIMIT = 3
"""After so many differences in a row that did not pay, the rest of a batch is stored without trying."""

ALIKE_AT_LEAST = 2
"""Chunks of a batch that were written as a whole; for fewer it does not pay to prepare what is alike."""
ALIKE_AMONG = 32
"""So many chunks before them are looked at, or so many that they take the place of."""
CAREFUL_CHUNKS = 128
"""How many of them, in one seal, are worth more than a millisecond each: 8 MiB, 180 ms."""

Progress = Callable[[int, int], None]


def _no_chunk(file: InodeRecord, chunk: int) -> Pointer:
    return NULL


@dataclass(slots=True)
class _File:
    """A regular file under way."""

    inode: Inode
    frozen: FrozenFile
    parent: InodeRecord | None
    model: InodeRecord | None  # whose chunks are the bases: the parent's own, or those of the file it replaced
    origin: InodeRecord | None = None  # has what of the file is still only in the store
    chunk_of: Callable[[InodeRecord, int], Pointer] = _no_chunk


@dataclass(slots=True)
class _Batch:
    file: _File
    chunks: list[ChunkIndex]
    whole: set[ChunkIndex]  # those of them that were written as a whole
    alike: Pointer = NULL  # what these may be encoded against
    careful: bool = False


@dataclass(slots=True)
class _Visit:
    """An inode's turn. Of a file the batches follow, up to the next visit."""

    ino: Ino
    file: _File | None = None


@dataclass(slots=True)
class _Tally:
    files: int = 0
    directories: int = 0
    inodes: int = 0
    dirty_bytes: int = 0


def seal(
    cut: Cut,
    repository: Repository,
    parent: SnapshotRecord | None,
    *,
    generation: Generation,
    name: str | None = None,
    trigger: str = "manual",
    threads: int = 2,
    progress: Progress | None = None,
    window_bytes: int = WINDOW_BYTES,
) -> SnapshotRecord:
    """Store the changes of `cut` against `parent` as a new snapshot; blocks until it is durable.

    `progress(done, planned)` is told bytes of changed chunks: read so far, and known of so far.
    Raises SnapshotError, with the errno of the cause, after everything was put back for the next snapshot.
    """
    try:
        repository.next_snapshot(name)  # a name that cannot be is refused before the work
        transaction = repository.begin(generation)
        try:
            sealing = _Sealing(cut, repository, parent, transaction, threads, progress, window_bytes)
            try:
                root = sealing.root()
            finally:
                sealing.close()
            record = sealing.commit(root, parent, name, trigger)
        except BaseException:
            transaction.abort()
            raise
    except BaseException as failure:
        cut.finish(False)
        if isinstance(failure, Exception):
            raise _as_snapshot_error(failure) from failure
        raise
    cut.finish(True)
    return record


def _as_snapshot_error(failure: Exception) -> SnapshotError:
    if isinstance(failure, SnapshotError):
        return failure
    if isinstance(failure, OSError) and failure.errno == errno.ENOSPC:
        return SnapshotError("no snapshot was made: no space is left on the disk that holds the volume", errno.ENOSPC)
    if isinstance(failure, OSError):
        return SnapshotError(f"no snapshot was made: {failure}", failure.errno or errno.EIO)
    reason = str(failure) if isinstance(failure, SnapfsError) else f"{type(failure).__name__}: {failure}"
    return SnapshotError(f"no snapshot was made: {reason}", errno.EIO)


class _Sealing:
    """One seal. `root()` stores everything; `close()` ends the threads and lets go of the files, always."""

    def __init__(
        self,
        cut: Cut,
        repository: Repository,
        parent: SnapshotRecord | None,
        transaction: Transaction,
        threads: int,
        progress: Progress | None,
        window_bytes: int,
    ) -> None:
        self._cut = cut
        self._names = cut.names
        self._transaction = transaction
        self._parent = SnapshotTree(repository, parent.root) if parent else None
        self._writer = SnapshotWriter(transaction, self._parent)
        self._progress = progress or (lambda done, planned: None)
        self._replaced: dict[Ino, Ino] = {}
        self._open: set[FrozenFile] = set()
        self._planned_bytes = 0
        self._careful_left = CAREFUL_CHUNKS
        self._alike: tuple[int, Pointer] = (0, NULL)  # the last one that was found, after the size of its file
        self.tally = _Tally()
        self._pipeline: Pipeline[_Visit | _Batch, list[Encoded]] = Pipeline(
            self._plan(), self._encode, _weight, threads=threads, window_bytes=window_bytes
        )

    def root(self) -> Pointer:
        return self._writer.finish(self._changes(), extra=RootInfo(self._cut.time_ns))

    def commit(self, root: Pointer, parent: SnapshotRecord | None, name: str | None, trigger: str) -> SnapshotRecord:
        tally = self.tally
        return self._transaction.commit(
            root,
            parent=parent.number if parent else None,
            name=name,
            cut_time_ns=self._cut.time_ns,
            trigger=trigger,
            files=tally.files,
            directories=tally.directories,
            inodes=tally.inodes,
            dirty_bytes=tally.dirty_bytes,
        )

    def close(self) -> None:
        self._pipeline.close()
        for frozen in list(self._open):
            self._let_go(frozen)

    # -- the plan: what the pipeline is fed with, in the calling thread --------------------------------------

    def _plan(self) -> Iterator[_Visit | _Batch]:
        for ino, _ in groupby(merge(self._names.changed_inodes(), self._cut.changed_files(), self._unacknowledged())):
            inode = self._names.inode(ino)
            if inode is not None and stat.S_ISREG(inode.mode):
                file = self._open_file(inode)
                yield _Visit(ino, file)
                yield from self._batches(file)
            else:
                if inode is not None and stat.S_ISDIR(inode.mode):
                    self._note_replaced(ino)
                yield _Visit(ino)

    def _unacknowledged(self) -> Iterator[Ino]:
        """What the parent has and the live tree calls new; nothing but in the case of invariant 7."""
        return (record.ino for record in self._parent.inodes(self._names.first_new)) if self._parent else iter(())

    def _open_file(self, inode: Inode) -> _File:
        frozen = self._cut.open_file(inode.ino)
        if frozen is None:
            raise OSError(errno.EIO, f"the bytes of inode {inode.ino} are gone")
        self._open.add(frozen)
        parent = self._in_parent(inode.ino)
        replaced = self._replaced.pop(inode.ino, frozen.replaced)
        model = parent if parent or replaced is None else self._in_parent(replaced)
        file = _File(inode, frozen, parent, model)
        if frozen.origin is not None:
            file.origin, file.chunk_of = record_of(inode.ino, frozen.origin), self._chunk
        return file

    def _chunk(self, file: InodeRecord, chunk: int) -> Pointer:
        pages = self._parent.pages if self._parent else self._writer.pages
        return radix.lookup(pages, *map_of(file), chunk)

    def _in_parent(self, ino: Ino) -> InodeRecord | None:
        return self._parent.inode(ino) if self._parent else None

    def _note_replaced(self, directory: Ino) -> None:
        """Remember which file of the parent snapshot each name that now leads to a newer one belonged to."""
        before = self._in_parent(directory)
        if before is None or self._parent is None:
            return
        for name in self._changed_names(before):
            old, new = self._parent.entry(before, name), self._names.entry(directory, name)
            if old and new and old.ino < new[0] and stat.S_ISREG(new[1]) and old.kind == stat.S_IFREG >> 12:
                self._replaced[Ino(new[0])] = old.ino

    def _batches(self, file: _File) -> Iterator[_Batch]:
        known = chunk_count(file.parent.size) if file.parent and not file.frozen.whole else 0
        batch = _Batch(file, [], set())
        for chunk, mask in self._chunks(file):
            batch.chunks.append(chunk)
            if mask == FULL_MASK and chunk < known:
                batch.whole.add(chunk)
            if len(batch.chunks) == BATCH_CHUNKS:
                yield self._planned(batch)
                batch = _Batch(file, [], set(), batch.alike)
        if batch.chunks:
            yield self._planned(batch)

    def _planned(self, batch: _Batch) -> _Batch:
        self._planned_bytes += len(batch.chunks) * CHUNK_SIZE
        if len(batch.whole) < ALIKE_AT_LEAST:
            batch.whole.clear()
            return batch
        batch.alike = batch.alike if batch.alike.number else self._alike_of(batch)
        if batch.alike.number:
            batch.careful = self._careful_left > 0
            self._careful_left -= len(batch.whole)
        return batch

    def _alike_of(self, batch: _Batch) -> Pointer:
        """The best of the chunks before these, else that of the last file of this size, else of what they replace."""
        size, first = batch.file.frozen.size, min(batch.whole)
        found = self._richest(batch.file, max(first - ALIKE_AMONG, 0), first)
        if not found.number and self._alike[0] == size:
            return self._alike[1]
        if not found.number:
            found = self._richest(batch.file, first, first + ALIKE_AMONG)
        if found.number:
            self._alike = size, found
        return found

    def _richest(self, file: _File, first: int, stop: int) -> Pointer:
        assert self._parent is not None
        assert file.parent is not None
        return self._transaction.richest([pointer for _, pointer in self._parent.chunks(file.parent, first, stop)])

    def _chunks(self, file: _File) -> Iterator[tuple[ChunkIndex, int]]:
        """The chunks to look at, ascending, none at or beyond the end, each with the mask of its dirty blocks."""
        end = chunk_count(file.frozen.size)
        sources: list[Iterable[tuple[ChunkIndex, int]]] = [file.frozen.dirty_chunks()]
        if file.parent and file.frozen.whole and self._parent:
            sources.append((chunk, 0) for chunk, _ in self._parent.chunks(file.parent, 0, end))
        if file.origin and file.frozen.is_here and (file.frozen.whole or not file.parent):
            sources.append((ChunkIndex(chunk), 0) for chunk in range(chunk_count(file.origin.size)))
        for chunk, found in groupby(merge(*sources), key=itemgetter(0)):
            if chunk >= end:
                return
            yield chunk, max(mask for _, mask in found)

    # -- in the threads --------------------------------------------------------------------------------------

    def _encode(self, step: _Visit | _Batch) -> list[Encoded]:
        assert isinstance(step, _Batch)
        bases, moved, unpaid = self._bases(step), step.file.parent is None, 0
        likeness = self._likeness(step)
        result = []
        for chunk in step.chunks:
            encoded = self._taken_over(step.file, chunk) or self._encode_chunk(
                step.file.frozen, chunk, bases, moved, try_difference=unpaid < UNPAID_LIMIT,
                alike=likeness if chunk in step.whole else None,
            )  # fmt: skip
            unpaid = 0 if encoded.pointer or encoded.is_next_version else unpaid + 1
            result.append(encoded)
        return result

    def _taken_over(self, file: _File, chunk: ChunkIndex) -> Encoded | None:
        """The origin's own chunk, where that is all there is of it (invariant 6)."""
        if file.origin is None or not file.frozen.is_absent(chunk):
            return None
        return Encoded(file.chunk_of(file.origin, chunk))

    def _likeness(self, batch: _Batch) -> Likeness | None:
        if not (batch.whole and batch.alike.number):
            return None
        return self._transaction.likeness(batch.alike, careful=batch.careful)

    def _bases(self, batch: _Batch) -> dict[int, Pointer]:
        """What is known of the batch's chunks and their neighbours in the file they are versions of."""
        model, first, last = batch.file.model, batch.chunks[0], batch.chunks[-1]
        if model is None or self._parent is None:
            return {}
        if last - first > 4 * len(batch.chunks):
            return {chunk: self._parent.chunk(model, chunk) for chunk in batch.chunks}
        return dict(self._parent.chunks(model, max(first - 1, 0), last + 2))

    def _encode_chunk(
        self, frozen: FrozenFile, chunk: int, bases: dict[int, Pointer], moved: bool, *, try_difference: bool,
        alike: Likeness | None,
    ) -> Encoded:  # fmt: skip
        plain = frozen.read_chunk(ChunkIndex(chunk))
        before, after = (bases.get(chunk - 1), bases.get(chunk + 1)) if moved else (None, None)
        return self._transaction.encode_chunk(
            plain, bases.get(chunk), before, after, try_difference=try_difference, alike=alike
        )

    # -- the changes, in the calling thread ------------------------------------------------------------------

    def _changes(self) -> Iterator[tuple[Ino, InodeRecord | None]]:
        steps = _Pushback(self._pipeline)
        for step, _ in steps:
            assert isinstance(step, _Visit)
            self.tally.inodes += 1
            yield step.ino, self._file(step.file, steps) if step.file else self._other(step.ino)

    def _file(self, file: _File, steps: _Pushback) -> InodeRecord:
        frozen = file.frozen
        before = file.parent if frozen.is_here else file.origin
        content, height = self._writer.update_map(before, frozen.size, self._stored(steps))
        self._let_go(frozen)
        self.tally.files += 1
        return self._record(
            file.inode, content, height, size=frozen.size, mtime_ns=frozen.mtime_ns, ctime_ns=frozen.ctime_ns
        )

    def _stored(self, steps: _Pushback) -> Iterator[tuple[ChunkIndex, Pointer]]:
        """Number and append what the threads encoded of one file."""
        for step, encoded in steps:
            if isinstance(step, _Visit):
                steps.push(step)
                return
            assert encoded is not None
            for chunk, each in zip(step.chunks, encoded, strict=True):
                yield chunk, self._transaction.append(each)
            self.tally.dirty_bytes += len(step.chunks) * CHUNK_SIZE
            self._progress(self.tally.dirty_bytes, self._planned_bytes)

    def _other(self, ino: Ino) -> InodeRecord | None:
        inode = self._names.inode(ino)
        if inode is None:
            return None
        content = self._directory(ino) if stat.S_ISDIR(inode.mode) else NULL
        return self._record(inode, content, 0)

    def _directory(self, ino: Ino) -> Pointer:
        self.tally.directories += 1
        parent = self._in_parent(ino)
        if parent is None:
            whole = ((name, DirEntry(name, child, mode >> 12)) for name, child, mode in self._names.entries(ino))
            return self._writer.update_directory(None, whole)
        changed = ((name, self._entry(ino, name)) for name in self._changed_names(parent))
        return self._writer.update_directory(parent, changed)

    def _changed_names(self, before: InodeRecord) -> Iterator[bytes]:
        """Names of a directory of the parent that may mean something else now, ascending."""
        changed = self._names.changed_names(before.ino)
        if before.ino < self._names.first_new or self._parent is None:
            return changed
        known = (entry.name for entry in self._parent.entries(before))
        return (name for name, _ in groupby(merge(changed, known)))

    def _entry(self, directory: Ino, name: bytes) -> DirEntry | None:
        found = self._names.entry(directory, name)
        return DirEntry(name, found[0], found[1] >> 12) if found else None

    def _record(
        self,
        inode: Inode,
        content: Pointer,
        height: int,
        *,
        size: int = 0,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> InodeRecord:
        return InodeRecord(
            ino=inode.ino,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            nlink=inode.nlink,
            rdev=inode.rdev,
            size=size,
            atime_ns=inode.atime_ns,
            mtime_ns=inode.mtime_ns if mtime_ns is None else mtime_ns,
            ctime_ns=inode.ctime_ns if ctime_ns is None else ctime_ns,
            target=inode.target,
            xattrs=self._names.xattrs(inode.ino),
            content=content,
            height=height,
        )

    def _let_go(self, frozen: FrozenFile) -> None:
        self._open.discard(frozen)
        frozen.close()


class _Pushback:
    """The pipeline's results, of which one can be put back."""

    def __init__(self, pipeline: Pipeline[_Visit | _Batch, list[Encoded]]) -> None:
        self._steps = pipeline
        self._back: list[_Visit] = []

    def push(self, visit: _Visit) -> None:
        self._back.append(visit)

    def __iter__(self) -> Iterator[tuple[_Visit | _Batch, list[Encoded] | None]]:
        return self

    def __next__(self) -> tuple[_Visit | _Batch, list[Encoded] | None]:
        return (self._back.pop(), None) if self._back else next(self._steps)


def _weight(step: _Visit | _Batch) -> int:
    return len(step.chunks) * CHUNK_SIZE if isinstance(step, _Batch) else 0

