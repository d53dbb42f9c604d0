"""A chunk that is overwritten at random with what does not compress is stored as its blocks.

Over any sequence of overwrites the objects of file data stay under 1.3 times the bytes changed, and a block of any
snapshot is read with at most three frames. The tables' share is printed beside it (-s).
"""

from __future__ import annotations

import random
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino
from snapfs.base.errors import CorruptionError
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.objects.format import FRAME_BYTES, ROW_BYTES, Encoding, ObjectKind, Row
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.repair import verify
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.reachability import Walk
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.seal.sealer import seal

BOUND = 1.3
FRAMES = 3
CHUNKS = 12
BLOCKS = CHUNKS * 16


class Database:
    """A volume with one file of blocks that do not compress, and all that it ever was."""

    def __init__(self, folder: Path, seed: int) -> None:
        (folder / "live").mkdir(parents=True)
        self.chance, disk = random.Random(seed), Disk()
        self.repository = Repository.create(str(folder / "store"), StoreIdentity("ab" * 16, 1), disk)
        names = Namespace(str(folder / "live/namespace.db"), disk)
        self.tree = LiveTree(str(folder / "live"), names, disk, boot_id="boot")
        self.ino = self.tree.mknod(ROOT_INO, b"db", stat.S_IFREG | 0o644, 0, 0, 0).ino
        self.content = bytearray()
        self.changed_bytes = 0
        self.history: list[tuple[SnapshotRecord, bytes]] = []

    def write(self, block: int, count: int = 1) -> None:
        data = self.chance.randbytes(count * BLOCK_SIZE)
        offset = block * BLOCK_SIZE
        self.content[offset : offset + len(data)] = data
        while not self.tree.ready_to_write(self.ino):
            self.tree.prepare_write(self.ino)
        self.tree.write(self.ino, offset, data)

    def seal(self) -> SnapshotRecord:
        before = self.history[-1][1] if self.history else b""
        starts = range(0, len(self.content), BLOCK_SIZE)
        self.changed_bytes += sum(
            BLOCK_SIZE for at in starts if self.content[at : at + BLOCK_SIZE] != before[at : at + BLOCK_SIZE]
        )
        record = seal(self.tree.cut(), self.repository, self.repository.latest(), generation=Generation(1))
        self.tree.tidy()
        self.history.append((record, bytes(self.content)))
        return record

    def rows(self) -> Iterator[Row]:
        for info in self.repository.index.segments():
            yield from SegmentReader(info.path).rows()

    def stored(self) -> tuple[int, int]:
        """Bytes of the objects of file data, and of all others, each with its frame and its row."""
        found = Counter[bool]()
        for row in self.rows():
            found[row.kind in (ObjectKind.CHUNK, ObjectKind.BLOCK)] += FRAME_BYTES + ROW_BYTES + row.stored
        return found[True], found[False]

    def check(self) -> None:
        """Every snapshot is what it was, the bound holds, and a read of any block takes no more frames than it may."""
        data, tables = self.stored()
        print(f"{self.changed_bytes} changed, {data} stored ({data / self.changed_bytes:.3f}), tables {tables}")
        assert data < BOUND * self.changed_bytes
        for record, content in self.history:
            tree = SnapshotTree(self.repository, record.root)
            file = tree.inode(Ino(self.ino))
            assert file is not None
            assert tree.read(file, 0, file.size) == content
        self.check_frames(tree, file.content.number != 0)

    def check_frames(self, tree: SnapshotTree, any_content: bool) -> None:
        assert any_content
        file = tree.inode(Ino(self.ino))
        assert file is not None
        counted = Counting(self.repository)
        for index, pointer in tree.chunks(file):
            for start in range(0, min(CHUNK_SIZE, file.size - index * CHUNK_SIZE), BLOCK_SIZE):
                counted.begin()
                offset = index * CHUNK_SIZE + start
                expected = self.history[-1][1][offset : offset + BLOCK_SIZE]
                assert self.repository.read_part(pointer, start, BLOCK_SIZE) == expected
                assert counted.frames <= FRAMES, (index, start)
        counted.end()

    def close(self) -> None:
        self.tree.close()
        self.repository.close()


class Counting:
    """Counts the frames that the store's objects are read from, with nothing kept in memory."""

    def __init__(self, repository: Repository) -> None:
        self._objects, self.frames = repository.objects, 0
        self._payload = self._objects._payload

        def payload(*arguments: Any) -> Any:
            self.frames += 1
            return self._payload(*arguments)

        self._objects._payload = payload  # type: ignore[method-assign]

    def begin(self) -> None:
        self._objects.forget_from(0)  # type: ignore[arg-type]
        self.frames = 0

    def end(self) -> None:
        self._objects._payload = self._payload  # type: ignore[method-assign]


def at_random(db: Database) -> None:
    """As the issue has it: some blocks here and there for each snapshot."""
    for _ in range(40):
        for _ in range(16):
            db.write(db.chance.randrange(BLOCKS))
        db.seal()


def one_block(db: Database) -> None:
    for _ in range(210):
        db.write(5)
        db.seal()


def one_of_each_chunk(db: Database) -> None:
    for _ in range(60):
        for chunk in range(CHUNKS):
            db.write(chunk * 16 + db.chance.randrange(16))
        db.seal()


def nearly_all_of_a_chunk(db: Database) -> None:
    for turn in range(40):
        for block in range(10 + turn % 7):
            db.write((block + turn) % 16)
        db.seal()


def whole_chunks_and_single_blocks(db: Database) -> None:
    """Chunks written as a whole make the encoder give up trying; the blocks beside them must not suffer from it."""
    for turn in range(30):
        for chunk in range(5):
            db.write(chunk * 16, 16)
        for chunk in range(5, CHUNKS):
            db.write(chunk * 16 + turn % 16)
        db.seal()


def round_and_round(db: Database) -> None:
    for turn in range(150):
        for step in range(4):
            db.write((4 * turn + step) % BLOCKS)
        db.seal()


def growing(db: Database) -> None:
    for _ in range(60):
        db.write(len(db.content) // BLOCK_SIZE)
        db.write(db.chance.randrange(len(db.content) // BLOCK_SIZE))
        db.seal()


SEQUENCES: list[Callable[[Database], None]] = [
    at_random, one_block, one_of_each_chunk, nearly_all_of_a_chunk, whole_chunks_and_single_blocks, round_and_round,
    growing,
]  # fmt: skip


@pytest.fixture(params=[1])
def db(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    found = Database(tmp_path / "volume", request.param)
    yield found
    found.close()


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_what_is_stored_is_under_the_bound_and_a_read_takes_few_frames(
    db: Database, sequence: Callable[[Database], None]
) -> None:
    """Objects of file data under 1.3 times the bytes changed, a read in at most three frames."""
    db.write(0, BLOCKS)
    db.seal()
    sequence(db)
    db.check()


@pytest.mark.parametrize("seed", range(6))
def test_any_seeded_mix_of_overwrites_stays_under_the_bound(tmp_path: Path, seed: int) -> None:
    """Over any sequence of overwrites; bursts of every size, hot and cold places, in every order."""
    db = Database(tmp_path / "volume", seed)
    db.write(0, BLOCKS)
    db.seal()
    for _ in range(50):
        hot = db.chance.randrange(BLOCKS)
        for _ in range(db.chance.choice([1, 1, 2, 8, 30])):
            near = db.chance.choice([hot, db.chance.randrange(BLOCKS), (hot + db.chance.randrange(16)) % BLOCKS])
            db.write(near, min(db.chance.choice([1, 1, 1, 2, 5, 12, 16]), BLOCKS - near))
        db.seal()
    db.check()
    db.close()


def test_dropping_history_keeps_the_blocks_that_are_needed_and_frees_the_rest(db: Database) -> None:
    """Reachability and compaction follow what a mosaic refers to."""
    db.write(0, BLOCKS)
    db.seal()
    one_of_each_chunk(db)
    before, _ = db.stored()
    for record, _ in db.history[:-1]:
        db.repository.drop(record.number)
    with db.repository.collection() as collection:
        walk = Walk(db.repository, lambda pointer, error: pytest.fail(str(error)))
        for _ in walk.visits(db.history[-1][0].root):
            pass
        collection.run(walk.seen, min_dead=0.0)
    db.history = db.history[-1:]
    after, _ = db.stored()
    assert after < 2.2 * len(db.content) < before
    db.check_frames(SnapshotTree(db.repository, db.history[0][0].root), True)
    assert verify.verify(db.repository, [db.history[0][0]], threads=1).is_good


def test_a_lost_block_is_blamed_on_the_snapshots_that_need_it(db: Database) -> None:
    db.write(0, BLOCKS)
    db.seal()
    at_random(db)
    row = next(row for row in db.rows() if row.kind == ObjectKind.BLOCK)
    info = db.repository.index.find(row.number)
    assert info is not None
    with open(info.path, "r+b") as file:
        file.seek(SegmentReader(info.path).row(row.number).offset + FRAME_BYTES + 100)  # type: ignore[union-attr]
        file.write(b"\xff\x00\xff")
    db.repository.objects.forget_from(0)  # type: ignore[arg-type]
    report = verify.verify(db.repository, [record for record, _ in db.history], threads=1)
    assert report.damaged_snapshots
    assert row.number in report.bad_numbers
    for record, content in db.history:
        tree = SnapshotTree(db.repository, record.root)
        file_ = tree.inode(Ino(db.ino))
        assert file_ is not None
        if record.number in report.damaged_snapshots:
            with pytest.raises(CorruptionError):
                tree.read(file_, 0, file_.size)
        else:
            assert tree.read(file_, 0, file_.size) == content


def test_what_resembles_its_version_before_is_a_patch_as_ever(db: Database) -> None:
    """A database that changes a few bytes of a block: blocks of their own would be 50 times as large."""
    db.write(0, BLOCKS)
    db.seal()
    for turn in range(20):
        for chunk in range(CHUNKS):
            offset = chunk * CHUNK_SIZE + (turn % 5) * BLOCK_SIZE + 40
            db.content[offset : offset + 20] = db.chance.randbytes(20)
            while not db.tree.ready_to_write(db.ino):
                db.tree.prepare_write(db.ino)
            db.tree.write(db.ino, offset, bytes(db.content[offset : offset + 20]))
        db.seal()
    assert not [row for row in db.rows() if row.encoding == Encoding.MOSAIC]
    assert [row for row in db.rows() if row.encoding == Encoding.PATCH]
