"""How few bytes the tables add to a snapshot, in a real store: the bounds are a third above what was measured."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ChunkIndex, Disk, Generation, Ino, Number
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES, ObjectKind, Pointer
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.store.tables.snapshot import DirEntry, InodeRecord, RootInfo, SnapshotTree, SnapshotWriter

Changes = Iterator[tuple[Ino, InodeRecord | None]]
SECOND = 1_000_000_000
CHUNKS = 9_600  # 600 MB
FILE, FOLDER = Ino(900), Ino(1)


class Volume:
    """Snapshots of tables alone: where chunks would be there are pointers to nothing."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._rng = random.Random(5)
        self._number = 1 << 47
        self.tree: SnapshotTree | None = None

    def seal(self, changes: Callable[[SnapshotWriter], Changes]) -> int:
        """Make a snapshot; the bytes that its pages take, frames and rows included."""
        transaction = self._repository.begin(Generation(1))
        writer = SnapshotWriter(transaction, self.tree)
        root = writer.finish(changes(writer), extra=RootInfo(self._rng.randrange(1 << 60)))
        transaction.commit(root, parent=None, name=None, cut_time_ns=1, trigger="manual")
        self.tree = SnapshotTree(self._repository, root)
        info = self._repository.index.segments()[-1]
        reader = self._repository.index.reader(info.first)
        assert reader is not None
        return sum(FRAME_BYTES + row.stored + ROW_BYTES for row in reader.rows() if row.kind != ObjectKind.RECORD)

    def pointer(self) -> Pointer:
        self._number += self._rng.randrange(1, 3)
        return Pointer(Number(self._number), self._rng.randbytes(16))

    def record(self, ino: int, **fields: object) -> InodeRecord:
        time = 1_700_000_000 * SECOND + self._rng.randrange(1000 * SECOND)
        times = {"atime_ns": time, "mtime_ns": time, "ctime_ns": time}
        known = {"mode": stat.S_IFREG | 0o644, "size": CHUNK_SIZE, "content": self.pointer(), **fields}
        return InodeRecord(Ino(ino), uid=70, gid=70, nlink=1, rdev=0, **times, **known)  # type: ignore[arg-type]

    def old(self, ino: Ino) -> InodeRecord:
        record = self.tree.inode(ino) if self.tree else None
        assert record is not None
        return record

    def begin(self) -> int:
        """1200 files, one of them of 9,600 chunks, and a directory of 20,000 names."""

        def changes(writer: SnapshotWriter) -> Changes:
            names = (b"%08d" % number for number in range(20_000))
            listing = writer.update_directory(None, ((name, DirEntry(name, Ino(7), 8)) for name in names))
            yield FOLDER, self.record(FOLDER, mode=stat.S_IFDIR | 0o755, content=listing)
            for ino in range(2, 1200):
                if ino != FILE:
                    yield Ino(ino), self.record(ino)
                    continue
                pointers = ((ChunkIndex(index), self.pointer()) for index in range(CHUNKS))
                content, height = writer.update_map(None, CHUNKS * CHUNK_SIZE, pointers)
                yield FILE, self.record(FILE, content=content, height=height, size=CHUNKS * CHUNK_SIZE)

        return self.seal(changes)

    def write(self, *chunks: int) -> int:
        def changes(writer: SnapshotWriter) -> Changes:
            pointers = ((ChunkIndex(index), self.pointer()) for index in sorted(chunks))
            content, height = writer.update_map(self.old(FILE), CHUNKS * CHUNK_SIZE, pointers)
            yield FILE, self.record(FILE, content=content, height=height, size=CHUNKS * CHUNK_SIZE)

        return self.seal(changes)

    def relist(self, name: bytes, ino: int) -> int:
        def changes(writer: SnapshotWriter) -> Changes:
            listing = writer.update_directory(self.old(FOLDER), [(name, DirEntry(name, Ino(ino), 8))])
            yield FOLDER, self.record(FOLDER, mode=stat.S_IFDIR | 0o755, content=listing)

        return self.seal(changes)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    identity = StoreIdentity("0123456789abcdef0123456789abcdef", 77)
    repository = Repository.create(str(tmp_path / "store"), identity, Disk())
    yield Volume(repository)
    repository.close()


def test_bytes_of_the_tables(volume: Volume) -> None:
    assert volume.begin() < 390_000
    one_chunk = [volume.write(5_000) for _ in range(18)]
    assert sum(one_chunk) / 18 < 1_550
    one_name = [volume.relist(b"%08d+" % number, 99) for number in range(7, 7 + 18)]
    assert sum(one_name) / 18 < 1_350
    rng = random.Random(3)
    many_chunks = [volume.write(*rng.sample(range(CHUNKS), 1_500)) for _ in range(6)]
    assert sum(many_chunks) / 6 < 125_000
