"""Power cuts under the live tree: a small ext4 and an xfs, shut down without a flush of their journal, under load.

A child works on a live tree that lies on the filesystem, and notes outside of it what it was promised: for each file
the stamps that an fsync covered and, as a sealer would, the image of each finished cut. Then the filesystem goes down
in the middle of it (the ioctl that xfstests' godown uses), the child is killed, the journal replayed at the next mount,
and the tree opened as on another boot; or on the same one, with nothing but live/life to show that the page cache is
another one (host_life.py). Then:

- no block is older than an fsync that returned, and no name that was synced is missing;
- the next cut, applied to the last finished image, gives exactly what the tree now has.

And one story: a file that was replaced without any fsync, as many editors do it, has its old or its new bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pickle
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, ROOT_INO, Disk, Ino
from snapfs.live.backing.host_life import HostLife
from snapfs.live.content import datapath
from snapfs.live.cut import Cut
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.patience import eventually

if TYPE_CHECKING:
    from tests.fakes.mounts.router_names import RouterNames

pytestmark = pytest.mark.usefixtures("data_path")

SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32) of ext4 and xfs
NO_LOG_FLUSH = 2
SIZES = {"ext4": 128 << 20, "xfs": 320 << 20}
ROUNDS = int(os.environ.get("SNAPFS_POWER_ROUNDS", "3"))
STAMPED_BLOCKS = 40
Images = dict[Ino, bytes]


def open_tree(folder: Path, boot_id: str, same_boot: bool = False) -> LiveTree:
    disk = Disk()
    life = HostLife(str(folder), disk, "the one boot") if same_boot else None
    token = life.token if life is not None else boot_id
    names = Namespace(str(folder / "namespace.db"), disk, boot_id=token)
    return LiveTree(str(folder), names, disk, boot_id=token, host_life=life)


def next_image(cut: Cut, before: Images) -> Images:
    """The snapshot that a sealer makes of `cut`, from the last one and what the cut calls changed."""
    visits = sorted({*cut.changed_files(), *(ino for ino, _ in cut.names.changed())})
    image = {ino: data for ino, data in before.items() if cut.names.inode(ino) is not None}
    for ino in visits:
        inode = cut.names.inode(ino)
        if inode is None or not stat.S_ISREG(inode.mode):
            continue
        file = cut.open_file(ino)
        assert file is not None
        data = bytearray((b"" if file.whole else image[ino])[: file.size].ljust(file.size, b"\0"))
        for chunk, _ in file.dirty_chunks():
            fresh = file.read_chunk(chunk)
            data[chunk * CHUNK_SIZE : chunk * CHUNK_SIZE + len(fresh)] = fresh
        image[ino] = bytes(data)
        file.close()
    return image


def router_names(tree: LiveTree) -> RouterNames | None:
    """Who changes names, where C may."""
    if tree.native is None or not datapath.CHANGES_NAMES:
        return None
    from tests.fakes.mounts.router_names import RouterNames

    return RouterNames(tree)


class Worker:
    """The child: works until the disk goes away."""

    def __init__(self, folder: Path, notes: Path, seed: int, same_boot: bool = False) -> None:
        self.rng = random.Random(seed)
        self.notes = notes
        self.acks = os.open(notes / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.note("begin")
        self.tree = open_tree(folder, f"boot-{seed}", same_boot)
        self.router = router_names(self.tree)
        self.image: Images = pickle.loads((notes / "image").read_bytes()) if (notes / "image").exists() else {}
        self.names: dict[bytes, Ino] = {name: attr.ino for _, name, attr in self.tree.readdir(ROOT_INO, 0, 10_000)}
        self.stamps: dict[Ino, dict[int, int]] = {}
        self.stamp = seed * 1_000_000

    def run(self) -> None:
        while True:
            step = self.rng.choices(
                [self.stamped, self.random_write, self.truncate, self.create, self.remove, self.rename, self.cut,
                 self.sync, self.house],
                [30, 10, 4, 5, 2, 2, 1.5, 12, 2],
            )[0]  # fmt: skip
            step()

    def note(self, *fields: object) -> None:
        os.write(self.acks, (" ".join(map(str, fields)) + "\n").encode())

    def file_of(self, kind: bytes) -> Ino | None:
        names = [name for name in self.names if name.startswith(kind)]
        return self.names[self.rng.choice(names)] if names else None

    def stamped(self) -> None:
        """A block of a stamped file gets the next number; such files are only written and synced."""
        ino = self.file_of(b"s")
        if ino is not None:
            block = self.rng.randrange(STAMPED_BLOCKS)
            self.stamp += 1
            self.tree.write(ino, block * BLOCK_SIZE, struct.pack("<Q", self.stamp) * (BLOCK_SIZE // 8))
            self.stamps.setdefault(ino, {})[block] = self.stamp

    def sync(self) -> None:
        ino = self.file_of(b"s")
        if ino is not None:
            promised = dict(self.stamps.get(ino, {}))
            self.tree.fsync(ino)
            self.note("fsync", ino, *(f"{block}={stamp}" for block, stamp in promised.items()))

    def random_write(self) -> None:
        ino = self.file_of(b"r")
        if ino is not None:
            self.tree.write(ino, self.rng.randrange(400_000), self.rng.randbytes(self.rng.choice([10, 4096, 30_000])))
            if self.rng.random() < 0.2:
                self.tree.fsync(ino)

    def truncate(self) -> None:
        ino = self.file_of(b"r")
        if ino is not None:
            self.tree.setattr(ino, size=self.rng.choice([0, self.rng.randrange(500_000)]))

    def create(self) -> None:
        name = self.rng.choice([b"s", b"r"]) + str(self.rng.randrange(12)).encode()
        if name not in self.names:
            mode = stat.S_IFREG | 0o600
            if self.router is not None:
                self.names[name] = self.router.mknod(ROOT_INO, name, mode)
                assert self.router.answers, "C makes no change"
            else:
                self.names[name] = self.tree.mknod(ROOT_INO, name, mode, 0, 0, 0).ino

    def remove(self) -> None:
        name = b"r" + str(self.rng.randrange(12)).encode()
        if name in self.names:
            (self.router or self.tree).unlink(ROOT_INO, name)
            self.tree.forget(self.names.pop(name))

    def rename(self) -> None:
        names = [name for name in self.names if name.startswith(b"r")]
        if len(names) > 1:
            old, new = self.rng.sample(names, 2)
            (self.router or self.tree).rename(ROOT_INO, old, ROOT_INO, new)
            self.tree.forget(self.names[new])
            self.names[new] = self.names.pop(old)

    def house(self) -> None:
        self.tree.tidy()
        if self.rng.random() < 0.5:
            self.tree.sync_soon()

    def cut(self) -> None:
        cut = self.tree.cut()
        for _ in range(self.rng.randrange(6)):
            self.rng.choice([self.stamped, self.random_write, self.truncate])()
        self.image = next_image(cut, self.image)
        new = self.notes / "image.new"
        new.write_bytes(pickle.dumps(self.image))
        new.rename(self.notes / "image")  # the commit point of the snapshot
        cut.finish(True)
        self.note("cut")


def work(folder: Path, notes: Path, seed: int, same_boot: bool) -> None:
    worker = Worker(folder, notes, seed, same_boot)
    print("ready", flush=True)
    try:
        worker.run()
    except OSError as failure:
        if failure.errno not in (errno.EIO, errno.EROFS, errno.ESHUTDOWN):
            raise
        print("gone", flush=True)
        signal.pause()


OLD, NEW = b"old " * 25_000, b"new " * 25_000


def replace(folder: Path) -> None:
    """Replace one file by a rename and one by a truncation, without an fsync; then sync something else."""
    tree = open_tree(folder, "boot-1")
    renamed, other, emptied, apart = (
        tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino for name in (b"renamed", b"new", b"emptied", b"x")
    )
    for ino in (renamed, emptied):
        tree.write(ino, 0, OLD)
        tree.fsync(ino)
    tree.write(other, 0, NEW)
    tree.rename(ROOT_INO, b"new", ROOT_INO, b"renamed")
    tree.open(emptied, True)
    tree.setattr(emptied, size=0)
    tree.write(emptied, 0, NEW)
    tree.release(emptied, True)
    tree.setattr(apart, mode=0o640)
    tree.fsync(apart)
    tree.tidy()
    tree.sync_soon()
    tree.write(apart, 0, b"something that the disk must know of")
    tree.fsync(apart)
    print("ready", flush=True)
    signal.pause()


# -- the parent


@pytest.fixture(params=["ext4", "xfs"])
def disk_image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(image, mountpoint) of an unmounted filesystem."""
    kind = request.param
    if os.geteuid() or not shutil.which(f"mkfs.{kind}") or not Path("/dev/loop-control").exists():
        pytest.skip(f"needs root, loop devices and mkfs.{kind}")
    image, point = tmp_path / "disk", tmp_path / "mnt"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZES[kind])
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=False).returncode:
        pytest.skip(f"cannot mount {kind} here")
    subprocess.run(["umount", str(point)], check=True)
    yield image, point
    subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)


@contextlib.contextmanager
def mounted(image: Path, point: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(point)], check=True)
        find = ["losetup", "-j", str(image)]  # or the next mount would find the filesystem that was shut down
        eventually(lambda: not subprocess.run(find, check=True, capture_output=True).stdout, "the loop device's end")


def shut_down(point: Path) -> None:
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("<I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


def work_until_power_cut(point: Path, notes: Path, seed: int, same_boot: bool) -> None:
    command = [sys.executable, __file__, str(point / "live"), str(notes), str(seed), str(int(same_boot))]
    found = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=found) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(random.Random(seed).uniform(0.1, 1.2))
            assert child.poll() is None
            with (notes / "acks").open("a") as acks:
                acks.write("power\n")
            shut_down(point)
        finally:
            child.kill()


def check_promises(tree: LiveTree, notes: Path) -> None:
    """What was answered before the power went. An fsync under way while ext4 is shut down may return 0 without its
    extents (jbd2_complete_transaction asks no aborted journal); where power is lost nobody hears of that answer."""
    promised: dict[Ino, dict[int, int]] = {}
    lives = True
    for line in (notes / "acks").read_text().splitlines():
        kind, *fields = line.split()
        lives = kind != "power" and (lives or kind == "begin")
        if kind == "fsync" and lives:
            known = promised.setdefault(Ino(int(fields[0])), {})
            known.update({int(block): int(stamp) for block, stamp in (field.split("=") for field in fields[1:])})
    named = {attr.ino for _, _, attr in tree.readdir(ROOT_INO, 0, 10_000)}
    for ino, blocks in promised.items():
        assert ino in named, f"the name of inode {ino} was synced and is gone"
        for block, stamp in blocks.items():
            data = tree.read(ino, block * BLOCK_SIZE, 8)
            assert data
            assert struct.unpack("<Q", data)[0] >= stamp, (ino, block)


def check_next_cut(tree: LiveTree, notes: Path) -> Images:
    before: Images = pickle.loads((notes / "image").read_bytes()) if (notes / "image").exists() else {}
    cut = tree.cut()
    image = next_image(cut, before)
    cut.finish(True)
    for _, name, attr in tree.readdir(ROOT_INO, 0, 10_000):
        assert image[attr.ino] == tree.read(attr.ino, 0, attr.size), name
    return image


@pytest.mark.parametrize("same_boot", [False, True], ids=["another boot", "same boot"])
def test_nothing_synced_is_lost_and_no_change_overlooked(
    disk_image: tuple[Path, Path], tmp_path: Path, same_boot: bool
) -> None:
    image_file, point = disk_image
    notes = tmp_path / "notes"
    notes.mkdir()
    start = int(os.environ.get("SNAPFS_POWER_SEED", "1"))
    for seed in range(start, start + ROUNDS):
        with mounted(image_file, point):
            (point / "live").mkdir(exist_ok=True)
            subprocess.run(["sync", "-f", str(point)], check=True)  # sync(2) would wait for all other tests
            work_until_power_cut(point, notes, seed, same_boot)
        with mounted(image_file, point):
            tree = open_tree(point / "live", f"after-{seed}", same_boot)
            tree.check_invariants()
            tree.names.check_invariants()
            check_promises(tree, notes)
            image = check_next_cut(tree, notes)
            (notes / "image").write_bytes(pickle.dumps(image))
            tree.close()


def test_a_file_that_was_replaced_without_fsync_is_the_old_or_the_new_one(disk_image: tuple[Path, Path]) -> None:
    image_file, point = disk_image
    with mounted(image_file, point):
        (point / "live").mkdir()
        subprocess.run(["sync", "-f", str(point)], check=True)  # sync(2) would wait for all other tests
        command = [sys.executable, __file__, "replace", str(point / "live")]
        found = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=found) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            shut_down(point)
            child.kill()
    with mounted(image_file, point):
        tree = open_tree(point / "live", "boot-2")
        found = {name: attr.ino for _, name, attr in tree.readdir(ROOT_INO, 0, 100)}
        bytes_of = {name: tree.read(found[name], 0, 200_000) or b"" for name in (b"renamed", b"emptied")}
        tree.close()
    assert {name: data for name, data in bytes_of.items() if data not in (OLD, NEW)} == {}


if __name__ == "__main__" and sys.argv[1] == "replace":
    replace(Path(sys.argv[2]))
elif __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
