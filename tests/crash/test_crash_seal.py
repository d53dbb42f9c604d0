"""Die at every labelled durable act of cut, seal, finish and rollback; then open again and look at everything.

The life that dies is a process of its own, killed at its n-th act, half of which may have happened. It
reports through a pipe what was answered. In the next life, of the same boot or of another: every snapshot that was
answered exists and is what was there at its cut, the tree is what it was, and a new snapshot holds exactly the tree.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.base.blocks import CHUNK_SIZE, ROOT_INO, Disk, Generation, Ino
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from snapfs.store.repository.repository import Repository, StoreIdentity
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree
from snapfs.transfer.restore.rollback import roll_back
from snapfs.transfer.seal.sealer import seal
from tests.fakes.disks.crashes import CrashDisk

pytestmark = pytest.mark.usefixtures("data_path")

IDENTITY = StoreIdentity("0123456789abcdef0123456789abcdef", 7)
Dump = dict[bytes, tuple[object, ...]]


class DeadlyDisk(CrashDisk):
    """The process ends at the act, without a word."""

    def _act(self, label: str, half: Callable[[], object] = lambda: None) -> None:
        if self.at is not None and len(self.labels) == self.at:
            if self.half:
                half()
            os._exit(9)
        self.labels.append(label)


class Life:
    """One process's time with the volume in `folder`."""

    def __init__(self, folder: Path, disk: Disk, boot: str = "boot") -> None:
        live, store = folder / "live", folder / "store"
        if not live.exists():
            live.mkdir()
            Repository.create(str(store), IDENTITY, Disk()).close()
        self.disk = disk
        self.repository = Repository.open(str(store), IDENTITY, disk)
        self.tree = LiveTree(
            str(live), Namespace(str(live / "namespace.db"), disk, itertools.count(10**18).__next__), disk, boot_id=boot
        )

    def write(self, ino: Ino, offset: int, data: bytes) -> None:
        while not self.tree.ready_to_write(ino):
            self.tree.prepare_write(ino)
        self.tree.write(ino, offset, data)

    def make(self, parent: Ino, name: bytes, kind: int = stat.S_IFREG) -> Ino:
        return self.tree.mknod(parent, name, kind | 0o640, 0, 1, 2).ino

    def ino(self, path: bytes) -> Ino:
        ino = ROOT_INO
        for name in path.split(b"/"):
            ino = self.tree.lookup(ino, name).ino
        return ino

    def seal(self) -> int:
        latest = self.repository.latest()
        generation = Generation(latest.generation if latest else 1)
        record = seal(self.tree.cut(), self.repository, latest, generation=generation, threads=1)
        self.tree.tidy()
        self.tree.sync_soon()
        return record.number

    def dump(self) -> Dump:
        found: Dump = {}

        def walk(ino: Ino, path: bytes) -> None:
            attr = self.tree.getattr(ino)
            content: object = None
            if stat.S_ISREG(attr.mode):
                content = self.tree.read(ino, 0, attr.size)
            elif stat.S_ISLNK(attr.mode):
                content = self.tree.readlink(ino)
            found[path] = (ino, attr.mode, attr.nlink, content, tuple(self.tree.listxattr(ino)))
            for _, name, child in self.tree.readdir(ino, 0, 1000) if stat.S_ISDIR(attr.mode) else ():
                walk(child.ino, path + b"/" + name)

        walk(ROOT_INO, b"")
        return found

    def dump_snapshot(self, reference: str) -> Dump:
        tree = SnapshotTree(self.repository, self.repository.find(reference).root)
        found: Dump = {}

        def walk(record: InodeRecord, path: bytes) -> None:
            content: object = None
            if stat.S_ISREG(record.mode):
                content = tree.read(record, 0, record.size)
            elif stat.S_ISLNK(record.mode):
                content = record.target
            xattrs = tuple(name for name, _ in record.xattrs)
            found[path] = (record.ino, record.mode, record.nlink, content, xattrs)
            for entry in tree.entries(record) if stat.S_ISDIR(record.mode) else ():
                child = tree.inode(entry.ino)
                assert child is not None
                walk(child, path + b"/" + entry.name)

        root = tree.inode(ROOT_INO)
        assert root is not None
        walk(root, b"")
        return found

    def check(self) -> None:
        self.tree.check_invariants()
        self.tree.names.check_invariants()
        self.repository.check_invariants()

    def close(self) -> None:
        self.tree.close()
        self.repository.close()


def begin(life: Life) -> None:
    big, folder = life.make(ROOT_INO, b"big"), life.make(ROOT_INO, b"folder", stat.S_IFDIR)
    life.write(big, 0, os.urandom(2 * CHUNK_SIZE) + b"tail")
    life.write(life.make(folder, b"old"), 0, b"old" * 9000)
    life.tree.symlink(folder, b"link", b"../big", 1, 2)
    life.tree.link(big, folder, b"hard")
    life.write(life.make(folder, b"goes"), 0, b"goes")
    life.seal()


def change(life: Life) -> None:
    """Everything that a seal has a case for."""
    folder = life.ino(b"folder")
    life.write(life.ino(b"big"), CHUNK_SIZE + 5, b"changed")
    life.tree.setattr(life.ino(b"folder/old"), size=100)
    life.tree.unlink(folder, b"goes")
    life.write(life.make(folder, b"temporary"), 0, b"new" * 30000)
    life.tree.rename(folder, b"temporary", folder, b"old")
    life.tree.setxattr(life.ino(b"big"), b"user.note", b"x" * 400)
    life.make(folder, b"inner", stat.S_IFDIR)
    life.tree.fsync(life.ino(b"big"))


def seal_while_changing(life: Life, report_line: Callable[[str], None]) -> None:
    """A cut, changes that must be preserved from, the seal, its finish, and another snapshot."""
    change(life)
    report_line("changed")
    cut = life.tree.cut()
    report_line("cut")
    life.write(life.ino(b"big"), 0, b"after the cut")
    life.tree.unlink(life.ino(b"folder"), b"link")
    report_line("changed again")
    seal(cut, life.repository, life.repository.latest(), generation=Generation(1), threads=1)
    report_line("sealed 2")
    life.tree.tidy()
    life.tree.sync_soon()
    report_line(f"sealed {life.seal()}")


def go_back(life: Life, report_line: Callable[[str], None]) -> None:
    change(life)
    report_line("changed")
    report = roll_back(
        life.tree, life.repository, life.repository.find("1"), life.disk, parent=life.repository.latest(),
        generations=(Generation(1), Generation(2)), threads=1,
    )  # fmt: skip
    report_line(f"sealed {report.now}")


Story = Callable[[Life, Callable[[str], None]], None]


def live_and_die(folder: Path, story: Story, at: int | None, half: bool) -> tuple[list[str], int]:
    """Run the story in a process that dies at act `at`; returns what it reported, and how many acts it did."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            disk = DeadlyDisk(at, half=half)
            life = Life(folder, disk)
            disk.labels.clear()
            story(life, lambda text: (os.write(write_end, f"{text}\n".encode()), None)[1])
            os.write(write_end, f"acts {len(disk.labels)}\n".encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        lines = pipe.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, 9), "the story itself failed"
    acts = int(lines.pop().split()[1]) if lines and lines[-1].startswith("acts ") else 0
    return lines, acts


def copy(source: Path, target: Path) -> Path:
    assert os.system(f"cp -a --sparse=always {source} {target}") == 0
    return target


@pytest.fixture
def beginning(tmp_path: Path) -> Path:
    folder = tmp_path / "beginning"
    folder.mkdir()
    life = Life(folder, Disk())
    begin(life)
    life.close()
    return folder


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("half", "boot"), [(False, "boot"), (True, "another")], ids=["before-kill", "halfway-power"])
def test_die_in_a_seal(beginning: Path, tmp_path: Path, half: bool, boot: str) -> None:
    """Each snapshot that was answered is there, each that is there is whole, and nothing is missing from the next."""
    images: dict[str, Dump] = {}
    whole = Life(copy(beginning, tmp_path / "whole"), Disk())
    images["begin"] = whole.dump()
    moments = iter(["changed", "cut", "changed again", "sealed 2", "sealed 3"])
    seal_while_changing(whole, lambda text: images.__setitem__(next(moments), whole.dump()))
    expected = {1: images["begin"], 2: images["changed"], 3: images["changed again"]}
    assert whole.dump_snapshot("2") == expected[2]
    whole.close()

    for at in itertools.count():
        folder = copy(beginning, tmp_path / f"life{at}")
        reported, acts = live_and_die(folder, seal_while_changing, at, half)
        life = Life(folder, Disk(), boot)
        check_after(life, reported, expected)
        if "changed again" in reported:
            assert life.dump() == images["changed again"]
        life.check()
        life.seal()
        latest = life.repository.latest()
        assert latest is not None
        assert life.dump_snapshot(str(latest.number)) == life.dump()
        life.close()
        shutil.rmtree(folder)
        if acts:
            break
    assert at > 20


def check_after(life: Life, reported: list[str], expected: dict[int, Dump]) -> None:
    numbers = [record.number for record in life.repository.snapshots()]
    assert numbers == list(range(1, len(numbers) + 1))
    for line in reported:
        if line.startswith("sealed "):
            assert int(line.split()[1]) in numbers
    for number in numbers:
        assert life.dump_snapshot(str(number)) == expected[number], (number, reported)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("boot", ["boot", "another"])
def test_die_in_a_rollback(beginning: Path, tmp_path: Path, boot: str) -> None:
    """The tree is the present or the target, never a mixture; the present is kept before it is left."""
    whole = Life(copy(beginning, tmp_path / "whole"), Disk())
    target = whole.dump()
    change(whole)
    present = whole.dump()
    whole.close()
    seen = set()
    for at in itertools.count():
        folder = copy(beginning, tmp_path / f"life{at}")
        reported, acts = live_and_die(folder, go_back, at, half=False)
        life = Life(folder, Disk(), boot)
        tree = life.dump()
        numbers = [record.number for record in life.repository.snapshots()]
        if "changed" in reported:
            assert tree in (present, target), (at, reported)
            seen.add(tree == target)
        if 2 in numbers:
            assert life.dump_snapshot("2") == present
        if tree == target and "changed" in reported:
            assert 2 in numbers, "the present was left and not kept"
        if 3 in numbers:
            assert life.dump_snapshot("3") == target
        assert ("sealed 3" in reported) <= (3 in numbers)
        life.check()
        life.seal()
        latest = life.repository.latest()
        assert latest is not None
        assert life.dump_snapshot(str(latest.number)) == tree
        life.close()
        shutil.rmtree(folder)
        if acts:
            break
    assert seen == {False, True}
