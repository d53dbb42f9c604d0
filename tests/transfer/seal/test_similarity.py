"""What the sealer encodes against what: a log that goes round is stored against what was written before it."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.objects.format import MAX_ORDINAL, Encoding, Row
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.seal.sealer import seal

CHUNKS = 40


class Ring:
    """A volume with one file, `log`, of CHUNKS chunks, and what it should hold."""

    def __init__(self, folder: Path) -> None:
        (folder / "live").mkdir(parents=True)
        disk = Disk()
        self.repository = Repository.create(str(folder / "store"), StoreIdentity("ab" * 16, 1), disk)
        names = Namespace(str(folder / "live/namespace.db"), disk)
        self.tree = LiveTree(str(folder / "live"), names, disk, boot_id="boot")
        self.ino = self.tree.mknod(ROOT_INO, b"log", stat.S_IFREG | 0o644, 0, 0, 0).ino
        self.content = bytearray(CHUNKS * CHUNK_SIZE)
        self.tree.prepare_truncate(self.ino, len(self.content))
        self.tree.setattr(self.ino, size=len(self.content))

    def write(self, chunk: int, data: bytes) -> None:
        offset = chunk * CHUNK_SIZE
        self.content[offset : offset + len(data)] = data
        while not self.tree.ready_to_write(self.ino):
            self.tree.prepare_write(self.ino)
        self.tree.write(self.ino, offset, data)

    def seal(self) -> SnapshotRecord:
        record = seal(self.tree.cut(), self.repository, self.repository.latest(), generation=Generation(1))
        self.tree.tidy()
        return record

    def rows(self, record: SnapshotRecord, *, readable: bool = True) -> list[Row]:
        """Of the file's chunks, holes left out; and the content is right, if it is `readable`."""
        tree = SnapshotTree(self.repository, record.root)
        file = tree.inode(Ino(self.ino))
        assert file is not None
        assert not readable or tree.read(file, 0, file.size) == self.content
        return [self.repository.index.locate(pointer.number)[1] for _, pointer in tree.chunks(file)]


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    found = Ring(tmp_path / "volume")
    yield found
    found.repository.check_invariants()
    found.tree.close()
    found.repository.close()


def log_records(seed: int, chunks: int) -> bytes:
    """Records of one shape whose values cannot be guessed, like those of a database's log."""
    chance, shape = random.Random(seed), random.Random(0).randbytes(3000)
    records = []
    while 3020 * len(records) < chunks * CHUNK_SIZE:
        records.append(shape + chance.randbytes(20))
    return b"".join(records)[: chunks * CHUNK_SIZE]


def best_dictionary(rows: list[Row]) -> Row:
    """The first of the largest."""
    return max(rows, key=lambda row: row.stored)


def test_what_is_written_into_a_known_file_is_stored_against_what_came_before(ring: Ring) -> None:
    ring.write(0, log_records(1, 8))
    ring.seal()
    ring.write(8, log_records(2, 20))
    rows = ring.rows(ring.seal())
    base = best_dictionary(rows[:8])
    for row in rows[8:28]:
        assert (row.encoding, row.ordinal, row.base) == (Encoding.DELTA, MAX_ORDINAL, base.number)
        assert row.stored < base.stored // 2
    ring.write(28, log_records(3, 12))
    rows = ring.rows(ring.seal())
    assert {row.base for row in rows[28:]} == {base.number}, "a base is a full object, however long this goes on"


def test_the_second_round_is_stored_against_the_log_and_not_against_the_first(ring: Ring) -> None:
    ring.write(0, log_records(1, 10) + random.Random(5).randbytes(30 * CHUNK_SIZE))
    ring.seal()
    ring.write(10, log_records(2, 20))
    rows = ring.rows(ring.seal())
    assert [row.base for row in rows[10:30]] == [best_dictionary(rows[:10]).number] * 20


def test_where_nothing_came_before_it_is_stored_against_what_it_replaces(ring: Ring) -> None:
    ring.write(0, log_records(1, CHUNKS))
    old = ring.rows(ring.seal())
    ring.write(0, log_records(2, 10))
    rows = ring.rows(ring.seal())
    assert {row.base for row in rows[:10]} <= {row.number for row in old}
    assert max(row.stored for row in rows[:10]) < min(row.stored for row in old)


def test_a_chunk_that_is_still_being_filled_is_a_base_for_itself(ring: Ring) -> None:
    ring.write(0, log_records(1, 8))
    ring.seal()
    ring.write(8, log_records(2, 6)[:-BLOCK_SIZE] + bytes(BLOCK_SIZE))
    rows = ring.rows(ring.seal())
    assert [row.encoding for row in rows[8:]] == [*[Encoding.DELTA] * 5, Encoding.ZSTD]
    ring.write(13, log_records(2, 6)[5 * CHUNK_SIZE : -BLOCK_SIZE] + b"one more" * (BLOCK_SIZE // 8))
    again = ring.rows(ring.seal())
    assert (again[13].encoding, again[13].base) == (Encoding.PATCH, rows[13].number)


def test_a_version_of_what_was_stored_against_another_is_full_and_then_a_base(ring: Ring) -> None:
    ring.write(0, log_records(1, 8))
    ring.seal()
    ring.write(8, log_records(2, 6))
    ring.seal()
    ring.write(9, b"changed")
    changed = ring.rows(ring.seal())[9]
    assert (changed.encoding, changed.ordinal) == (Encoding.ZSTD, 0)
    ring.write(9, b"CHANGED")
    assert ring.rows(ring.seal())[9].base == changed.number


def test_small_changes_of_every_block_are_patches(ring: Ring) -> None:
    plain = log_records(1, CHUNKS)
    ring.write(0, plain)
    full = ring.rows(ring.seal())
    for at in range(10 * CHUNK_SIZE, 20 * CHUNK_SIZE, BLOCK_SIZE):
        plain = plain[:at] + b"!" + plain[at + 1 :]
    ring.write(10, plain[10 * CHUNK_SIZE : 20 * CHUNK_SIZE])
    rows = ring.rows(ring.seal())
    assert [(row.encoding, row.base) for row in rows[10:20]] == [(Encoding.PATCH, row.number) for row in full[10:20]]


def test_noise_stays_as_it_is(ring: Ring) -> None:
    ring.write(0, log_records(1, 8))
    ring.seal()
    ring.write(8, random.Random(2).randbytes(8 * CHUNK_SIZE))
    assert {row.encoding for row in ring.rows(ring.seal())[8:]} == {Encoding.RAW}


def test_a_damaged_object_alike_does_not_keep_chunks_from_being_stored(ring: Ring) -> None:
    ring.write(0, log_records(1, 8))
    row = best_dictionary(ring.rows(ring.seal()))
    ring.repository.objects.forget_from(row.number)
    source, _ = ring.repository.index.locate(row.number)
    with open(source.path, "r+b") as file:
        file.seek(row.offset + 40)
        file.write(b"damage")
    ring.write(8, log_records(2, 8))
    assert {row.encoding for row in ring.rows(ring.seal(), readable=False)[8:16]} == {Encoding.ZSTD}
