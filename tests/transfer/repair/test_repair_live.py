"""Repair after real damage to segments: what the live tree or a neighbour still has is repaired, the rest is
reported."""

from __future__ import annotations

import os
import random
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino, Number
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.objects.format import FRAME_BYTES, ObjectKind, Pointer
from snapfs.store.repair import liveness, verify
from snapfs.store.repair.suspects import has_suspects, write_suspects
from snapfs.store.repair.verify_report import Report
from snapfs.store.repository.repository import Repository, SnapshotRecord, StoreIdentity
from snapfs.store.tables.snapshot import SnapshotTree
from snapfs.transfer.repair.repair import RepairReport, repair, repair_suspects
from snapfs.transfer.seal.sealer import seal

IDENTITY = StoreIdentity("ab" * 16, 1)


class Bench:
    """A volume without a daemon, whose store is damaged as a bad disk would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "live").mkdir(parents=True)
        self.disk = Disk()
        self.repository = Repository.create(str(folder / "store"), IDENTITY, self.disk)
        names = Namespace(str(folder / "live/namespace.db"), self.disk)
        self.tree = LiveTree(str(folder / "live"), names, self.disk, boot_id="boot")

    def file(self, name: bytes, data: bytes, parent: Ino = ROOT_INO) -> Ino:
        ino = self.tree.mknod(parent, name, stat.S_IFREG | 0o644, 0, 0, 0).ino
        self.write(ino, 0, data)
        return ino

    def folder_of(self, name: bytes) -> Ino:
        return self.tree.mknod(ROOT_INO, name, stat.S_IFDIR | 0o755, 0, 0, 0).ino

    def write(self, ino: Ino, offset: int, data: bytes) -> None:
        while not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        self.tree.write(ino, offset, data)
        self.tree.setattr(ino, mtime_ns=time.time_ns())  # as the kernel does after it wrote

    def seal(self, name: str | None = None) -> SnapshotRecord:
        record = seal(self.tree.cut(), self.repository, self.repository.latest(), generation=Generation(1), name=name)
        self.tree.tidy()
        return record

    def look(self, record: SnapshotRecord) -> SnapshotTree:
        return SnapshotTree(self.repository, record.root)

    def reopen(self) -> None:
        self.repository.close()
        self.repository = Repository.open(str(self.folder / "store"), IDENTITY, self.disk)

    def harm(self, *numbers: int) -> None:
        """Turn over a byte of each object, wherever it is."""
        for number in numbers:
            source, row = self.repository.index.locate(Number(number))
            with open(source.path, "r+b") as file:
                file.seek(row.offset + FRAME_BYTES + row.stored // 2)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 0x5A]))
        self.reopen()

    def segment_of(self, number: int) -> Path:
        info = self.repository.index.find(Number(number))
        assert info is not None
        return Path(info.path)

    def numbers(self, kind: ObjectKind, record: SnapshotRecord | None = None) -> list[Number]:
        """Of all objects of a kind that these snapshots need."""
        chosen = [record] if record else self.repository.snapshots()
        live = liveness.live_numbers(self.repository, chosen)
        return [number for number in live if self.repository.index.locate(number)[1].kind == kind]

    def verify(self) -> Report:
        return verify.verify(self.repository, self.repository.snapshots())

    def repair(self, with_tree: bool = True, **more: object) -> RepairReport:
        tree = self.tree if with_tree else None
        report = repair(self.repository, self.repository.snapshots(), tree=tree, **more)  # type: ignore[arg-type]
        self.repository.check_invariants()
        return report

    def states(self) -> list[str]:
        return [record.state for record in self.repository.snapshots()]

    def damaged_files(self) -> list[str]:
        return [path.name for path in (self.folder / "store/segments").iterdir() if path.name.endswith(".damaged")]

    def close(self) -> None:
        self.tree.close()
        self.repository.close()


def fill(bench: Bench, seed: int = 1) -> list[Ino]:
    rng = random.Random(seed)
    found = []
    for folder in range(3):
        parent = bench.folder_of(b"folder-%d" % folder)
        for number in range(60):
            found.append(bench.file(b"%d-file-%d" % (folder, number), rng.randbytes(rng.randrange(1, 9000)), parent))
        bench.tree.setxattr(parent, b"user.long", rng.randbytes(40_000))
    found.append(bench.file(b"large", rng.randbytes(150 * CHUNK_SIZE + 17)))
    return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path / "volume")
    yield found
    found.close()


def wholly_good(bench: Bench) -> None:
    report = bench.verify()
    assert (report.bad, report.other_damage, report.damaged_snapshots) == ([], [], [])
    assert set(bench.states()) == {"good"}
    assert bench.damaged_files() == []


@pytest.mark.parametrize(
    "kind",
    [
        ObjectKind.CHUNK,
        ObjectKind.MAP_PAGE,
        ObjectKind.INODE_PAGE,
        ObjectKind.DIR_PAGE,
        ObjectKind.XATTRS,
        ObjectKind.ROOT,
    ],
)
def test_whatever_kind_of_object_is_bad_comes_back_from_the_live_tree(bench: Bench, kind: ObjectKind) -> None:
    fill(bench)
    record = bench.seal("one")
    numbers = bench.numbers(kind)
    hit = numbers if len(numbers) < 4 else random.Random(kind).sample(numbers, 3)
    bench.harm(*hit)
    before = bench.verify()
    assert before.damaged_snapshots == [record.number]
    report = bench.repair()
    assert report.repaired >= len(hit)
    assert report.after.is_good
    wholly_good(bench)
    kinds = [event.kind for event in bench.repository.events()]
    assert kinds[-2:] == ["mended", "cleared"]


def spoil(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "gone":
        path.unlink()
    elif how == "cut":
        os.truncate(path, size // 2)
    elif how == "zeroed":
        path.write_bytes(bytes(size))
    else:
        with open(path, "r+b") as file:
            file.seek(size - 96 - 40 * 3)
            file.write(b"\xff" * 40)


@pytest.mark.parametrize("how", ["gone", "cut", "zeroed", "table"])
def test_a_lost_segment_comes_back_from_a_mirror(bench: Bench, how: str, tmp_path: Path) -> None:
    inos, rng = fill(bench), random.Random(9)
    records = [bench.seal("one")]
    for name in ("two", "three"):
        for ino in rng.sample(inos, 20):
            bench.write(ino, 0, rng.randbytes(100))
        records.append(bench.seal(name))
    shutil.copytree(bench.folder / "store", tmp_path / "mirror")
    spoil(bench.segment_of(records[1].root.number), how)
    bench.reopen()
    assert set(bench.verify().damaged_snapshots) >= {2, 3}
    alone = bench.repair(with_tree=False).after.damaged_snapshots
    assert bench.states() == ["damaged" if number in alone else "good" for number in (1, 2, 3)]
    assert (2 in alone) == (how != "table")
    mirror = Repository.open(str(tmp_path / "mirror"), IDENTITY, Disk(), readonly=True)
    try:
        bench.repair(with_tree=False, fetch=mirror.read)
    finally:
        mirror.close()
    wholly_good(bench)
    bench.reopen()
    wholly_good(bench)


def test_a_changed_chunk_is_lost_and_its_snapshots_stay_marked_until_it_comes_back(bench: Bench) -> None:
    old = random.Random(3).randbytes(CHUNK_SIZE)
    ino = bench.file(b"file", old + bytes(9) + old)
    one = bench.seal("one")
    tree = bench.look(one)
    record = tree.inode(ino)
    assert record is not None
    lost = tree.chunk(record, 0)
    bench.write(ino, 0, random.Random(4).randbytes(CHUNK_SIZE))
    bench.seal("two")
    bench.harm(lost.number)
    report = bench.repair()
    assert (report.repaired, bench.states()) == (0, ["damaged", "good"])
    assert [bad.number for bad in report.after.bad] == [lost.number]
    assert report.after.bad[0].snapshots == [one.number]
    assert report.after.bad[0].kind == "chunk"
    assert bench.repair().done == []  # nothing new to report
    bench.reopen()
    assert bench.states() == ["damaged", "good"]

    def fetch(pointer: Pointer) -> bytes | None:
        return old if pointer.number == lost.number else None

    report = bench.repair(fetch=fetch)
    assert "marked snapshot 1 as good" in report.done
    wholly_good(bench)


def test_a_fetched_object_that_is_another_is_refused(bench: Bench) -> None:
    bench.file(b"file", random.Random(5).randbytes(CHUNK_SIZE))
    bench.seal()
    (lost,) = bench.numbers(ObjectKind.CHUNK)
    bench.harm(lost)
    report = bench.repair(with_tree=False, fetch=lambda pointer: b"something else")
    assert (report.repaired, bench.states()) == (0, ["damaged"])


def test_what_is_a_difference_to_a_bad_object_is_stored_in_full(bench: Bench) -> None:
    rng = random.Random(6)
    ino = bench.file(b"file", rng.randbytes(3 * CHUNK_SIZE))
    one = bench.seal("one")
    bench.write(ino, 100, b"a small change")
    two = bench.seal("two")
    tree = bench.look(two)
    record = tree.inode(ino)
    assert record is not None
    newer = tree.chunk(record, 0).number
    base = bench.repository.objects.bases_of(newer)[0]
    bench.harm(base)
    assert bench.verify().damaged_snapshots == [one.number, two.number]
    report = bench.repair()
    assert bench.states() == ["damaged", "good"]
    assert bench.repository.objects.bases_of(newer) == ()
    assert [bad.snapshots for bad in report.after.bad] == [[one.number]]
    assert bench.damaged_files() != []


def test_a_page_of_an_older_snapshot_comes_from_its_neighbours(bench: Bench) -> None:
    """The live tree has moved on; the snapshots before and after together still have every slot."""
    inos = fill(bench)
    bench.seal("one")
    for number in (3, 4):
        bench.write(inos[number], 0, b"second")
    two = bench.seal("two")
    bench.write(inos[40], 0, b"third, on another page")
    bench.write(inos[5], 0, b"third")
    bench.seal("three")
    for number in (3, 4, 5, 6):
        bench.write(inos[number], 0, b"live")
    only_two = set(bench.numbers(ObjectKind.INODE_PAGE, two))
    for record in bench.repository.snapshots():
        if record.number != two.number:
            only_two -= set(bench.numbers(ObjectKind.INODE_PAGE, record))
    first = min(only_two)
    bench.harm(first)
    assert bench.verify().damaged_snapshots == [two.number]
    assert bench.repair(with_tree=False).repaired == 1
    wholly_good(bench)


def test_a_second_copy_in_the_store_is_enough(bench: Bench) -> None:
    data = random.Random(8).randbytes(CHUNK_SIZE)
    ino = bench.file(b"file", data)
    bench.seal("one")
    (first,) = bench.numbers(ObjectKind.CHUNK)
    bench.harm(first)
    bench.repository.mark(bench.repository.snapshots()[0].number, "damaged", "a test")  # so that nothing is shared
    bench.tree.mark_all_suspect()
    seal(bench.tree.cut(), bench.repository, None, generation=Generation(1), name="two")
    bench.tree.tidy()
    bench.write(ino, 0, b"changed")
    assert len(bench.numbers(ObjectKind.CHUNK)) == 2 if bench.verify().is_good else True
    assert bench.repair(with_tree=False).repaired == 1
    wholly_good(bench)


def test_a_lost_copy_of_a_record_is_made_again(bench: Bench) -> None:
    bench.file(b"file", b"1")
    record = bench.seal("one")
    bench.harm(record.last_number)
    assert bench.verify().lost_records == [record.number]
    assert bench.repair().repaired == 1
    wholly_good(bench)
    shutil.copytree(bench.folder / "store", bench.folder / "copy")
    (bench.folder / "copy/snapshots.log").unlink()
    from snapfs.store.repair.duplicate_store import rebuild_log

    assert [found.name for found in rebuild_log(str(bench.folder / "copy"), IDENTITY, bench.disk)] == ["one"]


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_never_makes_a_wrong_thing_good(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    inos, contents = fill(bench, seed), []
    for _ in range(4):
        for ino in rng.sample(inos[:-1], 6):
            bench.write(ino, rng.randrange(4000), rng.randbytes(50))
        bench.write(inos[-1], rng.randrange(100) * CHUNK_SIZE, rng.randbytes(5000))
        record = bench.seal()
        tree = bench.look(record)
        contents.append({each.ino: tree.read(each, 0, each.size) for each in tree.inodes()})
    kinds = (ObjectKind.CHUNK, ObjectKind.MAP_PAGE, ObjectKind.INODE_PAGE, ObjectKind.DIR_PAGE)
    live = [number for kind in kinds for number in bench.numbers(kind)]
    bench.harm(*rng.sample(live, 12))
    before = set(bench.verify().damaged_snapshots)
    report = bench.repair()
    after = set(report.after.damaged_snapshots)
    assert after <= before
    assert report.repaired > 0
    for record, wanted in zip(bench.repository.snapshots(), contents, strict=True):
        assert record.state == ("damaged" if record.number in after else "good")
        if record.state == "good":
            tree = bench.look(record)
            assert {each.ino: tree.read(each, 0, each.size) for each in tree.inodes()} == wanted


def _suspects(bench: Bench) -> None:
    """As `snapfs verify` notes them."""
    write_suspects(str(bench.folder / "store"), (bad.number for bad in bench.verify().bad), bench.disk)


def _seal_next(bench: Bench) -> SnapshotRecord:
    """As the daemon does: on the parent, unless that is not to be built on."""
    parent = bench.repository.latest()
    assert parent is not None
    if not repair_suspects(bench.repository, parent, bench.tree):
        bench.tree.mark_all_suspect()
        parent = None
    record = seal(bench.tree.cut(), bench.repository, parent, generation=Generation(1))
    bench.tree.tidy()
    return record


@pytest.mark.parametrize("kind", [ObjectKind.CHUNK, ObjectKind.MAP_PAGE, ObjectKind.INODE_PAGE, ObjectKind.DIR_PAGE])
def test_a_snapshot_is_not_built_on_what_verify_found_damaged(bench: Bench, kind: ObjectKind) -> None:
    """The live copy is whole, and is read again; the new snapshot shared the damaged object before."""
    inos = fill(bench)
    first = bench.seal()
    bench.harm(bench.numbers(kind, first)[0])
    _suspects(bench)
    bench.write(inos[-1], 10, b"something else")
    record = _seal_next(bench)
    assert verify.verify(bench.repository, [record]).is_good
    if kind == ObjectKind.CHUNK:
        assert not has_suspects(str(bench.folder / "store")), "it is back, for the old snapshot as well"
        assert bench.verify().is_good


def test_a_snapshot_is_of_everything_where_the_parent_cannot_be_mended(bench: Bench) -> None:
    """The file was changed since, so that the damaged chunk is nowhere; what else it shares is not trusted."""
    inos = fill(bench)
    first = bench.seal()
    bench.harm(*bench.numbers(ObjectKind.CHUNK, first))
    _suspects(bench)
    for ino in inos:
        bench.write(ino, 0, b"changed since")
    record = _seal_next(bench)
    assert verify.verify(bench.repository, [record]).is_good
