"""Threads that change and sync the files of one live tree, on a disk that loses power: no fsync that returned is lost.

Each thread changes files of its own, and syncs those and the others', so that a sync, or its finding that there is
nothing to flush, meets changes that are under way. One truncates, and one keeps house, which syncs the whole host
filesystem. What a block had, and from which of its contents on an fsync covered it, is noted with the length of the
disk's log; the disk is cut at many points afterwards (test_power_cut_device.py has the disk and the filesystems; ext4
with data=writeback is left out, since it may give a block that was written and not synced any bytes).

SNAPFS_POWER_SEED, _SECONDS and _CUTS (the same prefix) as there.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest

from snapfs.base.blocks import BLOCK_SIZE, ROOT_INO, Ino
from snapfs.live.content import datapath
from snapfs.live.content.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from snapfs.live.tree import LiveTree
from tests.crash import test_power_cut_device as device
from tests.crash.test_live_power_cut import open_tree
from tests.fakes.disks import recorded_disk

host = device.host
"""The fixture of the filesystems."""

pytestmark = pytest.mark.skipif(bool(datapath.why_not_native()), reason=datapath.why_not_native() or "built")

THREADS, FILES, BLOCKS = 3, 3, 24
STAMP = struct.Struct("<Q")
SECTOR = 512
ZEROS = 0
"""The stamp of a block that is a hole, or beyond the end."""

Block = tuple[Ino, int]


class Changer:
    """One thread with its files. Each block of a file has one stamp, repeated."""

    def __init__(self, tree: LiveTree, notes: Path, log: Path, number: int, seed: int) -> None:
        self.tree, self.log = tree, log
        self.rng = random.Random(seed * 1000 + number)
        self.notes = os.open(notes / f"thread-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        names = [b"file-%d-%d" % (number, each) for each in range(FILES)]
        self.files = [tree.mknod(ROOT_INO, name, stat.S_IFREG | 0o600, 0, 0, 0).ino for name in names]
        self.versions: dict[Block, list[int]] = {(ino, block): [ZEROS] for ino in self.files for block in range(BLOCKS)}
        self.stamp = number
        for ino in self.files:
            tree.fsync(ino)
            self.promise(ino, self.covered(ino))

    def covered(self, ino: Ino) -> list[int]:
        """How many contents each block has had."""
        return [len(self.versions[ino, block]) - 1 for block in range(BLOCKS)]

    def promise(self, ino: Ino, covered: list[int]) -> None:
        self.note("fsync", ino, os.stat(self.log).st_size, *covered)

    def note(self, *fields: object) -> None:
        os.write(self.notes, (" ".join(map(str, fields)) + "\n").encode())

    def will_be(self, ino: Ino, first: int, stamps: list[int]) -> None:
        """Before the change."""
        for block, stamp in enumerate(stamps, first):
            self.versions[ino, block].append(stamp)
            self.note("block", ino, block, stamp)

    def run(self, others: list[Ino]) -> None:
        while True:
            ino = self.rng.choice(self.files)
            acts = [self.write, self.write, self.write, self.zero, self.copy, self.sync, self.sync]
            self.rng.choice(acts)(ino)
            if self.rng.random() < 0.2:
                self.tree.fsync(self.rng.choice(others), self.rng.random() < 0.3)

    def write(self, ino: Ino) -> None:
        first = self.rng.randrange(BLOCKS)
        count = min(self.rng.choice([1, 1, 3]), BLOCKS - first)
        self.stamp += THREADS + 1
        self.will_be(ino, first, [self.stamp] * count)
        self.tree.write(ino, first * BLOCK_SIZE, block_of(self.stamp) * count)

    def zero(self, ino: Ino) -> None:
        first = self.rng.randrange(BLOCKS - 1)
        self.will_be(ino, first, [ZEROS] * 2)
        mode = self.rng.choice([PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])
        self.tree.fallocate(ino, mode, first * BLOCK_SIZE, 2 * BLOCK_SIZE)

    def copy(self, ino: Ino) -> None:
        source = self.rng.choice(self.files)
        first, target = self.rng.randrange(BLOCKS), self.rng.randrange(BLOCKS)
        stamp = self.versions[source, first][-1]
        if source != ino and stamp != ZEROS:
            self.will_be(ino, target, [stamp])
            assert self.tree.copy_range(source, first * BLOCK_SIZE, ino, target * BLOCK_SIZE, BLOCK_SIZE) == BLOCK_SIZE

    def truncate(self, ino: Ino) -> None:
        """In the tree's own thread alone."""
        first = self.rng.randrange(BLOCKS)
        self.will_be(ino, first, [ZEROS] * (BLOCKS - first))
        self.tree.setattr(ino, size=first * BLOCK_SIZE)

    def sync(self, ino: Ino) -> None:
        covered = self.covered(ino)
        self.tree.fsync(ino, self.rng.random() < 0.3)
        self.promise(ino, covered)


def block_of(stamp: int) -> bytes:
    return STAMP.pack(stamp) * (BLOCK_SIZE // STAMP.size)


def work(folder: Path, notes: Path, seed: int, log: Path) -> None:
    tree = open_tree(folder, f"boot-{seed}")
    changers = [Changer(tree, notes, log, number, seed) for number in range(THREADS + 1)]
    files = [ino for changer in changers for ino in changer.files]
    for changer in changers[1:]:
        threading.Thread(target=changer.run, args=(files,), daemon=True).start()

    def keep_house() -> None:
        while True:
            tree.sync_soon()
            tree._backing.sync_all("test:all")
            time.sleep(0.02)

    threading.Thread(target=keep_house, daemon=True).start()
    print("ready", flush=True)
    owner = changers[0]
    while True:
        ino = owner.rng.choice(owner.files)
        owner.rng.choice([owner.truncate, owner.write, owner.write, owner.sync, owner.sync])(ino)
        tree.tidy()
        if owner.rng.random() < 0.05:
            tree.cut().finish(True)


# -- the parent


def read_notes(notes: Path, upto: int) -> tuple[dict[Block, list[int]], dict[Ino, list[int]]]:
    """All that each block was to have, and which of that an fsync had covered when the log was so long."""
    versions: dict[Block, list[int]] = defaultdict(lambda: [ZEROS])
    covered: dict[Ino, list[int]] = {}
    for path in notes.glob("thread-*"):
        for line in path.read_text().splitlines():
            kind, ino, *numbers = line.split()
            if kind == "block":
                versions[Ino(int(ino)), int(numbers[0])].append(int(numbers[1]))
            elif int(numbers[0]) <= upto:
                covered[Ino(int(ino))] = [int(number) for number in numbers[1:]]
    return versions, covered


def check(tree: LiveTree, notes: Path, upto: int) -> None:
    tree.check_invariants()
    versions, covered = read_notes(notes, upto)
    assert len(covered) == (THREADS + 1) * FILES
    for ino, first_versions in covered.items():
        for block, first in enumerate(first_versions):
            allowed = set(versions[ino, block][first:])
            data = (tree.read(ino, block * BLOCK_SIZE, BLOCK_SIZE) or b"").ljust(BLOCK_SIZE, b"\0")
            for start in range(0, BLOCK_SIZE, SECTOR):  # a block that was not synced again may be torn
                (found,) = STAMP.unpack_from(data, start)
                assert found in allowed, (ino, block, first)
                is_whole = data[start : start + SECTOR] == block_of(found)[:SECTOR]
                assert is_whole, (ino, block, found)


@pytest.mark.parametrize("host", ["ext4", "xfs", "btrfs"], indirect=True)
def test_no_fsync_is_lost_among_threads(host: tuple[Path, str], tmp_path: Path) -> None:
    base, options = host
    notes, point, log = tmp_path / "notes", tmp_path / "mnt", tmp_path / "log"
    notes.mkdir()
    ready, end = record(base, options, tmp_path, notes, log)
    rng = random.Random(device.SEED)
    for number in range(device.CUTS):
        policy, upto = recorded_disk.POLICIES[number % len(recorded_disk.POLICIES)], rng.randrange(ready, end + 1)
        image = device.copied(base, tmp_path / "crashed")
        recorded_disk.crash_image(log, upto, policy, rng, image)
        with device.mounted(image, point, options):
            tree = open_tree(point / "live", f"after-{number}")
            try:
                check(tree, notes, upto)
            except BaseException as error:
                error.add_note(f"seed {device.SEED}, cut {number}: {policy} at {upto} of {end}")
                raise
            finally:
                tree.close(clean=False)


def record(base: Path, options: str, tmp_path: Path, notes: Path, log: Path) -> tuple[int, int]:
    """Let the threads work; where the log was when they began, and when they were stopped."""
    point, disk = tmp_path / "mnt", device.copied(base, tmp_path / "disk")
    with device.recorded(disk, log, tmp_path / "device") as served, device.mounted(served, point, options):
        (point / "live").mkdir()
        subprocess.run(["sync", "-f", str(point)], check=True)  # sync(2) would wait for all other tests
        command = [sys.executable, __file__, str(point / "live"), str(notes), str(device.SEED), str(log)]
        environment = {**os.environ, "PYTHONPATH": str(device.ROOT), "SNAPFS_DATA_PATH": "native"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
                ready = os.stat(log).st_size
                time.sleep(device.SECONDS)
                assert child.poll() is None
                child.send_signal(signal.SIGSTOP)
                return ready, os.stat(log).st_size
            finally:
                child.kill()


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
