"""The sealer: turns what a cut froze into one segment and one snapshot record.

The plan (seal_plan.py) is what there is to visit. Reading and encoding of chunks (chunk_encoder.py) run ahead of it in
threads (`Pipeline`). What comes out, in the plan's order, becomes one lazy iterator of changed inodes that the
`SnapshotWriter` consumes. Numbering, appending and the tables belong to the calling thread alone, so a segment's
content does not depend on timing.

Invariants:
1. Before `Transaction.commit` returns nothing exists; when it has returned the snapshot does. That is the one
   commit point; the steps before it are the transaction's.
2. Whatever fails before it, the unfinished segment is removed and the cut's dirty sets are merged back
   (`Cut.finish(False)`): the next snapshot contains every change. A crash does the same by itself: the stray
   segment is removed when the store is opened, the dirty sets come back from the intents and the namespace.
3. A chunk or page that equals the parent's is the parent's: nothing is stored for it.
4. Memory is bounded by the pipeline's window and a few pages, whatever the size of the change.
5. With patterns of what is excluded the names are those of shown_names.py; nothing else here knows of them.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Generation, Ino
from snapfs.base.errors import SnapshotError
from snapfs.live.cut import Cut
from snapfs.live.database.namespace_rows import Inode
from snapfs.store.log.snapshot_records import AskedBy, CutFacts
from snapfs.store.objects.format import NULL, Pointer
from snapfs.store.repository.repository import Encoded, Repository, SnapshotRecord, Transaction
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, RootInfo, SnapshotTree, SnapshotWriter
from snapfs.transfer.seal.chunk_encoder import ChunkEncoder
from snapfs.transfer.seal.pipeline import Pipeline
from snapfs.transfer.seal.seal_plan import Batch, File, Plan, SealVisit
from snapfs.transfer.seal.shown_names import CutNames, ShownNames
from snapfs.transfer.seal.whole_files import check_kept, names_without

WINDOW_BYTES = 32 << 20

Progress = Callable[[int, int], None]


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
    facts: CutFacts = CutFacts(),
    by: AskedBy | None = None,
    exclude: tuple[str, ...] = (),
) -> SnapshotRecord:
    """Store the changes of `cut` against `parent` as a new snapshot; blocks until it is durable.

    `progress(done, planned)` is called with bytes of changed chunks: read so far, and known of so far. `facts`: how the
    cut was made, and `by`: who asked for it, for the record. `exclude`: patterns of what is left out.
    Raises SnapshotError, with the errno of the cause, after everything was put back for the next snapshot; because of
    a NotKeptError where a new cut is needed first (whole_files.py).
    """
    try:
        repository.sealing.next_snapshot(name)  # a name that cannot be is refused before the work
        transaction = repository.begin(generation)
        try:
            before = SnapshotTree(repository, parent.root) if parent else None
            names, in_effect = names_without(cut.names, before, parent.cut.exclude if parent else (), exclude)
            check_kept(cut, names)
            facts = replace(facts, exclude=in_effect)
            sealing = _Sealing(cut, names, before, transaction, threads, progress, window_bytes)
            try:
                root = sealing.root()
            finally:
                sealing.close()
            record = sealing.commit(root, parent, name, trigger, facts, by)
        except BaseException:
            transaction.abort()
            raise
    except BaseException as failure:
        cut.finish(False)
        if isinstance(failure, Exception):
            raise SnapshotError.because_of(failure) from failure
        raise
    cut.finish(True, record.root.number)
    return record


class _Sealing:
    """One seal. `root()` stores everything; `close()` ends the threads and lets go of the files, always."""

    def __init__(
        self,
        cut: Cut,
        names: CutNames,
        parent: SnapshotTree | None,
        transaction: Transaction,
        threads: int,
        progress: Progress | None,
        window_bytes: int,
    ) -> None:
        self._cut = cut
        self._names = names
        self._transaction = transaction
        self._parent = parent
        self._writer = SnapshotWriter(transaction, self._parent)
        self._progress = progress or (lambda done, planned: None)
        self.tally = _Tally()
        pages = self._parent.pages if self._parent else self._writer.pages
        self._plan = Plan(cut, names, self._parent, transaction, pages)
        self._encoder = ChunkEncoder(transaction, self._parent)
        self._pipeline: Pipeline[SealVisit | Batch, list[Encoded]] = Pipeline(
            self._plan.steps(), self._encode, _weight, threads=threads, window_bytes=window_bytes
        )

    def root(self) -> Pointer:
        next_ino = self._names.next_ino if isinstance(self._names, ShownNames) else Ino(0)
        return self._writer.finish(self._changes(), extra=RootInfo(self._cut.time_ns, next_ino))

    def commit(
        self, root: Pointer, parent: SnapshotRecord | None, name: str | None, trigger: str, facts: CutFacts,
        by: AskedBy | None,
    ) -> SnapshotRecord:  # fmt: skip
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
            cut=facts,
            by=by,
        )

    def close(self) -> None:
        self._pipeline.close()
        self._plan.close()

    def _encode(self, step: SealVisit | Batch) -> list[Encoded]:
        assert isinstance(step, Batch)
        return self._encoder.encode(step)

    def _changes(self) -> Iterator[tuple[Ino, InodeRecord | None]]:
        steps = _Pushback(self._pipeline)
        for step, _ in steps:
            assert isinstance(step, SealVisit)
            self.tally.inodes += 1
            yield step.ino, self._file(step.file, steps) if step.file else self._other(step.ino)

    def _file(self, file: File, steps: _Pushback) -> InodeRecord:
        frozen = file.frozen
        before = file.parent if frozen.is_here else file.origin
        content, height = self._writer.update_map(before, frozen.size, self._stored(steps))
        self._plan.let_go(frozen)
        self.tally.files += 1
        return self._record(
            file.inode, content, height, size=frozen.size, mtime_ns=frozen.mtime_ns, ctime_ns=frozen.ctime_ns
        )

    def _stored(self, steps: _Pushback) -> Iterator[tuple[ChunkIndex, Pointer]]:
        """Number and append what the threads encoded of one file."""
        for step, encoded in steps:
            if isinstance(step, SealVisit):
                steps.push(step)
                return
            assert encoded is not None
            for chunk, each in zip(step.chunks, encoded, strict=True):
                yield chunk, self._transaction.append(each)
            self.tally.dirty_bytes += len(step.chunks) * CHUNK_SIZE
            self._progress(self.tally.dirty_bytes, self._plan.planned_bytes)

    def _other(self, ino: Ino) -> InodeRecord | None:
        inode = self._names.inode(ino)
        if inode is None:
            return None
        content = self._directory(ino) if stat.S_ISDIR(inode.mode) else NULL
        return self._record(inode, content, 0)

    def _directory(self, ino: Ino) -> Pointer:
        self.tally.directories += 1
        parent = self._plan.in_parent(ino)
        if parent is None:
            whole = ((name, DirEntry(name, child, mode >> 12)) for name, child, mode in self._names.entries(ino))
            return self._writer.update_directory(None, whole)
        changed = ((name, self._entry(ino, name)) for name in self._plan.changed_names(parent))
        return self._writer.update_directory(parent, changed)

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


class _Pushback:
    """The pipeline's results, of which one can be put back."""

    def __init__(self, pipeline: Pipeline[SealVisit | Batch, list[Encoded]]) -> None:
        self._steps = pipeline
        self._back: list[SealVisit] = []

    def push(self, visit: SealVisit) -> None:
        self._back.append(visit)

    def __iter__(self) -> Iterator[tuple[SealVisit | Batch, list[Encoded] | None]]:
        return self

    def __next__(self) -> tuple[SealVisit | Batch, list[Encoded] | None]:
        return (self._back.pop(), None) if self._back else next(self._steps)


def _weight(step: SealVisit | Batch) -> int:
    return len(step.chunks) * CHUNK_SIZE if isinstance(step, Batch) else 0
