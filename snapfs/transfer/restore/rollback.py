"""Rollback: the live tree becomes what it was at a snapshot, in place.

The steps, and what a crash after each leaves:

0. *Load* the names of directories that are only in the store, as of a fork, in which nothing loads them behind.
   (Some are loaded.)
1. *Keep*: the present is sealed as a snapshot of its own.
   (Afterwards: one snapshot more.)
2. *Stage*: each file whose bytes differ is built as the target has it, in ``live/staging``: a clone of the present file
   with the differing chunks put in where the host can share blocks, else whole from the store.
   (Staged files, which the next opening removes.)
3. *Turn*, one transaction of the namespace: names and attributes of the target, and the list of staged files.
   THE COMMIT POINT. (The next opening renames the staged files.)
4. *Swap*: the staged files take their places. (Likewise.)
5. *Seal* against the target: a snapshot that shares everything with it. (The next snapshot does it.) If the target is
   of a fork, and so in another store: against the present.

Invariants:
1. Before the turn everything is the present, after it everything is the target.
2. The turn happens only if nothing has changed since the present was cut; or else steps 1 and 2 are done again.
3. To the live tree a rollback is a change like any other: what differs is touched and compared in full. So it does not
   matter whether the next snapshot is made against the present or the target.
4. A target of another store is that of a fork (fork_target.py): equal content has equal hashes there, and what differs
   is read from there, in steps 2 and 3 only. Nothing that the live tree or the store keeps points to it.
5. Of what is excluded, and so in neither snapshot, stays what the target leaves room for (excluded_live.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from snapfs.base.blocks import CHUNK_SIZE, Disk, Generation, Ino, SnapshotNumber
from snapfs.base.errors import BusyError
from snapfs.base.limits import clamp_time
from snapfs.live.database.namespace_rows import AbsentFile
from snapfs.live.namespace.bulk_changes import Bulk
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, SnapshotRecord
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.store.tables.table_compare import InodeChange, diff, diff_entries, diff_map, is_same
from snapfs.transfer.common.inode_records import row_of
from snapfs.transfer.common.sparse_copy import write_chunks
from snapfs.transfer.restore import excluded_live
from snapfs.transfer.restore.excluded_live import ExcludedLive
from snapfs.transfer.restore.fork_target import check_kinds
from snapfs.transfer.seal.pipeline import Pipeline
from snapfs.transfer.seal.sealer import seal
from snapfs.transfer.seal.whole_files import sealed_whole

_FICLONE = 0x40049409  # of linux/fs.h
WINDOW_BYTES = 256 << 20
DIRECTORIES_AT_ONCE = 32

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """What a rollback did. `kept` is the snapshot of the state that was left, `now` that of the state since."""

    target: SnapshotNumber
    kept: SnapshotNumber
    now: SnapshotNumber
    inodes: int
    files: int
    staged_bytes: int
    exclude: tuple[str, ...] = ()
    """The patterns of what is in no snapshot; then how many such paths stayed, and how many went."""
    excluded_kept: int = 0
    excluded_removed: int = 0


def roll_back(
    tree: LiveTree,
    repository: Repository,
    target: SnapshotRecord,
    disk: Disk,
    *,
    parent: SnapshotRecord | None,
    generations: tuple[Generation, Generation],
    force: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
    exclude: tuple[str, ...] = (),
    source: Repository | None = None,
) -> RollbackReport:
    """All steps in one go, in the owner's thread. `generations`: the present one, and the one that begins here;
    `exclude`: patterns of what is in no snapshot; `source`: the store of the fork that `target` is a snapshot of.

    `parent` is the snapshot that the tree's changes are relative to. BusyError while files are open for writing,
    unless forced; SnapshotError if the present could not be kept; OSError, CorruptionError before the turn: nothing has
    changed then.
    """
    if tree.open_for_writing() and not force:
        raise BusyError(
            f"{len(tree.open_for_writing())} files are open for writing: stop the application, or use --force"
        )
    while found := tree.names.unloaded(DIRECTORIES_AT_ONCE):
        for directory, listing in found:
            tree.load(directory, tree.fetch_names(listing))

    def sealed(on: SnapshotRecord | None, generation: Generation) -> SnapshotRecord:
        work = partial(
            seal, repository=repository, parent=on, generation=generation, trigger="rollback", threads=threads,
            exclude=exclude,
        )  # fmt: skip
        record = sealed_whole(tree, repository, on, exclude, lambda: work(tree.cut()))
        tree.tidy()
        return record

    present = sealed(parent, generations[0])
    rollback = Rollback(tree, repository, present, target, disk, source=source)
    try:
        rollback.stage(threads, progress)
        rollback.turn()
    finally:
        rollback.close()
    return rollback.report(sealed(rollback.base, generations[1]))


class Rollback:
    """Steps 2 to 4, from `present`, which is sealed, to `target`. `stage` in any thread, `turn` in the tree's."""

    def __init__(
        self, tree: LiveTree, repository: Repository, present: SnapshotRecord, target: SnapshotRecord, disk: Disk, *,
        source: Repository | None = None,
    ) -> None:  # fmt: skip
        if tree.names.is_lazy:
            raise BusyError("directories are still being loaded from where the volume came from: try again later")
        self._tree, self._source, self._disk = tree, source or repository, disk
        self._present, self._target = present, target
        self.base = target if source is None else present
        """The snapshot that the next one is sealed against."""
        self._before = SnapshotTree(repository, present.root)
        self._after = SnapshotTree(self._source, target.root)
        self._staged: set[Ino] = set()
        self._staged_bytes = 0
        self._partly: set[Ino] = set()
        self._excluded = ExcludedLive()
        self._inodes = self._files = 0
        self._progress: Progress = lambda done, total: None

    def stage(self, threads: int, progress: Progress | None = None) -> None:
        """Step 2. OSError, CorruptionError, and of a fork UserError (check_kinds); `close` removes what was staged."""
        self._progress = progress or self._progress
        if self.base is self._present:
            check_kinds(self._before, self._after)
        with self._tree.names.view() as names:
            self._excluded = excluded_live.look(names, self._present.cut.exclude, self._before, self._after)
        total = sum(change.after.size for change in self._changed_files() if change.after)
        pipeline: Pipeline[InodeChange, int] = Pipeline(
            self._changed_files(), self._stage, _weight, threads=threads, window_bytes=WINDOW_BYTES
        )
        try:
            for _, size in pipeline:
                self._staged_bytes += size or 0
                self._progress(self._staged_bytes, total)
        finally:
            pipeline.close()
        self._disk.sync_dir("rollback:staged", self._tree.staging)

    def turn(self) -> None:
        """Steps 3 and 4. BusyError if the tree has changed since the present was cut: then nothing happened."""
        if self._tree.has_changes():
            raise BusyError("the tree has changed meanwhile")
        absent = self._absent_files()
        self._partly = set(self._tree.partly_present)
        with self._tree.names.bulk() as bulk:
            self._excluded.take_names_away(bulk)
            self._put_inodes(bulk, absent)
            self._put_entries(bulk)
            self._excluded.set_links(bulk, self._after)
        self._tree.swap_staged()
        self._staged.clear()

    def invalid(self) -> Iterator[tuple[Ino, list[bytes]]]:
        """What the kernel must forget after the turn: inodes, and the names in those that are directories."""
        for ino, before, after in diff(self._before, self._after):
            names = diff_entries(self._before, _directory(before), self._after, _directory(after))
            yield ino, [name for name, _, _ in names]
        yield from self._excluded.invalid()

    def invalid_files(self) -> Iterator[Ino]:
        """Regular files that were there before and are there after, and differ."""
        for ino, before, after in diff(self._before, self._after):
            was_here = before is not None or ino in self._excluded.modes
            if was_here and after is not None and stat.S_ISREG(after.mode):
                yield ino

    def report(self, now: SnapshotRecord) -> RollbackReport:
        return RollbackReport(
            self._target.number, self._present.number, now.number, self._inodes, self._files, self._staged_bytes,
            self._present.cut.exclude, self._excluded.kept, self._excluded.removed,
        )  # fmt: skip

    def close(self) -> None:
        """Remove what was staged and not turned to."""
        for ino in self._staged:
            with contextlib.suppress(FileNotFoundError):
                self._disk.unlink("rollback:unstage", self._path(ino))
        self._staged.clear()

    # -- staging

    def _changed_files(self) -> Iterator[InodeChange]:
        """Regular files of the target whose bytes or size are not those of the present."""
        for change in diff(self._before, self._after):
            after = change.after
            if after is not None and stat.S_ISREG(after.mode) and not _same_bytes(change.before, after):
                yield change

    def _path(self, ino: Ino) -> str:
        return os.path.join(self._tree.staging, f"{ino:x}")

    def _stage(self, change: InodeChange) -> int:
        """Build the file as the target has it, durably. Returns its size."""
        ino, before, after = change
        assert after is not None
        self._staged.add(ino)
        fd = os.open(self._path(ino), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if before is not None and self._clone(ino, fd):
                self._patch(fd, before, after)
            else:
                os.ftruncate(fd, after.size)
                write_chunks(self._source, fd, self._after.chunks(after), after.size)
            os.utime(fd, ns=(after.ctime_ns, after.mtime_ns))
            self._disk.fsync("rollback:stage", fd)
        finally:
            os.close(fd)
        return after.size

    def _clone(self, ino: Ino, fd: int) -> bool:
        """Share the present file's blocks, where the host filesystem can."""
        try:
            with self._tree.borrow_backing(ino) as source:
                fcntl.ioctl(fd, _FICLONE, source)
        except OSError:
            return False
        return True

    def _patch(self, fd: int, before: InodeRecord, after: InodeRecord) -> None:
        os.ftruncate(fd, after.size)
        for chunk, _, pointer in diff_map(self._before, before, self._after, after):
            offset = chunk * CHUNK_SIZE
            size = min(CHUNK_SIZE, after.size - offset)
            if size > 0:
                plain = self._source.read(pointer) if pointer.number else b""
                os.pwrite(fd, plain[:size].ljust(size, b"\0"), offset)

    # -- the turn

    def _absent_files(self) -> dict[Ino, AbsentFile]:
        """Files of the target that stay absent: their bytes are in the store, and they are those of the present."""
        names, found = self._tree.names, {}
        for ino, _, after in diff(self._before, self._after):
            absent = names.absent(ino) if after and ino not in self._staged else None
            if after is not None and absent is not None:
                found[ino] = absent._replace(mtime_ns=clamp_time(after.mtime_ns), ctime_ns=clamp_time(after.ctime_ns))
        return found

    def _put_inodes(self, bulk: Bulk, absent: dict[Ino, AbsentFile]) -> None:
        for ino, before, after in diff(self._before, self._after):
            self._inodes += 1
            if after is None:
                assert before is not None
                if not self._excluded.staying[ino]:  # else it keeps another name, its bytes and where they are
                    bulk.put_inode(row_of(before)._replace(nlink=0))
                    bulk.clear_absent(ino)
                continue
            bulk.put_inode(row_of(after), after.xattrs)
            if ino in absent:
                bulk.set_absent(ino, absent[ino])
                if ino in self._partly:
                    bulk.add_swap(ino)  # for its times
            elif stat.S_ISREG(after.mode):
                self._files += ino in self._staged
                bulk.clear_absent(ino)
                bulk.add_swap(ino)

    def _put_entries(self, bulk: Bulk) -> None:
        for ino, before, after in diff(self._before, self._after):
            directories = self._before, _directory(before), self._after, _directory(after)
            for name, _, entry in diff_entries(*directories):
                if entry is None:
                    bulk.delete_entry(ino, name)
                else:
                    bulk.put_entry(ino, name, entry.ino)


def _same_bytes(before: InodeRecord | None, after: InodeRecord) -> bool:
    if before is None or (before.size, before.height) != (after.size, after.height):
        return False
    return is_same(before.content, after.content)


def _weight(change: InodeChange) -> int:
    return 1 + (change.after.size if change.after else 0)


def _directory(record: InodeRecord | None) -> InodeRecord | None:
    return record if record and stat.S_ISDIR(record.mode) else None
