"""Lost pages, recovered by writing the live tree's tables anew, as a snapshot would, without storing anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Ino, Number
from snapfs.base.errors import SnapfsError
from snapfs.live.backing.backing_files import data_ranges, reported_mtime
from snapfs.live.database.namespace_rows import Inode
from snapfs.live.namespace.frozen_namespace import FrozenNamespace
from snapfs.live.tree import LiveTree
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.repository.repair_writer import RepairContent
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.reachability import Role
from snapfs.store.tables.snapshot import (
    DirEntry,
    InodeRecord,
    RootInfo,
    SnapshotWriter,
    decode_root,
    encode_root,
)
from snapfs.store.tables.table_pages import ObjectReader
from snapfs.transfer.common.store_source import record_of
from snapfs.transfer.repair.neighbour_trees import NeighbourTrees
from snapfs.transfer.repair.object_recovery import LostObjects, ObjectRecovery

_NO_PARENT: Final = bytes(32)


class LivePages:
    """The live tree as a snapshot would have it."""

    def __init__(self, tree: LiveTree, repository: Repository, lost: LostObjects, trees: NeighbourTrees) -> None:
        self._tree, self._repository, self._lost, self._trees = tree, repository, lost, trees
        self._recovery = ObjectRecovery(repository, lost)
        self._writer = SnapshotWriter(self._recovery, None)
        self._mapless = {visit.ino for each in lost.values() for visit in each.places if visit.role is Role.MAP}

    def find(self) -> dict[Number, RepairContent]:
        """The contents of lost pages that were found, by number. Raises OSError if the live tree cannot be read."""
        self._tree.sync_soon()  # times that are only in memory
        with self._tree.names.view() as names:
            root = self._writer.finish(self._records(names), extra=RootInfo(0))
        self._find_roots(root)
        return self._recovery.found

    def _records(self, names: FrozenNamespace) -> Iterator[tuple[Ino, InodeRecord]]:
        for ino in names.all_inodes():
            inode = names.inode(ino)
            assert inode is not None
            yield ino, self._record(names, inode)

    def _record(self, names: FrozenNamespace, inode: Inode) -> InodeRecord:
        size, mtime_ns, ctime_ns, content, height = 0, inode.mtime_ns, inode.ctime_ns, NULL, 0
        if stat.S_ISDIR(inode.mode):
            entries = ((name, DirEntry(name, child, mode >> 12)) for name, child, mode in names.entries(inode.ino))
            content = self._writer.update_directory(None, entries)
        elif stat.S_ISREG(inode.mode):
            size, mtime_ns, file_ctime_ns, content, height = self._file(names, inode.ino)
            ctime_ns = max(ctime_ns, file_ctime_ns)
        return InodeRecord(
            inode.ino, inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev, size, inode.atime_ns, mtime_ns,
            ctime_ns, inode.target, names.xattrs(inode.ino), content, height,
        )  # fmt: skip

    def _file(self, names: FrozenNamespace, ino: Ino) -> tuple[int, int, int, Pointer, int]:
        """Size, mtime, ctime and block map of a regular file."""
        try:
            with self._tree.borrow_backing(ino) as fd:
                facts = os.fstat(fd)
                mtime_ns = reported_mtime(facts)
                known = self._unchanged(ino, facts.st_size, mtime_ns)
                content, height = known or self._map(ino, fd, facts.st_size)
                return facts.st_size, mtime_ns, facts.st_atime_ns, content, height
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODATA):  # absent, or not all here
                raise
            absent = names.absent(ino)
            if absent is None:
                return 0, 0, 0, NULL, 0
            record = record_of(ino, absent.origin)
            return absent.size, absent.mtime_ns, absent.ctime_ns, record.content, record.height

    def _unchanged(self, ino: Ino, size: int, mtime_ns: int) -> tuple[Pointer, int] | None:
        """The block map that a snapshot has of a file of this size and time; a guess, like all results."""
        for record in self._stored(ino) if ino not in self._mapless else ():
            if (record.size, record.mtime_ns) == (size, mtime_ns):
                return record.content, record.height
        return None

    def _stored(self, ino: Ino) -> Iterator[InodeRecord]:
        for tree in self._trees.near():
            with contextlib.suppress(SnapfsError, OSError):
                record = tree.inode(ino)
                if record is not None:
                    yield record

    def _map(self, ino: Ino, fd: int, size: int) -> tuple[Pointer, int]:
        return self._writer.update_map(None, size, self._chunks(ino, fd, size))

    def _chunks(self, ino: Ino, fd: int, size: int) -> Iterator[tuple[ChunkIndex, Pointer]]:
        last = -1
        for start, end in data_ranges(fd, 0, size):
            for index in range(max(start // CHUNK_SIZE, last + 1), -(-end // CHUNK_SIZE)):
                plain = os.pread(fd, min(CHUNK_SIZE, size - index * CHUNK_SIZE), index * CHUNK_SIZE)
                last = index
                yield ChunkIndex(index), self._recovery.chunk(plain)

    def _find_roots(self, made: Pointer) -> None:
        """Make the lost roots: their time and parent are in the log, the rest comes from the tree."""
        root = decode_root(made, self._recovery.read(made))
        for lost in self._lost.values():
            for record in lost.records if lost.kind == ObjectKind.ROOT else ():
                for next_ino in {root.next_ino, *(tree.root.next_ino for tree in self._trees.near(record))}:
                    plain = encode_root(
                        type(root)(
                            root.table, root.height, next_ino, root.inodes, root.total_bytes, record.cut_time_ns,
                            self._parent_sha256(record),
                        )
                    )  # fmt: skip
                    if self._repository.objects.content_hash_of(plain) == lost.pointer.content_hash:
                        self._recovery.found[lost.pointer.number] = RepairContent(ObjectKind.ROOT, plain)

    def _parent_sha256(self, record: SnapshotRecord) -> bytes:
        for each in self._repository.snapshots():
            if each.number == record.parent:
                with contextlib.suppress(SnapfsError, OSError):
                    return hashlib.sha256(_reader(self._repository).read(each.root)).digest()
        return _NO_PARENT


def _reader(repository: Repository) -> ObjectReader:
    return repository
