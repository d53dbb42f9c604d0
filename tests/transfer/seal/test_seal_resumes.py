"""A seal that was cut off with its process goes on where it was.

A daemon that dies more often than a seal takes gets its snapshot made all the same: what is in the unfinished segment
and checks out is kept, and the rest is as if it had never been.
"""

from __future__ import annotations

import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino, Number
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.objects.format import FRAME_BYTES, HEADER_BYTES, ObjectKind
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.repair import verify
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.repository.salvage import frames
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.seal.sealer import seal

IDENTITY = StoreIdentity("ab" * 16, 1)
CHUNKS = 400


class Killed(BaseException):
    """The process is gone at this step."""


class KillingDisk(Disk):
    """Copies the volume at the n-th write of objects, as a kill leaves it, and goes no further."""

    def __init__(self, folder: Path, after: int, to: Path) -> None:
        self.folder, self.after, self.to = folder, after, to

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        super().pwrite(label, fd, data, offset)
        if label == "seal:objects":
            self.after -= 1
            if not self.after:
                shutil.copytree(self.folder, self.to)
                raise Killed


class Life:
    """One life of a volume whose file is `db`."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, new = folder, not folder.exists()
        if new:
            (folder / "live").mkdir(parents=True)
            self.repository = Repository.create(str(folder / "store"), IDENTITY, disk)
        else:
            self.repository = Repository.open(str(folder / "store"), IDENTITY, disk)
        names = Namespace(str(folder / "live/namespace.db"), disk)
        self.tree = LiveTree(str(folder / "live"), names, disk, boot_id="boot")
        if new:
            self.tree.mknod(ROOT_INO, b"db", stat.S_IFREG | 0o644, 0, 0, 0)

    @property
    def ino(self) -> Ino:
        return self.tree.lookup(ROOT_INO, b"db").ino

    def write(self, offset: int, data: bytes) -> None:
        ino = self.ino
        while not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        self.tree.write(ino, offset, data)

    def seal(self, generation: int = 1) -> SnapshotRecord:
        return seal(
            self.tree.cut(), self.repository, self.repository.latest(), generation=Generation(generation), threads=1
        )

    def end(self) -> None:
        self.tree.close(clean=False)
        self.repository.close()


def cut_off(folder: Path, after: int, number: int, before: Callable[[Life], None] = lambda life: None) -> Path:
    """A life whose seal dies at a write of objects; the folder that the next one finds."""
    to = folder.parent / f"life{number}"
    life = Life(folder, KillingDisk(folder, after, to))
    before(life)
    with pytest.raises(Killed):
        life.seal()
    life.end()
    return to


def first_life(folder: Path, content: bytes) -> None:
    life = Life(folder, Disk())
    life.write(0, content)
    life.end()


def check_content(life: Life, record: SnapshotRecord, content: bytes) -> None:
    tree = SnapshotTree(life.repository, record.root)
    file = tree.inode(life.ino)
    assert file is not None
    assert tree.read(file, 0, file.size) == content
    assert verify.verify(life.repository, [record], threads=1).is_good


def chunks_stored(life: Life) -> int:
    infos = life.repository.index.segments()
    return sum(row.kind == ObjectKind.CHUNK for info in infos for row in SegmentReader(info.path).rows())


def test_a_seal_goes_on_where_the_last_life_left_it(tmp_path: Path) -> None:
    """Lives that end in the middle of the seal, each further on than the one before, and no work twice."""
    content = random.Random(1).randbytes(CHUNKS * CHUNK_SIZE)
    folder = tmp_path / "life0"
    first_life(folder, content)
    kept = []
    for number in range(1, 5):
        folder = cut_off(folder, 60, number)  # of this life's own writes
        (left,) = (folder / "store/segments").glob("*.new")
        kept.append(left.stat().st_size)
    assert kept == sorted(set(kept)), "each life adds to what the others left"
    assert kept[-1] > 3 * kept[0]
    life = Life(folder, Disk())
    record = life.seal()
    assert life.repository.sealing.resumed_objects * CHUNK_SIZE > kept[-1] * 0.9
    check_content(life, record, content)
    assert chunks_stored(life) == CHUNKS, "nothing is stored twice"
    assert not list((folder / "store/segments").glob("*.new"))
    life.end()


def test_what_changed_between_the_lives_is_stored_as_it_is_now(tmp_path: Path) -> None:
    chance = random.Random(2)
    content = bytearray(chance.randbytes(CHUNKS * CHUNK_SIZE))
    folder = tmp_path / "life0"
    first_life(folder, bytes(content))
    for number in range(1, 4):

        def change(life: Life) -> None:
            for _ in range(20):
                offset, data = chance.randrange(len(content) - 5000), chance.randbytes(chance.randrange(1, 5000))
                content[offset : offset + len(data)] = data
                life.write(offset, data)

        folder = cut_off(folder, 80, number, change)
    life = Life(folder, Disk())
    record = life.seal()
    assert life.repository.sealing.resumed_objects
    check_content(life, record, bytes(content))
    life.end()


@pytest.mark.parametrize("place", [8, 40, HEADER_BYTES + 3, HEADER_BYTES + 20 * 65568, -1])
def test_what_does_not_check_out_is_not_kept(tmp_path: Path, place: int) -> None:
    """A flipped byte in the header, a frame or a payload of the unfinished segment: only what is before it counts."""
    content = random.Random(3).randbytes(CHUNKS * CHUNK_SIZE)
    first_life(tmp_path / "life0", content)
    folder = cut_off(tmp_path / "life0", 100, 1)
    (left,) = (folder / "store/segments").glob("*.new")
    with left.open("rb") as file:
        ends = [at + FRAME_BYTES + frame.stored for at, frame, _ in frames(file.fileno(), Number(1 << 48 | 1))]
    data = bytearray(left.read_bytes())
    data[place] ^= 0x10
    left.write_bytes(data)
    life = Life(folder, Disk())
    record = life.seal()
    whole = 0 if 0 <= place < HEADER_BYTES else sum(end <= place % len(data) for end in ends)
    assert life.repository.sealing.resumed_objects == whole
    check_content(life, record, content)
    life.end()


def test_a_later_generation_does_not_go_on_with_the_numbers_of_an_earlier_one(tmp_path: Path) -> None:
    content = random.Random(4).randbytes(CHUNKS * CHUNK_SIZE)
    first_life(tmp_path / "life0", content)
    folder = cut_off(tmp_path / "life0", 100, 1)
    life = Life(folder, Disk())
    record = life.seal(generation=2)
    assert not life.repository.sealing.resumed_objects
    check_content(life, record, content)
    assert not list((folder / "store/segments").glob("*.new")), "what no seal goes on with takes no room"
    life.end()
